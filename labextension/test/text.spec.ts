import { nullTranslator } from '@jupyterlab/translation';
import { describe, expect, it } from 'vitest';

import { parseAnsi, splitLines, stripAnsi } from '../src/ansi';
import { curlCall, exampleBody, keyVariable, magicCall, pythonCall } from '../src/codegen';
import {
  elapsed,
  formatBytes,
  formatDuration,
  formatNumber,
  keyMetrics,
  percent,
  relativeTime
} from '../src/format';
import { baseName, downsample, groupSeries, lastValue } from '../src/series';
import { readSettings, DEFAULTS } from '../src/settings';
import schema from '../schema/plugin.json';

const trans = nullTranslator.load('');

describe('format', () => {
  it('writes numbers', () => {
    expect(
      [0, 3, 0.12345678, 1234.5678, 0.00001234, 1e9, null, NaN, Infinity, -Infinity].map(value =>
        formatNumber(value)
      )
    ).toEqual(['0', '3', '0.1235', '1235', '1.23e-5', '1.00e9', 'NaN', 'NaN', '∞', '−∞']);
  });

  it('writes times', () => {
    expect([0, 7400, 184_000, 7_384_000].map(formatDuration)).toEqual([
      '0 s',
      '7 s',
      '3:04',
      '2:03:04'
    ]);
    const now = Date.parse('2026-01-31T12:00:00Z');
    const ago = (seconds: number) =>
      relativeTime(new Date(now - seconds * 1000).toISOString(), now, trans);
    expect([1, 30, 120, 7200, 200_000].map(ago)).toEqual([
      'now',
      '30 s ago',
      '2 min ago',
      '2 h ago',
      '2 d ago'
    ]);
    expect(relativeTime('', now, trans)).toBe('');
    expect(relativeTime('yesterday', now, trans)).toBe('');
    expect(elapsed('2026-01-31T11:59:00Z', '', now)).toBe(60_000);
    expect(elapsed('', '', now)).toBe(0);
  });

  it('writes sizes and shares', () => {
    expect([0, 1023, 2048, 24 * 1024 ** 3].map(formatBytes)).toEqual([
      '0 B',
      '1023 B',
      '2.0 KB',
      '24 GB'
    ]);
    expect(percent({ done: 1, total: 3 })).toBe(33);
    expect(percent({ done: 5, total: 3 })).toBe(100);
    expect(percent({ done: 0, total: 0 })).toBe(null);
    expect(percent(null)).toBe(null);
  });

  it('picks the metrics that say most', () => {
    const metrics = { 'system/cpu': 1, zeta: 2, loss: 0.1, f1: 0.5, val_accuracy: 0.9 };
    expect(keyMetrics(metrics, [], 2).map(([key]) => key)).toEqual(['val_accuracy', 'loss']);
    expect(keyMetrics(metrics, ['zeta'], 1)).toEqual([['zeta', 2]]);
  });
});

describe('ansi', () => {
  it('folds progress bars and keeps lines', () => {
    expect(splitLines('a\n10%\r50%\r100%\nb\r\nc')).toEqual(['a', '100%', 'b', 'c']);
    expect(splitLines('')).toEqual([]);
    expect(splitLines('50%\r')).toEqual(['50%']);
  });

  it('colours, and drops everything else', () => {
    expect(parseAnsi('a \x1b[1;31mred\x1b[0m b\x1b[2K\x1b]8;;http://x\x07')).toEqual([
      { text: 'a ', classes: '' },
      { text: 'red', classes: 'jp-Mlops-ansiBold jp-Mlops-ansi-red' },
      { text: ' b', classes: '' }
    ]);
    expect(parseAnsi('\x1b[38;5;31mx\x1b[38;2;1;2;31my')).toEqual([
      { text: 'x', classes: '' },
      { text: 'y', classes: '' }
    ]);
    expect(stripAnsi('\x1b[32mok\x1b[0m\x07')).toBe('ok');
  });
});

describe('series', () => {
  const series = (...values: (number | null)[]) => ({ steps: values.map((_, i) => i), values });

  it('puts what belongs together into one chart', () => {
    expect(['val_loss', 'train/loss', 'loss.eval', 'loss'].map(baseName)).toEqual([
      'loss',
      'loss',
      'loss',
      'loss'
    ]);
    const metrics = {
      accuracy: series(1, 2),
      val_loss: series(1, 2),
      loss: series(1, 2),
      f1: series(1)
    };
    expect(groupSeries(metrics)).toEqual({
      charts: [
        { title: 'loss', keys: ['loss', 'val_loss'] },
        { title: 'accuracy', keys: ['accuracy'] }
      ],
      singles: ['f1']
    });
  });

  it('keeps ends and peaks when it down-samples', () => {
    const values: (number | null)[] = Array.from({ length: 1000 }, () => 0);
    values[500] = 9;
    values[3] = null;
    const small = downsample(series(...values), 50);
    expect(small.steps.length).toBe(50);
    expect(small.steps[0]).toBe(0);
    expect(small.steps[49]).toBe(999);
    expect(small.values).toContain(9);
    expect(downsample(series(1, 2, 3), 50).values).toEqual([1, 2, 3]);
    expect(downsample(series(1, 2, 3), 2).values).toEqual([1, 3]);
  });

  it('knows the last number', () => {
    expect(lastValue(series(1, 2, null))).toBe(2);
    expect(lastValue(series())).toBe(null);
  });
});

describe('codegen', () => {
  it('escapes what it is given', () => {
    const code = pythonCall('digits', 'http://x/"y"');
    expect(code).toContain('"http://x/\\"y\\""');
    expect(code).toContain('os.environ["DIGITS_KEY"]');
    expect(curlCall('a', "http://x/'$(y)")).toContain("'http://x/'\\''$(y)'");
    expect(keyVariable('digits-prod')).toBe('DIGITS_PROD_KEY');
    expect(magicCall('digits')).toBe('%mlops invoke digits X[:3]');
  });

  it('makes a body of the signature', () => {
    const tensor = {
      inputs: [{ type: 'tensor', 'tensor-spec': { dtype: 'float64', shape: [-1, 3] } }]
    };
    expect(exampleBody(tensor)).toEqual({ inputs: [[0, 0, 0]] });
    const columns = {
      inputs: [
        { name: 'age', type: 'long' },
        { name: 'city', type: 'string' },
        { name: 'ok', type: 'boolean' }
      ]
    };
    expect(exampleBody(columns)).toEqual({
      dataframe_split: { columns: ['age', 'city', 'ok'], data: [[0, 'text', true]] }
    });
    expect(pythonCall('a', 'u', columns)).toContain('[[0, "text", True]]');
    expect(exampleBody({ inputs: 'broken' })).toEqual({ inputs: [[0]] });
    expect(exampleBody(null)).toEqual({ inputs: [[0]] });
  });
});

describe('settings', () => {
  it('has the defaults of the schema', () => {
    const given = Object.fromEntries(
      Object.entries(schema.properties).map(([key, property]) => [key, property.default])
    );
    expect(readSettings(given)).toEqual(DEFAULTS);
    expect(schema.additionalProperties).toBe(false);
    for (const property of Object.values(schema.properties)) {
      expect(property.title && property.description).toBeTruthy();
    }
  });

  it('survives a broken file', () => {
    expect(readSettings({ refreshInterval: 'x', pageSize: 1e9, keyMetrics: [1, 'loss'] })).toEqual({
      ...DEFAULTS,
      pageSize: 200,
      keyMetrics: ['loss']
    });
  });
});
