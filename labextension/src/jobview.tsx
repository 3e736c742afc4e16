/** A job in a tab of its own: the same live view as in a notebook. */
import { MainAreaWidget } from '@jupyterlab/apputils';
import { ReactWidget } from '@jupyterlab/ui-components';
import { TranslationBundle } from '@jupyterlab/translation';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { Message } from '@lumino/messaging';
import React from 'react';

import type { IMlops } from './tokens';
import { ErrorBoundary } from './components/common';
import { LiveView } from './components/live';
import { mlopsIcon } from './icons';
import { CommandIDs } from './ids';
import { LiveJob } from './live';
import { RunSet } from './runset';

export class JobView extends ReactWidget {
  constructor(
    readonly name: string,
    private readonly _mlops: IMlops,
    private readonly _trans: TranslationBundle,
    private readonly _execute: (command: string, args: ReadonlyPartialJSONObject) => void
  ) {
    super();
    this.addClass('jp-Mlops-jobView');
    this._job = new LiveJob({
      api: _mlops.api,
      workspace: _mlops.api.workspaceName,
      name,
      isVisible: () => this.isVisible,
      changes: _mlops.model.changes
    });
    this._others = new RunSet({ api: _mlops.api, isVisible: () => this.isVisible });
  }

  /** Look again: another attempt was started. */
  revive(): void {
    this._job.revive();
  }

  dispose(): void {
    this._others.dispose();
    this._job.dispose();
    super.dispose();
  }

  protected render(): JSX.Element {
    const job = this._job;
    return (
      <ErrorBoundary trans={this._trans}>
        <LiveView
          job={job}
          state={this._mlops.states.get(`${job.workspace}/${job.name}`)}
          others={this._others}
          trans={this._trans}
          readonly={this._mlops.model.readonly}
          onStop={() => this._execute(CommandIDs.stopJob, { name: this.name })}
          onResume={() => this._execute(CommandIDs.resumeJob, { name: this.name })}
          onShell={() =>
            this._execute(CommandIDs.openShell, { name: this.name, rank: String(job.rank) })
          }
          onOpenMlflow={() => {
            const { runId, experimentId, title } = job.view;
            this._execute(CommandIDs.openRun, { id: runId, experiment: experimentId, name: title });
          }}
        />
      </ErrorBoundary>
    );
  }

  protected onAfterShow(msg: Message): void {
    super.onAfterShow(msg);
    this._job.refresh();
    this._others.refresh();
  }

  private readonly _job: LiveJob;
  private readonly _others: RunSet;
}

export function createJobWidget(content: JobView): MainAreaWidget<JobView> {
  const widget = new MainAreaWidget({ content });
  widget.id = `jupyter-mlops-job-${content.name}`;
  widget.title.label = content.name;
  widget.title.icon = mlopsIcon;
  widget.title.closable = true;
  return widget;
}
