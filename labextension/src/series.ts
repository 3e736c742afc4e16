/** Metric histories: which belong into one chart, and how to make them small. Pure functions. */
import type { IMetricHistory, ISeries } from './api';

/** Metrics that are drawn over each other: `loss` and `val_loss`, `train/acc` and `val/acc`. */
export interface IChartGroup {
  title: string;
  keys: string[];
}

const PREFIX = /^(train(?:ing)?|val(?:id(?:ation)?)?|test|eval)[_/.-](.+)$/i;
const SUFFIX = /^(.+)[_/.-](train(?:ing)?|val(?:id(?:ation)?)?|test|eval)$/i;

/** The name that `val_loss`, `train/loss` and `loss` have in common. */
export function baseName(key: string): string {
  return PREFIX.exec(key)?.[2] ?? SUFFIX.exec(key)?.[1] ?? key;
}

/**
 * Charts for the metrics that have a course, and the keys of those with a single value.
 *
 * Losses come first, then accuracies, then the rest by name; system metrics come last.
 */
export function groupSeries(metrics: Record<string, ISeries>): {
  charts: IChartGroup[];
  singles: string[];
} {
  const groups = new Map<string, string[]>();
  const singles: string[] = [];
  for (const key of Object.keys(metrics).sort()) {
    if (metrics[key].steps.length < 2) {
      singles.push(key);
      continue;
    }
    const base = baseName(key);
    groups.set(base, [...(groups.get(base) ?? []), key]);
  }
  const rank = (title: string) =>
    title.startsWith('system/')
      ? 3
      : /loss/i.test(title)
        ? 0
        : /acc|score|f1|auc/i.test(title)
          ? 1
          : 2;
  const charts = [...groups]
    .map(([title, keys]) => ({ title, keys }))
    .sort((a, b) => rank(a.title) - rank(b.title) || a.title.localeCompare(b.title));
  return { charts, singles };
}

/**
 * At most `count` points (at least 2) that keep the look of the curve: first, last, and of each stretch
 * between them the point that spans the largest triangle with its neighbours.
 */
export function downsample(series: ISeries, count: number): ISeries {
  const { steps, values } = series;
  const size = Math.min(steps.length, values.length);
  if (size <= Math.max(2, count)) {
    return { steps: steps.slice(0, size), values: values.slice(0, size) };
  }
  const kept = [0];
  const buckets = Math.max(0, count - 2);
  const width = (size - 2) / Math.max(1, buckets);
  for (let b = 0; b < buckets; b++) {
    const from = 1 + Math.floor(b * width);
    const to = Math.min(size - 1, 1 + Math.floor((b + 1) * width));
    const last = kept[kept.length - 1];
    const next = Math.min(size - 1, to);
    let best = from;
    let area = -1;
    for (let i = from; i < to; i++) {
      const y = values[i];
      if (y === null) {
        continue;
      }
      const [x0, y0] = [steps[last], values[last] ?? y];
      const [x1, y1] = [steps[next], values[next] ?? y];
      const size = Math.abs((x0 - x1) * (y - y0) - (x0 - steps[i]) * (y1 - y0));
      if (size > area) {
        area = size;
        best = i;
      }
    }
    kept.push(best);
  }
  kept.push(size - 1);
  return { steps: kept.map(i => steps[i]), values: kept.map(i => values[i]) };
}

/** The curves of a run as the server tells them, with their times; what is no number is a gap. */
export function readHistory(history: IMetricHistory): Record<string, ISeries> {
  const curves: Record<string, ISeries> = {};
  for (const [key, { steps, values, timestamps }] of Object.entries(history.metrics)) {
    const series: ISeries = { steps, values: values.map(value => value ?? null) };
    if (timestamps && timestamps.length >= steps.length) {
      series.timestamps = timestamps;
    }
    curves[key] = series;
  }
  return curves;
}

/** The last value that is a number, or null. */
export function lastValue(series: ISeries): number | null {
  for (let i = series.values.length - 1; i >= 0; i--) {
    const value = series.values[i];
    if (value !== null && value !== undefined) {
      return value;
    }
  }
  return null;
}
