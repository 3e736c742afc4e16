/** Numbers, times and names as text for people. Pure functions; `now` is in milliseconds since the epoch. */
import { TranslationBundle } from '@jupyterlab/translation';

/** At most `digits` significant digits, without the noise of trailing zeros. */
export function formatNumber(value: number | null | undefined, digits = 4): string {
  if (value === null || value === undefined || Number.isNaN(value)) {
    return 'NaN';
  }
  if (!Number.isFinite(value)) {
    return value > 0 ? '∞' : '−∞';
  }
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e7) {
    return String(value);
  }
  if (size !== 0 && (size < 1e-4 || size >= 1e7)) {
    return value.toExponential(Math.max(0, digits - 2)).replace('e+', 'e');
  }
  return String(Number(value.toPrecision(digits)));
}

/** `7 s`, `3:04`, `2:03:04`; time units are the same in most languages, so this is not translated. */
export function formatDuration(ms: number): string {
  const total = Math.max(0, Math.floor(ms / 1000));
  const seconds = total % 60;
  const minutes = Math.floor(total / 60) % 60;
  const hours = Math.floor(total / 3600);
  const two = (value: number) => String(value).padStart(2, '0');
  if (hours) {
    return `${hours}:${two(minutes)}:${two(seconds)}`;
  }
  return minutes ? `${minutes}:${two(seconds)}` : `${seconds} s`;
}

/** A stretch of time with its sign: before the start it is negative. */
export function formatOffset(seconds: number): string {
  return (seconds < 0 ? '−' : '') + formatDuration(Math.abs(seconds) * 1000);
}

/** How long ago an RFC 3339 time is; dates from a week on. Empty for an empty or broken time. */
export function relativeTime(
  time: string | null | undefined,
  now: number,
  trans: TranslationBundle
): string {
  const then = time ? Date.parse(time) : NaN;
  if (Number.isNaN(then)) {
    return '';
  }
  const seconds = Math.max(0, Math.round((now - then) / 1000));
  if (seconds < 5) {
    return trans.__('now');
  }
  if (seconds < 60) {
    return trans.__('%1 s ago', seconds);
  }
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) {
    return trans.__('%1 min ago', minutes);
  }
  const hours = Math.round(minutes / 60);
  if (hours < 24) {
    return trans.__('%1 h ago', hours);
  }
  const days = Math.round(hours / 24);
  if (days < 7) {
    return trans.__('%1 d ago', days);
  }
  return new Date(then).toLocaleDateString();
}

/** Milliseconds between two RFC 3339 times; an empty end means `now`. */
export function elapsed(start: string, end: string, now: number): number {
  const from = Date.parse(start);
  const to = end ? Date.parse(end) : now;
  return Number.isNaN(from) || Number.isNaN(to) ? 0 : Math.max(0, to - from);
}

export function formatBytes(bytes: number): string {
  const units = ['B', 'KB', 'MB', 'GB', 'TB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value >= 10 || unit === 0 ? Math.round(value) : value.toFixed(1)} ${units[unit]}`;
}

/** Whole percent of a progress, 0–100, or null when there is none. */
export function percent(
  progress: { done: number; total: number } | null | undefined
): number | null {
  if (!progress || !(progress.total > 0) || !(progress.done >= 0)) {
    return null;
  }
  return Math.min(100, Math.round((100 * progress.done) / progress.total));
}

/** Metrics that tell most about a run, best first; `preferred` comes from the settings. */
export function keyMetrics(
  metrics: Record<string, number | null>,
  preferred: readonly string[],
  count: number
): [string, number | null][] {
  const known = [
    ...preferred,
    'test_accuracy',
    'val_accuracy',
    'accuracy',
    'val_loss',
    'loss',
    'training_accuracy_score',
    'training_score'
  ];
  const rank = (key: string) => {
    const index = known.indexOf(key);
    if (index >= 0) {
      return index;
    }
    if (key.startsWith('system/')) {
      return known.length + 3;
    }
    return (
      known.length +
      (/acc|score|f1|auc|r2/i.test(key) ? 0 : /loss|error|mae|mse/i.test(key) ? 1 : 2)
    );
  };
  return Object.entries(metrics)
    .sort(([a], [b]) => rank(a) - rank(b) || a.localeCompare(b))
    .slice(0, count);
}

/** Milliseconds as `0.8 ms`, `12 ms`, `1.2 s`; a dash for none. */
export function formatMs(ms: number | null | undefined): string {
  if (ms === null || ms === undefined || !Number.isFinite(ms)) {
    return '–';
  }
  if (ms >= 1000) {
    return `${ms >= 10_000 ? Math.round(ms / 1000) : (ms / 1000).toFixed(1)} s`;
  }
  return `${ms >= 10 ? Math.round(ms) : Number(ms.toPrecision(2))} ms`;
}

/** A part of 1 as percent with as many digits as say something; a dash for none. */
export function formatShare(part: number | null | undefined): string {
  if (part === null || part === undefined || !Number.isFinite(part)) {
    return '–';
  }
  const value = 100 * part;
  if (value > 0 && value < 0.1) {
    return '< 0.1 %';
  }
  return `${value === 0 || value >= 10 ? Math.round(value) : Number(value.toFixed(1))} %`;
}

/** How often something happens; `< 1` when it is rare. */
export function formatCount(count: number): string {
  if (count > 0 && count < 1) {
    return '< 1';
  }
  return count >= 1e6 ? formatNumber(count, 3) : Math.round(count).toLocaleString('en');
}
