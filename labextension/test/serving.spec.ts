import { nullTranslator } from '@jupyterlab/translation';
import { describe, expect, it } from 'vitest';

import type { ICanaryStatus, IHistoryItem } from '../src/api';
import { canaryLeft, candidates, isNews, sideOf } from '../src/canary';
import { exampleBody } from '../src/codegen';
import { detailText } from '../src/components/history';
import { canaryText, summaryText } from '../src/components/endpoints';
import { formatCount, formatMs, formatShare } from '../src/format';
import { exampleRequest, exampleValues, formOf, payloadOf } from '../src/inputform';
import { quantile, StatsWindow } from '../src/rates';
import * as traffic from '../src/traffic';
import { counted, deployment, served } from './servingfakes';

const trans = nullTranslator.load('');

describe('traffic', () => {
  it('always adds up to 100', () => {
    for (let value = 0; value <= 100; value++) {
      const shares = traffic.rebalance({ a: 33, b: 33, c: 34, d: 0 }, 'b', value);
      expect(traffic.sum(shares)).toBe(100);
      expect(shares.b).toBe(value);
      expect(traffic.isValid(shares)).toBe(true);
    }
    expect(traffic.rebalance({ a: 60, b: 30, c: 10 }, 'a', 20)).toEqual({ a: 20, b: 60, c: 20 });
    expect(traffic.rebalance({ a: 0, b: 0 }, 'a', 30)).toEqual({ a: 30, b: 70 });
    expect(traffic.rebalance({ a: 50, b: 50 }, 'a', 250)).toEqual({ a: 100, b: 0 });
    expect(traffic.rebalance({ a: 0 }, 'a', 40)).toEqual({ a: 100 });
  });

  it('gives the others what they had before they had nothing', () => {
    const all = traffic.rebalance({ a: 40, b: 45, c: 15 }, 'a', 100);
    expect(all).toEqual({ a: 100, b: 0, c: 0 });
    expect(traffic.rebalance(all, 'a', 40, { a: 40, b: 45, c: 15 })).toEqual({
      a: 40,
      b: 45,
      c: 15
    });
  });

  it('refuses what the server would refuse', () => {
    expect(traffic.isValid({ a: 0, b: 0 })).toBe(true);
    expect(traffic.isValid({ a: 99 })).toBe(false);
    expect(traffic.isValid({ a: 99.5, b: 0.5 })).toBe(false);
    expect(traffic.isValid({ a: 110, b: -10 })).toBe(false);
  });

  it('is what is asked for, else what fell to whoever was ready first', () => {
    const one = served('digits', [], { traffic: {} }, { traffic: { blue: 100 } });
    expect(traffic.effective(one)).toEqual({ blue: 100 });
    one.spec = { traffic: { blue: 0 } };
    expect(traffic.effective(one)).toEqual({ blue: 0 });
  });

  it('is told with what was before', () => {
    const item = (action: string, detail: Record<string, unknown>): IHistoryItem => ({
      at: '2026-01-31T12:00:00Z',
      by: 'me',
      action,
      detail
    });
    const before = { traffic: { blue: 100 }, mirror_traffic: { green: 20 } };
    const after = { traffic: { blue: 90, green: 10 }, mirror_traffic: {} };
    expect(detailText(item('traffic', { changed: ['traffic'], before, after }), trans)).toBe(
      'blue 100 % → blue 90 % · green 10 % · mirror to green 20 % → nobody'
    );
    const first = { before: { traffic: {} }, after: { traffic: { a: 100 } } };
    expect(detailText(item('rollback', { ...first, reason: 'slow' }), trans)).toBe(
      'nobody → a 100 % · slow'
    );
    expect(detailText(item('rotate', { key: 'primary' }), trans)).toBe('key primary');
    expect(detailText(item('deploy', { deployment: 'blue' }), trans)).toBe('blue');
    expect(detailText(item('update', { changed: ['tags', 'description'] }), trans)).toBe(
      'tags, description'
    );
  });

  it('tells what a change does', () => {
    expect(traffic.shifts({ blue: 100, old: 0 }, { blue: 20, green: 80 })).toEqual([
      { name: 'blue', before: 100, after: 20 },
      { name: 'green', before: 0, after: 80 }
    ]);
    expect(traffic.trafficText({ blue: 10, green: 90, old: 0 })).toBe('green 90 % · blue 10 %');
    expect(traffic.equal({ a: 100 }, { a: 100, b: 0 })).toBe(true);
  });
});

