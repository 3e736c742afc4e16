/** The log of one instance of a deployment, followed while somebody looks at it. */
import { IDisposable } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';

import type { IApi, ILogChunk } from './api';
import { ILogSource, JobLog } from './joblog';
import { toApiError } from './listmodel';

const INTERVAL = 1500;
const MAX_INTERVAL = 30_000;

export class DeploymentLog implements ILogSource, IDisposable {
  /**
   * @param isVisible - whether somebody sees it; without that it is not read
   */
  constructor(
    api: IApi,
    endpoint: string,
    readonly deployment: string,
    isVisible: () => boolean
  ) {
    const { serving } = api;
    this.log = new JobLog(
      { log: (name, instance, query) => serving.log(endpoint, name, instance, query) },
      deployment,
      () => this._changed.emit()
    );
    this._poll = new Poll({
      auto: false,
      name: `jupyter-mlops:log:${endpoint}/${deployment}`,
      frequency: { interval: INTERVAL, backoff: true, max: MAX_INTERVAL },
      standby: () => document.hidden || !isVisible(),
      factory: () => this._tick()
    });
    void this._poll.start();
  }

  readonly log: JobLog;
  readonly attempts = [];
  /** Why it cannot be read; empty while it can. */
  problem = '';

  get connection(): string {
    return 'live';
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  get rank(): number {
    return this.log.rank;
  }

  get lines(): readonly string[] {
    return this.log.lines;
  }

  selectLog(rank: number): void {
    if (this.log.select(rank)) {
      this._changed.emit();
      void this._poll.refresh();
    }
  }

  dispose(): void {
    if (!this._isDisposed) {
      this._isDisposed = true;
      this._poll.dispose();
      Signal.clearData(this);
    }
  }

  private async _tick(): Promise<void> {
    const ask = async (call: () => Promise<ILogChunk>) => {
      const chunk = await call();
      return this._isDisposed ? null : chunk;
    };
    try {
      await this.log.follow(ask);
      this.problem = '';
    } catch (reason) {
      const error = toApiError(reason);
      this.problem = error.message;
      if (!this._isDisposed) {
        this._changed.emit();
      }
      throw error;
    }
    if (!this._isDisposed) {
      this._changed.emit();
    }
  }

  private readonly _poll: Poll;
  private readonly _changed = new Signal<this, void>(this);
  private _isDisposed = false;
}
