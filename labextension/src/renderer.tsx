/**
 * The live output of a job in a notebook.
 *
 * It draws what the notebook holds, follows the job through REST while it can be seen, and keeps what it last saw in
 * the notebook, so that a saved or exported one still shows it. Only text of the data is ever drawn, so it is safe
 * for notebooks that are not trusted.
 */
import { IRenderMime } from '@jupyterlab/rendermime-interfaces';
import { ReactWidget } from '@jupyterlab/ui-components';
import { nullTranslator, TranslationBundle } from '@jupyterlab/translation';
import { PartialJSONObject, ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { Message } from '@lumino/messaging';
import { ISignal } from '@lumino/signaling';
import React from 'react';

import type { IApi, IChange } from './api';
import { ChartStates } from './chartstate';
import { ErrorBoundary } from './components/common';
import { LiveView } from './components/live';
import { CommandIDs } from './ids';
import { LiveJob } from './live';
import { RunSet } from './runset';
import { IJobOutput, isTerminal, JOB_MIME, readOutput, toBundle } from './snapshot';

/** Milliseconds between two snapshots of a running job, over all views of one output. */
export const SNAPSHOT_INTERVAL = 10_000;

export namespace JobRenderer {
  export interface IOptions {
    /** The client for a workspace. */
    api: (workspace: string) => IApi;
    changes?: ISignal<unknown, IChange[]>;
    isReadonly?: () => boolean;
    /** How the charts of each output are looked at. */
    states?: ChartStates;
    execute: (command: string, args: ReadonlyPartialJSONObject) => void;
    translator?: IRenderMime.ITranslator | null;
  }
}

export class JobRenderer extends ReactWidget implements IRenderMime.IRenderer {
  constructor(private readonly _options: JobRenderer.IOptions) {
    super();
    this.addClass('jp-Mlops-renderer');
    this._states = _options.states ?? new ChartStates();
    this._trans = (_options.translator ?? nullTranslator).load(
      'jupyter_mlops'
    ) as TranslationBundle;
    if (typeof IntersectionObserver !== 'undefined') {
      this._inView = false;
      this._observer = new IntersectionObserver(entries => {
        const inView = entries[entries.length - 1].isIntersecting;
        if (inView !== this._inView) {
          this._inView = inView;
          if (inView) {
            this._job?.refresh();
            this._others?.refresh();
          }
        }
      });
      this._observer.observe(this.node);
    }
  }

  /** Called for the first time and whenever the data has changed, also by ourselves. */
  async renderModel(model: IRenderMime.IMimeModel): Promise<void> {
    this._mime = model;
    const output = readOutput(model.data[JOB_MIME]);
    if (!output) {
      const text = model.data['text/plain'];
      this._fallback =
        (Array.isArray(text) ? text.join('') : typeof text === 'string' ? text : '') ||
        this._trans.__('This output is of another version of Jupyter MLOps.');
      this._setJob(null);
      return;
    }
    const job = this._job;
    if (
      job &&
      job.name === output.name &&
      job.workspace === output.workspace &&
      this._runId === output.run_id
    ) {
      job.offer(output);
      return;
    }
    this._runId = output.run_id;
    this._setJob(
      new LiveJob({
        api: this._options.api(output.workspace),
        workspace: output.workspace,
        name: output.name,
        runId: output.run_id,
        snapshot: output,
        isVisible: () => this.isVisible && this._inView,
        changes: this._options.changes
      })
    );
  }

  dispose(): void {
    if (!this.isDisposed) {
      this._observer?.disconnect();
      this._others?.dispose();
      this._job?.dispose();
      this._job = null;
      this._mime = null;
      super.dispose();
    }
  }

  protected render(): JSX.Element {
    const job = this._job;
    if (!job) {
      return <pre className="jp-Mlops-plain">{this._fallback}</pre>;
    }
    const { execute, isReadonly } = this._options;
    const key = `${job.workspace}/${job.name}/${this._runId}`;
    const args = { name: job.name, workspace: job.workspace };
    return (
      <ErrorBoundary trans={this._trans}>
        <LiveView
          key={key}
          job={job}
          state={this._states.get(key)}
          others={(this._others ??= this._makeOthers(job))}
          trans={this._trans}
          readonly={isReadonly?.() ?? false}
          onStop={() => execute(CommandIDs.stopJob, args)}
          onResume={() => execute(CommandIDs.resumeJob, args)}
          onShell={() =>
            this._options.execute(CommandIDs.openShell, {
              name: job.name,
              workspace: job.workspace,
              rank: String(job.rank)
            })
          }
          onOpenMlflow={() => {
            const { runId, experimentId, title } = job.view;
            execute(CommandIDs.openRun, { id: runId, experiment: experimentId, name: title });
          }}
        />
      </ErrorBoundary>
    );
  }

  protected onAfterShow(msg: Message): void {
    super.onAfterShow(msg);
    this._job?.refresh();
  }

  private _setJob(job: LiveJob | null): void {
    this._job?.dispose();
    this._others?.dispose();
    this._others = null;
    this._job = job;
    job?.changed.connect(this._keep, this);
    this.update();
  }

  private _makeOthers(job: LiveJob): RunSet {
    return new RunSet({ api: job.api, isVisible: () => this.isVisible && this._inView });
  }

  /** Write what is seen into the notebook: at the end of the job, and now and then while it runs. */
  private _keep(): void {
    const job = this._job;
    const mime = this._mime;
    const output = job?.output();
    if (!job || !mime || !output || this.isDisposed) {
      return;
    }
    const stored = readOutput(mime.data[JOB_MIME]);
    if (!stored || !isDue(stored, output, job.complete)) {
      return;
    }
    const bundle = toBundle(output) as PartialJSONObject;
    mime.setData({ data: { ...mime.data, ...bundle } as ReadonlyPartialJSONObject });
  }

  private readonly _trans: TranslationBundle;
  private readonly _states: ChartStates;
  private _observer: IntersectionObserver | null = null;
  private _inView = true;
  private _job: LiveJob | null = null;
  private _others: RunSet | null = null;
  private _mime: IRenderMime.IMimeModel | null = null;
  private _runId = '';
  private _fallback = '';
}

/**
 * Whether the notebook should take `seen` in place of `stored`.
 *
 * The notebook itself holds the time of the last snapshot, so several views of one output do not add up. An ended job
 * is written once: opening a notebook again does not change it. A resumed one is a new story.
 */
export function isDue(stored: IJobOutput, seen: IJobOutput, complete: boolean): boolean {
  const { snapshot } = stored;
  const resumed = snapshot.attempt > 0 && seen.snapshot.attempt > snapshot.attempt;
  if (isTerminal(snapshot.phase) && !resumed) {
    return false;
  }
  if (isTerminal(seen.snapshot.phase)) {
    return complete;
  }
  const since = Date.parse(seen.snapshot.taken_at) - (Date.parse(snapshot.taken_at) || 0);
  return since >= SNAPSHOT_INTERVAL;
}

export function rendererFactory(options: JobRenderer.IOptions): IRenderMime.IRendererFactory {
  return {
    safe: true,
    mimeTypes: [JOB_MIME],
    // Before text/html (50) and text/plain, which stand beside it for exports.
    defaultRank: 10,
    createRenderer: given =>
      new JobRenderer({ ...options, translator: given.translator ?? options.translator })
  };
}
