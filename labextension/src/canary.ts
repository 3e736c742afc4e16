/** Canaries: what one starts with, how long it still goes on, and how its two sides do. Pure functions. */
import type { ICanarySide, ICanarySpec, ICanaryStatus, Traffic } from './resources';

/** The server's defaults. */
export const CANARY_DEFAULTS: Required<Omit<ICanarySpec, 'deployment'>> = {
  percent: 10,
  duration: 300,
  min_requests: 50,
  max_error_rate: 0.02,
  max_latency_ratio: 2,
  max_latency_ms: 0
};

/** Milliseconds for which a canary that was rolled back is told in the panel. */
const NEWS = 24 * 3600 * 1000;

export interface IRemaining {
  /** Milliseconds until it is decided; 0 when the time is over. */
  ms: number;
  /** Requests to the candidate that are missing for a decision. */
  requests: number;
}

/** What is missing until a running canary is decided; null when none runs. */
export function canaryLeft(
  canary: ICanaryStatus | null | undefined,
  spec: ICanarySpec | null | undefined,
  now: number
): IRemaining | null {
  if (canary?.phase !== 'Running') {
    return null;
  }
  const started = Date.parse(canary.started_at);
  const duration = (spec?.duration ?? CANARY_DEFAULTS.duration) * 1000;
  const wanted = spec?.min_requests ?? CANARY_DEFAULTS.min_requests;
  return {
    // A clock that goes after the server's does not make it longer.
    ms: Number.isNaN(started)
      ? duration
      : Math.min(duration, Math.max(0, started + duration - now)),
    requests: Math.max(0, wanted - (canary.candidate?.requests ?? 0))
  };
}

/** Whether the panel tells of it: it runs, or was rolled back not long ago. */
export function isNews(canary: ICanaryStatus | null | undefined, now: number): boolean {
  if (canary?.phase === 'RolledBack') {
    const ended = Date.parse(canary.ended_at);
    return Number.isNaN(ended) || now - ended < NEWS;
  }
  return canary?.phase === 'Running';
}

export interface ISide {
  requests: number;
  /** From 0 to 1; null without requests. */
  errorRate: number | null;
  /** Milliseconds. */
  p95: number | null;
}

export function sideOf(side: ICanarySide | null | undefined): ISide {
  const requests = side?.requests ?? 0;
  const errors = side?.errors ?? 0;
  return {
    requests,
    errorRate: requests > 0 ? (side?.error_rate ?? errors / requests) : null,
    p95: side?.p95 ?? null
  };
}

/** Deployments that a canary can be of, the best first: ready, with little traffic, new. */
export function candidates<
  T extends { name: string; created_at: string; status: { phase: string } }
>(deployments: readonly T[], traffic: Traffic): T[] {
  const share = (one: T) => traffic[one.name] ?? 0;
  // Somebody else must have traffic, to compare it with.
  const others = (one: T) =>
    Object.entries(traffic).some(([name, n]) => name !== one.name && n > 0);
  return deployments
    .filter(one => one.status.phase === 'Ready' && others(one))
    .sort((a, b) => share(a) - share(b) || b.created_at.localeCompare(a.created_at));
}