describe('counters', () => {
  const T = 1_700_000_000_000;
  const started = T / 1000 - 3600;
  const look = (requests: number, more = {}, since: number = started) => ({
    started_at: since,
    deployments: { blue: counted(requests, more) }
  });

  it('are told as what was new between two looks', () => {
    const window = new StatsWindow();
    window.add(look(1000), T);
    expect(window.summary('blue')).toBe(null);
    window.add(look(1060, { errors: { '5xx': 3, model: 2, timeout: 1 } }), T + 2000);
    // What callers got wrong and what was turned away says nothing of the deployment.
    const mixed = { '5xx': 6, model: 2, timeout: 1, '4xx': 20, rejected: 10 };
    window.add(look(1120, { errors: mixed }), T + 4000);
    expect(window.series('blue', 'rate')).toMatchObject({
      values: [30, 30],
      timestamps: [T + 2000, T + 4000]
    });
    expect(window.series('blue', 'errors').values).toEqual([10, 10]);
    expect(window.summary('blue')).toMatchObject({
      perMinute: 1800,
      errors: 9,
      errorRate: 0.1
    });
  });

  it('begin anew with the gateway', () => {
    const window = new StatsWindow();
    window.add(look(1000, { errors: { '5xx': 10 } }), T);
    // It was started a second ago and has answered 20 since.
    window.add(look(20, { errors: { '5xx': 1 } }, (T + 1000) / 1000), T + 2000);
    expect(window.series('blue', 'rate').values).toEqual([20]);
    expect(window.series('blue', 'errors').values).toEqual([5]);
    // Also when it has counted further than before, and when it does not tell its start.
    window.add(look(30, {}, (T + 3000) / 1000), T + 4000);
    expect(window.series('blue', 'rate').values[1]).toBe(30);
    const silent = new StatsWindow();
    silent.add({ deployments: { blue: counted(50) } }, T);
    silent.add({ deployments: { blue: counted(8) } }, T + 2000);
    expect(silent.series('blue', 'rate').values).toEqual([4]);
  });

  it('have a gap where nobody looked, and where there was nothing to measure', () => {
    const window = new StatsWindow();
    window.add(look(0), T);
    window.add(look(10), T + 2000);
    window.add(look(10_000), T + 602_000);
    expect(window.series('blue', 'rate').values).toEqual([5, null, 9990 / 600]);
    window.add(look(10_000), T + 604_000);
    expect(window.series('blue', 'p95').values[3]).toBe(null);
    expect(window.series('blue', 'errors').values[3]).toBe(null);
    expect(window.series('blue', 'rate').values[3]).toBe(0);
  });

  it('tell the latency of what was answered since', () => {
    const window = new StatsWindow();
    window.add(look(1000, { took: 2 }), T);
    const slow = counted(1100, { took: 2 });
    slow.latency_ms.buckets = slow.latency_ms.buckets!.map(([bound, count]) => [
      bound,
      Number(bound) >= 16 ? 1100 : count && 1000
    ]);
    window.add({ started_at: started, deployments: { blue: slow } }, T + 2000);
    const [p95] = window.series('blue', 'p95').values;
    expect(p95).toBeGreaterThan(8);
    expect(p95).toBeLessThanOrEqual(16);
    expect(window.summary('blue')!.p95).toBe(p95);
  });

  it('know deployments that came between two looks', () => {
    const window = new StatsWindow();
    window.add(look(5), T);
    const both = { started_at: started, deployments: { blue: counted(5), green: counted(4) } };
    window.add(both, T + 2000);
    expect(window.series('green', 'rate').values).toEqual([2]);
  });

  it('read quantiles off a histogram', () => {
    expect(quantile([], 0.5)).toBe(null);
    expect(quantile([[1, 0]], 0.5)).toBe(null);
    expect(
      quantile(
        [
          [10, 50],
          [20, 100]
        ],
        0.75
      )
    ).toBe(15);
    expect(
      quantile(
        [
          [10, 50],
          [Infinity, 100]
        ],
        0.99
      )
    ).toBe(10);
  });

  it('are written shortly', () => {
    expect([0.83, 8.06, 12.3, 1234, 61_000, null].map(formatMs)).toEqual([
      '0.83 ms',
      '8.1 ms',
      '12 ms',
      '1.2 s',
      '61 s',
      '–'
    ]);
    expect([0, 0.0004, 0.004, 0.123, 1, null].map(formatShare)).toEqual([
      '0 %',
      '< 0.1 %',
      '0.4 %',
      '12 %',
      '100 %',
      '–'
    ]);
    expect([0, 0.4, 12.6, 12_345, 12_345_678].map(formatCount)).toEqual([
      '0',
      '< 1',
      '13',
      '12,345',
      '1.2e7'
    ]);
    expect(summaryText({ perMinute: 0, errorRate: null, errors: 0, p95: null }, trans)).toBe(
      'no requests'
    );
  });
});

