/**
 * What a job's output keeps in the notebook: the last seen state as JSON, HTML and text, at most 50 KB.
 *
 * Data that comes in is never trusted: it is read field by field. HTML that goes out has all text escaped, curves as
 * inline SVG and no script, so that an export without our renderer still shows the job.
 */
import type { IProgress, ISeries, JobPhase } from './api';
import { splitLines, stripAnsi } from './ansi';
import { elapsed, formatDuration, formatNumber, percent } from './format';
import { chartData, ICurve } from './curves';
import { downsample, groupSeries, lastValue } from './series';

export const JOB_MIME = 'application/vnd.jupyter-mlops.job+json';

export const MAX_BYTES = 50_000;
const MAX_LINES = 40;
const MAX_LINE = 400;
const MAX_KEYS = 24;

const PHASES: readonly string[] = [
  'Queued',
  'Starting',
  'Running',
  'Stopping',
  'Finalizing',
  'Completed',
  'Failed',
  'Canceled'
];

export interface ISnapshot {
  phase: JobPhase;
  reason: string;
  queued_at: string;
  started_at: string;
  ended_at: string;
  exit_code: number | null;
  processes: number;
  metrics: Record<string, ISeries>;
  log: string;
  progress: IProgress | null;
  /** The latest attempt; 0 when it is not known. */
  attempt: number;
  taken_at: string;
}

export interface IJobOutput {
  version: 1;
  workspace: string;
  name: string;
  run_id: string;
  experiment_id: string;
  snapshot: ISnapshot;
}

export function isTerminal(phase: string): boolean {
  return phase === 'Completed' || phase === 'Failed' || phase === 'Canceled';
}

function text(value: unknown, limit = 500): string {
  return typeof value === 'string' ? value.slice(0, limit) : '';
}

function record(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {};
}

function time(value: unknown): string {
  const given = text(value, 40);
  return Number.isNaN(Date.parse(given)) ? '' : given;
}

/** Steps and values of the same length, numbers only. */
export function readSeries(value: unknown): ISeries {
  const { steps, values } = record(value);
  const series: ISeries = { steps: [], values: [] };
  if (Array.isArray(steps) && Array.isArray(values)) {
    for (let i = 0; i < Math.min(steps.length, values.length, 5000); i++) {
      if (typeof steps[i] === 'number' && Number.isFinite(steps[i])) {
        series.steps.push(steps[i]);
        series.values.push(Number.isFinite(values[i]) ? (values[i] as number) : null);
      }
    }
  }
  return series;
}

/** Read what a notebook holds; null when it is not a job's output or of a later version. */
export function readOutput(data: unknown): IJobOutput | null {
  const given = record(data);
  if (given.version !== 1 || !text(given.name)) {
    return null;
  }
  const snapshot = record(given.snapshot);
  const metrics: Record<string, ISeries> = {};
  for (const [key, value] of Object.entries(record(snapshot.metrics)).slice(0, 200)) {
    metrics[key] = readSeries(value);
  }
  const { done, total } = record(snapshot.progress);
  const processes = snapshot.processes;
  return {
    version: 1,
    workspace: text(given.workspace, 64) || 'default',
    name: text(given.name, 250),
    run_id: text(given.run_id, 64),
    experiment_id: text(given.experiment_id, 64),
    snapshot: {
      phase: (PHASES.includes(snapshot.phase as string) ? snapshot.phase : 'Queued') as JobPhase,
      reason: text(snapshot.reason, 2000),
      queued_at: time(snapshot.queued_at),
      started_at: time(snapshot.started_at),
      ended_at: time(snapshot.ended_at),
      exit_code: typeof snapshot.exit_code === 'number' ? snapshot.exit_code : null,
      processes: typeof processes === 'number' && processes >= 1 ? Math.floor(processes) : 1,
      metrics,
      log: Array.isArray(snapshot.log)
        ? snapshot.log.map(line => text(line, 2000)).join('\n')
        : text(snapshot.log, 40_000),
      progress: typeof done === 'number' && typeof total === 'number' ? { done, total } : null,
      attempt: typeof snapshot.attempt === 'number' ? Math.floor(snapshot.attempt) : 0,
      taken_at: time(snapshot.taken_at)
    }
  };
}

