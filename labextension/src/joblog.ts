/**
 * The log of a job as somebody reads it: which rank and attempt, followed at its end or looked around in, searched.
 *
 * Only a window is held. The end is followed in a buffer of its own, so that going back to it costs nothing.
 */
import type { ILogChunk, ILogMatch, ILogMatches, ILogQuery, ISearchQuery } from './api';
import { LogBuffer } from './logbuffer';

/** Bytes read at once when one looks around. */
const STRETCH = 65_536;
/** Matches asked for at once. */
const MAX_MATCHES = 200;
/** Chunks read at once: a burst of output is caught up with, an endless one does not hold the rest. */
const MAX_CHUNKS = 8;

/** What a search has found. */
export interface ISearch {
  query: string;
  matches: readonly ILogMatch[];
  /** The match that was gone to. */
  index: number;
  /** Where the search goes on; null when the whole log was looked through. */
  next: number | null;
  nextLine: number | null;
  busy: boolean;
  error: string;
}

/** Where logs are read. */
export interface ILogReader {
  log(name: string, rank: number, query: ILogQuery): Promise<ILogChunk>;
  /** Absent where logs cannot be searched. */
  searchLog?(name: string, rank: number, query: ISearchQuery): Promise<ILogMatches>;
}

/** A log as the view shows it: which process of several, which attempt. */
export interface ILogSource {
  readonly log: JobLog;
  readonly lines: readonly string[];
  readonly rank: number;
  /** `static` where only what was stored can be shown. */
  readonly connection: string;
  readonly attempts: readonly { attempt: number }[];
  selectLog(rank: number, attempt?: number): void;
}

/** How a chunk is asked for; null when the log is away for a moment. */
export type Ask = (call: () => Promise<ILogChunk>) => Promise<ILogChunk | null>;

export class JobLog {
  /**
   * @param _changed - called when there is something else to draw
   */
  constructor(
    private readonly _reader: ILogReader,
    private readonly _name: string,
    private readonly _changed: () => void
  ) {}

  rank = 0;
  /** Whether it can be searched. */
  get searchable(): boolean {
    return this._reader.searchLog !== undefined;
  }

  /** The attempt that was chosen; 0: the latest one. */
  attempt = 0;
  /** Whether the end was read at least once. */
  isRead = false;
  search: ISearch | null = null;
  /** The number of the line of the match that was gone to; null: none. */
  marked: number | null = null;

  /** The latest attempt of the job, as its status says. */
  get latest(): number {
    return this._latest;
  }

  set latest(attempt: number) {
    if (attempt !== this._latest) {
      this._latest = attempt;
      if (!this.attempt) {
        this.reset();
      }
    }
  }

  /** What is shown: the stretch that one looks around in, or the end. */
  get buffer(): LogBuffer {
    return this._window ?? this._tail;
  }

  /** Whether another part than the followed end is shown. */
  get browsing(): boolean {
    return this._window !== null;
  }

  get lines(): readonly string[] {
    return this.buffer.lines;
  }

  /** Bytes of log before what is held that can be read. */
  get earlier(): number {
    return this.isRead || this._window ? this.buffer.earlierEnd : 0;
  }

  /** Bytes of log after what is held. */
  get later(): number {
    return this._window ? Math.max(0, this._tail.size - this._window.next) : 0;
  }

  /** Show another rank or attempt; 0 is the latest attempt. Returns whether that is another log. */
  select(rank: number, attempt: number = this.attempt): boolean {
    const wanted = attempt === this._latest ? 0 : attempt;
    if (rank === this.rank && wanted === this.attempt) {
      return false;
    }
    this.rank = rank;
    this.attempt = wanted;
    this.reset();
    return true;
  }

  reset(): void {
    this._tail = new LogBuffer();
    this._window = null;
    this.isRead = false;
    this.search = null;
    this.marked = null;
  }

  /** Read what is new at the end; returns whether more is there already. */
  async follow(ask: Ask): Promise<boolean> {
    const tail = this._tail;
    for (let i = 0; i < MAX_CHUNKS; i++) {
      const chunk = await ask(() => this._read({ offset: tail.next }));
      if (!chunk || tail !== this._tail) {
        return false;
      }
      const from = tail.next;
      tail.append(chunk);
      this.isRead = true;
      if (chunk.complete || tail.next >= chunk.size || tail.next === from) {
        return false;
      }
    }
    return true;
  }