describe('a canary', () => {
  const start = Date.parse('2026-01-31T12:00:00Z');
  const canary: ICanaryStatus = {
    phase: 'Running',
    deployment: 'green',
    percent: 10,
    reason: '',
    started_at: '2026-01-31T12:00:00Z',
    ended_at: '',
    candidate: { requests: 20, errors: 1, p95: 9 }
  };
  const spec = { deployment: 'green', duration: 120, min_requests: 50 };

  it('has time left, then waits for requests', () => {
    expect(canaryLeft(canary, spec, start + 30_000)).toEqual({ ms: 90_000, requests: 30 });
    expect(canaryLeft(canary, spec, start + 500_000)).toEqual({ ms: 0, requests: 30 });
    expect(canaryText(canary, canaryLeft(canary, spec, start + 500_000), trans)).toBe(
      'canary green 10 % · waits for 30 requests'
    );
    // A clock that is behind makes it no longer than it is.
    expect(canaryLeft(canary, spec, start - 60_000)!.ms).toBe(120_000);
    expect(canaryLeft(canary, null, start)!.ms).toBe(300_000);
    expect(canaryLeft({ ...canary, phase: 'Promoted' }, spec, start)).toBe(null);
    expect(canaryLeft(null, spec, start)).toBe(null);
  });

  it('is news while it runs and for a day after it was rolled back', () => {
    const back: ICanaryStatus = {
      ...canary,
      phase: 'RolledBack',
      ended_at: '2026-01-31T12:01:00Z'
    };
    expect(isNews(canary, start)).toBe(true);
    expect(isNews(back, start + 3_600_000)).toBe(true);
    expect(isNews(back, start + 2 * 86_400_000)).toBe(false);
    expect(isNews({ ...canary, phase: 'Promoted' }, start)).toBe(false);
  });

  it('has two sides', () => {
    expect(sideOf(canary.candidate)).toEqual({ requests: 20, errorRate: 0.05, p95: 9 });
    expect(sideOf(null)).toEqual({ requests: 0, errorRate: null, p95: null });
  });

  it('is best started with the newest that is ready and has no traffic', () => {
    const old = { ...deployment('old'), created_at: '2026-01-01T00:00:00Z' };
    const all = [
      deployment('blue'),
      old,
      deployment('green'),
      deployment('bad', { phase: 'Failed' })
    ];
    const names = (shares: Record<string, number>) => candidates(all, shares).map(one => one.name);
    expect(names({ blue: 100 })).toEqual(['green', 'old']);
    expect(names({ blue: 90, green: 10 })).toEqual(['old', 'green', 'blue']);
    // With nothing to compare it with there is no canary.
    expect(names({})).toEqual([]);
  });
});

