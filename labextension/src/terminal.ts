/**
 * The lines that a terminal would show of a stream of text: carriage returns and cursor movements overwrite what is
 * there, so that progress bars, one or several, are seen in their last state.
 *
 * Only what programs do that print to a log is understood: movement within the last lines, erasing, colours. Lines
 * that nothing can reach any more are kept as text. Memory is bounded by the number and the length of lines.
 */

/** Lines that the cursor can go back to, as on a screen. */
const SCREEN = 100;
/** Characters of one line; what is longer is broken. */
const MAX_LINE = 4000;

// One control sequence (CSI, OSC, or a short one) at the start of a text.
const SEQUENCE =
  // eslint-disable-next-line no-control-regex
  /^\x1b(?:\[([0-9;:?]*)[ -/]*([@-~])|\][^\x07\x1b\n]*(?:\x07|\x1b\\)|[ -/]*[0-Z\\^-~])/;
// Text up to the next character that means something.
// eslint-disable-next-line no-control-regex
const PLAIN = /[^\x00-\x1f\x7f]+/y;

/** A line that can still change: characters, and before each the style it is written in. */
interface ICells {
  text: string[];
  style: string[];
}

function toText(line: ICells): string {
  let end = line.text.length;
  while (end > 0 && line.text[end - 1] === ' ' && !line.style[end - 1]) {
    end--;
  }
  let out = '';
  let style = '';
  for (let i = 0; i < end; i++) {
    const wanted = line.style[i] ?? '';
    if (wanted !== style) {
      out += (style ? '\x1b[0m' : '') + wanted;
      style = wanted;
    }
    out += line.text[i] ?? ' ';
  }
  return style ? `${out}\x1b[0m` : out;
}

export class Terminal {
  /** The number of the first line that is held; lines have numbers that stay when earlier ones are dropped. */
  first = 0;

  /** The number of the line that the cursor is in. */
  get line(): number {
    return this.first + this._row;
  }

  /** The number of lines that are held. A last line without any text is not counted. */
  get length(): number {
    const { length } = this._lines;
    return length && this._isEmpty(length - 1) ? length - 1 : length;
  }

  /** Line `index`, counted from the first one held; colours stay as sequences in it. */
  at(index: number): string {
    const line = this._lines[index];
    return typeof line === 'string' ? line : (this._texts.get(line) ?? this._keep(line));
  }

  write(text: string): void {
    const given = this._rest + text;
    this._rest = '';
    let i = 0;
    while (i < given.length) {
      const code = given.charCodeAt(i);
      if (code >= 32 && code !== 127) {
        PLAIN.lastIndex = i;
        const plain = PLAIN.exec(given)![0];
        this._put(plain);
        i += plain.length;
        continue;
      }
      if (code === 27) {
        const match = SEQUENCE.exec(given.slice(i, i + 256));
        if (match) {
          i += match[0].length;
          if (match[2]) {
            this._control(match[2], match[1]);
          }
          continue;
        }
        if (given.length - i < 64 && !given.includes('\n', i)) {
          // Cut in the middle of a sequence: the next chunk has the rest.
          this._rest = given.slice(i);
          return;
        }
      } else if (code === 10) {
        this._move(this._row + 1);
        this._column = 0;
      } else if (code === 13) {
        this._column = 0;
      } else if (code === 8) {
        this._column = Math.max(0, this._column - 1);
      } else if (code === 9) {
        this._put(' '.repeat(8 - (this._column % 8)));
      }
      i++;
    }
  }

  /** Forget the lines before the one with this number. */
  dropBefore(line: number): void {
    const count = Math.min(line - this.first, this._row, this._lines.length);
    if (count > 0) {
      this._lines.splice(0, count);
      this._row -= count;
      this.first += count;
    }
  }

  private _isEmpty(index: number): boolean {
    const line = this._lines[index];
    return typeof line === 'string' ? !line : !line.text.length;
  }

  private _keep(line: ICells): string {
    const text = toText(line);
    this._texts.set(line, text);
    return text;
  }

