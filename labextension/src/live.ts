/**
 * One job, followed through REST while somebody looks at it: the model behind the live output and the job's tab.
 *
 * It starts from a snapshot (a notebook's) or from nothing, asks once a second while the job runs, more slowly while
 * the server is away, and never again once the job has ended and all of it was read.
 */
import { IDisposable } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';

import {
  ApiError,
  IApi,
  IAttemptStatus,
  IChange,
  IRun,
  ISeries,
  IUsage,
  Job,
  JobPhase
} from './api';
import { IJobView, jobFacts, storedFacts } from './jobfacts';
import { Ask, JobLog } from './joblog';
import { readHistory } from './series';
import { IJobOutput, ISnapshot, isTerminal } from './snapshot';

const INTERVAL = 1000;
const MAX_INTERVAL = 30_000;
const MAX_POINTS = 500;
/** Points of what the processes use. */
const MAX_USAGE = 300;
/** Milliseconds between two looks at what the processes use. */
const USAGE_INTERVAL = 4000;
/** Milliseconds after a job's end in which its last metrics are waited for. */
const PATIENCE = 30_000;
/** Lines of log in a snapshot. */
const TAIL = 40;

/**
 * `connecting`: not asked yet. `live`: what is shown is so. `retrying`: the server is away, asking again.
 * `static`: only the snapshot is to be had, see {@link LiveJob.notice}.
 */
export type Connection = 'connecting' | 'live' | 'retrying' | 'static';

/** Why only the snapshot is shown; the view has the words. */
export type Notice = '' | 'deleted' | 'replaced' | 'no_server' | 'refused';

export namespace LiveJob {
  export interface IOptions {
    api: IApi;
    workspace: string;
    name: string;
    runId?: string;
    snapshot?: IJobOutput | null;
    /** Whether somebody sees it; without this it is not asked for. */
    isVisible?: () => boolean;
    changes?: ISignal<unknown, IChange[]>;
  }
}

export class LiveJob implements IDisposable {
  constructor(options: LiveJob.IOptions) {
    this._api = options.api;
    this.workspace = options.workspace;
    this.name = options.name;
    this._runId = options.runId ?? options.snapshot?.run_id ?? '';
    this._stored = options.snapshot ?? null;
    const visible = options.isVisible ?? (() => true);
    this.log = new JobLog(options.api, options.name, () => {
      if (!this._isDisposed) {
        this._changed.emit();
      }
    });
    this._poll = new Poll({
      auto: false,
      name: `jupyter-mlops:job-${options.name}`,
      frequency: { interval: INTERVAL, backoff: true, max: MAX_INTERVAL },
      standby: () => !this._urgent && (document.hidden || !visible()),
      factory: () => this._refresh()
    });
    options.changes?.connect(this._onChanges, this);
    void this._poll.start();
  }

  readonly workspace: string;
  readonly name: string;
  readonly log: JobLog;

