/**
 * How the charts of one output are looked at: axis, smoothing, scale, zoom, runs beside its own.
 *
 * It is kept by the page for each output, so that scrolling away, polls and a newly drawn cell change nothing.
 */
import { ISignal, Signal } from '@lumino/signaling';

import { AXES, XAxis } from './curves';

export interface IChartDefaults {
  axis: XAxis;
  /** From 0, the curve as it is, to 0.99. */
  smoothing: number;
}

export const CHART_DEFAULTS: IChartDefaults = { axis: 'step', smoothing: 0 };
export const MAX_SMOOTHING = 0.99;
/** Outputs whose view is remembered. */
const MAX_STATES = 200;

export interface IPicked {
  id: string;
  name: string;
}

export class ChartState {
  constructor(defaults: IChartDefaults = CHART_DEFAULTS) {
    this._axis = defaults.axis;
    this._smoothing = defaults.smoothing;
  }

  get changed(): ISignal<this, void> {
    return this._changed;
  }

  get log(): boolean {
    return this._log;
  }

  get axis(): XAxis {
    return this._axis;
  }

  get smoothing(): number {
    return this._smoothing;
  }

  /** The stretch of the axis that is shown, in its own units; null: all of it. */
  get zoom(): readonly [number, number] | null {
    return this._zoom;
  }

  /** Whether all charts are shown. */
  get all(): boolean {
    return this._all;
  }

  /** Whether what the processes use is shown. */
  get resources(): boolean {
    return this._resources;
  }

  /** Runs drawn beside its own, in the order in which they were chosen. */
  get picked(): readonly IPicked[] {
    return this._picked;
  }

  set(values: {
    log?: boolean;
    axis?: XAxis;
    smoothing?: number;
    zoom?: readonly [number, number] | null;
    all?: boolean;
    resources?: boolean;
    picked?: readonly IPicked[];
  }): void {
    this._log = values.log ?? this._log;
    this._all = values.all ?? this._all;
    this._resources = values.resources ?? this._resources;
    this._picked = values.picked ?? this._picked;
    if (values.axis && AXES.includes(values.axis) && values.axis !== this._axis) {
      // A stretch of steps is none of seconds.
      this._axis = values.axis;
      this._zoom = null;
    }
    if (values.smoothing !== undefined) {
      this._smoothing = Math.min(MAX_SMOOTHING, Math.max(0, values.smoothing));
    }
    if (values.zoom !== undefined) {
      this._zoom = values.zoom && values.zoom[1] > values.zoom[0] ? values.zoom : null;
    }
    this._changed.emit();
  }

  private readonly _changed = new Signal<this, void>(this);
  private _log = false;
  private _axis: XAxis;
  private _smoothing: number;
  private _zoom: readonly [number, number] | null = null;
  private _all = false;
  private _resources = true;
  private _picked: readonly IPicked[] = [];
}

/** The states of a page's outputs; of the many that a long day makes, the latest are kept. */
export class ChartStates {
  /** What a state starts with. */
  defaults: IChartDefaults = CHART_DEFAULTS;

  get(key: string): ChartState {
    const state = this._states.get(key) ?? new ChartState(this.defaults);
    this._states.delete(key);
    this._states.set(key, state);
    if (this._states.size > MAX_STATES) {
      this._states.delete(this._states.keys().next().value!);
    }
    return state;
  }

  private readonly _states = new Map<string, ChartState>();
}
