/** Outputs that open a tab once, when it was asked for; later there is a button. */
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { LabIcon, ReactWidget } from '@jupyterlab/ui-components';
import { nullTranslator, TranslationBundle } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import React from 'react';

/** Milliseconds after it was asked for in a cell within which it opens by itself. */
const FRESH = 10_000;

/** What an output says of its tab. */
export interface IOpening {
  /** When it was asked for, in milliseconds since the epoch. */
  askedAt: number;
}

export interface IOpener<T extends IOpening> {
  mimeType: string;
  /** What a notebook holds; null when it is none of ours. */
  read: (data: unknown) => T | null;
  command: string;
  args: (value: T) => ReadonlyPartialJSONObject;
  icon: LabIcon;
  /** Of the button. */
  label: (trans: TranslationBundle) => string;
  /** What stands beside the button. */
  detail: (value: T) => JSX.Element;
  testId: string;
}

export namespace OpenRenderer {
  export interface IOptions {
    execute: (command: string, args: ReadonlyPartialJSONObject) => void;
    translator?: IRenderMime.ITranslator | null;
  }
}

/** Whether it was asked for just now, in the cell that shows it. */
export function isFresh(value: IOpening, now: number): boolean {
  return Math.abs(now - value.askedAt) < FRESH;
}

/** Those that were opened: a second view of an output opens none. */
const opened = new Set<string>();

export class OpenRenderer<T extends IOpening> extends ReactWidget implements IRenderMime.IRenderer {
  constructor(
    private readonly _opener: IOpener<T>,
    private readonly _options: OpenRenderer.IOptions
  ) {
    super();
    this.addClass('jp-Mlops-renderer');
    this._trans = (_options.translator ?? nullTranslator).load(
      'jupyter_mlops'
    ) as TranslationBundle;
  }

  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    const { mimeType, read } = this._opener;
    const value = (this._value = read(model.data[mimeType]));
    const key = value && `${mimeType} ${value.askedAt}`;
    if (value && key && isFresh(value, Date.now()) && !opened.has(key)) {
      opened.add(key);
      this._open();
    }
    this.update();
  }

  protected render(): JSX.Element {
    const value = this._value;
    const { detail, icon: Icon, label, testId } = this._opener;
    return value ? (
      <div className="jp-Mlops-shell" data-testid={testId}>
        <button
          type="button"
          className="jp-Mlops-button"
          data-testid={`${testId}-open`}
          onClick={() => this._open()}
        >
          <Icon.react tag="span" className="jp-Mlops-icon" />
          {label(this._trans)}
        </button>
        {detail(value)}
      </div>
    ) : (
      <></>
    );
  }

  private _open(): void {
    if (this._value) {
      this._options.execute(this._opener.command, this._opener.args(this._value));
    }
  }

  private readonly _trans: TranslationBundle;
  private _value: T | null = null;
}

/** Renders outputs of one kind. */
export function openFactory<T extends IOpening>(
  opener: IOpener<T>,
  options: OpenRenderer.IOptions
): IRenderMime.IRendererFactory {
  return {
    safe: true,
    mimeTypes: [opener.mimeType],
    defaultRank: 10,
    createRenderer: given =>
      new OpenRenderer(opener, { ...options, translator: given.translator ?? options.translator })
  };
}