  get api(): IApi {
    return this._api;
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  connection: Connection = 'connecting';
  notice: Notice = '';
  /** What the server said when it refused. */
  message = '';
  /** What the processes use; null while that is not known. */
  usage: IUsage | null = null;

  get rank(): number {
    return this.log.rank;
  }

  /** Whether the job has ended and everything of it was read. */
  get complete(): boolean {
    return this._complete;
  }

  get view(): IJobView {
    const known = { name: this.name, runId: this._runId, stored: this._stored };
    const metrics = this._metrics ?? this._stored?.snapshot.metrics ?? {};
    return this._job
      ? jobFacts(this._job, this._run, { ...known, metrics })
      : storedFacts({ ...known, metrics });
  }

  /** All attempts, also the one that runs. */
  get attempts(): readonly IAttemptStatus[] {
    return this.view.attempts;
  }

  /** The log as far as it is held; the snapshot's while nothing better is known. */
  get lines(): readonly string[] {
    if (this.log.isRead || this.log.browsing) {
      return this.log.lines;
    }
    if (this.rank === this._keptRank && this._stored?.snapshot.log) {
      return (this._storedLines ??= this._stored.snapshot.log.split('\n'));
    }
    return this._job?.status.log_tail ?? [];
  }

  /** When the stored snapshot was taken, as an RFC 3339 time. */
  get storedAt(): string {
    return this._stored?.snapshot.taken_at ?? '';
  }

  /** When this was last read from the server, as an RFC 3339 time; empty when never. */
  takenAt = '';

  /** What to keep in the notebook; null while there is nothing new to the stored one. */
  output(): IJobOutput | null {
    if (!this._job || !this.takenAt) {
      return null;
    }
    const view = this.view;
    const snapshot: ISnapshot = {
      phase: view.phase as JobPhase,
      reason: view.reason,
      queued_at: view.queuedAt,
      started_at: view.startedAt,
      ended_at: view.endedAt,
      exit_code: view.exitCode,
      processes: view.processes,
      metrics: view.metrics,
      log: this._keptLines().slice(-TAIL).join('\n'),
      progress: view.progress,
      attempt: this._job.status.attempt,
      taken_at: this.takenAt
    };
    return {
      version: 1,
      workspace: this.workspace,
      name: this.name,
      run_id: view.runId,
      experiment_id: view.experimentId,
      snapshot
    };
  }

  /** Take a newer snapshot, for example one that another view of the same output wrote. */
  offer(output: IJobOutput): void {
    const known = this._stored?.snapshot.taken_at ?? '';
    if (!this._job && output.snapshot.taken_at > known) {
      this._stored = output;
      this._storedLines = undefined;
      this._changed.emit();
    }
  }

  /** Show the log of a rank and an attempt; from then on it is not changed for the rank that failed. */
  selectLog(rank: number, attempt: number = this.log.attempt): void {
    this._chosen = true;
    this._keepFirst();
    if (this.log.select(rank, attempt)) {
      this._changed.emit();
      this.refresh();
    }
  }

  /** Ask now, for example when the view has come into sight. Does nothing once all is known. */
  refresh(): void {
    if (!this.isDisposed && this.connection !== 'static' && !(this._complete && this.log.isRead)) {
      void this._poll.refresh();
    }
  }

  /** Look again at a job that had ended: somebody has started another attempt. */
  revive(): void {
    this._complete = this._ended = false;
    this.refresh();
  }

  /** Try again after the server refused or was missing. */
  retry(): void {
    this.connection = 'connecting';
    this.notice = '';
    this._changed.emit();
    this.refresh();
  }

  dispose(): void {
    if (!this._isDisposed) {
      this._isDisposed = true;
      this._poll.dispose();
      Signal.clearData(this);
    }
  }

  private _onChanges(_: unknown, items: IChange[]): void {
    for (const item of items) {
      if (item.kind === 'job' && item.name === this.name) {
        if (item.op === 'put' && item.phase && !isTerminal(item.phase)) {
          // An ended job that was resumed goes on.
          this._complete = this._ended = false;
        }
        // The end is read even when nobody looks, so that the notebook can keep it.
        this._urgent ||= isTerminal(item.phase ?? '') && !this._complete;
        this.refresh();
      }
    }
  }

  private async _refresh(): Promise<void> {
    try {
      await this._read();
      this._urgent &&= !this._complete && this._ended;
    } catch (error) {
      if (this.isDisposed) {
        return;
      }
      const known = error instanceof ApiError ? error : null;
      if (known && !known.transient) {
        this.notice =
          known.code === 'not_found' ? 'deleted' : known.status === 404 ? 'no_server' : 'refused';
        this.message = known.message;
        this.connection = 'static';
        this._urgent = false;
        this._changed.emit();
        void this._poll.stop();
        return;
      }
      this.connection = 'retrying';
      this._changed.emit();
      throw error;
    }
  }

  private async _read(): Promise<void> {
    const job = await this._api.job(this.name);
    if (this.isDisposed) {
      return;
    }
    if (this._runId && job.status.run_id && job.status.run_id !== this._runId) {
      // The name was given to another job since: the notebook's one is not to be had any more.
      this.notice = 'replaced';
      this.connection = 'static';
      this._changed.emit();
      void this._poll.stop();
      return;
    }
    this._runId ||= job.status.run_id;
    this.log.latest = job.status.attempt;
    const ended = isTerminal(job.status.phase);
    // What went wrong stands in the log of the rank that failed, which the snapshot holds as well.
    this._keptRank = job.status.failed_rank ?? 0;
    if (!this._chosen && this.rank !== this._keptRank) {
      this._keepFirst();
      this.log.select(this._keptRank);
    }
    this._partial = false;
    const [run, metrics] = await Promise.all([
      this._readRun(),
      this._readMetrics(),
      this._readUsage(ended)
    ]);
    this._partial ||= await this.log.follow(this._ask);
    if (this.isDisposed) {
      return;
    }
    this._job = job;
    this._run = run ?? this._run;
    this._metrics = metrics ?? this._metrics;
    this.takenAt = new Date().toISOString();
    this.connection = 'live';
    this.notice = '';
    // The last metrics may reach MLflow a moment after the job has ended: done when a second look finds no more.
    const points = Object.values(this._metrics ?? {}).reduce(
      (sum, one) => sum + one.steps.length,
      0
    );
    const settled = points === this._points && this._run?.status !== 'RUNNING';
    this._complete = ended && this._ended && !this._partial && (settled || this._isOld(job));
    this._points = points;
    this._ended = ended;
    this._changed.emit();
    if (this._complete) {
      void this._poll.stop();
    }
  }

  private _isOld(job: Job): boolean {
    return Date.now() - Date.parse(job.status.ended_at) > PATIENCE;
  }

  private async _readRun(): Promise<IRun | null> {
    return this._runId ? this._api.run(this._runId).catch(this._tolerate) : null;
  }

  private async _readMetrics(): Promise<Record<string, ISeries> | null> {
    const history = this._runId
      ? await this._api.metrics(this._runId, MAX_POINTS).catch(this._tolerate)
      : null;
    if (!history) {
      return null;
    }
    return readHistory(history);
  }

  private async _readUsage(ended: boolean): Promise<void> {
    const now = Date.now();
    if (!ended || !this._ended || !this._usageAt) {
      if (now - this._usageAt < USAGE_INTERVAL && !ended) {
        return;
      }
      this._usageAt = now;
      // What is used is shown where it is known; that it is not is no trouble of the job's.
      this.usage = await this._api.usage(this.name, MAX_USAGE).catch(() => this.usage);
    }
  }

  private readonly _ask: Ask = call => call().catch(this._tolerate);

  /** MLflow or a log may be away for a moment while the job itself is known: keep what was there. */
  private readonly _tolerate = (error: unknown): null => {
    if (error instanceof ApiError && error.code !== 'unreachable') {
      this._partial ||= error.transient;
      return null;
    }
    throw error;
  };

  /** The lines for the notebook: those of the first rank, or of the one that failed. */
  private _keptLines(): readonly string[] {
    if (this.rank === this._keptRank && !this.log.attempt && !this.log.browsing) {
      return this.lines;
    }
    return this._keptRank === 0 ? this._firstRankLines : (this._job?.status.log_tail ?? []);
  }

  private _keepFirst(): void {
    if (this.rank === 0 && !this.log.attempt && !this.log.browsing) {
      this._firstRankLines = this.lines;
    }
  }

  private readonly _api: IApi;
  private readonly _poll: Poll;
  private readonly _changed = new Signal<this, void>(this);
  private _isDisposed = false;
  private _job: Job | null = null;
  private _run: IRun | null = null;
  private _metrics: Record<string, ISeries> | null = null;
  private _stored: IJobOutput | null;
  private _storedLines: string[] | undefined;
  private _firstRankLines: readonly string[] = [];
  private _keptRank = 0;
  private _chosen = false;
  private _runId: string;
  private _usageAt = 0;
  private _complete = false;
  private _urgent = false;
  private _partial = false;
  private _points = -1;
  private _ended = false;
}