  /** Show the stretch before what is held. */
  async loadEarlier(): Promise<void> {
    const buffer = this.buffer;
    const end = buffer.earlierEnd;
    if (end <= 0) {
      return;
    }
    const offset = Math.max(0, end - STRETCH);
    const chunk = await this._read({ offset, limit: end - offset });
    if (buffer === this.buffer) {
      // The end goes on in its own buffer.
      this._window ??= this._tail.copy();
      this._window.prepend(chunk);
      this._changed();
    }
  }

  /** Show the stretch after what is held; at the end of the log this is following again. */
  async loadLater(): Promise<void> {
    const window = this._window;
    if (!window) {
      return;
    }
    const chunk = await this._read({ offset: window.next, limit: STRETCH });
    if (window === this._window) {
      window.append(chunk);
      if (window.next >= chunk.size) {
        this.toEnd();
      }
      this._changed();
    }
  }

  /** Show the end again, and follow it. */
  toEnd(): void {
    this._window = null;
    this.marked = null;
    this._changed();
  }

  /** Show the log around a byte, and mark the line there. */
  async goTo(offset: number): Promise<void> {
    const tail = this._tail;
    const from = Math.max(0, offset - STRETCH / 4);
    const before = offset > from ? await this._read({ offset: from, limit: offset - from }) : null;
    const after = await this._read({ offset, limit: STRETCH });
    if (tail !== this._tail) {
      return;
    }
    const window = new LogBuffer(offset);
    window.append(after);
    window.showStart();
    if (before) {
      window.prepend(before);
    }
    this._window = window;
    this.marked = window.lineOf(after.offset);
    this._changed();
  }

  /** Look for `query` from the start of the log; an empty one ends the search. */
  async find(query: string): Promise<void> {
    if (!query) {
      this.search = null;
      this.marked = null;
      this._changed();
      return;
    }
    this.search = { query, matches: [], index: -1, next: 0, nextLine: 1, busy: true, error: '' };
    this._changed();
    // A call looks through a part of a large log only; the first match is wanted, or to know that there is none.
    do {
      await this._findMore();
    } while (this._wanted(query) && !this.search!.matches.length && this.search!.next !== null);
    if (this._wanted(query)) {
      this.search = { ...this.search!, busy: false };
      this._changed();
      await this.step(1);
    }
  }

  /** Go to the next (1) or the previous (-1) match. */
  async step(by: 1 | -1): Promise<void> {
    const search = this.search;
    if (!search || search.busy) {
      return;
    }
    if (by > 0 && search.index + 1 >= search.matches.length && search.next !== null) {
      await this._findMore();
      this.search = this.search && { ...this.search, busy: false };
    }
    const { matches } = this.search ?? { matches: [] };
    if (this.search !== null && matches.length) {
      const index = (this.search.index + by + matches.length) % matches.length;
      this.search = { ...this.search, index };
      await this.goTo(matches[index].offset);
    }
  }

  private async _findMore(): Promise<void> {
    const search = this.search;
    if (!search || search.next === null) {
      return;
    }
    this.search = { ...search, busy: true };
    const { query, next } = search;
    const tail = this._tail;
    let found: Partial<ISearch>;
    try {
      const answer = await this._reader.searchLog!(this._name, this.rank, {
        q: query,
        offset: next,
        line: search.nextLine ?? undefined,
        limit: MAX_MATCHES,
        attempt: this._asked
      });
      const more = !answer.complete && answer.next_offset > next;
      found = {
        matches: [...search.matches, ...answer.matches],
        next: more ? answer.next_offset : null,
        nextLine: answer.next_line
      };
    } catch (error) {
      found = { next: null, error: error instanceof Error ? error.message : String(error) };
    }
    if (tail === this._tail && this._wanted(query)) {
      this.search = { ...search, ...found, busy: true };
      this._changed();
    }
  }

  private _wanted(query: string): boolean {
    return this.search?.query === query;
  }

  private get _asked(): number | undefined {
    return this.attempt || this._latest || undefined;
  }

  private _read(query: ILogQuery): Promise<ILogChunk> {
    return this._reader.log(this._name, this.rank, { ...query, attempt: this._asked });
  }

  private _latest = 0;
  private _tail = new LogBuffer();
  private _window: LogBuffer | null = null;
}
