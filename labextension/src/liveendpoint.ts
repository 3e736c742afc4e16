/**
 * One endpoint, followed through REST while somebody looks at it: the model behind its tab.
 *
 * Counters are asked for every two seconds; what the endpoint is, when it changes and from time to time.
 */
import { IDisposable } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';

import {
  ApiError,
  Deployment,
  Endpoint,
  IApi,
  ICaptureInfo,
  IChange,
  IHistoryItem,
  Traffic
} from './api';
import { toApiError } from './listmodel';
import { StatsWindow } from './rates';
import { effective, equal, sum } from './traffic';

const INTERVAL = 2000;
const MAX_INTERVAL = 30_000;
/** Milliseconds after which what nobody told of is read again. */
const STALE = 10_000;
const HISTORY = 100;

/**
 * `loading`: nothing is known yet. `live`: what is shown is so. `stale`: the server does not answer, what is shown was so.
 * `error`: nothing could be had. `deleted`: there is no such endpoint (any more).
 */
export type EndpointState = 'loading' | 'live' | 'stale' | 'error' | 'deleted';

/** What is only read while it is shown. */
export type Part = 'history' | 'captured';

/** Phases in which a deployment changes by itself. */
const MOVING = new Set(['Pending', 'Preparing', 'Starting', 'Proving', 'Deleting']);

export namespace LiveEndpoint {
  export interface IOptions {
    api: IApi;
    name: string;
    isVisible: () => boolean;
    changes?: ISignal<unknown, IChange[]>;
  }
}

export class LiveEndpoint implements IDisposable {
  constructor(options: LiveEndpoint.IOptions) {
    this.api = options.api;
    this.name = options.name;
    this._changes = options.changes;
    this._changes?.connect(this._onChanges, this);
    this._poll = new Poll({
      auto: false,
      name: `jupyter-mlops:endpoint:${options.name}`,
      frequency: { interval: INTERVAL, backoff: true, max: MAX_INTERVAL },
      standby: () => this.state === 'deleted' || document.hidden || !options.isVisible(),
      factory: () => this._tick()
    });
    void this._poll.start();
  }

  readonly api: IApi;
  readonly name: string;
  readonly stats = new StatsWindow();
  state: EndpointState = 'loading';
  endpoint: Endpoint | null = null;
  deployments: readonly Deployment[] = [];
  /** The newest first; null before it was read. */
  history: readonly IHistoryItem[] | null = null;
  captured: ICaptureInfo | null = null;
  error: ApiError | null = null;
  /** Why a part could not be read. */
  readonly partErrors = new Map<Part | 'stats', ApiError>();

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  /** The shares that are meant to be. */
  get traffic(): Traffic {
    return this.endpoint ? effective(this.endpoint) : {};
  }

  /** The traffic before the one that is meant to be; null when there was none. */
  get previous(): Traffic | null {
    const told = this.endpoint?.status.previous_traffic ?? {};
    return sum(told) && !equal(told, this.traffic) ? told : null;
  }

  /** The request that a deployment was proven with; undefined when there is none. */
  async sample(deployment: string): Promise<unknown> {
    // Lists leave it out, as it may be large.
    const found = await this.api.serving.deployment(this.name, deployment);
    return found.spec.proof?.request ?? undefined;
  }

  /** Read a part as long as it is shown. */
  show(part: Part, shown: boolean): void {
    if (shown && !this._shown.has(part)) {
      this._shown.add(part);
      this._due = 0;
      void this._poll.refresh();
    } else if (!shown) {
      this._shown.delete(part);
    }
  }

  /** Read everything now. */
  refresh(): void {
    this._due = 0;
    if (this.state === 'deleted') {
      // It may have been made anew.
      this.state = 'loading';
    }
    void this._poll.refresh();
  }

  dispose(): void {
    if (!this._isDisposed) {
      this._isDisposed = true;
      this._changes?.disconnect(this._onChanges, this);
      this._poll.dispose();
      Signal.clearData(this);
    }
  }

  private _onChanges(_: unknown, items: IChange[]): void {
    const mine = items.some(
      item =>
        (item.kind === 'endpoint' && item.name === this.name) ||
        (item.kind === 'deployment' && item.parent === this.name) ||
        item.kind === 'workspace'
    );
    if (mine) {
      this.refresh();
    }
  }

  private async _tick(): Promise<void> {
    const due = Date.now() >= this._due || this._isMoving();
    const results = await Promise.all([this._readStats(), due ? this._readAll() : null]);
    if (this._isDisposed) {
      return;
    }
    const error = results[1];
    this._changed.emit();
    if (error?.transient) {
      throw error;
    }
  }

  /** Whether something goes on that one waits for. */
  private _isMoving(): boolean {
    return (
      this.endpoint?.status.canary?.phase === 'Running' ||
      this.deployments.some(({ status }) => MOVING.has(status.phase))
    );
  }

  private async _readAll(): Promise<ApiError | null> {
    const ticket = ++this._ticket;
    this._due = Date.now() + STALE;
    const { serving } = this.api;
    try {
      const [endpoint, deployments] = await Promise.all([
        serving.endpoint(this.name),
        serving.deployments(this.name),
        this._shown.has('history') &&
          this._readPart('history', async () => {
            this.history = await serving.history(this.name, HISTORY);
          }),
        this._shown.has('captured') &&
          this._readPart('captured', async () => {
            this.captured = await serving.captured(this.name);
          })
      ]);
      if (ticket === this._ticket) {
        this.endpoint = endpoint;
        this.deployments = deployments;
        this.state = 'live';
        this.error = null;
      }
      return null;
    } catch (reason) {
      const error = toApiError(reason);
      if (ticket === this._ticket) {
        this._due = 0;
        this.error = error;
        this.state =
          error.status === 404 ? 'deleted' : this.endpoint && error.transient ? 'stale' : 'error';
      }
      return error;
    }
  }

  private async _readStats(): Promise<void> {
    if (!this.deployments.length) {
      return;
    }
    await this._readPart('stats', async () => {
      const stats = await this.api.serving.stats(this.name);
      this.stats.add(stats, Date.now());
    });
  }

  private async _readPart(part: Part | 'stats', read: () => Promise<void>): Promise<void> {
    try {
      await read();
      this.partErrors.delete(part);
    } catch (reason) {
      this.partErrors.set(part, toApiError(reason));
    }
  }

  private readonly _changes: ISignal<unknown, IChange[]> | undefined;
  private readonly _poll: Poll;
  private readonly _changed = new Signal<this, void>(this);
  private readonly _shown = new Set<Part>();
  private _due = 0;
  private _ticket = 0;
  private _isDisposed = false;
}
