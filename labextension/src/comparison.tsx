/** Runs beside each other in a tab: what differs between them, and their curves over each other. */
import { MainAreaWidget } from '@jupyterlab/apputils';
import { ReactWidget } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { Message } from '@lumino/messaging';
import React from 'react';

import type { IMlops } from './tokens';
import { ErrorBoundary } from './components/common';
import { Comparison } from './components/comparison';
import { mlopsIcon } from './icons';
import { CommandIDs } from './ids';
import { MAX_RUNS, RunSet } from './runset';

export class ComparisonView extends ReactWidget {
  constructor(
    ids: readonly string[],
    private readonly _mlops: IMlops,
    private readonly _trans: TranslationBundle,
    private readonly _execute: (command: string, args: ReadonlyPartialJSONObject) => void
  ) {
    super();
    this.ids = ids.slice(0, MAX_RUNS);
    this.addClass('jp-Mlops-comparison');
    this.node.dataset.testid = 'mlops-comparison';
    const names = new Map(_mlops.model.runs.items.map(run => [run.run_id, run.name]));
    this._runs = new RunSet({ api: _mlops.api, isVisible: () => this.isVisible });
    this._runs.pick(this.ids.map(id => ({ id, name: names.get(id) || id.slice(0, 8) })));
  }

  readonly ids: readonly string[];

  get label(): string {
    return this._trans.__('%1 runs', this.ids.length);
  }

  get key(): string {
    return this.ids.join(' ');
  }

  dispose(): void {
    this._runs.dispose();
    super.dispose();
  }

  protected render(): JSX.Element {
    return (
      <ErrorBoundary trans={this._trans}>
        <Comparison
          runs={this._runs}
          state={this._mlops.states.get(`runs ${this.key}`)}
          trans={this._trans}
          onOpen={run =>
            this._execute(CommandIDs.openRun, {
              id: run.id,
              experiment: run.run?.experiment_id ?? '',
              name: run.name
            })
          }
        />
      </ErrorBoundary>
    );
  }

  protected onAfterShow(msg: Message): void {
    super.onAfterShow(msg);
    this._runs.refresh();
  }

  private readonly _runs: RunSet;
}

export function createComparisonWidget(content: ComparisonView): MainAreaWidget<ComparisonView> {
  const widget = new MainAreaWidget({ content });
  widget.id = `jupyter-mlops-comparison-${content.ids.join('-')}`;
  widget.title.label = content.label;
  widget.title.icon = mlopsIcon;
  widget.title.closable = true;
  return widget;
}
