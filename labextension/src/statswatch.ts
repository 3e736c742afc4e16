/** How the deployments of some endpoints do, asked for while somebody looks at them. */
import { DisposableDelegate, IDisposable } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';

import { StatsWindow } from './rates';
import type { IEndpointStats } from './resources';

const INTERVAL = 5000;
const MAX_INTERVAL = 30_000;

export namespace StatsWatch {
  export interface IOptions {
    read: (name: string) => Promise<IEndpointStats>;
    isVisible: () => boolean;
    /** Milliseconds between two looks. */
    interval?: number;
  }
}

export class StatsWatch implements IDisposable {
  constructor(private readonly _options: StatsWatch.IOptions) {
    this._poll = new Poll({
      auto: false,
      name: 'jupyter-mlops:stats',
      frequency: { interval: _options.interval ?? INTERVAL, backoff: true, max: MAX_INTERVAL },
      standby: () => !this._watched.size || document.hidden || !_options.isVisible(),
      factory: () => this._read()
    });
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  /** What is known of an endpoint; null before the first answer. */
  of(name: string): StatsWindow | null {
    return this._windows.get(name) ?? null;
  }

  /** Ask for an endpoint until the result is disposed. */
  watch(name: string): IDisposable {
    this._watched.set(name, (this._watched.get(name) ?? 0) + 1);
    if (!this._started) {
      this._started = true;
      void this._poll.start();
    } else if (this._watched.get(name) === 1) {
      void this._poll.refresh();
    }
    return new DisposableDelegate(() => {
      const left = (this._watched.get(name) ?? 1) - 1;
      if (left) {
        this._watched.set(name, left);
      } else {
        this._watched.delete(name);
        this._windows.delete(name);
      }
    });
  }

  dispose(): void {
    if (!this._isDisposed) {
      this._isDisposed = true;
      this._poll.dispose();
      Signal.clearData(this);
    }
  }

  private async _read(): Promise<void> {
    const names = [...this._watched.keys()];
    const answers = await Promise.allSettled(names.map(name => this._options.read(name)));
    if (this._isDisposed) {
      return;
    }
    answers.forEach((answer, i) => {
      if (answer.status === 'fulfilled' && this._watched.has(names[i])) {
        const window = this._windows.get(names[i]) ?? new StatsWindow();
        window.add(answer.value, Date.now());
        this._windows.set(names[i], window);
      }
    });
    this._changed.emit();
    if (answers.length && answers.every(answer => answer.status === 'rejected')) {
      throw new Error('no answer');
    }
  }

  private readonly _poll: Poll;
  private readonly _changed = new Signal<this, void>(this);
  private readonly _watched = new Map<string, number>();
  private readonly _windows = new Map<string, StatsWindow>();
  private _started = false;
  private _isDisposed = false;
}
