/** The part of one rank's log that the page holds. Offsets are bytes of what the program wrote. */
import type { ILogChunk } from './api';
import { Terminal } from './terminal';

/** Characters kept; chunks beyond are dropped from the end that is not looked at, and can be loaded again. */
export const MAX_CHARS = 400_000;
/** Lines kept, for logs of short ones. */
export const MAX_LINES = 5000;
/** Lines kept where one looks around: those of any stretch that is gone to. */
export const MAX_AROUND = 20_000;
/** Bytes of the end that are read first, however long the log is. */
export const TAIL_BYTES = 16_384;

interface IPart {
  offset: number;
  next: number;
  text: string;
  /** The number of the line that its text begins in. */
  line: number;
}

/** A stretch that the log does not hold any more, before the line of this number. */
export interface ISkip {
  line: number;
  bytes: number;
}

export class LogBuffer {
  /** @param from - where the first chunk is to be read from; negative: from the end */
  constructor(from = -TAIL_BYTES) {
    this.next = from;
  }

  /** Where the held part starts; 0 when it starts with the log. */
  get start(): number {
    return this._parts[0]?.offset ?? 0;
  }

  /** Where the next chunk is to be read from; negative before the first: from the end. */
  next: number;

  size = 0;
  complete = false;

  get lines(): readonly string[] {
    return (this._lines ??= this._draw());
  }

  /** The number of the first of {@link lines}; a line keeps its number while more is read. */
  get first(): number {
    this._lines ??= this._draw();
    return this._first;
  }

  /** Stretches that are not kept, in order. */
  get skips(): readonly ISkip[] {
    return this._parts
      .map((part, i) => ({ line: part.line, bytes: part.offset - this._before(i) }))
      .filter(skip => skip.bytes > 0);
  }

  /** Where the stretch before the held part ends: at its start, or where a hole before it begins. */
  get earlierEnd(): number {
    return this._parts.length ? this._before(0) : 0;
  }

  /** The number of the line that holds the byte at `offset`, as far as chunks tell. */
  lineOf(offset: number): number | null {
    const part = this._parts.find(one => one.offset === offset);
    return part ? part.line : null;
  }

  /** Take a chunk from the end; returns whether there was anything new. A shorter file starts anew. */
  append(chunk: ILogChunk): boolean {
    const restarted = this.next >= 0 && chunk.size < this.next;
    if (restarted) {
      this._parts = [];
      this._anew();
      this.next = 0;
    }
    this.size = chunk.size;
    this.complete = chunk.complete;
    this._hole = chunk.hole ?? this._hole;
    if (this.next >= 0 && chunk.offset !== this.next + (chunk.skipped ?? 0)) {
      return restarted;
    }
    this.next = chunk.next_offset;
    if (!chunk.text) {
      return restarted;
    }
    this._add(toPart(chunk));
    this._head = false;
    let total = this._parts.reduce((sum, part) => sum + part.text.length, 0);
    while (this._parts.length > 1 && (total > MAX_CHARS || this._enough(this._parts[1].line))) {
      total -= this._parts.shift()!.text.length;
      this._terminal.dropBefore(this._parts[0].line);
    }
    return true;
  }

  /**
   * Take a chunk that ends where the held part starts, and drop what is then too much from the end: it is not looked
   * at by somebody who reads earlier parts. Returns whether it was taken.
   */
  prepend(chunk: ILogChunk): boolean {
    this._hole = chunk.hole ?? this._hole;
    if (chunk.next_offset !== this.earlierEnd || !chunk.text) {
      return false;
    }
    const parts = [toPart(chunk), ...this._parts];
    let total = parts.reduce((sum, part) => sum + part.text.length, 0);
    while (total > MAX_CHARS && parts.length > 1) {
      total -= parts[parts.length - 1].text.length;
      this.next = parts.pop()!.offset;
    }
    // What is known of earlier text changes what later text overwrites: written again from its start.
    this._anew();
    this._parts = [];
    parts.forEach(part => this._add(part));
    this._head = true;
    return true;
  }

  /** Where there are too many lines, show the first ones rather than the last. */
  showStart(): void {
    this._head = true;
    this._lines = null;
  }

  /** The same content in a buffer of its own, for looking around while this one goes on. */
  copy(): LogBuffer {
    const copy = new LogBuffer();
    this._parts.forEach(part => copy._add({ ...part }));
    copy.next = this.next;
    copy.size = this.size;
    copy.complete = this.complete;
    copy._hole = this._hole;
    return copy;
  }

  private _add(part: IPart): void {
    const last = this._parts[this._parts.length - 1];
    if (last && last.next !== part.offset && !last.text.endsWith('\n')) {
      // What follows a hole does not go on where the text before it ended.
      this._terminal.write('\n');
    }
    part.line = this._terminal.line;
    this._parts.push(part);
    this._terminal.write(part.text);
    this._lines = null;
  }

  /** Where what is before part `index` ends. */
  private _before(index: number): number {
    const { offset } = this._parts[index];
    if (index > 0) {
      return this._parts[index - 1].next;
    }
    return this._hole && this._hole[1] === offset ? this._hole[0] : offset;
  }

  private _enough(line: number): boolean {
    return this._terminal.line - line >= MAX_LINES;
  }

  private _anew(): void {
    this._terminal = new Terminal();
    this._lines = null;
  }

  private _draw(): string[] {
    const terminal = this._terminal;
    const part = this._parts[0];
    // The first line is cut where the held part begins; half a line says little.
    const cut = part?.offset > 0 && this._before(0) === part.offset && terminal.length > 1 ? 1 : 0;
    const from = this._head ? cut : Math.max(cut, terminal.length - MAX_LINES);
    const to = Math.min(terminal.length, from + (this._head ? MAX_AROUND : MAX_LINES));
    this._first = terminal.first + from;
    const lines: string[] = [];
    for (let i = from; i < to; i++) {
      lines.push(terminal.at(i));
    }
    return lines;
  }

  private _parts: IPart[] = [];
  private _terminal = new Terminal();
  private _lines: string[] | null = null;
  private _first = 0;
  private _hole: [number, number] | null = null;
  /** Whether lines that are too many are left out at the end. */
  private _head = false;
}

function toPart(chunk: ILogChunk): IPart {
  return {
    offset: chunk.offset,
    next: chunk.next_offset,
    text: chunk.text,
    line: 0
  };
}
