/**
 * The workspace as the front end knows it: server state, five lists, and the stream of changes.
 *
 * Changes come as Jupyter events and lead to a refresh, a moment later, of the lists they touch; a poll is the fallback, and
 * rests while nobody looks.
 */
import { IDisposable } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';

import {
  ApiError,
  Compute,
  EVENT_SCHEMA,
  IApi,
  IChange,
  IExperiment,
  IModel,
  IRun,
  IServed,
  IServerStatus,
  IWorkspace,
  Job
} from './api';
import { JobProgress } from './jobprogress';
import { ListModel, toApiError } from './listmodel';
import { IProblem, problemOfError, problemOfVersion } from './problem';
import { Gatherer, Part, SectionName, SECTIONS } from './sections';
import { DEFAULTS, ISettings } from './settings';
import { isTerminal } from './snapshot';
import { StatsWatch } from './statswatch';

/** `connecting`: nothing known yet. `reconnecting`: it was there before and is not now. */
export type Link = 'connecting' | 'up' | 'starting' | 'reconnecting';

const BUSY_INTERVAL = 2000;
const STATUS_INTERVAL = 30_000;
const MAX_INTERVAL = 30_000;
const MAX_STATUS_INTERVAL = 300_000;
/** The filter for jobs that can still be restored. */
export const DELETED = 'Deleted';

/** The part of Jupyter's event manager that is used. */
export interface IEventSource {
  stream: ISignal<unknown, { schema_id: string; [key: string]: unknown }>;
}

export class WorkspaceModel implements IDisposable {
  constructor(
    readonly api: IApi,
    events: IEventSource | null = null
  ) {
    this.progress = new JobProgress(api);
    this.runs = new ListModel<IRun>(query =>
      api.runs({ ...query, experiment: this._experiment || undefined })
    );
    this.jobs = new ListModel<Job>(async query => {
      const page = await api.jobs({ ...query, phase: this._jobPhase || undefined });
      await this.progress.read(page.items);
      return page;
    });
    this.models = new ListModel<IModel>(query => api.models(query));
    this.endpoints = new ListModel<IServed>(query => api.serving.list(query));
    this.computes = new ListModel<Compute>(query => api.computes(query));
    for (const name of SECTIONS) {
      this[name].changed.connect(this._adaptFrequency, this);
    }
    this.stats = new StatsWatch({
      read: name => api.serving.stats(name),
      isVisible: () => this._visible && this._expanded.has('endpoints')
    });
    this._gatherer = new Gatherer(touched => this._refreshTouched(touched));
    this._events = events;
    events?.stream.connect(this._onEvent, this);
    this._poll = new Poll({
      auto: false,
      name: 'jupyter-mlops:lists',
      frequency: this._frequency(),
      standby: () => !this._visible || document.hidden,
      factory: () => this._tick()
    });
    this._statusPoll = new Poll({
      auto: false,
      name: 'jupyter-mlops:status',
      frequency: { interval: STATUS_INTERVAL, backoff: true, max: MAX_STATUS_INTERVAL },
      standby: () => this._visible || document.hidden,
      factory: () => this._readStatus()
    });
  }

  readonly runs: ListModel<IRun>;
  readonly jobs: ListModel<Job>;
  readonly models: ListModel<IModel>;
  readonly endpoints: ListModel<IServed>;
  readonly computes: ListModel<Compute>;
  /** How the deployments of unfolded endpoints do. */
  readonly stats: StatsWatch;

  status: IServerStatus | null = null;
  workspace: IWorkspace | null = null;
  problem: IProblem | null = null;
  link: Link = 'connecting';
  experiments: readonly IExperiment[] = [];
  /** Progress of running jobs, by job name. */
  readonly progress: JobProgress;
  /** When the lists were last read without an error; milliseconds since the epoch, 0: never. */
  updatedAt = 0;
  refreshing = false;
  /** Since when the control plane is down; milliseconds since the epoch, 0: it is not. */
  downSince = 0;