/** The same snapshot with at most `points` points a metric, `keys` metrics and `lines` lines of log. */
function shrink(snapshot: ISnapshot, points: number, keys: number, lines: number): ISnapshot {
  const metrics: Record<string, ISeries> = {};
  for (const key of Object.keys(snapshot.metrics).slice(0, keys)) {
    const { steps, values } = downsample(snapshot.metrics[key], points);
    // Six digits are more than a curve shows, and keep the notebook's diff small.
    metrics[key] = {
      steps,
      values: values.map(value => (value === null ? null : Number(value.toPrecision(6))))
    };
  }
  const log = splitLines(snapshot.log)
    .slice(-lines)
    .map(line => stripAnsi(line).slice(0, MAX_LINE))
    .join('\n');
  return { ...snapshot, reason: snapshot.reason.slice(0, 1000), metrics, log };
}

/** The MIME bundle to keep in the notebook. */
export function toBundle(output: IJobOutput, limit = MAX_BYTES): Record<string, unknown> {
  let points = 120;
  let keys = MAX_KEYS;
  let lines = MAX_LINES;
  for (;;) {
    const small = { ...output, snapshot: shrink(output.snapshot, points, keys, lines) };
    const bundle = {
      [JOB_MIME]: small,
      'text/html': toHtml(small),
      'text/plain': toText(small)
    };
    const smallest = points <= 8 && keys <= 2 && lines <= 2;
    if (smallest || new TextEncoder().encode(JSON.stringify(bundle)).length <= limit) {
      return bundle;
    }
    points = Math.max(8, Math.floor(points / 1.6));
    keys = Math.max(2, Math.floor(keys / 1.3));
    lines = Math.max(2, Math.floor(lines / 1.3));
  }
}

/** Time between start and end; of a job that still ran, until the snapshot was taken. */
function duration(snapshot: ISnapshot): string {
  const end = snapshot.ended_at || snapshot.taken_at;
  return snapshot.started_at && end ? formatDuration(elapsed(snapshot.started_at, end, 0)) : '';
}

export function toText(output: IJobOutput): string {
  const { snapshot } = output;
  const metrics = Object.entries(snapshot.metrics)
    .slice(0, 6)
    .map(([key, series]) => `${key}=${formatNumber(lastValue(series))}`);
  const parts = [`Job ${output.name}: ${snapshot.phase}`, duration(snapshot), ...metrics];
  const first = parts.filter(Boolean).join('  ');
  return snapshot.reason ? `${first}\n${snapshot.reason}` : first;
}

