/** TensorBoard in a tab, over what jobs, runs and folders hold. */
import { MainAreaWidget } from '@jupyterlab/apputils';
import { IFrame } from '@jupyterlab/ui-components';

import { chartIcon } from './icons';

export const BOARD_MIME = 'application/vnd.jupyter-mlops.tensorboard+json';

/** A name, so it is the same in all languages. */
const PRODUCT = 'TensorBoard';

/** Names of jobs, ids of runs, and what stands for folders. */
const SOURCES = /^[a-z0-9~-]{1,64}(\+[a-z0-9~-]{1,64}){0,19}$/;
const WORKSPACE = /^[A-Za-z0-9._-]{1,64}$/;

/** Where TensorBoard keeps its settings, and those that suit a job that runs: by itself it looks once. */
const SETTINGS_KEY = '_tb_global_settings';
const SETTINGS = { autoReload: true, autoReloadPeriodInMs: 15_000 };

export interface IBoard {
  workspace: string;
  /** Joined by `+`, as in its address. */
  sources: string;
  names: string;
  askedAt: number;
}

/** What a notebook holds; null when it is none of ours. */
export function readBoard(data: unknown): IBoard | null {
  if (typeof data !== 'object' || data === null) {
    return null;
  }
  const { version, workspace, names, path, asked_at } = data as Record<string, unknown>;
  const found = typeof path === 'string' ? /^tensorboard\/([^/]*)\/$/.exec(path) : null;
  const valid =
    version === 1 &&
    found !== null &&
    SOURCES.test(found[1]) &&
    typeof names === 'string' &&
    typeof workspace === 'string' &&
    WORKSPACE.test(workspace);
  return valid
    ? {
        workspace,
        sources: found[1],
        names: names.slice(0, 200),
        askedAt: typeof asked_at === 'number' ? asked_at : 0
      }
    : null;
}

export class TensorboardFrame extends IFrame {
  /**
   * @param sources - what it shows, joined by `+`
   * @param workspace - the workspace that they are of
   */
  constructor(
    readonly sources: string,
    readonly workspace: string
  ) {
    super({
      // Its requests carry Jupyter's cookie, so it must share our origin.
      sandbox: ['allow-same-origin', 'allow-scripts', 'allow-forms', 'allow-downloads'],
      referrerPolicy: 'same-origin'
    });
    this.addClass('jp-Mlops-frame');
    this.node.dataset.testid = 'mlops-tensorboard';
    this.node.querySelector('iframe')?.setAttribute('title', PRODUCT);
  }

  /** Show it, and have it renew itself; a theme that is dark now is dark there. */
  open(url: string): void {
    try {
      // What the user has set there stays.
      if (localStorage.getItem(SETTINGS_KEY) === null) {
        localStorage.setItem(SETTINGS_KEY, JSON.stringify(SETTINGS));
      }
    } catch {
      // Storage may be forbidden; then there is its own button.
    }
    const dark = document.body.dataset.jpThemeLight === 'false';
    this.url = dark ? `${url}?darkMode=true` : url;
  }
}

/** A tab with it, which appears when `url` is known. */
export function createTensorboardWidget(
  content: TensorboardFrame,
  names: string,
  url: Promise<string>
): MainAreaWidget<TensorboardFrame> {
  const reveal = url.then(
    found => {
      if (!content.isDisposed) {
        content.open(found);
      }
    },
    () => undefined // whoever asked is told, and closes the tab
  );
  const widget = new MainAreaWidget({ content, reveal });
  widget.id = `jupyter-mlops-tensorboard-${content.workspace}-${content.sources}`;
  widget.title.label = `${PRODUCT}: ${names}`;
  widget.title.icon = chartIcon;
  widget.title.closable = true;
  return widget;
}