  /** Anything but the content of a list has changed. */
  get changed(): ISignal<this, void> {
    return this._changed;
  }

  /** Changes as the server tells them; not complete while the event stream is interrupted. */
  get changes(): ISignal<this, IChange[]> {
    return this._changes;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  get readonly(): boolean {
    return this.status?.readonly ?? false;
  }

  get settings(): ISettings {
    return this._settings;
  }

  set settings(value: ISettings) {
    this._settings = value;
    for (const name of SECTIONS) {
      this[name].pageSize = value.pageSize;
    }
    this._poll.frequency = this._frequency();
    this._changed.emit();
  }

  /** Only runs of this experiment are listed; empty: of all. */
  get experiment(): string {
    return this._experiment;
  }

  set experiment(name: string) {
    if (name !== this._experiment) {
      this._experiment = name;
      this._changed.emit();
      void this.runs.reload();
    }
  }

  /** Only jobs in this state are listed, or those that were deleted; empty: all that were not. */
  get jobPhase(): string {
    return this._jobPhase;
  }

  set jobPhase(phase: string) {
    if (phase !== this._jobPhase) {
      this._jobPhase = phase;
      this._changed.emit();
      void this.jobs.reload();
    }
  }

  /** Start asking. Until then nothing is sent, so that a page that never shows the panel costs one call. */
  start(): void {
    void this._poll.start();
    void this._statusPoll.start();
  }

  /** Tell whether the panel can be seen: lists are only kept fresh then. */
  setVisible(visible: boolean): void {
    if (visible !== this._visible) {
      this._visible = visible;
      if (visible) {
        void this._poll.refresh();
      }
    }
  }

  /** Tell whether a section is unfolded: folded ones are not asked for. */
  setExpanded(section: SectionName, expanded: boolean): void {
    if (expanded && !this._expanded.has(section)) {
      this._expanded.add(section);
      if (this._visible && !this.problem) {
        void this[section].refresh();
      }
    } else if (!expanded) {
      this._expanded.delete(section);
    }
  }

  /** Start the control plane after it was stopped on purpose. */
  async resume(): Promise<void> {
    this.status = await this.api.resume();
    this._changed.emit();
    await this.refresh();
  }

  /** Read everything that is shown, now. */
  async refresh(): Promise<void> {
    this.refreshing = true;
    this._changed.emit();
    await this._poll.refresh();
    await this._poll.tick.catch(() => undefined);
    this.refreshing = false;
    if (!this.isDisposed) {
      this._changed.emit();
    }
  }

  dispose(): void {
    if (this._isDisposed) {
      return;
    }
    this._isDisposed = true;
    this._events?.stream.disconnect(this._onEvent, this);
    this._poll.dispose();
    this._statusPoll.dispose();
    this.stats.dispose();
    this._gatherer.dispose();
    for (const name of SECTIONS) {
      this[name].dispose();
    }
    Signal.clearData(this);
  }

  private _frequency() {
    const mlflow = this.workspace?.mlflow.state;
    const busy =
      this.link !== 'up' ||
      mlflow === 'starting' ||
      mlflow === 'restarting' ||
      this.jobs.items.some(job => !isTerminal(job.status.phase));
    const interval = this._settings.refreshInterval * 1000;
    return {
      interval: busy ? Math.min(BUSY_INTERVAL, interval) : interval,
      backoff: true,
      max: Math.max(MAX_INTERVAL, interval)
    };
  }

  private async _readStatus(): Promise<void> {
    try {
      const status = await this.api.status();
      if (this.isDisposed) {
        return;
      }
      this._setDown(status.state === 'down');
      this.status = status;
      this.api.workspaceName = status.workspace || this.api.workspaceName;
      this.problem = problemOfVersion(status.version);
      if (status.state !== 'up') {
        this.link = this.workspace ? 'reconnecting' : 'starting';
      }
    } catch (reason) {
      if (this.isDisposed) {
        return;
      }
      const error = toApiError(reason);
      const problem = problemOfError(error, this.status !== null);
      if (problem) {
        this.problem = problem;
      } else {
        this.link = 'reconnecting';
      }
      this._changed.emit();
      throw error;
    }
    this._changed.emit();
  }

  private _setDown(down: boolean): void {
    this.downSince = down ? this.downSince || Date.now() : 0;
  }

  private async _readWorkspace(): Promise<ApiError | null> {
    try {
      const workspace = await this.api.workspace();
      if (!this.isDisposed) {
        this.workspace = workspace;
        this.link = 'up';
      }
      return null;
    } catch (reason) {
      const error = toApiError(reason);
      if (!this.isDisposed && error.transient) {
        this.link = this.workspace ? 'reconnecting' : 'starting';
      }
      return error;
    }
  }

  private async _readExperiments(): Promise<void> {
    try {
      const page = await this.api.experiments();
      this.experiments = page.items.filter(item => item.lifecycle_stage !== 'deleted');
    } catch {
      // The choice of experiments is a convenience: the list of runs tells what is wrong.
    }
  }

  private async _tick(): Promise<void> {
    await this._readStatus();
    if (this.isDisposed || this.problem) {
      return;
    }
    const sections = [...this._expanded];
    const results = await Promise.all([
      this._readWorkspace(),
      this._expanded.has('runs') ? this._readExperiments() : null,
      ...sections.map(name => this[name].refresh())
    ]);
    if (this.isDisposed) {
      return;
    }
    const error = results.find(result => result instanceof ApiError && result.transient);
    if (!error) {
      this.updatedAt = Date.now();
    }
    this._adaptFrequency();
    this._changed.emit();
    if (error) {
      throw error;
    }
  }

  private _adaptFrequency(): void {
    const frequency = this._frequency();
    if (frequency.interval !== this._poll.frequency.interval) {
      this._poll.frequency = frequency;
    }
  }

  private _onEvent(_: unknown, event: { schema_id: string; [key: string]: unknown }): void {
    if (event.schema_id !== EVENT_SCHEMA) {
      return;
    }
    const items = (Array.isArray(event.items) ? event.items : []) as IChange[];
    const state = event.state;
    if (this.status && (state === 'up' || state === 'starting' || state === 'down')) {
      if (state !== this.status.state) {
        this._setDown(state === 'down');
        // What the old message said is over; the next status has the new one.
        this.status = { ...this.status, state, message: '' };
        this.link = state === 'up' ? this.link : this.workspace ? 'reconnecting' : 'starting';
        this._gatherer.add('workspace');
        this._changed.emit();
      }
    }
    this._gatherer.take(items);
    if (items.length) {
      this._changes.emit(items);
    }
  }

  private async _refreshTouched(touched: ReadonlySet<Part>): Promise<void> {
    if (!this._visible || document.hidden || this.problem || this.isDisposed) {
      // Everything is read anyway when the panel comes into sight.
      if (touched.has('workspace') && !this.isDisposed) {
        this._changed.emit();
      }
      return;
    }
    const results = await Promise.all([
      touched.has('workspace') ? this._readWorkspace() : null,
      this.status?.state === 'up' ? null : this._readStatus().catch(toApiError),
      ...SECTIONS.filter(name => touched.has(name) && this._expanded.has(name)).map(name =>
        this[name].refresh()
      )
    ]);
    if (!this.isDisposed) {
      if (!results.some(result => result instanceof ApiError)) {
        this.updatedAt = Date.now();
      }
      this._adaptFrequency();
      this._changed.emit();
    }
  }

  private readonly _events: IEventSource | null;
  private readonly _gatherer: Gatherer;
  private readonly _poll: Poll;
  private readonly _statusPoll: Poll;
  private readonly _changed = new Signal<this, void>(this);
  private readonly _changes = new Signal<this, IChange[]>(this);
  private readonly _expanded = new Set<SectionName>();
  private _settings: ISettings = DEFAULTS;
  private _experiment = '';
  private _jobPhase = '';
  private _visible = false;
  private _isDisposed = false;
}
