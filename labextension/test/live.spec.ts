import { Signal } from '@lumino/signaling';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { ApiError, IChange } from '../src/api';
import { LiveJob } from '../src/live';
import { readOutput } from '../src/snapshot';
import { FakeApi, job, run } from './fakes';

const STORED = readOutput({
  version: 1,
  name: 'a',
  run_id: 'run-of-a',
  snapshot: {
    phase: 'Running',
    taken_at: '2026-01-31T12:00:00Z',
    log: 'stored',
    metrics: { loss: { steps: [0], values: [1] } }
  }
});

describe('LiveJob', () => {
  let api: FakeApi;
  let visible: boolean;
  let changes: Signal<object, IChange[]>;
  let live: LiveJob;

  beforeEach(() => {
    vi.useFakeTimers();
    api = new FakeApi();
    api.allJobs = [job('a')];
    api.allRuns = [run('run-of-a', { status: 'RUNNING', progress: { done: 1, total: 2 } })];
    api.series = { loss: { steps: [0, 1], values: [2, 1] } };
    api.logs = { 0: 'one\ntwo\n', 1: 'other\n' };
    visible = true;
    changes = new Signal<object, IChange[]>({});
  });

  afterEach(() => {
    live.dispose();
    vi.useRealTimers();
  });

  const settle = (ms = 10) => vi.advanceTimersByTimeAsync(ms);
  const open = (more: Partial<LiveJob.IOptions> = {}) => {
    live = new LiveJob({
      api,
      workspace: 'default',
      name: 'a',
      isVisible: () => visible,
      changes,
      ...more
    });
  };
  const end = (phase: 'Completed' | 'Failed' = 'Completed') => {
    api.allJobs = [job('a', phase, { ended_at: new Date().toISOString(), exit_code: 0 })];
    api.allRuns = [run('run-of-a')];
  };
  const tell = (phase: string) =>
    changes.emit([{ seq: 1, kind: 'job', name: 'a', op: 'put', phase }]);

  it('shows the snapshot, then what is so', async () => {
    open({ snapshot: STORED });
    expect([live.connection, live.view.phase, live.lines]).toEqual([
      'connecting',
      'Running',
      ['stored']
    ]);
    await settle();
    expect(live.connection).toBe('live');
    expect(live.view.metrics.loss.values).toEqual([2, 1]);
    expect(live.view.progress).toEqual({ done: 1, total: 2 });
    expect(live.lines).toEqual(['one', 'two']);
    expect(live.output()?.snapshot).toMatchObject({ phase: 'Running', log: 'one\ntwo' });
  });

  it('follows the log without reading it twice', async () => {
    open();
    await settle();
    api.logs[0] += 'three\n';
    await settle(1100);
    expect(live.lines).toEqual(['one', 'two', 'three']);
  });

  it('stops asking when the job has ended and nothing more comes', async () => {
    open();
    await settle();
    end();
    await settle(1100);
    api.series = { loss: { steps: [0, 1, 2], values: [2, 1, 0] } };
    await settle(5000);
    expect(live.complete).toBe(true);
    expect(live.output()?.snapshot.metrics.loss.values).toEqual([2, 1, 0]);
    const before = api.calls.length;
    live.refresh();
    await settle(60_000);
    expect(api.calls.length).toBe(before);
  });

  it('does not ask while nobody looks, but reads the end', async () => {
    visible = false;
    open({ snapshot: STORED });
    await settle(30_000);
    expect(api.calls).toEqual([]);
    tell('Running');
    await settle(5000);
    expect(api.calls).toEqual([]);
    end();
    tell('Completed');
    await settle(5000);
    expect([live.complete, live.view.phase]).toEqual([true, 'Completed']);
  });

  it('changes ranks', async () => {
    open();
    await settle();
    live.selectLog(1);
    await settle();
    expect(live.lines).toEqual(['other']);
    // What the notebook keeps is always the log of the first rank.
    expect(live.output()?.snapshot.log).toBe('one\ntwo');
    end();
    await settle(5000);
    live.selectLog(0);
    await settle();
    expect(live.lines).toEqual(['one', 'two']);
  });

  it('goes over to the log of the rank that failed, unless another was chosen', async () => {
    const fail = () => {
      api.allJobs = [job('a', 'Failed', { ended_at: new Date().toISOString(), failed_rank: 1 })];
      tell('Failed');
    };
    open();
    await settle();
    expect(live.lines).toEqual(['one', 'two']);
    fail();
    await settle(5000);
    expect([live.rank, live.lines]).toEqual([1, ['other']]);
    expect(live.output()?.snapshot.log).toBe('other');
    live.selectLog(0);
    await settle(5000);
    expect([live.rank, live.lines]).toEqual([0, ['one', 'two']]);
    live.dispose();

    api.allJobs = [job('a')];
    open();
    await settle();
    live.selectLog(0);
    fail();
    await settle(5000);
    expect([live.rank, live.lines]).toEqual([0, ['one', 'two']]);
  });

  it('loads earlier output', async () => {
    api.logs[0] = Array.from({ length: 5000 }, (_, i) => `line ${i}\n`).join('');
    open();
    await settle();
    expect(live.log.earlier).toBeGreaterThan(0);
    const first = live.lines[0];
    await live.log.loadEarlier();
    expect(live.log.earlier).toBe(0);
    expect(live.lines[0]).toBe('line 0');
    expect(live.lines).toContain(first);
    expect(new Set(live.lines).size).toBe(5000);
  });

  it('shows the snapshot when the job was deleted', async () => {
    api.allJobs = [];
    open({ snapshot: STORED });
    await settle(5000);
    expect([live.connection, live.notice, live.view.phase]).toEqual([
      'static',
      'deleted',
      'Running'
    ]);
    expect(live.output()).toBe(null);
    expect(api.count('job')).toBe(1);
  });

  it('does not take another job of the same name for its own', async () => {
    api.allJobs = [job('a', 'Running', { run_id: 'another' })];
    open({ snapshot: STORED });
    await settle();
    expect([live.connection, live.notice]).toEqual(['static', 'replaced']);
    expect(live.output()).toBe(null);
  });

  it('shows the snapshot where the server has no Jupyter MLOps', async () => {
    api.broken = new ApiError('HTTP 404', '', 404);
    open({ snapshot: STORED });
    await settle();
    expect([live.connection, live.notice]).toEqual(['static', 'no_server']);
  });

  it('tries again when the server is away, more and more slowly', async () => {
    open({ snapshot: STORED });
    await settle();
    api.broken = new ApiError('', 'unreachable', 0);
    await settle(5000);
    expect(live.connection).toBe('retrying');
    const before = api.count('job');
    await settle(60_000);
    expect(api.count('job') - before).toBeLessThan(20);
    api.broken = null;
    await settle(40_000);
    expect(live.connection).toBe('live');
  });

  it('goes on without MLflow', async () => {
    open();
    await settle();
    vi.spyOn(api, 'metrics').mockRejectedValue(new ApiError('', 'backend_unreachable', 502));
    vi.spyOn(api, 'run').mockRejectedValue(new ApiError('', 'backend_unreachable', 502));
    await settle(2000);
    expect(live.connection).toBe('live');
    expect(live.view.metrics.loss.values).toEqual([2, 1]);
    end();
    await settle(5000);
    // The end is not complete before its last metrics could be read.
    expect([live.view.phase, live.complete]).toEqual(['Completed', false]);
    vi.restoreAllMocks();
    await settle(5000);
    expect(live.complete).toBe(true);
  });

  it('is silent after it was disposed', async () => {
    open();
    const changed = vi.fn();
    live.changed.connect(changed);
    live.dispose();
    await settle(5000);
    tell('Completed');
    await settle(5000);
    expect(changed).not.toHaveBeenCalled();
  });
});