describe('a form of a signature', () => {
  const table = {
    inputs: [
      { name: 'height', type: 'double', required: true },
      { name: 'count', type: 'long', required: true },
      { name: 'city', type: 'string', required: true },
      { name: 'open', type: 'boolean', required: true },
      { name: 'when', type: 'datetime', required: false },
      { name: 'tags', type: 'array', items: 'string', required: false }
    ],
    params: [{ name: 'temperature', dtype: 'double', default: 0.5, shape: null }]
  };
  const sample = {
    dataframe_split: {
      columns: ['height', 'count', 'city', 'open', 'when', 'tags'],
      data: [
        [1.5, 3, 'Zürich', true, null, ['a']],
        [2, 4, 'Bern', false, null, []]
      ]
    }
  };
  const filled = (request: Record<string, unknown>) => {
    const form = formOf(table);
    return { form, values: exampleValues(form, request, table) };
  };

  it('has a field for each column, filled with the first row of the sample', () => {
    const { form, values } = filled(exampleRequest(table, sample));
    expect(form.fields.map(field => field.kind)).toEqual([
      'number',
      'integer',
      'text',
      'boolean',
      'datetime',
      'json'
    ]);
    expect(Object.values(values)).toEqual(['1.5', '3', 'Zürich', 'true', '', '["a"]', '0.5']);
    expect(JSON.parse(payloadOf(form, values).body!)).toEqual({
      dataframe_split: {
        columns: sample.dataframe_split.columns,
        data: [sample.dataframe_split.data[0]]
      },
      params: { temperature: 0.5 }
    });
  });

  it('reads the first row off every form of a request', () => {
    const columns = Object.fromEntries(
      sample.dataframe_split.columns.map((name, i) => [
        name,
        sample.dataframe_split.data.map(row => row[i])
      ])
    );
    const records = sample.dataframe_split.data.map(row =>
      Object.fromEntries(row.map((value, i) => [sample.dataframe_split.columns[i], value]))
    );
    for (const request of [
      { dataframe_records: records },
      { instances: records },
      { inputs: records },
      { inputs: columns }
    ]) {
      const { values } = filled(exampleRequest(table, request));
      expect(Object.values(values).slice(0, 4)).toEqual(['1.5', '3', 'Zürich', 'true']);
    }
  });

  it('names what cannot be sent', () => {
    const { form } = filled(sample);
    const keys = form.fields.map(field => field.key);
    const typed = ['1,5', '3.5', '', 'false', 'today', '[1,'];
    const values = Object.fromEntries(keys.map((key, i) => [key, typed[i]]));
    const { body, errors } = payloadOf(form, values);
    expect(body).toBe(null);
    expect(keys.map(key => errors[key])).toEqual([
      'number',
      'integer',
      undefined,
      undefined,
      undefined,
      'json'
    ]);
    expect(payloadOf(form, { [keys[1]]: ' ' }).errors[keys[1]]).toBe('missing');
  });

  it('keeps whole numbers as they were typed, and leaves out what is empty', () => {
    const signature = {
      inputs: [
        { name: 'id', type: 'long' },
        { name: 'size', type: 'double' }
      ]
    };
    const form = formOf(signature);
    const [id, size] = form.fields.map(field => field.key);
    const { body } = payloadOf(form, { [id]: '+0009007199254740993', [size]: '' });
    expect(body).toBe(
      '{"dataframe_split": {"columns": ["id", "size"], "data": [[9007199254740993, null]]}}'
    );
  });

  it('has one field for a tensor', () => {
    const tensor = {
      inputs: [{ type: 'tensor', 'tensor-spec': { dtype: 'float64', shape: [-1, 3] } }]
    };
    const form = formOf(tensor);
    const request = exampleRequest(tensor, {
      inputs: [
        [1, 2, 3],
        [4, 5, 6]
      ]
    });
    const values = exampleValues(form, request, tensor);
    expect(form.fields[0].type).toBe('float64 (-1, 3)');
    expect(payloadOf(form, values).body).toBe('{"inputs": [[1,2,3]]}');
    const named = { inputs: [{ name: 'x', ...tensor.inputs[0] }] };
    const fields = formOf(named).fields;
    expect(payloadOf(formOf(named), { [fields[0].key]: '[[1,2,3]]' }).body).toBe(
      '{"inputs": {"x": [[1,2,3]]}}'
    );
  });

  it('is only JSON where inputs have no names', () => {
    const unnamed = { inputs: [{ type: 'double' }] };
    expect(formOf(unnamed).mode).toBe('none');
    expect(formOf(null)).toEqual({ mode: 'none', fields: [], params: [] });
    expect(exampleRequest(unnamed, null)).toEqual(exampleBody(unnamed));
  });
});
