import { AccordionPanel, Widget } from '@lumino/widgets';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { ApiError, IServed } from '../src/api';
import { WorkspaceModel } from '../src/model';
import { MlopsPanel } from '../src/panel';
import { drawn, FakeApi, FakeEvents, job, run } from './fakes';
import { counted, deployment, served } from './servingfakes';

describe('MlopsPanel', () => {
  let api: FakeApi;
  let model: WorkspaceModel;
  let panel: MlopsPanel;
  const execute = vi.fn();

  beforeEach(() => {
    vi.useFakeTimers();
    execute.mockReset();
    api = new FakeApi();
    api.allComputes = [
      {
        ...job('local'),
        kind: 'compute',
        spec: { type: 'local' },
        status: {
          phase: 'Ready',
          reason: '',
          cpus: 2,
          memory_bytes: 8 * 1024 ** 3,
          gpus: ['H200'],
          running_jobs: 1
        }
      }
    ];
    model = new WorkspaceModel(api, new FakeEvents());
    model.start();
    panel = new MlopsPanel({ model, execute });
  });

  afterEach(() => {
    panel.dispose();
    model.dispose();
    vi.useRealTimers();
  });

  const settle = (ms = 100) => drawn(() => vi.advanceTimersByTimeAsync(ms));
  const show = async () => {
    await drawn(() => Widget.attach(panel, document.body));
    await settle();
  };
  const section = (name: string) =>
    panel.node.querySelector<HTMLElement>(`[data-testid=mlops-section-${name}]`)!;
  const rows = (name: string) =>
    Array.from(section(name).querySelectorAll<HTMLElement>('[data-testid=mlops-row]'));
  const find = (node: HTMLElement, id: string) =>
    node.querySelector<HTMLButtonElement>(`[data-testid=${id}]`);

  it('gives its sections their shares where JupyterLab restored equal ones', async () => {
    const content = panel.content as AccordionPanel;
    await show();
    content.setRelativeSizes([0.2, 0.2, 0.2, 0.2, 0.2]);
    panel.hide();
    panel.show();
    const [runs, , , , computes] = content.relativeSizes();
    expect(runs).toBeGreaterThan(2 * computes);
    content.setRelativeSizes([0.1, 0.6, 0.1, 0.1, 0.1]);
    panel.hide();
    panel.show();
    expect(content.relativeSizes()[1]).toBeCloseTo(0.6);
  });

  it('gives a form room, and takes it back', async () => {
    const content = panel.content as AccordionPanel;
    await show();
    // Without a height jsdom keeps no sizes.
    let sizes = [0.28, 0.26, 0.17, 0.19, 0.1];
    vi.spyOn(content, 'relativeSizes').mockImplementation(() => sizes);
    vi.spyOn(content, 'setRelativeSizes').mockImplementation(given => (sizes = given));
    const press = async (button: HTMLElement) => {
      await drawn(() => button.click());
      await settle();
    };
    const cancel = () =>
      Array.from(section('computes').querySelectorAll('button')).find(
        button => button.textContent === 'Cancel'
      )!;
    await press(find(section('computes'), 'mlops-attach-open')!);
    expect(sizes[4]).toBeCloseTo(0.62);
    expect(sizes[0] / sizes[1]).toBeCloseTo(28 / 26);
    expect(sizes.reduce((a, b) => a + b)).toBeCloseTo(1);
    await press(cancel());
    expect(sizes).toEqual([0.28, 0.26, 0.17, 0.19, 0.1]);
    await press(find(section('computes'), 'mlops-attach-open')!);
    sizes = [0.1, 0.1, 0.1, 0.3, 0.4]; // the user has moved the border
    await press(cancel());
    expect(sizes).toEqual([0.1, 0.1, 0.1, 0.3, 0.4]);
  });

  it('says what to do next where nothing is', async () => {
    await show();
    expect(panel.title.caption).toBe('MLOps');
    expect(section('runs').textContent).toContain('mlflow.autolog()');
    expect(section('jobs').textContent).toContain('%mlops train');
    expect(section('models').textContent).toContain('%mlops register');
    expect(section('endpoints').textContent).toContain('%mlops deploy');
    expect(rows('computes')[0].textContent).toContain('H200');
    expect(find(panel.node, 'mlops-state')!.textContent).toBe('MLflow ready');
    expect(find(panel.node, 'mlops-updated')!.textContent).toContain('updated');
  });

  it('draws the loading state first', async () => {
    vi.spyOn(api, 'runs').mockReturnValue(new Promise(() => undefined));
    await show();
    expect(find(section('runs'), 'mlops-loading')).toBeTruthy();
    expect(find(section('jobs'), 'mlops-loading')).toBe(null);
  });

  it('lists runs with their key metric, filters them, and loads more', async () => {
    api.allRuns = Array.from({ length: 60 }, (_, i) =>
      run(`run-${i}`, { metrics: { zeta: 1, accuracy: i / 100 } })
    );
    await show();
    expect(rows('runs').length).toBe(50);
    expect(rows('runs')[7].textContent).toContain('accuracy 0.07');
    expect(rows('runs')[7].textContent).toContain('Completed');
    find(section('runs'), 'mlops-more')!.click();
    await settle();
    expect(rows('runs').length).toBe(60);
    const filter = section('runs').querySelector<HTMLInputElement>('[data-testid=mlops-filter]')!;
    const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value')!.set!;
    set.call(filter, 'RUN-5 digits');
    filter.dispatchEvent(new Event('input', { bubbles: true }));
    await settle();
    expect(rows('runs').map(row => row.dataset.name)).toContain('run-59');
    expect(rows('runs').length).toBe(11);
    set.call(filter, 'nothing like it');
    filter.dispatchEvent(new Event('input', { bubbles: true }));
    await settle();
    expect(section('runs').textContent).toContain('Nothing matches');
  });

  it('stops running jobs and deletes ended ones', async () => {
    api.allJobs = [job('a'), job('b', 'Failed', { reason: 'exit code 1' })];
    api.allRuns = [run('run-of-a', { progress: { done: 1, total: 4 } })];
    await show();
    const [a, b] = rows('jobs');
    expect(a.querySelector('[role=progressbar]')!.getAttribute('aria-valuenow')).toBe('25');
    expect(a.textContent).toContain('1/4');
    expect(b.textContent).toContain('exit code 1');
    find(a, 'mlops-stop')!.click();
    expect(execute).toHaveBeenLastCalledWith('jupyter-mlops:stop-job', { name: 'a' });
    expect(find(a, 'mlops-delete')).toBe(null);
    find(b, 'mlops-delete')!.click();
    expect(execute).toHaveBeenLastCalledWith('jupyter-mlops:delete-job', { name: 'b' });
  });

  it('is used by keyboard', async () => {
    api.allJobs = [job('a', 'Completed'), job('b', 'Completed')];
    await show();
    const [a, b] = rows('jobs');
    const press = (node: HTMLElement, key: string) =>
      node.dispatchEvent(new KeyboardEvent('keydown', { key, bubbles: true }));
    expect([a.tabIndex, b.tabIndex]).toEqual([0, -1]);
    a.focus();
    press(a, 'ArrowDown');
    expect(document.activeElement).toBe(b);
    press(b, 'Enter');
    expect(execute).toHaveBeenLastCalledWith('jupyter-mlops:open-job', { name: 'b' });
    press(b, 'Delete');
    expect(execute).toHaveBeenLastCalledWith('jupyter-mlops:delete-job', { name: 'b' });
    press(b, 'Home');
    expect(document.activeElement).toBe(a);
  });

  it('offers no actions to those who may only look', async () => {
    api.readonly = true;
    api.allJobs = [job('a'), job('b', 'Completed')];
    api.allRuns = [run('r')];
    await show();
    expect(panel.node.textContent).toContain('read-only');
    expect(find(rows('jobs')[0], 'mlops-stop')!.disabled).toBe(true);
    expect(find(rows('jobs')[1], 'mlops-delete')!.disabled).toBe(true);
    expect(find(rows('runs')[0], 'mlops-delete')!.disabled).toBe(true);
    expect(find(rows('runs')[0], 'mlops-open')!.disabled).toBe(false);
  });

  it('shows endpoints with traffic and, unfolded, their deployments', async () => {
    const green = deployment('green', {
      model_version: '2',
      phase: 'Failed',
      reason: 'ModuleNotFoundError: xgboost'
    });
    const spec = { traffic: { blue: 90, green: 10 } };
    api.serving.all = [served('digits', [deployment('blue'), green], spec)];
    api.serving.counters = { deployments: { blue: counted(100), green: counted(0) } };
    await show();
    const [row] = rows('endpoints');
    expect(row.textContent).toContain('green failed: ModuleNotFoundError: xgboost');
    const bar = find(row, 'mlops-shares')!;
    expect(bar.getAttribute('aria-label')).toBe('Traffic: blue 90 % · green 10 %');
    expect(api.count('stats')).toBe(0);

    row.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', bubbles: true }));
    await settle();
    expect(find(row, 'mlops-expand')!.getAttribute('aria-expanded')).toBe('true');
    api.serving.counters = { deployments: { blue: counted(160), green: counted(0) } };
    await settle(5000);
    for (const part of ['digits v1', '90 %', '1/1', 'errors', 'p95', '/endpoints/digits/']) {
      expect(row.textContent).toContain(part);
    }
    find(row, 'mlops-copy-call')!.click();
    expect(execute).toHaveBeenLastCalledWith('jupyter-mlops:copy-call', {
      name: 'digits',
      language: 'python'
    });
    row.focus();
    row.dispatchEvent(new KeyboardEvent('keydown', { key: 'Enter', bubbles: true }));
    expect(execute).toHaveBeenLastCalledWith('jupyter-mlops:open-endpoint', { name: 'digits' });

    // Folded again, or out of sight, it is not asked for.
    row.dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowLeft', bubbles: true }));
    await settle();
    const before = api.count('stats');
    await settle(20_000);
    expect(api.count('stats')).toBe(before);
  });

  it('tells of a canary that runs, and of one that was rolled back', async () => {
    const canary: NonNullable<IServed['status']['canary']> = {
      phase: 'Running',
      deployment: 'green',
      percent: 10,
      reason: '',
      started_at: new Date().toISOString(),
      ended_at: ''
    };
    const both = [deployment('blue'), deployment('green')];
    const spec = {
      traffic: { blue: 90, green: 10 },
      canary: { deployment: 'green', duration: 120 }
    };
    api.serving.all = [
      served('running', both, spec, { canary }),
      served('broken', both, spec, {
        canary: {
          ...canary,
          phase: 'RolledBack',
          reason: 'error rate 12 %',
          ended_at: new Date().toISOString()
        }
      })
    ];
    await show();
    const [running, broken] = rows('endpoints').map(row => find(row, 'mlops-canary-badge')!);
    expect(running.textContent).toMatch(/canary green 10 % · (2:00|1:59) left/);
    expect(broken.textContent).toBe('rolled back: error rate 12 %');
  });

  it('shows models with version and aliases', async () => {
    api.allModels = [
      {
        name: 'digits',
        description: '',
        latest_version: '3',
        aliases: { champion: '2' },
        created_at: null,
        updated_at: null
      }
    ];
    await show();
    expect(rows('models')[0].textContent).toContain('version 3');
    expect(rows('models')[0].textContent).toContain('@champion → 2');
  });

  it('draws names as text', async () => {
    const evil = '<img src=x onerror=alert(1)>';
    api.allRuns = [run('r', { name: evil, experiment_name: evil, metrics: { [evil]: 1 } })];
    api.allJobs = [job('a', 'Failed', { reason: evil })];
    await show();
    expect(panel.node.querySelector('img')).toBe(null);
    expect(rows('runs')[0].textContent).toContain(evil);
  });

  it('shows an error with Retry, and old items with a word of warning', async () => {
    const error = new ApiError('MLflow does not answer', 'backend_unreachable', 502, 'wait');
    const runs = vi.spyOn(api, 'runs').mockRejectedValue(error);
    await show();
    expect(find(section('runs'), 'mlops-error')!.textContent).toContain(
      'MLflow does not answer – wait'
    );
    api.allRuns = [run('r')];
    runs.mockRestore();
    find(section('runs'), 'mlops-error')!.querySelector('button')!.click();
    await settle();
    expect(rows('runs').length).toBe(1);
    vi.spyOn(api, 'runs').mockRejectedValue(error);
    await settle(30_000);
    expect(rows('runs').length).toBe(1);
    expect(find(section('runs'), 'mlops-stale')).toBeTruthy();
  });

  it('stays quick with a thousand jobs: those in sight are drawn, all are reached', async () => {
    api.allJobs = Array.from({ length: 1000 }, (_, i) =>
      job(`job-${i}`, 'Queued', {
        queue: { place: i + 1, length: 1000, reason: 'waits for 1 CPU' }
      })
    );
    model.settings = { ...model.settings, pageSize: 200 };
    await show();
    for (let i = 0; i < 4; i++) {
      find(section('jobs'), 'mlops-more')!.click();
      await settle();
    }
    expect(model.jobs.items.length).toBe(1000);
    expect(rows('jobs').length).toBeLessThan(150);
    expect(rows('jobs')[2].textContent).toContain('3 of 1000');
    expect(rows('jobs')[2].textContent).toContain('waits for 1 CPU');
    expect(section('jobs').querySelector<HTMLElement>('[role=list]')!.dataset.total).toBe('1000');
    // Far down, what is there now is drawn, and the room above stays.
    const scroller = section('jobs');
    Object.defineProperty(scroller, 'clientHeight', { value: 400 });
    scroller.scrollTop = 20_000;
    scroller.dispatchEvent(new Event('scroll'));
    await settle();
    expect(rows('jobs').some(row => row.dataset.name === 'job-460')).toBe(true);
    expect(rows('jobs').length).toBeLessThan(150);
    rows('jobs')[0].focus();
    rows('jobs')[0].dispatchEvent(new KeyboardEvent('keydown', { key: 'End', bubbles: true }));
    await settle();
    expect((document.activeElement as HTMLElement).dataset.name).toBe('job-999');
    // Nothing is asked for each of the waiting jobs.
    expect(api.count('run')).toBe(0);
  });

  it('tells deleting, restoring and purging apart', async () => {
    api.allJobs = [
      job('kept', 'Failed'),
      job('gone', 'Completed', { deleted_at: '2026-01-31T12:00:00Z' })
    ];
    await show();
    expect(rows('jobs').map(row => row.dataset.name)).toEqual(['kept']);
    find(rows('jobs')[0], 'mlops-resume')!.click();
    find(rows('jobs')[0], 'mlops-delete')!.click();
    const filter = find(section('jobs'), 'mlops-job-filter') as unknown as HTMLSelectElement;
    filter.value = 'Deleted';
    filter.dispatchEvent(new Event('change', { bubbles: true }));
    await settle();
    expect(rows('jobs').map(row => row.dataset.name)).toEqual(['gone']);
    find(rows('jobs')[0], 'mlops-restore')!.click();
    find(rows('jobs')[0], 'mlops-delete')!.click();
    expect(execute.mock.calls.map(([command, { name }]) => [command, name])).toEqual([
      ['jupyter-mlops:resume-job', 'kept'],
      ['jupyter-mlops:delete-job', 'kept'],
      ['jupyter-mlops:restore-job', 'gone'],
      ['jupyter-mlops:purge-job', 'gone']
    ]);
  });

  it('compares runs that were selected, by mouse or keyboard', async () => {
    api.allRuns = [run('a'), run('b'), run('c')];
    await show();
    expect(find(panel.node, 'mlops-compare')).toBe(null);
    find(rows('runs')[0], 'mlops-select')!.click();
    await settle();
    expect(find(panel.node, 'mlops-compare')!.disabled).toBe(true);
    rows('runs')[2].dispatchEvent(new KeyboardEvent('keydown', { key: ' ', bubbles: true }));
    await settle();
    find(panel.node, 'mlops-compare')!.click();
    expect(execute).toHaveBeenCalledWith('jupyter-mlops:compare-runs', { ids: ['a', 'c'] });
  });

  it('has one message when the server half is missing or of another version', async () => {
    api.broken = new ApiError('', 'not_installed', 404);
    await show();
    expect(find(panel.node, 'mlops-problem')!.textContent).toContain(
      "pip install 'jupyter-mlops[lab]'"
    );
    expect(panel.content.isHidden).toBe(true);
    api.broken = null;
    api.version = '3.0.0';
    find(panel.node, 'mlops-problem')!.querySelector<HTMLElement>(':scope > button')!.click();
    await settle();
    expect(find(panel.node, 'mlops-problem')!.textContent).toContain('3.0.0');
    api.version = '0.1.0';
    find(panel.node, 'mlops-problem')!.querySelector<HTMLElement>(':scope > button')!.click();
    await settle();
    expect(find(panel.node, 'mlops-problem')).toBe(null);
    expect(panel.content.isHidden).toBe(false);
  });

  describe('clusters', () => {
    const type = async (id: string, value: string) => {
      const input = section('computes').querySelector<HTMLInputElement>(
        `[data-testid=mlops-attach-${id}]`
      )!;
      await drawn(() => {
        const set = Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, 'value')!.set!;
        set.call(input, value);
        input.dispatchEvent(new Event('input', { bubbles: true }));
      });
    };
    const press = async (id: string) => {
      await drawn(() => find(section('computes'), id)!.click());
      await settle();
    };
    const fill = async () => {
      await press('mlops-attach-open');
      await type('name', 'gpu');
      await type('context', 'team-a');
      await type('namespace', 'models');
      await type('image', 'python:3.11-slim');
    };

    it('are asked before they are attached, with what they answered shown', async () => {
      await show();
      await fill();
      expect(find(section('computes'), 'mlops-attach-save')!.disabled).toBe(true);
      api.surveyed = {
        ...api.surveyed,
        role: { kind: 'Role' },
        problems: [{ message: 'no permission to create jobs', hint: 'apply the role', fatal: true }]
      };
      await press('mlops-attach-check');
      expect(find(section('computes'), 'mlops-problem')!.textContent).toContain('create jobs');
      expect(find(section('computes'), 'mlops-copy-role')).not.toBeNull();
      expect(find(section('computes'), 'mlops-attach-save')!.disabled).toBe(true);
      api.surveyed = { ...api.surveyed, role: null, problems: [] };
      await press('mlops-attach-check');
      expect(find(section('computes'), 'mlops-attach-fits')).not.toBeNull();
      expect(api.count('putCompute')).toBe(0);
      // Other values were not asked for yet.
      await type('queue', 'team');
      expect(find(section('computes'), 'mlops-attach-save')!.disabled).toBe(true);
      await press('mlops-attach-check');
      await press('mlops-attach-save');
      expect(api.queries[api.queries.length - 1].query).toEqual({
        name: 'gpu',
        spec: {
          type: 'kubernetes',
          context: 'team-a',
          namespace: 'models',
          training: { image: 'python:3.11-slim', queue: 'team' }
        }
      });
      expect(rows('computes').map(row => row.dataset.name)).toContain('gpu');
      expect(find(section('computes'), 'mlops-attach')).toBeNull();
    });

    it('say what is wrong, and keep what was typed', async () => {
      await show();
      await fill();
      await type('name', 'local');
      expect(find(section('computes'), 'mlops-attach-check')!.disabled).toBe(true);
      expect(section('computes').textContent).toContain('There is a compute of that name');
      await type('name', 'gpu');
      api.checkCompute = () =>
        Promise.reject(new ApiError('it does not answer', 'x', 502, 'is it on?'));
      await press('mlops-attach-check');
      expect(find(section('computes'), 'mlops-attach-error')!.textContent).toContain(
        'it does not answer – is it on?'
      );
      expect(
        section('computes').querySelector<HTMLInputElement>('[data-testid=mlops-attach-namespace]')!
          .value
      ).toBe('models');
    });

    it('say what is free, and are attached by nobody who may only look', async () => {
      api.readonly = true;
      api.allComputes.push({
        ...api.allComputes[0],
        name: 'gpu',
        spec: { type: 'kubernetes', namespace: 'models', training: { image: 'i:1' } }
      });
      await show();
      expect(find(section('computes'), 'mlops-attach-open')).toBeNull();
      const row = rows('computes').find(one => one.dataset.name === 'gpu')!;
      expect(row.textContent).toContain('Kubernetes');
      expect(row.textContent).toContain('training');
      await drawn(() => find(row, 'mlops-expand')!.click());
      await settle();
      const room = find(row, 'mlops-room')!.textContent;
      expect(room).toContain('1 of 4 free');
      expect(room).toContain('2 of 4 free');
      expect(row.querySelector('[role=meter]')!.getAttribute('aria-valuenow')).toBe('75');
      expect(find(row, 'mlops-ways')).toBeNull();
    });

    it('say which ways the data of jobs take, and what is so when asked again', async () => {
      const address = '10.0.0.5:7443';
      api.allComputes.push({
        ...api.allComputes[0],
        name: 'gpu',
        spec: { type: 'kubernetes', namespace: 'models', training: { image: 'i:1' } }
      });
      api.surveyed = {
        ...api.surveyed,
        transfer: { way: 'proxy', why: '' },
        store: { claim: 'folders', url: '', trouble: '' },
        route: { listen: address, address, trouble: '' }
      };
      await show();
      const row = () => rows('computes').find(one => one.dataset.name === 'gpu')!;
      await drawn(() => find(row(), 'mlops-expand')!.click());
      await settle();
      const told = () =>
        [...find(row(), 'mlops-ways')!.children].map(child => child.textContent).join('|');
      expect(told()).toBe(`Jobs' data|by the route ${address}|Folders of jobs|in claim folders`);
      api.surveyed.route!.trouble = 'pods do not reach it';
      await drawn(() => find(row(), 'mlops-expand')!.click());
      await drawn(() => find(row(), 'mlops-expand')!.click());
      await settle();
      expect(told()).toBe(
        "Jobs' data|over the API: pods do not reach it|Large files|through the API's proxy|" +
          'Folders of jobs|in claim folders'
      );
    });
  });
});
