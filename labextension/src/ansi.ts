/** Terminal text for the browser: progress bars folded, colours as class names, everything else dropped. */

/** A piece of a line; `classes` are ours, never from the text. */
export interface ISpan {
  text: string;
  classes: string;
}

// CSI and OSC sequences, then single-character escapes.
// eslint-disable-next-line no-control-regex
const ESCAPE = /\x1b(?:\[([0-9;:?]*)[ -/]*([@-~])|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])/g;
// eslint-disable-next-line no-control-regex
const CONTROL = /[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f]/g;

const COLORS = ['black', 'red', 'green', 'yellow', 'blue', 'magenta', 'cyan', 'white'];

/** What a terminal would show of one line: text after a carriage return overwrites what was there. */
export function foldLine(line: string): string {
  if (!line.includes('\r')) {
    return line;
  }
  const parts = line.split('\r').filter(part => part !== '');
  // Progress bars rewrite the whole line; keeping the last part is what the eye would see.
  return parts.length ? parts[parts.length - 1] : '';
}

/** Lines of a log. A last line without its end is included. */
export function splitLines(text: string): string[] {
  const lines = text.replace(/\r+\n/g, '\n').split('\n');
  if (lines[lines.length - 1] === '') {
    lines.pop();
  }
  return lines.map(foldLine);
}

export function stripAnsi(text: string): string {
  return text.replace(ESCAPE, '').replace(CONTROL, '');
}

/** One line in coloured pieces. Colours do not carry over from line to line: the start may be cut off. */
export function parseAnsi(line: string): ISpan[] {
  const spans: ISpan[] = [];
  let bold = false;
  let color = '';
  let from = 0;
  const push = (text: string) => {
    const plain = text.replace(CONTROL, '');
    if (plain) {
      const classes = [bold ? 'jp-Mlops-ansiBold' : '', color && `jp-Mlops-ansi-${color}`];
      spans.push({ text: plain, classes: classes.filter(Boolean).join(' ') });
    }
  };
  for (const match of line.matchAll(ESCAPE)) {
    push(line.slice(from, match.index));
    from = match.index + match[0].length;
    if (match[2] !== 'm') {
      continue;
    }
    const codes = match[1].split(/[;:]/).map(Number);
    for (let i = 0; i < codes.length; i++) {
      const code = codes[i];
      if (code === 0) {
        bold = false;
        color = '';
      } else if (code === 1) {
        bold = true;
      } else if (code === 22) {
        bold = false;
      } else if (code === 39) {
        color = '';
      } else if (code >= 30 && code <= 37) {
        color = COLORS[code - 30];
      } else if (code >= 90 && code <= 97) {
        color = COLORS[code - 90];
      } else if (code === 38 || code === 48) {
        // 256 colours and RGB are not mapped: skip their arguments.
        i += codes[i + 1] === 5 ? 2 : 4;
      }
    }
  }
  push(line.slice(from));
  return spans;
}
