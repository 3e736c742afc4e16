import { MimeModel } from '@jupyterlab/rendermime';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import type { IChange } from '../src/api';
import { isDue, JobRenderer, rendererFactory, SNAPSHOT_INTERVAL } from '../src/renderer';
import { IJobOutput, JOB_MIME, readOutput } from '../src/snapshot';
import { drawn, FakeApi, job, run } from './fakes';

const DATA = {
  version: 1,
  workspace: 'default',
  name: 'a',
  run_id: 'run-of-a',
  experiment_id: '1',
  snapshot: { phase: 'Running', started_at: '2026-01-31T12:00:00Z', log: 'stored', taken_at: '' }
};

describe('JobRenderer', () => {
  let api: FakeApi;
  let changes: Signal<object, IChange[]>;
  let widgets: JobRenderer[];
  const execute = vi.fn();

  beforeEach(() => {
    vi.useFakeTimers();
    api = new FakeApi();
    api.allJobs = [job('a')];
    api.allRuns = [run('run-of-a', { status: 'RUNNING' })];
    api.series = { loss: { steps: [0, 1], values: [2, 1] } };
    api.logs = { 0: '\x1b[32mgood\x1b[0m\n<b>text</b>\n' };
    changes = new Signal<object, IChange[]>({});
    widgets = [];
    execute.mockReset();
  });

  afterEach(() => {
    widgets.forEach(widget => widget.dispose());
    vi.useRealTimers();
  });

  const settle = (ms = 50) => drawn(() => vi.advanceTimersByTimeAsync(ms));

  /** A model that, as a notebook's, leads to another rendering when its data is set. */
  const notebook = (data: ReadonlyPartialJSONObject) => {
    const views: JobRenderer[] = [];
    const model = new MimeModel({
      data,
      callback: options => {
        Object.assign(model, { _data: options.data });
        writes.push(options.data as ReadonlyPartialJSONObject);
        views.forEach(view => void view.renderModel(model));
      }
    });
    const writes: ReadonlyPartialJSONObject[] = [];
    return { model, views, writes };
  };

  const open = async (
    book: ReturnType<typeof notebook>,
    more: Partial<JobRenderer.IOptions> = {}
  ) => {
    const factory = rendererFactory({ api: () => api, changes, execute, ...more });
    const widget = factory.createRenderer({
      mimeType: JOB_MIME,
      sanitizer: { sanitize: (text: string) => text },
      resolver: null,
      linkHandler: null,
      latexTypesetter: null
    }) as JobRenderer;
    widgets.push(widget);
    book.views.push(widget);
    await drawn(() => {
      Widget.attach(widget, document.body);
      return widget.renderModel(book.model);
    });
    await settle();
    return widget;
  };

  const get = (widget: Widget, id: string) =>
    widget.node.querySelector<HTMLElement>(`[data-testid=${id}]`);

  const kept = (data: ReadonlyPartialJSONObject) => readOutput(data[JOB_MIME])!.snapshot;

  const end = () => {
    api.allJobs = [
      job('a', 'Failed', { ended_at: new Date().toISOString(), reason: 'it broke', exit_code: 1 })
    ];
    api.allRuns = [run('run-of-a', { status: 'FAILED' })];
  };

  it('draws state, curve and log as text', async () => {
    const widget = await open(notebook({ [JOB_MIME]: DATA }));
    expect(get(widget, 'mlops-live')!.dataset.phase).toBe('Running');
    expect(get(widget, 'mlops-live-state')!.textContent).toBe('Running');
    expect(get(widget, 'mlops-live-chart')!.dataset.points).toBe('2');
    expect(get(widget, 'mlops-live-log')!.textContent).toBe('good\n<b>text</b>\n');
    expect(widget.node.querySelector('.jp-Mlops-ansi-green')!.textContent).toBe('good');
    expect(widget.node.querySelector('pre b')).toBe(null);
  });

  it('keeps the first state at once, later ones every ten seconds, and the end once', async () => {
    const book = notebook({ [JOB_MIME]: DATA, 'text/plain': 'a job', other: 'stays' });
    const widget = await open(book);
    expect(book.writes.length).toBe(1);
    await settle(SNAPSHOT_INTERVAL - 2000);
    expect(book.writes.length).toBe(1);
    await settle(3000);
    expect(book.writes.length).toBe(2);
    end();
    await settle(3000);
    expect(book.writes.length).toBe(3);
    const last = book.writes[2];
    expect(kept(last)).toMatchObject({
      phase: 'Failed',
      reason: 'it broke',
      log: 'good\n<b>text</b>'
    });
    expect(last['text/html']).toContain('&lt;b&gt;text&lt;/b&gt;');
    expect(last['text/plain']).toContain('Job a: Failed');
    expect(last.other).toBe('stays');
    await settle(60_000);
    expect(book.writes.length).toBe(3);
    expect(get(widget, 'mlops-live-reason')!.textContent).toContain('it broke');
  });

  it('does not write twice for two views', async () => {
    const book = notebook({ [JOB_MIME]: DATA });
    await open(book);
    await open(book);
    await settle(SNAPSHOT_INTERVAL + 2000);
    expect(book.writes.length).toBe(2);
  });

  it('leaves the notebook of an ended job as it is', async () => {
    end();
    const book = notebook({
      [JOB_MIME]: { ...DATA, snapshot: { phase: 'Failed', taken_at: '2026-01-31T12:00:00Z' } }
    });
    const widget = await open(book);
    await settle(30_000);
    expect(book.writes).toEqual([]);
    expect(get(widget, 'mlops-live-log')!.textContent).toContain('good');
  });

  it('shows the snapshot where nothing answers', async () => {
    api.allJobs = [];
    const book = notebook({ [JOB_MIME]: DATA });
    const widget = await open(book);
    expect(get(widget, 'mlops-live')!.dataset.connection).toBe('static');
    expect(get(widget, 'mlops-live-log')!.textContent).toBe('stored\n');
    expect(get(widget, 'mlops-live-notice')!.textContent).toContain('deleted');
    expect(get(widget, 'mlops-live-stop')).toBe(null);
    await settle(60_000);
    expect(book.writes).toEqual([]);
  });

  it('stops, unless one may only look', async () => {
    const widget = await open(notebook({ [JOB_MIME]: DATA }));
    get(widget, 'mlops-live-stop')!.click();
    expect(execute).toHaveBeenCalledWith('jupyter-mlops:stop-job', {
      name: 'a',
      workspace: 'default'
    });
    get(widget, 'mlops-live-mlflow')!.click();
    expect(execute).toHaveBeenCalledWith('jupyter-mlops:open-run', {
      id: 'run-of-a',
      experiment: '1',
      name: 'a'
    });
    const other = await open(notebook({ [JOB_MIME]: DATA }), { isReadonly: () => true });
    expect((get(other, 'mlops-live-stop') as HTMLButtonElement).disabled).toBe(true);
  });

  it('falls back to text for data of another version', async () => {
    const book = notebook({ [JOB_MIME]: { version: 9 }, 'text/plain': '<Job a>' });
    const widget = await open(book);
    expect(widget.node.textContent).toBe('<Job a>');
    expect(api.calls).toEqual([]);
  });

  it('takes a newer snapshot of another view, and a new job', async () => {
    api.allJobs = [];
    const book = notebook({ [JOB_MIME]: DATA });
    const widget = await open(book);
    const newer = { ...DATA.snapshot, phase: 'Completed', taken_at: '2026-01-31T13:00:00Z' };
    book.model.setData({ data: { [JOB_MIME]: { ...DATA, snapshot: newer } } });
    await settle();
    expect(get(widget, 'mlops-live')!.dataset.phase).toBe('Completed');
    api.allJobs = [job('b')];
    book.model.setData({ data: { [JOB_MIME]: { ...DATA, name: 'b', run_id: 'run-of-b' } } });
    await settle();
    expect(get(widget, 'mlops-live')!.dataset.job).toBe('b');
  });
});

describe('isDue', () => {
  const at = (phase: string, taken_at: string) =>
    readOutput({ version: 1, name: 'a', snapshot: { phase, taken_at } }) as IJobOutput;

  it('knows when', () => {
    const old = at('Running', '2026-01-31T12:00:00Z');
    expect(isDue(old, at('Running', '2026-01-31T12:00:05Z'), false)).toBe(false);
    expect(isDue(old, at('Running', '2026-01-31T12:00:10Z'), false)).toBe(true);
    expect(isDue(old, at('Completed', '2026-01-31T12:00:01Z'), false)).toBe(false);
    expect(isDue(old, at('Completed', '2026-01-31T12:00:01Z'), true)).toBe(true);
    expect(isDue(at('Failed', ''), at('Failed', '2026-01-31T12:00:01Z'), true)).toBe(false);
  });
});
