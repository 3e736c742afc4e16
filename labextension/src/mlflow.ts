/** The MLflow UI in a tab, at the page of an experiment, a run or a model. */
import { MainAreaWidget } from '@jupyterlab/apputils';
import { IFrame } from '@jupyterlab/ui-components';

import type { IApi } from './api';
import { mlopsIcon } from './icons';

/** A name, so it is the same in all languages. */
const PRODUCT = 'MLflow';

/** Its assistant panel would cover the page on the first visit. */
const ASSISTANT_KEY = 'mlflow.assistant.fab.autoOpenedOnFirstLoad_v1';
/** Which half of the UI comes first; a later choice of the user stays. */
const WORKFLOW_KEY = 'mlflow.workflowType_v1';

const DARK_KEY = '_mlflow_dark_mode_toggle_enabled';

/** How long a tab waits for MLflow to come up before it is shown anyway; milliseconds. */
const PATIENCE = 30_000;
const INTERVAL = 1000;

/** Routes inside the UI. */
export const route = {
  experiments: () => '/experiments',
  run: (experiment: string, run: string) =>
    `/experiments/${encodeURIComponent(experiment)}/runs/${encodeURIComponent(run)}`,
  model: (name: string) => `/models/${encodeURIComponent(name)}`
};

export class MlflowFrame extends IFrame {
  /**
   * @param _api - knows where the UI is
   * @param _page - the page to show first, once {@link open} is called
   */
  constructor(
    private readonly _api: IApi,
    private _page: string
  ) {
    super({
      // MLflow refuses writes from an opaque origin, so it must share ours.
      sandbox: [
        'allow-same-origin',
        'allow-scripts',
        'allow-forms',
        'allow-popups',
        'allow-downloads'
      ],
      referrerPolicy: 'same-origin'
    });
    this.addClass('jp-Mlops-frame');
    this.node.dataset.testid = 'mlops-mlflow';
    this.node.querySelector('iframe')?.setAttribute('title', PRODUCT);
  }

  /** Whether a page was asked for since the tab was made. */
  get isOpen(): boolean {
    return this._isOpen;
  }

  /** The page that was last asked for. */
  get page(): string {
    return this._page;
  }

  open(page: string): void {
    try {
      localStorage.setItem(ASSISTANT_KEY, 'true');
      if (localStorage.getItem(WORKFLOW_KEY) === null) {
        localStorage.setItem(WORKFLOW_KEY, '"machine_learning"');
      }
      if (!this._isOpen) {
        localStorage.setItem(DARK_KEY, String(document.body.dataset.jpThemeLight === 'false'));
      }
    } catch {
      // Storage may be forbidden; then the UI starts as it likes.
    }
    this._page = page;
    this._isOpen = true;
    const url = this._api.mlflowUrl(page);
    const frame = this.node.querySelector('iframe');
    if (frame?.contentWindow && frame.src) {
      // The attribute may still hold an old page while the user has gone on: go there in any case.
      frame.contentWindow.location.replace(url);
    } else {
      this.url = url;
    }
  }

  private _isOpen = false;
}

/** Resolves when MLflow answers, or after some time: then its own page tells what is wrong. */
async function whenReady(api: IApi, wanted: () => boolean): Promise<void> {
  const end = Date.now() + PATIENCE;
  while (Date.now() < end && wanted()) {
    try {
      const { mlflow } = await api.workspace();
      if (mlflow.state === 'ready' || mlflow.state === 'failed') {
        return;
      }
    } catch {
      // The control plane may be starting.
    }
    await new Promise(resolve => setTimeout(resolve, INTERVAL));
  }
}

export function createMlflowWidget(api: IApi, page: string): MainAreaWidget<MlflowFrame> {
  const content = new MlflowFrame(api, page);
  const reveal = whenReady(api, () => !content.isDisposed).then(() => {
    if (!content.isDisposed && !content.isOpen) {
      content.open(page);
    }
  });
  const widget = new MainAreaWidget({ content, reveal });
  widget.id = 'jupyter-mlops-mlflow';
  widget.title.label = PRODUCT;
  widget.title.icon = mlopsIcon;
  widget.title.closable = true;
  return widget;
}