export function escapeHtml(value: string): string {
  return value
    .replace(/&/g, '&amp;')
    .replace(/</g, '&lt;')
    .replace(/>/g, '&gt;')
    .replace(/"/g, '&quot;')
    .replace(/'/g, '&#39;');
}

/** Theme colours, with others that read on light and on dark where there is no theme. */
const COLORS = [
  'var(--jp-brand-color1, #1e88e5)',
  'var(--jp-warn-color1, #f57c00)',
  'var(--jp-mirror-editor-operator-color, #ab47bc)',
  'var(--jp-accent-color1, #43a047)',
  'var(--jp-error-color1, #e53935)',
  'var(--jp-info-color1, #00acc1)'
];
const MUTED = 'opacity:.7';
const SMALL = 'font-size:12px';

/** One chart as inline SVG, with the range of values at its lower left and of steps at its lower right. */
function svg(title: string, keys: string[], metrics: Record<string, ISeries>): string {
  const curves = keys.map((key, i): ICurve => ({
    id: key,
    label: key,
    series: metrics[key],
    color: i,
    dash: i,
    origin: 0
  }));
  const [steps, ...rows] = chartData(curves, 'step', 0);
  const numbers = rows.flat().filter((value): value is number => typeof value === 'number');
  if (!numbers.length) {
    return '';
  }
  const [low, high] = [
    numbers.reduce((a, b) => Math.min(a, b)),
    numbers.reduce((a, b) => Math.max(a, b))
  ];
  const [first, last] = [steps[0], steps[steps.length - 1]];
  const x = (step: number) => 4 + (252 * (step - first)) / (last - first || 1);
  const y = (value: number) => 94 - (88 * (value - low)) / (high - low || 1);
  const lines = rows.map((row, i) => {
    const points = row
      .map((value, j) =>
        typeof value !== 'number' ? '' : `${x(steps[j]).toFixed(1)},${y(value).toFixed(1)}`
      )
      .filter(Boolean)
      .join(' ');
    return `<polyline points="${points}" style="fill:none;stroke:${COLORS[i % COLORS.length]};stroke-width:1.5"/>`;
  });
  const label = (content: string, x: number, anchor: string) =>
    `<text x="${x}" y="110" font-size="10" text-anchor="${anchor}" fill="currentColor" opacity=".7">` +
    `${escapeHtml(content)}</text>`;
  const legend = keys
    .map((key, i) => {
      const swatch = `<span style="color:${COLORS[i % COLORS.length]}">&#9679;</span>`;
      return `${swatch} ${escapeHtml(key)} <b>${escapeHtml(formatNumber(lastValue(metrics[key])))}</b>`;
    })
    .join(' &nbsp; ');
  return (
    `<figure style="margin:0"><figcaption style="${SMALL}">${legend}</figcaption>` +
    `<svg width="260" height="114" viewBox="0 0 260 114" role="img" aria-label="${escapeHtml(title)}">` +
    '<rect x=".5" y=".5" width="259" height="99" fill="none" stroke="currentColor" opacity=".2"/>' +
    lines.join('') +
    label(`${formatNumber(low)} … ${formatNumber(high)}`, 1, 'start') +
    label(`${formatNumber(first)} … ${formatNumber(last)}`, 259, 'end') +
    '</svg></figure>'
  );
}

export function toHtml(output: IJobOutput): string {
  const { snapshot } = output;
  const { charts, singles } = groupSeries(snapshot.metrics);
  const done = percent(snapshot.progress);
  const mark: Record<string, string> = {
    Completed: '&#10003;',
    Failed: '&#10007;',
    Canceled: '&#8856;'
  };
  const facts = [
    duration(snapshot),
    done === null || isTerminal(snapshot.phase) ? '' : `${done} %`,
    snapshot.processes > 1 ? `${snapshot.processes} processes` : '',
    snapshot.exit_code ? `exit code ${snapshot.exit_code}` : ''
  ].filter(Boolean);
  const parts = [
    `<div style="padding:2px 0"><b>${mark[snapshot.phase] ?? '&#9679;'} ${escapeHtml(snapshot.phase)}</b> &nbsp; ` +
      `<b>${escapeHtml(output.name)}</b> &nbsp; <span style="${MUTED}">${escapeHtml(facts.join(' · '))}</span></div>`
  ];
  if (snapshot.reason) {
    parts.push(`<div style="padding:2px 0">${escapeHtml(snapshot.reason)}</div>`);
  }
  if (singles.length) {
    const values = singles.map(
      key =>
        `${escapeHtml(key)} <b>${escapeHtml(formatNumber(lastValue(snapshot.metrics[key])))}</b>`
    );
    parts.push(`<div style="${SMALL};padding:2px 0">${values.join(' &nbsp; ')}</div>`);
  }
  if (charts.length) {
    const figures = charts.slice(0, 8).map(({ title, keys }) => svg(title, keys, snapshot.metrics));
    parts.push(
      `<div style="display:flex;flex-wrap:wrap;gap:12px;padding:4px 0">${figures.join('')}</div>`
    );
  }
  if (snapshot.log) {
    const log = escapeHtml(snapshot.log);
    // Reversed, so that it opens at its end.
    parts.push(
      '<div style="display:flex;flex-direction:column-reverse;max-height:240px;overflow:auto;margin:4px 0 0">' +
        `<pre style="${SMALL};flex:none;margin:0;overflow:visible;white-space:pre-wrap;overflow-wrap:anywhere;` +
        `background:none;color:inherit;font-family:var(--jp-code-font-family, monospace)">${log}</pre></div>`
    );
  }
  if (!isTerminal(snapshot.phase) && snapshot.taken_at) {
    parts.push(`<div style="${SMALL};${MUTED}">as of ${escapeHtml(snapshot.taken_at)}</div>`);
  }
  const frame = 'border:1px solid rgba(128,128,128,.4);border-radius:3px;padding:6px 10px';
  return `<div class="jupyter-mlops-job" style="${frame}">${parts.join('')}</div>`;
}
