import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { ApiError, ISeries } from '../src/api';
import { ChartStates } from '../src/chartstate';
import { curvesOf } from '../src/components/charts';
import {
  attemptMarks,
  chartData,
  ICurve,
  originOf,
  positions,
  smooth,
  throughput,
  valueAt
} from '../src/curves';
import { attemptsOf } from '../src/jobfacts';
import { differences, MAX_RUNS, RunSet } from '../src/runset';
import { total, usageCharts } from '../src/usage';
import { FakeApi, job, run } from './fakes';

const series = (steps: number[], values: (number | null)[], timestamps?: number[]): ISeries => ({
  steps,
  values,
  timestamps
});
const curve = (given: ISeries, origin = 0): ICurve => ({
  id: 'a',
  label: 'a',
  series: given,
  color: 0,
  dash: 0,
  origin
});

describe('smoothing', () => {
  it('is the moving average that begins at the first value', () => {
    expect(smooth([4, 4, 4], 0.9)).toEqual([4, 4, 4].map(value => expect.closeTo(value)));
    // (0·w + 1·(1 − w)) / (1 − w²) for the second of 0, 1.
    expect(smooth([0, 1], 0.6)[1]).toBeCloseTo(0.4 / (1 - 0.36));
    expect(smooth([1, 2], 0)).toEqual([1, 2]);
  });

  it('leaves gaps, which do not count', () => {
    const [a, gap, b] = smooth([1, null, 3], 0.5);
    expect([a, gap]).toEqual([1, null]);
    expect(b).toBeCloseTo(smooth([1, 3], 0.5)[1]!);
    expect(smooth([NaN, Infinity, 2], 0.5)).toEqual([null, null, 2]);
  });
});

describe('chartData', () => {
  it('has gaps where a value is no number, and nothing where there is none', () => {
    const data = chartData(
      [curve(series([0, 2], [1, 2])), curve(series([1, 2], [3, null]))],
      'step',
      0
    );
    expect(data).toEqual([
      [0, 1, 2],
      [1, undefined, 2],
      [undefined, 3, null]
    ]);
    expect([valueAt(data[1], 1), valueAt(data[2], 0), valueAt(data[2], 2)]).toEqual([
      1,
      undefined,
      null
    ]);
  });

  it('puts smoothed curves after the raw ones', () => {
    const [, raw, smoothed] = chartData([curve(series([0, 1], [0, 1]))], 'step', 0.6);
    expect(raw).toEqual([0, 1]);
    expect(smoothed[1]).toBeCloseTo(0.625);
  });

  it('draws over steps, time, and time since the start of each run', () => {
    const a = series([5, 6], [1, 2], [10_000, 12_000]);
    expect(positions(a, 'step', 10_000)).toEqual([5, 6]);
    expect(positions(a, 'time', 10_000)).toEqual([10, 12]);
    expect(positions(a, 'relative', 10_000)).toEqual([0, 2]);
    expect(positions(series([5, 6], [1, 2]), 'time', 0)).toEqual([5, 6]);
    // All logged without a step.
    expect(positions(series([0, 0, 0], [1, 2, 3]), 'step', 0)).toEqual([0, 1, 2]);
    const b = series([5, 6], [3, 4], [70_000, 72_000]);
    const data = chartData([curve(a, 10_000), curve(b, 70_000)], 'relative', 0);
    expect(data).toEqual([
      [0, 2],
      [1, 2],
      [3, 4]
    ]);
    expect(originOf({ a, b })).toBe(10_000);
  });
});

describe('curves of several runs', () => {
  it('tell runs apart by colour, metrics of one run by colour too', () => {
    const metrics = { loss: series([0], [1]), val_loss: series([0], [2]) };
    const keys = ['loss', 'val_loss'];
    const one = { id: '1', name: 'one', metrics };
    const two = { id: '2', name: 'two', metrics: { loss: series([0], [3]) } };
    expect(curvesOf(keys, [one]).map(({ label, color }) => [label, color])).toEqual([
      ['loss', 0],
      ['val_loss', 1]
    ]);
    expect(curvesOf(['loss'], [one, two]).map(({ label, color }) => [label, color])).toEqual([
      ['one', 0],
      ['two', 1]
    ]);
    expect(curvesOf(['val_loss'], [one, two]).map(curve => curve.id)).toEqual(['1 val_loss']);
  });
});

