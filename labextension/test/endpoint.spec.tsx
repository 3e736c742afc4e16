import { nullTranslator } from '@jupyterlab/translation';
import { Widget } from '@lumino/widgets';
import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { ApiError } from '../src/api';
import { ChartStates } from '../src/chartstate';
import { EndpointView } from '../src/endpointview';
import { WorkspaceModel } from '../src/model';
import { drawn, FakeApi, FakeEvents } from './fakes';
import { counted, deployment, served } from './servingfakes';

const trans = nullTranslator.load('');

describe('EndpointView', () => {
  let api: FakeApi;
  let model: WorkspaceModel;
  let events: FakeEvents;
  let view: EndpointView;
  const run = vi.fn(async () => true);

  beforeEach(() => {
    vi.useFakeTimers();
    run.mockClear();
    api = new FakeApi();
    const proof = { request: { dataframe_records: [{ height: 1.5, count: 3 }] } };
    const blue = { ...deployment('blue'), spec: { model: 'digits/1', proof } };
    const green = deployment('green', {
      proof: {
        passed: true,
        kind: 'equal',
        message: '',
        packages: [{ name: 'numpy', kernel: '2.4', deployment: '2.3' }]
      }
    });
    api.serving.all = [
      served(
        'digits',
        [blue, green],
        { traffic: { blue: 90, green: 10 } },
        {
          previous_traffic: { blue: 100 }
        }
      )
    ];
    api.serving.counters = {
      started_at: 1000,
      deployments: { blue: counted(100), green: counted(10) }
    };
    events = new FakeEvents();
    model = new WorkspaceModel(api, events);
  });

  afterEach(() => {
    view.dispose();
    model.dispose();
    vi.useRealTimers();
  });

  const settle = (ms = 100) => drawn(() => vi.advanceTimersByTimeAsync(ms));
  const show = async (page = 'overview') => {
    view = new EndpointView('digits', { api, model, states: new ChartStates() }, trans, run);
    view.look(page);
    await drawn(() => Widget.attach(view, document.body));
    await settle();
    await settle(2000);
  };
  const find = <T extends HTMLElement = HTMLButtonElement>(id: string, within = '') =>
    view.node.querySelector<T>(`${within} [data-testid=${id}]`);
  const type = async (node: HTMLInputElement, value: string) => {
    const set = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(node), 'value')!.set!;
    set.call(node, value);
    node.dispatchEvent(new Event('input', { bubbles: true }));
    await settle();
  };
  const of = (name: string) => `[data-testid=mlops-share][data-name=${name}]`;

  it('moves traffic so that it adds up, and asks before', async () => {
    await show();
    expect(find('mlops-traffic-apply')!.disabled).toBe(true);
    await type(find<HTMLInputElement>('mlops-share-number', of('green'))!, '35');
    expect(find<HTMLInputElement>('mlops-share-slider', of('blue'))!.value).toBe('65');
    find('mlops-traffic-apply')!.click();
    await settle();
    expect(run).toHaveBeenLastCalledWith('jupyter-mlops:set-traffic', {
      name: 'digits',
      traffic: { blue: 65, green: 35 }
    });
    // What was applied is what is shown; the server has not changed it here.
    expect(find<HTMLInputElement>('mlops-share-number', of('green'))!.value).toBe('10');
    find('mlops-traffic-previous')!.click();
    await settle();
    expect(run).toHaveBeenLastCalledWith('jupyter-mlops:roll-back-traffic', { name: 'digits' });
  });

  it('keeps what is typed while the server tells news, also when it was refused', async () => {
    run.mockResolvedValueOnce(false);
    await show();
    find('mlops-share-all', of('green'))!.click();
    await settle(4000);
    find('mlops-traffic-apply')!.click();
    await settle(4000);
    expect(find<HTMLInputElement>('mlops-share-number', of('green'))!.value).toBe('100');
    find('mlops-traffic-reset')!.click();
    await settle();
    expect(find<HTMLInputElement>('mlops-share-number', of('green'))!.value).toBe('10');
  });

  it('starts a canary with the limits of the server, and shows one that runs', async () => {
    await show();
    await type(find<HTMLInputElement>('mlops-canary-duration')!, '1.5');
    find('mlops-canary-start')!.click();
    await settle();
    expect(run).toHaveBeenLastCalledWith('jupyter-mlops:start-canary', {
      name: 'digits',
      canary: {
        deployment: 'green',
        percent: 10,
        duration: 90,
        min_requests: 50,
        max_error_rate: 0.02,
        max_latency_ratio: 2,
        max_latency_ms: 0
      }
    });
    api.serving.all[0].spec.canary = { deployment: 'green', duration: 90 };
    api.serving.all[0].status.canary = {
      phase: 'Running',
      deployment: 'green',
      percent: 10,
      previous: { blue: 100 },
      reason: '',
      started_at: new Date().toISOString(),
      ended_at: '',
      candidate: { requests: 60, errors: 6, error_rate: 0.1, p95: 40 },
      baseline: { requests: 500, errors: 0, error_rate: 0, p95: 10 }
    };
    events.emit([{ seq: 2, kind: 'endpoint', name: 'digits', op: 'put' }]);
    await settle(500);
    const table = find('mlops-canary-table')!.textContent!;
    for (const part of ['60', '500', '10 % – too much', '40 ms – too much']) {
      expect(table).toContain(part);
    }
    expect(find('mlops-traffic-previous')).toBe(null);
    find('mlops-canary-promote')!.click();
    expect(run).toHaveBeenLastCalledWith('jupyter-mlops:promote-canary', { name: 'digits' });
  });

  it('shows rates, the proof, and why a deployment failed', async () => {
    api.serving.all[0].deployments.push(
      deployment('red', { phase: 'Failed', reason: 'no module', log_tail: ['a', 'ImportError: b'] })
    );
    await show();
    api.serving.counters.deployments.blue = counted(300);
    await settle(2000);
    const row = (name: string) =>
      view.node.querySelector<HTMLElement>(
        `[data-testid=mlops-deployment-row][data-name=${name}]`
      )!;
    expect(row('blue').textContent).toContain('digits v1');
    expect(view.node.querySelectorAll('[data-testid=mlops-rate-chart]').length).toBe(3);
    expect(find('mlops-deployment-failure')!.textContent).toContain('ImportError: b');
    row('green').querySelector<HTMLElement>('.jp-Mlops-caret')!.click();
    await settle();
    expect(view.node.textContent).toContain('1 package differs from the notebook');
    // With traffic it cannot be deleted, without it can.
    const remove = (name: string) =>
      row(name).querySelector<HTMLButtonElement>('[data-testid=mlops-deployment-delete]')!;
    expect([remove('blue').disabled, remove('red').disabled]).toEqual([true, false]);
    row('red').querySelector<HTMLElement>('[data-testid=mlops-deployment-log]')!.click();
    await settle(2000);
    expect(view.page).toBe('logs');
    await settle(2000);
    const asked = api.queries.find(one => one.name === 'deploymentLog')!.query;
    expect(asked).toMatchObject({ deployment: 'red', instance: 0 });
    expect(find('mlops-live-log')!.textContent).toContain('started');
  });

  it('tries a call with the sample, and shows the answer or the error as it was named', async () => {
    await show('try');
    const fields = () =>
      Array.from(view.node.querySelectorAll<HTMLInputElement>('[data-testid=mlops-try-field]'));
    expect(fields().map(field => field.value)).toEqual(['1.5', '3']);
    await type(fields()[1], 'x');
    expect(find('mlops-try-send')!.disabled).toBe(true);
    expect(view.node.textContent).toContain('is no whole number');
    await type(fields()[1], '4');
    find('mlops-try-send')!.click();
    await settle();
    const sent = api.queries.find(one => one.name === 'invoke')!.query as { body: string };
    expect(JSON.parse(sent.body)).toEqual({
      dataframe_split: { columns: ['height', 'count'], data: [[1.5, 4]] }
    });
    expect(find('mlops-try-answer')!.textContent).toContain('"predictions": [7]');
    expect(find('mlops-try-facts')!.textContent).toContain('by blue');
    expect(find('mlops-code')!.textContent).toContain('DIGITS_KEY');

    api.serving.answer = {
      ...api.serving.answer,
      status: 400,
      body: { message: "column 'count' is wrong", code: 'bad_parameter', hint: 'an integer' }
    };
    find('mlops-try-send')!.click();
    await settle();
    expect(find('mlops-try-error')!.textContent).toBe(
      "column 'count' is wrongan integer400 · bad_parameter · by blue · 3 ms there and back"
    );
    api.broken = new ApiError('', 'unreachable', 0);
    find('mlops-try-send')!.click();
    await settle();
    expect(view.node.textContent).toContain('The Jupyter server does not answer.');
  });

  it('asks only while it is seen', async () => {
    await show();
    view.hide();
    await settle();
    const before = api.calls.length;
    await settle(30_000);
    expect(api.calls.length).toBe(before);
    view.show();
    await settle(2000);
    expect(api.calls.length).toBeGreaterThan(before);
    expect(api.count('captured')).toBe(0);
    view.look('data');
    await settle();
    await settle(2000);
    expect(api.count('captured')).toBeGreaterThan(0);
  });

  it('says what is wrong: gone, away, never there', async () => {
    await show();
    api.broken = new ApiError('', 'unreachable', 0);
    await settle(15_000);
    expect(find('mlops-endpoint-stale')!.textContent).toContain('does not answer');
    expect(find('mlops-traffic')).toBeTruthy();
    api.broken = null;
    view.reload();
    await settle();
    expect(find('mlops-endpoint-stale')).toBe(null);
    api.serving.all = [];
    view.reload();
    await settle();
    expect(view.node.textContent).toContain('There is no endpoint digits.');
    expect(find('mlops-traffic-apply')!.disabled).toBe(true);
    view.dispose();
    api.broken = new ApiError('not yours', 'forbidden', 403);
    await show();
    expect(find('mlops-endpoint-error')!.textContent).toContain('not yours');
    api.broken = null;
    api.serving.all = [served('digits', [])];
    find('mlops-endpoint-error')!.querySelector('button')!.click();
    await settle();
    expect(find('mlops-deployments-empty')!.textContent).toContain('%mlops deploy');
  });
});
