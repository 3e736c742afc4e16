import { MimeModel } from '@jupyterlab/rendermime';
import { ReadonlyPartialJSONObject } from '@lumino/coreutils';
import { Signal } from '@lumino/signaling';
import { Widget } from '@lumino/widgets';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import type { IChange } from '../src/api';
import { ChartStates } from '../src/chartstate';
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

  it('keeps how its charts are looked at through polls and a new drawing', async () => {
    const states = new ChartStates();
    const book = notebook({ [JOB_MIME]: DATA });
    const widget = await open(book, { states });
    const slider = get(widget, 'mlops-live-smoothing') as HTMLInputElement;
    const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value')!.set!;
    set.call(slider, '0.6');
    await drawn(() => slider.dispatchEvent(new Event('input', { bubbles: true })));
    get(widget, 'mlops-live-log-scale')!.click();
    states.get('default/a/run-of-a').set({ zoom: [0, 1] });
    await settle(3000);
    expect((get(widget, 'mlops-live-smoothing') as HTMLInputElement).value).toBe('0.6');
    expect(get(widget, 'mlops-live-chart')!.dataset.zoom).toBe('0 1');
    const again = await open(book, { states });
    expect((get(again, 'mlops-live-smoothing') as HTMLInputElement).value).toBe('0.6');
    expect((get(again, 'mlops-live-log-scale') as HTMLInputElement).checked).toBe(true);
    get(again, 'mlops-live-reset-zoom')!.click();
    await settle();
    expect(get(again, 'mlops-live-chart')!.dataset.zoom).toBe(undefined);
    expect(get(again, 'mlops-live-reset-zoom')).toBe(null);
  });

  it('draws other runs over its own', async () => {
    api.allRuns.push(run('other', { name: 'baseline' }), run('third', { name: 'unlike' }));
    api.seriesOf = { other: { loss: { steps: [0, 1, 2], values: [3, 2, 1] } } };
    const book = notebook({ [JOB_MIME]: DATA });
    const widget = await open(book);
    get(widget, 'mlops-live-compare')!.click();
    await settle();
    const picker = get(widget, 'mlops-picker')!;
    expect(picker.querySelectorAll('li').length).toBe(2);
    const search = get(widget, 'mlops-picker-search') as HTMLInputElement;
    const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value')!.set!;
    set.call(search, 'BASE');
    await drawn(() => search.dispatchEvent(new Event('input', { bubbles: true })));
    expect(picker.querySelectorAll('li').length).toBe(1);
    picker.querySelector<HTMLInputElement>('[data-run=other]')!.click();
    await settle(100);
    const chart = get(widget, 'mlops-live-chart')!;
    expect([chart.dataset.lines, chart.dataset.points]).toEqual(['2', '3']);
    expect(get(widget, 'mlops-live-runs')!.textContent).toBe('abaseline');
    // The notebook keeps the job's own curves only.
    await settle(SNAPSHOT_INTERVAL + 2000);
    const { metrics } = kept(book.writes[book.writes.length - 1]);
    expect(metrics.loss.steps).toEqual([0, 1]);
  });

  it('marks attempts, and lists why earlier ones ended', async () => {
    const at = (seconds: number) => new Date(Date.UTC(2026, 0, 31) + seconds * 1000).toISOString();
    const first = {
      attempt: 1,
      phase: 'Failed',
      reason: 'killed',
      started_at: at(0),
      ended_at: at(10),
      exit_code: -9,
      failed_rank: 1
    };
    api.allJobs = [job('a', 'Running', { attempt: 2, attempts: [first], started_at: at(0) })];
    const times = [1, 2, 11, 21].map(seconds => Date.parse(at(seconds)));
    api.series = { loss: { steps: [6, 7, 8, 9], values: [2, 2, 1, 1], timestamps: times } };
    const widget = await open(notebook({ [JOB_MIME]: DATA }));
    expect(get(widget, 'mlops-live-chart')!.dataset.marks).toBe('attempt 2@8');
    const text = get(widget, 'mlops-live-attempts')!.textContent;
    expect(text).toContain('1 earlier attempt');
    expect(text).toContain('killed');
    expect(get(widget, 'mlops-live-attempt')!.textContent).toBe('attempt 1attempt 2');
    expect(get(widget, 'mlops-live-resources')!.textContent).toContain('Steps/s 0.1');
  });

  it('says what is waited for, delivered, and why it failed', async () => {
    api.allJobs = [
      job('a', 'Queued', {
        queue: { place: 2, length: 9, reason: 'waits for 1 GPU' },
        started_at: ''
      })
    ];
    const widget = await open(notebook({ [JOB_MIME]: DATA }));
    expect(get(widget, 'mlops-live-queue')!.textContent).toBe(
      '2 of 9 in the queue · waits for 1 GPU'
    );
    const delivery = {
      delivered: 1,
      pending: 2048,
      duplicates: 0,
      rejected: 0,
      damaged: 0,
      message: 'MLflow is away'
    };
    expect(get(widget, 'mlops-live-route')).toBeNull();
    api.allJobs = [job('a', 'Finalizing', { delivery, route: 'by the route 10.0.0.5:7443' })];
    await settle(1500);
    expect(get(widget, 'mlops-live-delivery')!.textContent).toBe(
      '2.0 KB not yet in MLflow · MLflow is away'
    );
    expect(get(widget, 'mlops-live-route')!.textContent).toBe(
      'Large files: by the route 10.0.0.5:7443'
    );
    expect(get(widget, 'mlops-live-incomplete')).toBeNull();
    api.allJobs = [
      job('a', 'Failed', {
        reason: 'rank 1 raised ValueError',
        failed_rank: 1,
        exit_code: 1,
        metrics_incomplete: true,
        ended_at: new Date().toISOString(),
        traceback: ['Traceback (most recent call last):', 'ValueError: <b>no</b>']
      })
    ];
    await settle(1500);
    expect(get(widget, 'mlops-live-reason')!.textContent).toContain('Rank 1 · exit code 1');
    expect(get(widget, 'mlops-live-incomplete')!.textContent).toContain('a node was lost');
    const trace = get(widget, 'mlops-live-traceback')!;
    expect(trace.querySelector('pre')!.textContent).toContain('ValueError: <b>no</b>');
    expect((trace as HTMLDetailsElement).open).toBe(false);
    get(widget, 'mlops-live-resume')!.click();
    expect(execute).toHaveBeenCalledWith('jupyter-mlops:resume-job', {
      name: 'a',
      workspace: 'default'
    });
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