describe('attempts', () => {
  const at = (seconds: number) => new Date(seconds * 1000).toISOString();
  const status = {
    ...job('a').status,
    attempt: 2,
    started_at: at(100),
    attempts: [
      {
        attempt: 1,
        phase: 'Failed',
        reason: 'signal 9',
        started_at: at(100),
        ended_at: at(110),
        exit_code: -9,
        failed_rank: 1
      }
    ]
  };

  it('are those that ended and the one that runs', () => {
    const [first, second] = attemptsOf(status);
    expect(first.reason).toBe('signal 9');
    expect(second).toMatchObject({ attempt: 2, phase: 'Running', started_at: at(110) });
    expect(attemptsOf({ ...status, started_at: at(112) })[1].started_at).toBe(at(112));
    // Waiting for its second attempt.
    expect(attemptsOf({ ...status, attempt: 1 }).length).toBe(1);
  });

  it('are marked where they begin', () => {
    const loss = series([0, 1, 2, 3], [4, 3, 2, 1], [101_000, 105_000, 111_000, 115_000]);
    const rare = series([0], [1], [101_000]);
    const attempts = attemptsOf(status);
    const mark = (axis: 'step' | 'time' | 'relative') =>
      attemptMarks(attempts, { loss, rare }, axis, n => `attempt ${n}`);
    expect(mark('step')).toEqual([{ x: 2, label: 'attempt 2' }]);
    expect(mark('time')[0].x).toBe(110);
    expect(mark('relative')[0].x).toBe(9);
    // Nothing was logged since.
    expect(attemptMarks(attempts, { rare }, 'step', String)).toEqual([]);
    expect(attemptMarks(attempts.slice(0, 1), { loss }, 'step', String)).toEqual([]);
  });
});

describe('throughput', () => {
  it('is steps a second, and begins anew with each attempt', () => {
    const times = Array.from({ length: 100 }, (_, i) => i * 100);
    const steps = times.map((_, i) => i);
    const rate = throughput(
      { loss: series(steps, steps, times), rare: series([0], [0], [0]) },
      [],
      10
    )!;
    expect(rate.values.length).toBeGreaterThan(7);
    rate.values.forEach(value => expect(value).toBeCloseTo(10));
    const again = throughput(
      { loss: series([0, 10, 5, 15], [0, 0, 0, 0], [0, 1000, 60_000, 61_000]) },
      [],
      100
    )!;
    expect(again.values).toEqual([10, null, 10]);
    const one = { ...attemptsOf(job('a').status)[0], started_at: new Date(0).toISOString() };
    const two = { ...one, attempt: 2, started_at: new Date(50_000).toISOString() };
    const resumed = { loss: series([0, 10, 20, 30], [0, 0, 0, 0], [0, 1000, 60_000, 61_000]) };
    expect(throughput(resumed, [one, two], 100)!.values).toEqual([10, null, 10]);
    expect(throughput({ loss: series([0, 1], [1, 2]) })).toBe(null);
  });
});

