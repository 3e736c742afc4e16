/** The side panel: header and five sections that fold. */
import { ReactWidget, SidePanel } from '@jupyterlab/ui-components';
import { ITranslator, nullTranslator, TranslationBundle } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { Message } from '@lumino/messaging';
import { AccordionPanel } from '@lumino/widgets';
import React from 'react';

import { ErrorBoundary } from './components/common';
import { Header } from './components/header';
import { SECTION_VIEWS } from './components/sections';
import { mlopsIcon } from './icons';
import { CommandIDs, PANEL_ID } from './ids';
import { WorkspaceModel } from './model';
import { SectionName, SECTIONS } from './sections';

/** The share of the height that a section has at first. */
const SHARES: Record<SectionName, number> = {
  runs: 0.28,
  jobs: 0.26,
  models: 0.17,
  endpoints: 0.19,
  computes: 0.1
};

/** The share of a section that has asked for room. */
const ROOMY = 0.62;

export namespace MlopsPanel {
  export interface IOptions {
    model: WorkspaceModel;
    execute: (command: string, args: ReadonlyPartialJSONObject) => void;
    translator?: ITranslator | null;
  }
}

class Section extends ReactWidget {
  constructor(
    readonly section: SectionName,
    private readonly _options: MlopsPanel.IOptions,
    private readonly _trans: TranslationBundle,
    label: string,
    private readonly _needRoom: (wanted: boolean) => void
  ) {
    super();
    this.addClass('jp-Mlops-sectionWidget');
    this.node.dataset.testid = `mlops-section-${section}`;
    this.title.label = label;
  }

  protected render(): JSX.Element {
    const View = SECTION_VIEWS[this.section];
    return (
      <ErrorBoundary trans={this._trans}>
        <View
          model={this._options.model}
          trans={this._trans}
          execute={this._options.execute}
          needRoom={this._needRoom}
        />
      </ErrorBoundary>
    );
  }

  protected onAfterShow(msg: Message): void {
    super.onAfterShow(msg);
    this._options.model.setExpanded(this.section, true);
  }

  protected onAfterHide(msg: Message): void {
    super.onAfterHide(msg);
    this._options.model.setExpanded(this.section, false);
  }
}

export class MlopsPanel extends SidePanel {
  constructor(options: MlopsPanel.IOptions) {
    const translator = options.translator ?? nullTranslator;
    super({ translator });
    const trans = translator.load('jupyter_mlops');
    this._model = options.model;
    this.id = PANEL_ID;
    this.addClass('jp-Mlops-panel');
    this.node.dataset.testid = 'mlops-panel';
    this.node.setAttribute('role', 'region');
    this.node.setAttribute('aria-label', trans.__('MLOps'));
    this.title.icon = mlopsIcon;
    this.title.caption = trans.__('MLOps');

    const header = ReactWidget.create(
      <ErrorBoundary trans={trans}>
        <Header
          model={options.model}
          trans={trans}
          openMlflow={() => options.execute(CommandIDs.openMlflow, {})}
        />
      </ErrorBoundary>
    );
    header.addClass('jp-Mlops-headerWidget');
    this.header.addWidget(header);

    const labels: Record<SectionName, string> = {
      runs: trans.__('Runs'),
      jobs: trans.__('Jobs'),
      models: trans.__('Models'),
      endpoints: trans.__('Endpoints'),
      computes: trans.__('Compute')
    };
    for (const name of SECTIONS) {
      const needRoom = (wanted: boolean) => this._makeRoom(name, wanted);
      this.addWidget(new Section(name, options, trans, labels[name], needRoom));
      options.model.setExpanded(name, true);
    }
    this._share();
    options.model.changed.connect(this._onChanged, this);
    this._onChanged();
  }

  dispose(): void {
    if (!this.isDisposed) {
      this._model.changed.disconnect(this._onChanged, this);
      this._model.setVisible(false);
      super.dispose();
    }
  }

  protected onAfterShow(msg: Message): void {
    super.onAfterShow(msg);
    this._shareAnew();
    this._model.setVisible(true);
  }

  protected onAfterHide(msg: Message): void {
    super.onAfterHide(msg);
    this._model.setVisible(false);
  }

  protected onAfterAttach(msg: Message): void {
    super.onAfterAttach(msg);
    this._shareAnew();
    this._model.setVisible(this.isVisible);
  }

  protected onBeforeDetach(msg: Message): void {
    this._model.setVisible(false);
    super.onBeforeDetach(msg);
  }

  /** Lists say nothing while there is one message for all of them. */
  private _onChanged(): void {
    const hidden = this._model.problem !== null;
    if (this.content.isHidden !== hidden) {
      this.content.setHidden(hidden);
    }
    // Here too: JupyterLab restores sizes after it has shown the panel.
    this._shareAnew();
  }

  private _share(): void {
    (this.content as AccordionPanel).setRelativeSizes(SECTIONS.map(name => SHARES[name]));
  }

  /** Give a section much of the height, and take it back when it needs no more, unless the user has moved a border. */
  private _makeRoom(name: SectionName, wanted: boolean): void {
    const content = this.content as AccordionPanel;
    const sizes = content.relativeSizes();
    const at = SECTIONS.indexOf(name);
    if (wanted && sizes[at] < ROOMY) {
      const rest = Math.max(1 - sizes[at], 1e-6);
      const given = sizes.map((size, i) => (i === at ? ROOMY : (size * (1 - ROOMY)) / rest));
      content.setRelativeSizes(given);
      this._before = { sizes, share: ROOMY, at };
    } else if (!wanted && this._before?.at === at) {
      if (Math.abs(sizes[at] - this._before.share) < 0.05) {
        content.setRelativeSizes(this._before.sizes);
      }
      this._before = null;
    }
  }

  /** JupyterLab saves the sizes of a panel that was never drawn as equal ones, and restores those. */
  private _shareAnew(): void {
    const sizes = (this.content as AccordionPanel).relativeSizes();
    const equal = sizes.every(size => Math.abs(size - 1 / sizes.length) < 1e-6);
    if (sizes.length === SECTIONS.length && equal) {
      this._share();
    }
  }

  private readonly _model: WorkspaceModel;
  /** Sizes before one section was given room. */
  private _before: { sizes: number[]; share: number; at: number } | null = null;
}
