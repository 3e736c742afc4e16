/** Shares of traffic: whole percent by deployment that add up to 100. Pure functions. */
import type { Endpoint, IHistoryItem, Traffic } from './resources';

export function sum(traffic: Traffic): number {
  return Object.values(traffic).reduce((total, share) => total + share, 0);
}

/** Only 0 (nobody is served) and 100 are taken by the server, of whole shares from 0 to 100. */
export function isValid(traffic: Traffic): boolean {
  const whole = Object.values(traffic).every(
    share => Number.isInteger(share) && share >= 0 && share <= 100
  );
  return whole && (sum(traffic) === 0 || sum(traffic) === 100);
}

/** The shares of all of `names`, those without one at 0. */
export function fill(traffic: Traffic, names: readonly string[]): Record<string, number> {
  return Object.fromEntries(names.map(name => [name, traffic[name] ?? 0]));
}

export function allTo(name: string, names: readonly string[]): Record<string, number> {
  return Object.fromEntries(names.map(one => [one, one === name ? 100 : 0]));
}

/** `total` in whole parts as `weights` say; what rounding leaves goes to the largest remainders. */
function split(total: number, weights: readonly number[]): number[] {
  const all = weights.reduce((a, b) => a + b, 0);
  const exact = weights.map(weight => (total * weight) / all);
  const parts = exact.map(Math.floor);
  const order = exact
    .map((value, i) => [value - parts[i], i])
    .sort((a, b) => b[0] - a[0] || a[1] - b[1]);
  const rest = total - parts.reduce((a, b) => a + b, 0);
  order.slice(0, rest).forEach(([, i]) => parts[i]++);
  return parts;
}

/**
 * Give `name` the share `value`; the others share the rest as they did before.
 *
 * When they had nothing, they share it as in `before`, and equally when that says nothing either.
 */
export function rebalance(
  traffic: Traffic,
  name: string,
  value: number,
  before: Traffic = {}
): Record<string, number> {
  const names = Object.keys(traffic);
  const others = names.filter(one => one !== name);
  if (!others.length) {
    return { [name]: value > 0 ? 100 : 0 };
  }
  const share = Math.min(100, Math.max(0, Math.round(value)));
  const positive = (weights: number[]) => weights.some(weight => weight > 0) && weights;
  const weights =
    positive(others.map(one => traffic[one])) ||
    positive(others.map(one => before[one] ?? 0)) ||
    others.map(() => 1);
  const parts = split(100 - share, weights);
  return Object.fromEntries(
    names.map(one => [one, one === name ? share : parts[others.indexOf(one)]])
  );
}

/** Whether both send every deployment the same; a share of 0 is none. */
export function equal(a: Traffic, b: Traffic): boolean {
  return [...Object.keys(a), ...Object.keys(b)].every(name => (a[name] ?? 0) === (b[name] ?? 0));
}

export interface IShift {
  name: string;
  before: number;
  after: number;
}

/** What a change does to each deployment that has traffic before or after. */
export function shifts(before: Traffic, after: Traffic): IShift[] {
  const names = [...new Set([...Object.keys(before), ...Object.keys(after)])];
  return names
    .map(name => ({ name, before: before[name] ?? 0, after: after[name] ?? 0 }))
    .filter(shift => shift.before > 0 || shift.after > 0);
}

/** `blue 90 % · green 10 %`, the largest share first; empty when nobody is served. */
export function trafficText(traffic: Traffic): string {
  return Object.entries(traffic)
    .filter(([, share]) => share > 0)
    .sort((a, b) => b[1] - a[1])
    .map(([name, share]) => `${name} ${share} %`)
    .join(' · ');
}

/** What an endpoint's traffic is meant to be: as asked for, else as it fell to whoever was ready first. */
export function effective(endpoint: Pick<Endpoint, 'spec' | 'status'>): Traffic {
  const asked = endpoint.spec.traffic ?? {};
  return Object.keys(asked).length ? asked : (endpoint.status.traffic ?? {});
}

/** The numbers of an object; null when it is none. */
export function asTraffic(value: unknown): Traffic | null {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    return null;
  }
  const entries = Object.entries(value).filter(([, share]) => typeof share === 'number');
  return Object.fromEntries(entries) as Traffic;
}

/** Shares before and after one thing that was done; null where it did not change any. */
export function changeOf(
  item: IHistoryItem,
  key: 'traffic' | 'mirror_traffic' = 'traffic'
): { before: Traffic; after: Traffic } | null {
  const side = (value: unknown) => asTraffic((value as Record<string, unknown> | null)?.[key]);
  const before = side(item.detail.before);
  const after = side(item.detail.after);
  return before && after && !equal(before, after) ? { before, after } : null;
}
