import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import type { IChange } from '../src/api';
import { Gatherer, Part } from '../src/sections';

function change(kind: string): IChange {
  return { seq: 1, kind, name: 'a', op: 'put' };
}

describe('Gatherer', () => {
  let read: Part[][];
  let takes: number;
  let gatherer: Gatherer;

  beforeEach(() => {
    vi.useFakeTimers();
    read = [];
    takes = 0;
    gatherer = new Gatherer(async touched => {
      read.push([...touched].sort());
      await new Promise(resolve => window.setTimeout(resolve, takes));
    });
  });

  afterEach(() => {
    gatherer.dispose();
    vi.useRealTimers();
  });

  it('reads once what many changes touch', async () => {
    gatherer.take([change('job'), change('job'), change('deployment')]);
    gatherer.take([change('unheard-of')]);
    await vi.advanceTimersByTimeAsync(1000);
    expect(read).toEqual([['computes', 'endpoints', 'jobs', 'workspace']]);
    gatherer.take([]);
    await vi.advanceTimersByTimeAsync(1000);
    expect(read.length).toBe(1);
  });

  it('reads again what changes meanwhile, and rests four times as long as reading takes', async () => {
    takes = 1000;
    gatherer.take([change('run')]);
    await vi.advanceTimersByTimeAsync(600);
    gatherer.take([change('model')]);
    await vi.advanceTimersByTimeAsync(4600);
    expect(read).toEqual([['runs', 'workspace']]);
    await vi.advanceTimersByTimeAsync(200);
    expect(read[1]).toEqual(['models', 'workspace']);
  });

  it('goes on after an error, and ends when it is disposed', async () => {
    const failing = vi.fn(() => Promise.reject(new Error('away')));
    const other = new Gatherer(failing);
    other.add('jobs');
    await vi.advanceTimersByTimeAsync(1000);
    other.add('jobs');
    await vi.advanceTimersByTimeAsync(1000);
    expect(failing).toHaveBeenCalledTimes(2);
    other.add('jobs');
    other.dispose();
    other.add('runs');
    await vi.advanceTimersByTimeAsync(10_000);
    expect(failing).toHaveBeenCalledTimes(2);
  });
});
