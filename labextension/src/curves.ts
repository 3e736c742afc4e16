/** Metric histories as lines of a chart: axes, smoothing, runs over each other, attempts. Pure functions. */
import type { IAttemptStatus, ISeries } from './api';

/** What the horizontal axis is: the step, the time of day, or the time since the run's first point. */
export type XAxis = 'step' | 'time' | 'relative';
export const AXES: readonly XAxis[] = ['step', 'time', 'relative'];

/** One line: a metric of a run. `color` and `dash` are numbers of a palette. */
export interface ICurve {
  /** Unique in its chart. */
  id: string;
  label: string;
  series: ISeries;
  color: number;
  dash: number;
  /** When its run logged its first point, in milliseconds since the epoch. */
  origin: number;
}

/** What is drawn at one place of the axis: the start of an attempt. */
export interface IMark {
  x: number;
  label: string;
}

/** x, then a row for each series. `null` breaks a line, `undefined` is where a series has no point. */
export type ChartData = [number[], ...(number | null | undefined)[][]];

/**
 * The exponential moving average of `values`, corrected for its start at zero; `weight` is from 0 (as it is) to 1.
 *
 * What is no number stays a gap and does not count.
 */
export function smooth(values: readonly (number | null)[], weight: number): (number | null)[] {
  if (!(weight > 0)) {
    return [...values];
  }
  let mean = 0;
  let share = 1;
  return values.map(value => {
    if (value === null || !Number.isFinite(value)) {
      return null;
    }
    mean = mean * weight + (1 - weight) * value;
    share *= weight;
    return mean / (1 - share);
  });
}

/** The time of a run's first point in milliseconds since the epoch; 0 when none is known. */
export function originOf(metrics: Record<string, ISeries>): number {
  let first = Infinity;
  for (const { timestamps } of Object.values(metrics)) {
    for (const time of timestamps ?? []) {
      first = Math.min(first, time);
    }
  }
  return Number.isFinite(first) ? first : 0;
}

/** Whether all points have times, so that they can be drawn over time. */
export function hasTimes(series: ISeries): boolean {
  return (series.timestamps?.length ?? 0) >= series.steps.length;
}

/**
 * Where the points of `series` lie on an axis; times in seconds, as the chart takes them.
 *
 * Who logs without steps has all points at step 0: then their order counts.
 */
export function positions(series: ISeries, axis: XAxis, origin: number): number[] {
  const { steps, timestamps } = series;
  if (axis !== 'step' && timestamps && hasTimes(series)) {
    const from = axis === 'time' ? 0 : origin;
    return steps.map((_, i) => (timestamps[i] - from) / 1000);
  }
  const still = steps.length > 1 && steps.every(step => step === steps[0]);
  return still ? steps.map((_, i) => i) : [...steps];
}

/**
 * Lines over the union of their places. Where one has several values at a place, the last counts.
 *
 * With smoothing, the rows are first the raw curves, then the smoothed ones.
 */
export function chartData(curves: readonly ICurve[], axis: XAxis, weight: number): ChartData {
  const places = curves.map(curve => positions(curve.series, axis, curve.origin));
  const xs = [...new Set(places.flat())].sort((a, b) => a - b);
  const index = new Map(xs.map((x, i) => [x, i]));
  const spread = (values: readonly (number | null)[], at: number[]) => {
    const row = new Array<number | null | undefined>(xs.length).fill(undefined);
    values.forEach((value, i) => {
      row[index.get(at[i])!] = value === null || !Number.isFinite(value) ? null : value;
    });
    return row;
  };
  const rows = curves.map((curve, i) => spread(curve.series.values, places[i]));
  if (weight > 0) {
    rows.push(...curves.map((curve, i) => spread(smooth(curve.series.values, weight), places[i])));
  }
  return [xs, ...rows];
}

/** The value of a row at a place, or the one before it: what a pointer at that place means. */
export function valueAt(row: readonly (number | null | undefined)[], index: number) {
  for (let i = Math.min(index, row.length - 1); i >= 0; i--) {
    if (row[i] !== undefined) {
      return row[i] as number | null;
    }
  }
  return undefined;
}

/**
 * Where the second and later attempts of a run begin.
 *
 * On the step axis that is the first point logged by the attempt; the point is looked for in all metrics, since not
 * every one is logged at each step.
 */
export function attemptMarks(
  attempts: readonly IAttemptStatus[],
  metrics: Record<string, ISeries>,
  axis: XAxis,
  label: (attempt: number) => string
): IMark[] {
  const marks: IMark[] = [];
  const origin = originOf(metrics);
  for (const one of attempts.slice(1)) {
    const start = Date.parse(one.started_at);
    if (Number.isNaN(start)) {
      continue;
    }
    let x = Infinity;
    if (axis === 'step') {
      for (const series of Object.values(metrics)) {
        const times = hasTimes(series) ? series.timestamps! : [];
        const at = positions(series, 'step', 0);
        times.forEach((time, i) => {
          if (time >= start) {
            x = Math.min(x, at[i]);
          }
        });
      }
    } else if (origin) {
      x = (start - (axis === 'time' ? 0 : origin)) / 1000;
    }
    if (Number.isFinite(x)) {
      marks.push({ x, label: label(one.attempt) });
    }
  }
  return marks;
}

/**
 * How many steps a second a run makes, over the times of its metric with the most points.
 *
 * Points are put together until a stretch takes at least 1/`count` of the whole time. A new attempt begins anew, as does
 * a step that goes back or stands. Null when no metric has times.
 */
export function throughput(
  metrics: Record<string, ISeries>,
  attempts: readonly IAttemptStatus[] = [],
  count = 120
): ISeries | null {
  let best: ISeries | null = null;
  for (const series of Object.values(metrics)) {
    if (hasTimes(series) && series.steps.length > (best?.steps.length ?? 1)) {
      best = series;
    }
  }
  if (!best) {
    return null;
  }
  const { steps } = best;
  const times = best.timestamps!;
  const width = Math.max(1, (times[times.length - 1] - times[0]) / count);
  const rate: ISeries & { timestamps: number[] } = { steps: [], values: [], timestamps: [] };
  const starts = attempts.slice(1).map(one => Date.parse(one.started_at));
  let from = 0;
  for (let i = 1; i < steps.length; i++) {
    const anew = starts.some(start => start > times[i - 1] && start <= times[i]);
    if (anew || steps[i] <= steps[i - 1] || times[i] < times[i - 1]) {
      if (rate.steps.length) {
        rate.steps.push(steps[i]);
        rate.timestamps.push(times[i]);
        rate.values.push(null);
      }
      from = i;
    } else if (times[i] - times[from] >= width) {
      rate.steps.push(steps[i]);
      rate.timestamps.push(times[i]);
      rate.values.push((1000 * (steps[i] - steps[from])) / (times[i] - times[from]));
      from = i;
    }
  }
  return rate.values.some(value => value !== null) ? rate : null;
}