  /** The cells of the line that the cursor is in. */
  private _cells(): ICells {
    const line = this._lines[this._row];
    if (typeof line !== 'string') {
      this._texts.delete(line);
      return line;
    }
    // A line of plain text that is written to again.
    const cells: ICells = { text: [...line], style: new Array<string>(line.length).fill('') };
    if (this._column === line.length) {
      this._column = cells.text.length;
    }
    this._lines[this._row] = cells;
    return cells;
  }

  private _put(text: string): void {
    const line = this._lines[this._row];
    if (!this._style && text.length <= MAX_LINE && line === '' && this._column === 0) {
      // Nearly all lines: plain text into an empty one.
      this._lines[this._row] = text;
      this._column = text.length;
      return;
    }
    if (typeof line === 'string' && !this._style && this._column === line.length) {
      if (line.length + text.length <= MAX_LINE) {
        this._lines[this._row] = line + text;
        this._column += text.length;
        return;
      }
    }
    let cells = this._cells();
    for (const character of text) {
      if (this._column >= MAX_LINE) {
        this._move(this._row + 1);
        this._column = 0;
        cells = this._cells();
      }
      while (cells.text.length < this._column) {
        cells.text.push(' ');
        cells.style.push('');
      }
      cells.text[this._column] = character;
      cells.style[this._column] = this._style;
      this._column++;
    }
  }

  private _move(row: number): void {
    const low = Math.max(0, this._lines.length - SCREEN);
    this._row = Math.max(low, row);
    while (this._lines.length <= this._row) {
      this._lines.push('');
      const out = this._lines.length - SCREEN - 1;
      const line = this._lines[out];
      if (out >= 0 && typeof line !== 'string') {
        // Out of reach: text takes less room than cells.
        this._lines[out] = this.at(out);
      }
    }
  }

  private _control(letter: string, given: string): void {
    const numbers = given.split(/[;:]/).map(text => Number(text) || 0);
    const count = Math.min(10_000, Math.max(1, numbers[0]));
    switch (letter) {
      case 'A':
      case 'F':
        this._move(this._row - count);
        this._column = letter === 'F' ? 0 : this._column;
        break;
      case 'B':
      case 'E':
        this._move(this._row + Math.min(count, SCREEN));
        this._column = letter === 'E' ? 0 : this._column;
        break;
      case 'C':
        this._column = Math.min(MAX_LINE, this._column + count);
        break;
      case 'D':
        this._column = Math.max(0, this._column - count);
        break;
      case 'G':
        this._column = Math.min(MAX_LINE, count - 1);
        break;
      case 'K':
        this._eraseLine(numbers[0]);
        break;
      case 'J':
        if (numbers[0] === 0) {
          this._eraseLine(0);
          for (let i = this._row + 1; i < this._lines.length; i++) {
            this._lines[i] = '';
          }
        }
        break;
      case 'm':
        this._style = given === '' || /^0*$/.test(given) ? '' : this._restyle(given);
        break;
    }
  }

  /** A reset within a sequence forgets what was before it; without one, styles add up, within reason. */
  private _restyle(given: string): string {
    const style = `\x1b[${given}m`;
    return given.startsWith('0;') || this._style.length > 60 ? style : this._style + style;
  }

  private _eraseLine(mode: number): void {
    const cells = this._cells();
    if (mode === 0) {
      cells.text.length = Math.min(cells.text.length, this._column);
      cells.style.length = cells.text.length;
    } else if (mode === 2) {
      cells.text = [];
      cells.style = [];
    } else {
      for (let i = 0; i <= Math.min(this._column, cells.text.length - 1); i++) {
        cells.text[i] = ' ';
        cells.style[i] = '';
      }
    }
  }

  private readonly _lines: (string | ICells)[] = [''];
  private readonly _texts = new WeakMap<ICells, string>();
  private _row = 0;
  private _column = 0;
  private _style = '';
  private _rest = '';
}
