import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { ApiError } from '../src/api';
import { ListModel } from '../src/listmodel';
import { WorkspaceModel } from '../src/model';
import { DEFAULTS } from '../src/settings';
import { FakeApi, FakeEvents, job, run } from './fakes';

const AWAY = new ApiError('away', 'unreachable', 0);

describe('ListModel', () => {
  it('pages, and keeps all shown pages fresh', async () => {
    const all = Array.from({ length: 25 }, (_, i) => i);
    const fetch = vi.fn(async ({ limit = 0, page_token = '0' }) => {
      const from = Number(page_token);
      const to = from + limit;
      return { items: all.slice(from, to), next_token: to < all.length ? String(to) : null };
    });
    const list = new ListModel(fetch, 10);
    expect(list.state).toBe('loading');
    await list.refresh();
    expect([list.state, list.items.length, list.hasMore]).toEqual(['ready', 10, true]);
    await list.loadMore();
    expect(list.items.length).toBe(20);
    await list.loadMore();
    expect([list.items.length, list.hasMore]).toEqual([25, false]);
    await list.refresh();
    expect(list.items.length).toBe(25);
  });

  it('drops the reply of an earlier call', async () => {
    const answers: ((items: string[]) => void)[] = [];
    const list = new ListModel<string>(
      () => new Promise(resolve => answers.push(items => resolve({ items })))
    );
    const first = list.refresh();
    const second = list.refresh();
    answers[1](['new']);
    await second;
    answers[0](['old']);
    await first;
    expect(list.items).toEqual(['new']);
  });

  it('keeps old items when a refresh fails, and says so', async () => {
    let fail = true;
    const list = new ListModel<string>(async () => {
      if (fail) {
        throw AWAY;
      }
      return { items: ['a'] };
    });
    expect(await list.refresh()).toBe(AWAY);
    expect(list.state).toBe('error');
    fail = false;
    await list.reload();
    expect([list.state, list.stale]).toEqual(['ready', false]);
    fail = true;
    await list.refresh();
    expect([list.state, list.stale, list.items]).toEqual(['ready', true, ['a']]);
  });

  it('says nothing after it was disposed', async () => {
    const list = new ListModel<string>(async () => ({ items: ['a'] }));
    const done = list.refresh();
    list.dispose();
    await done;
    expect(list.items).toEqual([]);
  });
});

