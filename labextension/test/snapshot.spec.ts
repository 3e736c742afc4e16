import { describe, expect, it } from 'vitest';

import {
  IJobOutput,
  JOB_MIME,
  MAX_BYTES,
  readOutput,
  toBundle,
  toHtml,
  toText
} from '../src/snapshot';

const EVIL = '<script>alert(1)</script><img src=x onerror=alert(1)>"\'&';

function output(more: Partial<IJobOutput['snapshot']> = {}): IJobOutput {
  return {
    version: 1,
    workspace: 'default',
    name: 'digits',
    run_id: 'r',
    experiment_id: '1',
    snapshot: {
      phase: 'Completed',
      reason: '',
      queued_at: '',
      started_at: '2026-01-31T12:00:00.000Z',
      ended_at: '2026-01-31T12:01:05.000Z',
      exit_code: 0,
      processes: 2,
      metrics: { loss: { steps: [0, 1, 2], values: [3, null, 1] } },
      log: 'one\ntwo',
      progress: null,
      attempt: 1,
      taken_at: '2026-01-31T12:01:06.000Z',
      ...more
    }
  };
}

describe('readOutput', () => {
  it('gives back what was written', () => {
    const written = toBundle(output())[JOB_MIME];
    expect(readOutput(JSON.parse(JSON.stringify(written)))).toEqual(output());
  });

  it('refuses what it does not know', () => {
    for (const data of [null, 1, 'x', [], {}, { version: 2, name: 'a' }, { version: 1 }]) {
      expect(readOutput(data)).toBe(null);
    }
  });

  it('reads broken fields as empty ones', () => {
    const read = readOutput({
      version: 1,
      name: 'a',
      snapshot: {
        phase: 'Exploded',
        started_at: 'soon',
        processes: 'many',
        log: ['a', 7],
        metrics: { loss: { steps: [0, 'x', 2], values: [1, 2] }, bad: 7 },
        progress: { done: 'x' }
      }
    });
    expect(read?.snapshot).toMatchObject({
      phase: 'Queued',
      started_at: '',
      processes: 1,
      log: 'a\n',
      metrics: { loss: { steps: [0], values: [1] }, bad: { steps: [], values: [] } },
      progress: null
    });
  });
});

describe('toBundle', () => {
  it('stays within its limit, with ends of the curves and of the log', () => {
    const metrics = Object.fromEntries(
      Array.from({ length: 60 }, (_, k) => [
        `metric_${k}`,
        {
          steps: Array.from({ length: 2000 }, (_, i) => i),
          values: Array.from({ length: 2000 }, (_, i) => Math.sin(i * k) / 3)
        }
      ])
    );
    const log = Array.from({ length: 5000 }, (_, i) => `${i} ${'ä'.repeat(900)}`).join('\n');
    const bundle = toBundle(output({ metrics, log }));
    expect(new TextEncoder().encode(JSON.stringify(bundle)).length).toBeLessThanOrEqual(MAX_BYTES);
    const { snapshot } = bundle[JOB_MIME] as IJobOutput;
    expect(snapshot.log.split('\n').pop()).toMatch(/^4999 /);
    expect(snapshot.metrics.metric_0.steps[0]).toBe(0);
    expect(snapshot.metrics.metric_0.steps.pop()).toBe(1999);
  });

  it('keeps no escape sequences and folds progress bars', () => {
    const bundle = toBundle(output({ log: '\x1b[31mred\x1b[0m\n1%\r2%' }));
    expect((bundle[JOB_MIME] as IJobOutput).snapshot.log).toBe('red\n2%');
  });
});

describe('the static forms', () => {
  it('escape everything', () => {
    const html = toHtml({
      ...output({
        reason: EVIL,
        log: EVIL,
        metrics: {
          [EVIL]: { steps: [0, 1], values: [1, 2] },
          [`${EVIL}2`]: { steps: [0], values: [1] }
        },
        taken_at: EVIL
      }),
      name: EVIL
    });
    const page = new DOMParser().parseFromString(html, 'text/html');
    expect(page.querySelectorAll('script, img').length).toBe(0);
    for (const node of page.querySelectorAll('*')) {
      for (const { name } of node.attributes) {
        expect(name).not.toMatch(/^on/);
      }
    }
    expect(page.body.textContent).toContain(EVIL);
    expect(page.querySelectorAll('svg polyline').length).toBe(1);
  });

  it('say state, time, curves and log', () => {
    const html = toHtml(output({ phase: 'Failed', exit_code: 1, reason: 'it broke' }));
    for (const part of [
      'Failed',
      'digits',
      '1:05',
      '2 processes',
      'exit code 1',
      'it broke',
      'one\ntwo'
    ]) {
      expect(html).toContain(part);
    }
    expect(toText(output())).toBe('Job digits: Completed  1:05  loss=1');
    expect(toHtml(output({ phase: 'Running', ended_at: '' }))).toContain('as of 2026-01-31');
  });

  it('draw a curve of equal or missing values', () => {
    const flat = toHtml(output({ metrics: { a: { steps: [0, 1], values: [2, 2] } } }));
    expect(flat).not.toContain('NaN');
    const empty = toHtml(output({ metrics: { a: { steps: [0, 1], values: [null, null] } } }));
    expect(empty).not.toContain('<svg');
  });
});
