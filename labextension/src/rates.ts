/**
 * Counters that only grow as rates over time: what was counted between two looks, divided by the time between them.
 *
 * The gateway counts from 0 again when it was started anew; then what is counted is from that start on.
 */
import type { IDeploymentStats, IEndpointStats, ISeries } from './resources';

/** Looks that are kept: half an hour of one every two seconds. */
export const MAX_SAMPLES = 900;
/** Milliseconds of which a summary tells. */
const RECENT = 60_000;
/** Longer than this many milliseconds nobody looked: the curve has a gap. */
const GAP = 15_000;

/** What one deployment did between two looks. Latencies in milliseconds, null when it answered nothing. */
export interface IInterval {
  /** When it ended; milliseconds since the epoch. */
  time: number;
  seconds: number;
  requests: number;
  /** Of `requests` those that were the deployment's to answer. */
  answerable: number;
  /** Of these those that failed: 5xx, 424 and 504. */
  errors: number;
  p50: number | null;
  p95: number | null;
}

/** How a deployment does at the moment. */
export interface ISummary {
  perMinute: number;
  /** From 0 to 1, of what the deployment had to answer; null without that. */
  errorRate: number | null;
  errors: number;
  p95: number | null;
}

export type Curve = 'rate' | 'errors' | 'p50' | 'p95';

type Bucket = [number, number];

/** Requests in error by no fault of the caller. */
export function errorsOf(stats: IDeploymentStats): number {
  const { errors } = stats;
  return (errors['5xx'] ?? 0) + (errors.model ?? 0) + (errors.timeout ?? 0);
}

/** Requests that a deployment had to answer: without what callers got wrong and what was turned away. */
function answerable(stats: IDeploymentStats): number {
  const { errors } = stats;
  return Math.max(0, stats.requests - (errors['4xx'] ?? 0) - (errors.rejected ?? 0));
}

function bucketsOf(stats: IDeploymentStats | null): Bucket[] {
  return (stats?.latency_ms.buckets ?? []).map(([bound, count]) => {
    const limit = bound === null ? Infinity : Number(bound);
    return [Number.isNaN(limit) ? Infinity : limit, count];
  });
}

/** What `after` counted more than `before`, by bucket, cumulative. */
function grown(before: Bucket[], after: Bucket[]): Bucket[] {
  const old = new Map(before);
  return after.map(([bound, count]) => [bound, count - (old.get(bound) ?? 0)]);
}

/** A quantile of a histogram of cumulative counts, from 0 to 1; null when it is empty. */
export function quantile(buckets: readonly Bucket[], q: number): number | null {
  const total = buckets.length ? buckets[buckets.length - 1][1] : 0;
  if (!(total > 0)) {
    return null;
  }
  const wanted = q * total;
  let low = 0;
  let below = 0;
  for (const [bound, count] of buckets) {
    if (count >= wanted) {
      if (!Number.isFinite(bound)) {
        return low;
      }
      const inside = count - below;
      return inside > 0 ? low + ((bound - low) * (wanted - below)) / inside : bound;
    }
    low = Number.isFinite(bound) ? bound : low;
    below = count;
  }
  return low;
}

/** When the gateway began to count, in milliseconds since the epoch; NaN when it does not tell. */
function startOf(stats: IEndpointStats): number {
  const start = stats.started_at;
  return typeof start === 'number' ? start * 1000 : Date.parse(start ?? '');
}

const NOTHING: IInterval = {
  time: 0,
  seconds: 0,
  requests: 0,
  answerable: 0,
  errors: 0,
  p50: null,
  p95: null
};

export class StatsWindow {
  /** The newest answer; null before the first. */
  get latest(): IEndpointStats | null {
    return this._latest;
  }

  /** Changes with every look. */
  get version(): number {
    return this._version;
  }

  /** Take what the gateway has counted until `time`, in milliseconds since the epoch. */
  add(stats: IEndpointStats, time: number): void {
    const before = this._latest;
    const since = this._time;
    const start = startOf(stats);
    this._latest = stats;
    this._time = time;
    this._version++;
    if (!before || time <= since) {
      return;
    }
    for (const [name, now] of Object.entries(stats.deployments)) {
      const old = before.deployments[name] ?? null;
      const began = startOf(before);
      const anew =
        !!old && ((began !== start && began > 0 && start > 0) || now.requests < old.requests);
      const base = anew ? null : old;
      const from = anew && start > since && start < time ? start : since;
      const requests = now.requests - (base?.requests ?? 0);
      const buckets = grown(bucketsOf(base), bucketsOf(now));
      const answered = requests > 0;
      const intervals = this._intervals.get(name) ?? [];
      if (time - since > GAP && intervals.length) {
        // A mean over the time in which nobody looked would draw a line that never was.
        intervals.push({ ...NOTHING, time: since + 1 });
      }
      const given = (value: number | null | undefined) => (answered ? (value ?? null) : null);
      intervals.push({
        time,
        seconds: Math.max(0.001, (time - from) / 1000),
        requests,
        answerable: Math.max(0, answerable(now) - (base ? answerable(base) : 0)),
        errors: Math.max(0, errorsOf(now) - (base ? errorsOf(base) : 0)),
        p50: buckets.length ? quantile(buckets, 0.5) : given(now.latency_ms.p50),
        p95: buckets.length ? quantile(buckets, 0.95) : given(now.latency_ms.p95)
      });
      const buffer = this._buckets.get(name) ?? [];
      buffer.push([time, buckets]);
      this._intervals.set(name, intervals.slice(-MAX_SAMPLES));
      this._buckets.set(
        name,
        buffer.filter(([at]) => at > time - RECENT)
      );
    }
  }

  /** How a deployment did in the last minute; null before there were two looks. */
  summary(name: string): ISummary | null {
    const recent = (this._intervals.get(name) ?? []).filter(
      one => one.seconds > 0 && one.time > this._time - RECENT
    );
    const seconds = recent.reduce((total, one) => total + one.seconds, 0);
    if (!seconds) {
      return null;
    }
    const requests = recent.reduce((total, one) => total + one.requests, 0);
    const asked = recent.reduce((total, one) => total + one.answerable, 0);
    const errors = recent.reduce((total, one) => total + one.errors, 0);
    const merged = new Map<number, number>();
    for (const [, buckets] of this._buckets.get(name) ?? []) {
      buckets.forEach(([bound, count]) => merged.set(bound, (merged.get(bound) ?? 0) + count));
    }
    const last = recent.filter(one => one.p95 !== null).pop();
    return {
      perMinute: (60 * requests) / seconds,
      errorRate: asked > 0 ? errors / asked : null,
      errors,
      p95: merged.size ? quantile([...merged], 0.95) : (last?.p95 ?? null)
    };
  }

  /** One curve of a deployment; `errors` in percent. */
  series(name: string, curve: Curve): ISeries {
    const intervals = this._intervals.get(name) ?? [];
    const value = (one: IInterval): number | null => {
      if (!one.seconds) {
        return null;
      }
      switch (curve) {
        case 'rate':
          return one.requests / one.seconds;
        case 'errors':
          return one.answerable > 0 ? (100 * one.errors) / one.answerable : null;
        default:
          return one[curve];
      }
    };
    return {
      steps: intervals.map((_, i) => i),
      values: intervals.map(value),
      timestamps: intervals.map(one => one.time)
    };
  }

  private readonly _intervals = new Map<string, IInterval[]>();
  /** What was answered in the last minute, for its quantiles. */
  private readonly _buckets = new Map<string, [number, Bucket[]][]>();
  private _latest: IEndpointStats | null = null;
  private _time = 0;
  private _version = 0;
}