describe('WorkspaceModel', () => {
  let api: FakeApi;
  let events: FakeEvents;
  let model: WorkspaceModel;

  beforeEach(() => {
    vi.useFakeTimers();
    api = new FakeApi();
    events = new FakeEvents();
    model = new WorkspaceModel(api, events);
    model.setExpanded('runs', true);
    model.setExpanded('jobs', true);
    api.calls = [];
  });

  afterEach(() => {
    model.dispose();
    vi.useRealTimers();
  });

  const settle = (ms = 0) => vi.advanceTimersByTimeAsync(ms);
  const refresh = async () => {
    const done = model.refresh();
    await settle(100);
    await done;
  };

  it('asks for lists only while the panel is seen', async () => {
    model.start();
    await settle(60_000);
    expect(api.count('jobs')).toBe(0);
    expect(api.count('status')).toBeGreaterThan(0);
    model.setVisible(true);
    await settle(10);
    expect(api.count('jobs')).toBe(1);
    expect(api.count('models')).toBe(0);
    expect([model.link, model.workspace?.name]).toEqual(['up', 'default']);
    const before = api.count('jobs');
    await settle(35_000);
    expect(api.count('jobs') - before).toBeGreaterThanOrEqual(3);
    model.setVisible(false);
    const hidden = api.count('jobs');
    await settle(60_000);
    expect(api.count('jobs')).toBe(hidden);
  });

  it('asks more often while a job runs, and for its progress', async () => {
    api.allJobs = [job('a'), job('b', 'Completed')];
    api.allRuns = [run('run-of-a', { progress: { done: 3, total: 6 } })];
    model.start();
    model.setVisible(true);
    await settle(10);
    expect(model.progress.get('a')).toEqual({ done: 3, total: 6 });
    expect(model.progress.get('b')).toBeUndefined();
    const before = api.count('jobs');
    await settle(9000);
    expect(api.count('jobs') - before).toBeGreaterThanOrEqual(4);
  });

  it('refreshes what an event touches, once for a burst', async () => {
    model.start();
    model.setVisible(true);
    await settle(10);
    const jobs = api.count('jobs');
    const runs = api.count('runs');
    const seen = vi.fn();
    model.changes.connect(seen);
    for (let i = 0; i < 5; i++) {
      events.emit([{ kind: 'job', name: 'a', op: 'put', phase: 'Running' }]);
    }
    events.emit([{ kind: 'run', name: '', op: 'put' }], 'up', 'https://other/event');
    await settle(600);
    expect(api.count('jobs') - jobs).toBe(1);
    expect(api.count('runs') - runs).toBe(0);
    expect(seen).toHaveBeenCalledTimes(5);
    events.emit([{ kind: 'workspace', name: '', op: 'put' }]);
    await settle(600);
    expect(api.count('runs') - runs).toBe(1);
  });

  it('tells a missing server half, another version, and a refusal', async () => {
    model.start();
    model.setVisible(true);
    api.broken = new ApiError('', 'not_installed', 404);
    await settle(10);
    expect(model.problem?.kind).toBe('missing');
    expect(api.count('jobs')).toBe(0);
    api.broken = new ApiError('Forbidden', '', 403);
    await refresh();
    expect(model.problem).toEqual({ kind: 'refused', detail: 'Forbidden' });
    api.broken = null;
    api.version = '9.0.0';
    await refresh();
    expect(model.problem).toEqual({ kind: 'version', detail: '9.0.0' });
    api.version = '0.1.3';
    await refresh();
    expect(model.problem).toBe(null);
    expect(api.count('jobs')).toBe(1);
  });

  it('reconnects, and keeps what it had', async () => {
    api.allRuns = [run('r')];
    model.start();
    model.setVisible(true);
    await settle(10);
    api.broken = AWAY;
    await refresh();
    expect(model.link).toBe('reconnecting');
    expect(model.problem).toBe(null);
    expect(model.runs.items.length).toBe(1);
    const updated = model.updatedAt;
    api.broken = null;
    await settle(40_000);
    expect(model.link).toBe('up');
    expect(model.updatedAt).toBeGreaterThan(updated);
  });

  it('takes the state from events', async () => {
    model.start();
    model.setVisible(true);
    await settle(10);
    events.emit([], 'down');
    expect(model.link).toBe('reconnecting');
    expect(model.downSince).toBeGreaterThan(0);
    events.emit([], 'up');
    await settle(600);
    expect([model.link, model.downSince]).toEqual(['up', 0]);
  });

  it('asks for one experiment', async () => {
    api.allRuns = [run('a'), run('b', { experiment_name: 'other' })];
    model.start();
    model.setVisible(true);
    await settle(10);
    model.experiment = 'other';
    await settle(10);
    expect(model.runs.items.map(item => item.run_id)).toEqual(['b']);
  });

  it('follows its settings', async () => {
    model.settings = { ...DEFAULTS, pageSize: 5, refreshInterval: 100 };
    api.allRuns = Array.from({ length: 12 }, (_, i) => run(`r${i}`));
    model.start();
    model.setVisible(true);
    await settle(10);
    expect([model.runs.items.length, model.runs.hasMore]).toEqual([5, true]);
    const before = api.count('runs');
    await settle(50_000);
    expect(api.count('runs')).toBe(before);
  });

  it('is silent after it was disposed', async () => {
    model.start();
    model.setVisible(true);
    await settle(10);
    const changed = vi.fn();
    model.changed.connect(changed);
    const before = api.calls.length;
    model.dispose();
    events.emit([{ kind: 'job', name: 'a', op: 'put' }]);
    await settle(60_000);
    expect(api.calls.length).toBe(before);
    expect(changed).not.toHaveBeenCalled();
  });
});
