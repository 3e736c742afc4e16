/** What the processes of a job use, as curves over time. Pure functions. */
import type { ISeries, IUsage } from './api';

/** `cpu` is in cores, `gpu` in percent, the others in bytes. */
export type UsageKind = 'cpu' | 'rss' | 'gpu' | 'gpu_memory';

/** A chart of what is used: one curve for each process, over all attempts. */
export interface IUsageChart {
  kind: UsageKind;
  curves: { rank: number; node: number; series: ISeries & { timestamps: number[] } }[];
}

const KINDS: readonly UsageKind[] = ['cpu', 'rss', 'gpu', 'gpu_memory'];
/** Curves in one chart; of more processes those with the highest last value are drawn. */
const MAX_CURVES = 8;

/** Charts of what there is; of GPUs only where a process has one. A gap stands between attempts. */
export function usageCharts(usage: IUsage | null): IUsageChart[] {
  const charts: IUsageChart[] = [];
  for (const kind of KINDS) {
    const byRank = new Map<number, ISeries & { timestamps: number[] }>();
    const nodes = new Map<number, number>();
    for (const { samples } of usage?.attempts ?? []) {
      const { times } = samples;
      for (const one of samples.ranks) {
        const series = byRank.get(one.rank) ?? { steps: [], values: [], timestamps: [] };
        if (series.steps.length && times.length) {
          series.steps.push(times[0] - 1);
          series.timestamps.push(times[0] - 1);
          series.values.push(null);
        }
        times.forEach((time, i) => {
          series.steps.push(time);
          series.timestamps.push(time);
          series.values.push(one[kind]?.[i] ?? null);
        });
        byRank.set(one.rank, series);
        nodes.set(one.rank, one.node ?? 0);
      }
    }
    const curves = [...byRank]
      .map(([rank, series]) => ({ rank, node: nodes.get(rank) ?? 0, series }))
      .filter(one => one.series.values.some(value => value !== null))
      .sort((a, b) => (latest(b.series) ?? -1) - (latest(a.series) ?? -1))
      .slice(0, MAX_CURVES)
      .sort((a, b) => a.rank - b.rank);
    if (curves.length) {
      charts.push({ kind, curves });
    }
  }
  return charts;
}

/** The last value that is known. */
function latest(series: ISeries): number | null {
  for (let i = series.values.length - 1; i >= 0; i--) {
    if (series.values[i] !== null) {
      return series.values[i];
    }
  }
  return null;
}

/** What all processes together use now: the sum of the last values, or the mean for shares in percent. */
export function total(chart: IUsageChart): number {
  const values = chart.curves.map(curve => latest(curve.series) ?? 0);
  const sum = values.reduce((a, b) => a + b, 0);
  return chart.kind === 'gpu' ? sum / values.length : sum;
}

/** The time of the first sample in milliseconds since the epoch; 0 without one. */
export function usageOrigin(usage: IUsage | null): number {
  return usage?.attempts.find(one => one.samples.times.length)?.samples.times[0] ?? 0;
}
