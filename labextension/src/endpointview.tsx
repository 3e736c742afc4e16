/** An endpoint in a tab of its own. */
import { MainAreaWidget } from '@jupyterlab/apputils';
import { ReactWidget } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { Message } from '@lumino/messaging';
import { ISignal, Signal } from '@lumino/signaling';
import React from 'react';

import { ErrorBoundary } from './components/common';
import { EndpointPage, EndpointPanel, IEndpointLook, PAGES } from './components/endpointview';
import { mlopsIcon } from './icons';
import { LiveEndpoint } from './liveendpoint';
import type { IMlops } from './tokens';

export class EndpointView extends ReactWidget {
  constructor(
    readonly name: string,
    private readonly _mlops: IMlops,
    private readonly _trans: TranslationBundle,
    private readonly _run: (command: string, args: ReadonlyPartialJSONObject) => Promise<boolean>
  ) {
    super();
    this.addClass('jp-Mlops-endpointView');
    this._live = new LiveEndpoint({
      api: _mlops.api,
      name,
      isVisible: this._isSeen,
      changes: _mlops.model.changes
    });
  }

  /** Emitted when another page of it is looked at. */
  get looked(): ISignal<this, void> {
    return this._looked;
  }

  get page(): EndpointPage {
    return this._look.page;
  }

  /** Show a page, and there the log of a deployment where one is named. */
  look(page: string, deployment = ''): void {
    const known = PAGES.find(one => one === page);
    this._onLook({ ...(known ? { page: known } : {}), ...(deployment ? { deployment } : {}) });
  }

  /** Read it again. */
  reload(): void {
    this._live.refresh();
  }

  dispose(): void {
    if (!this.isDisposed) {
      this._live.dispose();
      super.dispose();
    }
  }

  protected render(): JSX.Element {
    return (
      <ErrorBoundary trans={this._trans}>
        <EndpointPanel
          live={this._live}
          trans={this._trans}
          readonly={this._mlops.model.readonly}
          run={this._run}
          look={this._look}
          onLook={this._onLook}
          isVisible={this._isSeen}
        />
      </ErrorBoundary>
    );
  }

  protected onAfterShow(msg: Message): void {
    super.onAfterShow(msg);
    this._live.refresh();
  }

  private readonly _isSeen = (): boolean => this.isVisible;

  private readonly _onLook = (look: Partial<IEndpointLook>): void => {
    this._look = { ...this._look, ...look };
    this._looked.emit();
    this.update();
  };

  private readonly _live: LiveEndpoint;
  private readonly _looked = new Signal<this, void>(this);
  private _look: IEndpointLook = { page: 'overview', deployment: '' };
}

export function createEndpointWidget(content: EndpointView): MainAreaWidget<EndpointView> {
  const widget = new MainAreaWidget({ content });
  widget.id = `jupyter-mlops-endpoint-${content.name}`;
  widget.title.label = content.name;
  widget.title.icon = mlopsIcon;
  widget.title.closable = true;
  return widget;
}
