import { afterEach, beforeEach, describe, expect, it, vi } from 'vitest';

import { JobLog } from '../src/joblog';
import { LogBuffer, MAX_AROUND, MAX_CHARS, MAX_LINES } from '../src/logbuffer';
import { Terminal } from '../src/terminal';
import { FakeApi } from './fakes';

const shown = (...texts: string[]): string[] => {
  const terminal = new Terminal();
  texts.forEach(text => terminal.write(text));
  return Array.from({ length: terminal.length }, (_, i) => terminal.at(i));
};

describe('Terminal', () => {
  it('keeps lines, and overwrites after a carriage return', () => {
    expect(shown('a\n10%\r50%\r100%\nb\r\nc')).toEqual(['a', '100%', 'b', 'c']);
    expect(shown('')).toEqual([]);
    expect(shown('one\n\n')).toEqual(['one', '']);
    expect(shown('12345\rab')).toEqual(['ab345']);
    expect(shown('ab\bc\tx')).toEqual(['ac      x']);
  });

  it('takes text in any pieces', () => {
    const text = 'a\r\n\x1b[31mred\x1b[0m 1%\r\x1b[K2%\n\x1b[2Aup\n\x1b]0;title\x07end';
    expect(shown(...text)).toEqual(shown(text));
  });

  it('draws several bars that go back up, as tqdm and rich do', () => {
    const bars = Array.from(
      { length: 50 },
      (_, i) => `\r epoch ${i}\n\r\x1b[K batch ${i}\x1b[A`
    ).join('');
    expect(shown(bars)).toEqual([' epoch 49', ' batch 49']);
    const rich =
      '\x1b[?25lA 0\nB 0\r\x1b[2K\x1b[1A\x1b[2KA 1\nB 1\r\x1b[2K\x1b[1A\x1b[2KA 2\nB 2\n';
    expect(shown(rich)).toEqual(['A 2', 'B 2']);
    expect(shown('x\ny\nz\x1b[2F\x1b[Jonly')).toEqual(['only', '']);
  });

  it('keeps colours of what is overwritten in part', () => {
    expect(shown('\x1b[31mred\x1b[0m\rR')).toEqual(['R\x1b[31med\x1b[0m']);
    expect(shown('\x1b[1m\x1b[32mok\x1b[m')).toEqual(['\x1b[1m\x1b[32mok\x1b[0m']);
  });

  it('goes no further up than a screen, and breaks endless lines', () => {
    const lines = shown(Array.from({ length: 300 }, (_, i) => `${i}\n`).join('') + '\x1b[999Atop');
    expect(lines[0]).toBe('0');
    expect(lines.findIndex(line => line.startsWith('top'))).toBe(201);
    expect(Math.max(...shown('x'.repeat(50_000)).map(line => line.length))).toBeLessThanOrEqual(
      4000
    );
  });
});

const chunk = (offset: number, text: string, size = offset + text.length) => ({
  rank: 0,
  attempt: 1,
  offset,
  next_offset: offset + text.length,
  size,
  text,
  complete: false
});

describe('LogBuffer', () => {
  it('appends, ignores doubles, and drops a cut first line', () => {
    const log = new LogBuffer();
    log.append(chunk(10, 'tail\nline\nhal'));
    expect(log.lines).toEqual(['line', 'hal']);
    expect(log.append(chunk(10, 'tail\nline\nhal'))).toBe(false);
    log.append(chunk(23, 'f\n'));
    expect(log.lines).toEqual(['line', 'half']);
    expect(log.prepend(chunk(0, '0123456789'))).toBe(true);
    expect(log.start).toBe(0);
    expect(log.lines[0]).toBe('0123456789tail');
  });

  it('starts anew when the file got shorter', () => {
    const log = new LogBuffer();
    log.append(chunk(0, 'old\n'));
    expect(log.append(chunk(4, '', 2))).toBe(true);
    log.append(chunk(0, 'n\n'));
    expect(log.lines).toEqual(['n']);
  });

  it('stays bounded, in characters and in lines, and numbers lines for good', () => {
    const log = new LogBuffer();
    log.append(chunk(0, 'first\n'));
    for (let i = 0; i < 8; i++) {
      log.append(chunk(log.next, `${`${'x'.repeat(999)}\n`.repeat(MAX_CHARS / 4000)}mark ${i}\n`));
    }
    expect(log.lines.join('\n').length).toBeLessThanOrEqual(MAX_CHARS);
    expect(log.start).toBeGreaterThan(0);
    const line = log.first + log.lines.indexOf('mark 6');
    log.append(chunk(log.next, `${'y'.repeat(MAX_CHARS / 4)}\n`));
    expect(log.lines[line - log.first]).toBe('mark 6');

    const short = new LogBuffer();
    for (let i = 0; i < 40; i++) {
      short.append(chunk(Math.max(0, short.next), '\n'.repeat(1000)));
    }
    expect(short.lines.length).toBeLessThanOrEqual(MAX_LINES);
  });

  it('does not grow with a progress bar', () => {
    const log = new LogBuffer();
    log.append(chunk(0, 'start\n'));
    for (let i = 0; i < 100; i++) {
      const bar = Array.from({ length: 500 }, (_, j) => `\r${i * 500 + j} it`).join('');
      log.append(chunk(log.next, bar));
    }
    expect(log.lines[log.lines.length - 1]).toBe('49999 it');
    expect(log.lines.length).toBeLessThanOrEqual(2);
  });

  it('says what is not kept, ahead and behind', () => {
    const log = new LogBuffer(0);
    log.append(chunk(0, 'begin\nhalf', 200));
    log.append({ ...chunk(100, 'after\n', 200), skipped: 90, hole: [10, 100] });
    expect(log.lines).toEqual(['begin', 'half', 'after']);
    expect(log.skips).toEqual([{ line: 2, bytes: 90 }]);
    const tail = new LogBuffer();
    tail.append({ ...chunk(100, 'after\n', 106), hole: [10, 100] });
    expect([tail.lines, tail.skips]).toEqual([['after'], [{ line: 0, bytes: 90 }]]);
    expect(tail.earlierEnd).toBe(10);
    tail.prepend({ ...chunk(0, 'begin\nhalf', 106), hole: [10, 100] });
    expect(tail.lines).toEqual(['begin', 'half', 'after']);
    expect(tail.skips).toEqual([{ line: 2, bytes: 90 }]);
  });
});

