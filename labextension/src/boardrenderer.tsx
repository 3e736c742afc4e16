/** The output of `%mlops tensorboard`: it opens a tab once, when it was asked for; later there is a button. */
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { ReactWidget } from '@jupyterlab/ui-components';
import { nullTranslator, TranslationBundle } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import React from 'react';

import { chartIcon } from './icons';
import { CommandIDs } from './ids';
import { BOARD_MIME, IBoard, isFresh, readBoard } from './tensorboard';

export namespace BoardRenderer {
  export interface IOptions {
    execute: (command: string, args: ReadonlyPartialJSONObject) => void;
    translator?: IRenderMime.ITranslator | null;
  }
}

/** Moments at which those that were opened had been asked for: a second view of an output opens none. */
const opened = new Set<number>();

export class BoardRenderer extends ReactWidget implements IRenderMime.IRenderer {
  constructor(private readonly _options: BoardRenderer.IOptions) {
    super();
    this.addClass('jp-Mlops-renderer');
    this._trans = (_options.translator ?? nullTranslator).load(
      'jupyter_mlops'
    ) as TranslationBundle;
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this._board = readBoard(model.data[BOARD_MIME]);
    const board = this._board;
    if (board && isFresh(board, Date.now()) && !opened.has(board.askedAt)) {
      opened.add(board.askedAt);
      this._open();
    }
    this.update();
  }

  protected render(): JSX.Element {
    const board = this._board;
    return board ? (
      <div className="jp-Mlops-shell" data-testid="mlops-board">
        <button
          type="button"
          className="jp-Mlops-button"
          data-testid="mlops-board-open"
          onClick={() => this._open()}
        >
          <chartIcon.react tag="span" className="jp-Mlops-icon" />
          {this._trans.__('Open TensorBoard')}
        </button>
        <span className="jp-Mlops-muted">{board.names}</span>
      </div>
    ) : (
      <></>
    );
  }

  private _open(): void {
    const board = this._board;
    if (board) {
      const { sources, names, workspace } = board;
      this._options.execute(CommandIDs.openTensorboard, { name: sources, title: names, workspace });
    }
  }

  private readonly _trans: TranslationBundle;
  private _board: IBoard | null = null;
}

export function boardFactory(options: BoardRenderer.IOptions): IRenderMime.IRendererFactory {
  return {
    safe: true,
    mimeTypes: [BOARD_MIME],
    defaultRank: 10,
    createRenderer: given =>
      new BoardRenderer({ ...options, translator: given.translator ?? options.translator })
  };
}
