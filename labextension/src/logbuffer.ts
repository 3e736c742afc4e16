/** The part of one rank's log that the page holds. Offsets are bytes of the file. */
import type { ILogChunk } from './api';
import { splitLines } from './ansi';

/** Characters kept; older chunks are dropped from the front, and can be loaded again. */
export const MAX_CHARS = 400_000;

export class LogBuffer {
  /** Where the held part starts; 0 when it starts with the log. */
  get start(): number {
    return this._chunks[0]?.offset ?? 0;
  }

  /** Where the next chunk is to be read from; negative before the first: from the end. */
  next = -16_384;

  size = 0;
  complete = false;

  get lines(): readonly string[] {
    return this._lines;
  }

  /** Take a chunk from the end; returns whether there was anything new. A shorter file starts anew. */
  append(chunk: ILogChunk): boolean {
    const restarted = this.next >= 0 && chunk.size < this.next;
    if (restarted) {
      this._chunks = [];
      this.next = 0;
    }
    this.size = chunk.size;
    this.complete = chunk.complete;
    if (this.next >= 0 && chunk.offset !== this.next) {
      return restarted;
    }
    this.next = chunk.next_offset;
    if (!chunk.text) {
      return restarted;
    }
    this._chunks.push({ offset: chunk.offset, text: chunk.text });
    let total = this._chunks.reduce((sum, one) => sum + one.text.length, 0);
    while (total > MAX_CHARS && this._chunks.length > 1) {
      total -= this._chunks.shift()!.text.length;
    }
    this._split();
    return true;
  }

  /** Take a chunk that ends where the held part starts. */
  prepend(chunk: ILogChunk): void {
    if (chunk.next_offset === this.start && chunk.text) {
      this._chunks.unshift({ offset: chunk.offset, text: chunk.text });
      this._split();
    }
  }

  private _split(): void {
    const lines = splitLines(this._chunks.map(chunk => chunk.text).join(''));
    // The first line is cut where the held part begins; half a line says little.
    this._lines = this.start > 0 && lines.length > 1 ? lines.slice(1) : lines;
  }

  private _chunks: { offset: number; text: string }[] = [];
  private _lines: string[] = [];
}