describe('JobLog', () => {
  let api: FakeApi;
  let log: JobLog;
  const changed = vi.fn();
  const follow = () => log.follow(call => call());

  beforeEach(() => {
    api = new FakeApi();
    changed.mockReset();
    log = new JobLog(api, 'a', changed);
    log.latest = 1;
  });

  afterEach(() => {
    log.reset();
  });

  it('opens a large log at its end, reading little', async () => {
    const size = 2 ** 30;
    const read: number[] = [];
    vi.spyOn(api, 'log').mockImplementation(async (_name, rank, { offset }) => {
      const text = offset === size ? '' : `cut\n${'line\n'.repeat(10)}`;
      read.push(offset);
      return {
        rank,
        attempt: 1,
        offset: size - text.length,
        next_offset: size,
        size,
        text,
        complete: false
      };
    });
    await follow();
    expect(read).toEqual([-16_384]);
    expect(log.lines.length).toBe(10);
    expect(log.earlier).toBe(size - 54);
  });

  it('goes back while the end goes on, within bounds', async () => {
    api.logs[0] = Array.from({ length: 200_000 }, (_, i) => `line ${i}\n`).join('');
    await follow();
    for (let i = 0; i < 12; i++) {
      await log.loadEarlier();
    }
    expect(log.browsing).toBe(true);
    expect(log.lines.join('\n').length).toBeLessThanOrEqual(MAX_CHARS);
    expect(log.lines.length).toBeLessThanOrEqual(MAX_AROUND);
    expect(log.later).toBeGreaterThan(0);
    api.logs[0] += 'newest\n';
    await follow();
    expect(log.lines).not.toContain('newest');
    log.toEnd();
    expect(log.lines[log.lines.length - 1]).toBe('newest');
  });

  it('finds, and goes to what was found', async () => {
    const lines = Array.from(
      { length: 50_000 },
      (_, i) => `line ${i}${i % 10_000 ? '' : ' needle'}`
    );
    api.logs[0] = lines.join('\n') + '\n';
    await follow();
    await log.find('needle');
    expect(log.search).toMatchObject({ index: 0, busy: false, next: null });
    expect(log.search!.matches.length).toBe(5);
    const marked = () => log.lines[log.marked! - log.buffer.first];
    expect(marked()).toBe('line 0 needle');
    await log.step(1);
    expect(marked()).toBe('line 10000 needle');
    expect(log.later).toBeGreaterThan(0);
    await log.step(-1);
    await log.step(-1);
    expect(marked()).toBe('line 40000 needle');
    await log.find('');
    expect(log.search).toBe(null);
  });

  it('asks on until there is a match, and says when there is none', async () => {
    const answers = [
      { matches: [], next_offset: 10, next_line: 2, size: 20, complete: false },
      { matches: [], next_offset: 20, next_line: 3, size: 20, complete: true }
    ];
    const search = vi.spyOn(api, 'searchLog').mockImplementation(async () => answers.shift()!);
    await log.find('x');
    expect(search.mock.calls.map(([, , query]) => [query.offset, query.line])).toEqual([
      [0, 1],
      [10, 2]
    ]);
    expect(log.search).toMatchObject({ index: -1, busy: false, next: null });
    search.mockRejectedValue(new Error('bad expression'));
    await log.find('y');
    expect(log.search).toMatchObject({ error: 'bad expression', busy: false });
  });

  it('shows the log of another attempt, and the newest one of itself', async () => {
    api.logs[0] = 'text\n';
    await follow();
    log.latest = 2;
    expect(log.isRead).toBe(false);
    await follow();
    expect(log.select(0, 1)).toBe(true);
    await follow();
    log.latest = 3;
    expect(log.isRead).toBe(true);
    const asked = api.queries.filter(one => one.name === 'log').map(one => one.query);
    expect(asked.map(query => (query as { attempt: number }).attempt)).toEqual([1, 2, 1]);
  });
});