describe('usage', () => {
  it('is a curve for each rank over all attempts, GPUs where there are some', () => {
    const rank = (n: number, cpu: number[]) => ({
      rank: n,
      cpu,
      rss: [100, 200],
      gpu: [null, null],
      gpu_memory: [null, null],
      peak_rss: 200,
      node: 0
    });
    const attempt = (n: number, start: number) => ({
      attempt: n,
      started_at: '',
      ended_at: '',
      samples: { times: [start, start + 1000], ranks: [rank(0, [1, 2]), rank(1, [3, 4])] }
    });
    const usage = {
      name: 'a',
      cpus: 2,
      memory_bytes: 1,
      attempts: [attempt(1, 0), attempt(2, 9000)]
    };
    const charts = usageCharts(usage);
    expect(charts.map(chart => chart.kind)).toEqual(['cpu', 'rss']);
    expect(charts[0].curves.map(one => one.rank)).toEqual([0, 1]);
    expect(charts[0].curves[0].series.values).toEqual([1, 2, null, 1, 2]);
    expect(charts.map(total)).toEqual([6, 400]);
    usage.attempts[1].samples.ranks[1] = { ...rank(1, [3, 4]), node: 1 };
    expect(usageCharts(usage)[0].curves.map(one => one.node)).toEqual([0, 1]);
    expect(usageCharts(null)).toEqual([]);
  });
});

describe('ChartState', () => {
  it('is kept for each output, for as many as matter', () => {
    const states = new ChartStates();
    states.defaults = { axis: 'relative', smoothing: 0.5 };
    const state = states.get('a');
    state.set({ zoom: [1, 5], log: true, smoothing: 7 });
    expect(states.get('a')).toBe(state);
    expect([state.axis, state.smoothing, state.zoom, state.log]).toEqual([
      'relative',
      0.99,
      [1, 5],
      true
    ]);
    state.set({ axis: 'step' });
    expect(state.zoom).toBe(null);
    for (let i = 0; i < 500; i++) {
      states.get(`other ${i}`);
    }
    expect(states.get('a')).not.toBe(state);
  });
});

describe('RunSet', () => {
  let api: FakeApi;
  let runs: RunSet;

  beforeEach(() => {
    vi.useFakeTimers();
    api = new FakeApi();
    api.allRuns = [
      run('a', { params: { lr: '1', seed: '7' }, metrics: { loss: 1, acc: null } }),
      run('b', { params: { lr: '2', seed: '7' }, metrics: { loss: 2, acc: null } })
    ];
    api.series = { loss: series([0, 1], [2, 1]) };
    runs = new RunSet({ api });
  });

  afterEach(() => {
    runs.dispose();
    vi.useRealTimers();
  });

  const settle = (ms = 10) => vi.advanceTimersByTimeAsync(ms);
  const pick = (...ids: string[]) => runs.pick(ids.map(id => ({ id, name: id })));

  it('reads ended runs once and running ones again', async () => {
    api.allRuns.push(run('c', { status: 'RUNNING' }));
    pick('a', 'c');
    await settle();
    expect(runs.runs.map(one => [one.done, one.metrics.loss.steps.length])).toEqual([
      [true, 2],
      [false, 2]
    ]);
    await settle(7000);
    expect(api.count('run')).toBe(4);
    api.allRuns[2] = run('c');
    await settle(4000);
    const before = api.count('run');
    await settle(60_000);
    expect(api.count('run')).toBe(before);
    pick('a', 'c', 'b');
    await settle();
    expect(api.count('run')).toBe(before + 1);
  });

  it('takes as many as can be told apart, and says which are gone', async () => {
    pick(...Array.from({ length: 20 }, (_, i) => `r${i}`));
    await settle();
    expect(runs.runs.length).toBe(MAX_RUNS);
    expect(runs.runs[0]).toMatchObject({ error: 'there is no such thing', done: true });
  });

  it('tries again when the server is away', async () => {
    api.broken = new ApiError('', 'unreachable', 0);
    pick('a');
    await settle(100);
    expect(runs.runs[0].done).toBe(false);
    api.broken = null;
    await settle(30_000);
    expect(runs.runs[0].done).toBe(true);
  });

  it('tells what differs', async () => {
    pick('a', 'b');
    await settle();
    expect(differences(runs.runs)).toEqual([
      { kind: 'param', key: 'lr', values: ['1', '2'] },
      { kind: 'metric', key: 'loss', values: [1, 2] }
    ]);
  });
});
