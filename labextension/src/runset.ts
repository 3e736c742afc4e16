/** Runs that are drawn over each other: their facts and curves, read again while one of them runs. */
import { IDisposable } from '@lumino/disposable';
import { Poll } from '@lumino/polling';
import { ISignal, Signal } from '@lumino/signaling';

import { ApiError, IApi, IRun, ISeries } from './api';
import type { IPicked } from './chartstate';
import { readHistory } from './series';

/** Runs in one comparison: more lines cannot be told apart. */
export const MAX_RUNS = 8;

const INTERVAL = 3000;
const MAX_INTERVAL = 30_000;
const MAX_POINTS = 500;

export interface IRunCurves {
  id: string;
  /** The run's name, or what it was picked by. */
  name: string;
  run: IRun | null;
  metrics: Record<string, ISeries>;
  /** Why nothing is known. */
  error: string;
  /** Whether everything of it was read and it has ended. */
  done: boolean;
}

export namespace RunSet {
  export interface IOptions {
    api: IApi;
    isVisible?: () => boolean;
  }
}

export class RunSet implements IDisposable {
  constructor(options: RunSet.IOptions) {
    this._api = options.api;
    const visible = options.isVisible ?? (() => true);
    this._poll = new Poll({
      auto: false,
      name: 'jupyter-mlops:runs',
      frequency: { interval: INTERVAL, backoff: true, max: MAX_INTERVAL },
      standby: () => document.hidden || !visible(),
      factory: () => this._refresh()
    });
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  /** In the order in which they were picked. */
  get runs(): readonly IRunCurves[] {
    return this._runs;
  }

  /** Choose the runs, at most {@link MAX_RUNS}; what is known of one stays. */
  pick(picked: readonly IPicked[]): void {
    const known = new Map(this._runs.map(run => [run.id, run]));
    const runs = picked
      .slice(0, MAX_RUNS)
      .map(
        ({ id, name }): IRunCurves =>
          known.get(id) ?? { id, name, run: null, metrics: {}, error: '', done: false }
      );
    if (runs.length === this._runs.length && runs.every((run, i) => run === this._runs[i])) {
      return;
    }
    this._runs = runs;
    this._changed.emit();
    this.refresh();
  }

  /** Read now what has not ended. */
  refresh(): void {
    if (!this.isDisposed && this._runs.some(run => !run.done)) {
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

  private async _refresh(): Promise<void> {
    let lost: unknown = null;
    const read = await Promise.all(
      this._runs.map(async one => {
        if (one.done) {
          return one;
        }
        try {
          const run = await this._api.run(one.id);
          const history = await this._api.metrics(one.id, MAX_POINTS);
          return {
            ...one,
            name: run.name || one.name,
            run,
            metrics: readHistory(history),
            error: '',
            done: run.status !== 'RUNNING' && run.status !== 'SCHEDULED'
          };
        } catch (error) {
          const known = error instanceof ApiError && !error.transient;
          lost = known ? lost : error;
          return { ...one, error: known ? error.message : one.error, done: known };
        }
      })
    );
    if (this.isDisposed) {
      return;
    }
    // Others may have been picked in the meantime.
    const found = new Map(read.map(run => [run.id, run]));
    this._runs = this._runs.map(run => found.get(run.id) ?? run);
    this._changed.emit();
    if (lost) {
      throw lost;
    }
    if (this._runs.every(run => run.done)) {
      void this._poll.stop();
    }
  }

  private readonly _api: IApi;
  private readonly _poll: Poll;
  private readonly _changed = new Signal<this, void>(this);
  private _runs: readonly IRunCurves[] = [];
  private _isDisposed = false;
}

/** Rows of a table of what differs between runs: parameters, then last values of metrics. */
export interface IDifference {
  kind: 'param' | 'metric';
  key: string;
  /** One for each run; null where it has none. */
  values: readonly (string | number | null)[];
}

/** What is not the same in all of `runs`. */
export function differences(runs: readonly IRunCurves[]): IDifference[] {
  const rows: IDifference[] = [];
  const add = (kind: 'param' | 'metric', maps: Record<string, string | number | null>[]) => {
    const keys = [...new Set(maps.flatMap(map => Object.keys(map)))].sort();
    for (const key of keys) {
      const values = maps.map(map => map[key] ?? null);
      if (values.some(value => value !== values[0])) {
        rows.push({ kind, key, values });
      }
    }
  };
  add(
    'param',
    runs.map(one => one.run?.params ?? {})
  );
  add(
    'metric',
    runs.map(one => one.run?.metrics ?? {})
  );
  return rows;
}
