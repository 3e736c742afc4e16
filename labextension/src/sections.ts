/** The lists of the panel, which of them a change touches, and when those are read again. */
import { IDisposable } from '@lumino/disposable';

import type { IChange } from './api';

export const SECTIONS = ['runs', 'jobs', 'models', 'endpoints', 'computes'] as const;
export type SectionName = (typeof SECTIONS)[number];

/** What can be read again: a list, or the workspace itself. */
export type Part = SectionName | 'workspace';

/** Milliseconds that changes are gathered before lists are read. */
const GATHER = 250;
/** Reading takes at most one part in so many of the time, however fast changes come. */
const REST = 4;

const TOUCHED: Record<string, readonly SectionName[]> = {
  run: ['runs'],
  job: ['jobs', 'computes'],
  model: ['models'],
  endpoint: ['endpoints'],
  deployment: ['endpoints'],
  compute: ['computes'],
  // Anything may have changed.
  workspace: SECTIONS
};

/** Gathers what changes touch, and has it read soon; while a thousand jobs come and go, as often as reading leaves time for. */
export class Gatherer implements IDisposable {
  constructor(private readonly _read: (touched: ReadonlySet<Part>) => Promise<void>) {}

  get isDisposed(): boolean {
    return this._isDisposed;
  }

  /** Have a part read. */
  add(...parts: readonly Part[]): void {
    for (const part of parts) {
      this._touched.add(part);
    }
    this._schedule();
  }

  /** Have read what some changes touch. */
  take(changes: readonly IChange[]): void {
    for (const change of changes) {
      this.add('workspace', ...(TOUCHED[change.kind] ?? []));
    }
  }

  dispose(): void {
    this._isDisposed = true;
    window.clearTimeout(this._timer);
  }

  private _schedule(): void {
    if (!this._timer && !this._isDisposed) {
      const wait = Math.max(GATHER, this._pause);
      this._timer = window.setTimeout(() => void this._run(), wait);
    }
  }

  private async _run(): Promise<void> {
    const touched = this._touched;
    this._touched = new Set();
    const start = performance.now();
    await this._read(touched).catch(() => undefined);
    this._pause = REST * (performance.now() - start);
    this._timer = 0;
    if (this._touched.size) {
      this._schedule();
    }
  }

  private _touched = new Set<Part>();
  private _timer = 0;
  private _pause = 0;
  private _isDisposed = false;
}
