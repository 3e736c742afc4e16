/** The output of `%mlops shell`: it opens a terminal once, when it was asked for; later there is a button. */
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { ReactWidget, terminalIcon } from '@jupyterlab/ui-components';
import { nullTranslator, TranslationBundle } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import React from 'react';

import { CommandIDs } from './ids';
import { IShell, isFresh, readShell, SHELL_MIME, shellLine } from './shell';

export namespace ShellRenderer {
  export interface IOptions {
    execute: (command: string, args: ReadonlyPartialJSONObject) => void;
    translator?: IRenderMime.ITranslator | null;
  }
}

/** Moments at which shells that were opened had been asked for: a second view of an output opens none. */
const opened = new Set<number>();

export class ShellRenderer extends ReactWidget implements IRenderMime.IRenderer {
  constructor(private readonly _options: ShellRenderer.IOptions) {
    super();
    this.addClass('jp-Mlops-renderer');
    this._trans = (_options.translator ?? nullTranslator).load(
      'jupyter_mlops'
    ) as TranslationBundle;
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this._shell = readShell(model.data[SHELL_MIME]);
    const shell = this._shell;
    if (shell && isFresh(shell, Date.now()) && !opened.has(shell.askedAt)) {
      opened.add(shell.askedAt);
      this._open();
    }
    this.update();
  }

  protected render(): JSX.Element {
    const shell = this._shell;
    return shell ? (
      <div className="jp-Mlops-shell" data-testid="mlops-shell">
        <button
          type="button"
          className="jp-Mlops-button"
          data-testid="mlops-shell-open"
          onClick={() => this._open()}
        >
          <terminalIcon.react tag="span" className="jp-Mlops-icon" />
          {this._trans.__('Open a shell')}
        </button>
        <code>{shellLine(shell.name, shell.rank, shell.workspace)}</code>
      </div>
    ) : (
      <></>
    );
  }

  private _open(): void {
    const shell = this._shell;
    if (shell) {
      const { name, rank, workspace } = shell;
      this._options.execute(CommandIDs.openShell, { name, rank: String(rank), workspace });
    }
  }

  private readonly _trans: TranslationBundle;
  private _shell: IShell | null = null;
}

export function shellFactory(options: ShellRenderer.IOptions): IRenderMime.IRendererFactory {
  return {
    safe: true,
    mimeTypes: [SHELL_MIME],
    defaultRank: 10,
    createRenderer: given =>
      new ShellRenderer({ ...options, translator: given.translator ?? options.translator })
  };
}
