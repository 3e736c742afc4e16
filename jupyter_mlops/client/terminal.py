"""What a terminal would show of a log in the end: progress bars as their last state, cursor movements carried out.

Text is data here, never trusted: what is left of it holds no control but, when they are wanted, colours.
"""

from __future__ import annotations

import re
import time

#: How many rows a cursor may go back; older ones are settled.
_REACH = 200
#: Most columns that a row is moved or erased in; text itself may be longer.
_COLUMNS = 10_000
#: Most columns of a row; what goes on without a line end goes on in the next one, else each piece would cost more.
_WIDEST = 1 << 18
#: Seconds between two showings of rows that are rewritten again and again.
_AGAIN = 2.0

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_TOKEN = re.compile(
    r"(?P<text>[^\x00-\x1f\x7f-\x9f]+)|(?P<move>[\r\b\t])"
    r"|\x1b\[(?P<numbers>[0-9;:?<=>]*)[ -/]*(?P<command>[@-~])"
    r"|\x1b\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|\x1b[@-Z\\^_=><78]|[\x00-\x1f\x7f-\x9f]"
)
#: A sequence that is cut at the end of a piece.
_CUT = re.compile(r"\x1b(?:\[[0-9;:?<=> -/]{0,64}|\][^\x07\x1b\n]{0,512})?$")


class _Row:
    """One row of cells; ``styles`` is None as long as no cell has one."""

    __slots__ = ("chars", "styles")

    def __init__(self, text: str = "") -> None:
        self.chars = list(text)
        self.styles: list[str] | None = None

    def put(self, column: int, text: str, style: str) -> None:
        count, end = len(self.chars), column + len(text)
        if column > count:
            self.chars.extend(" " * (column - count))
        if style and self.styles is None:
            self.styles = [""] * len(self.chars)
        self.chars[column:end] = text
        if self.styles is not None:
            self.styles.extend([""] * (len(self.chars) - len(self.styles)))
            self.styles[column:end] = [style] * len(text)
            del self.styles[len(self.chars):]

    def erase(self, begin: int, end: int | None) -> None:
        if end is None:
            del self.chars[begin:]
            if self.styles is not None:
                del self.styles[begin:]
        else:
            self.put(0, " " * min(end, len(self.chars)), "")

    def text(self) -> str:
        if self.styles is None:
            return "".join(self.chars)
        parts, now = [], ""
        for char, style in zip(self.chars, self.styles, strict=True):
            if style != now:
                parts.append(("\x1b[0m" if now else "") + style)
                now = style
            parts.append(char)
        return "".join(parts) + ("\x1b[0m" if now else "")


class Screen:
    """Rows as they look now; feed it pieces of any size.

    Args:
        colours: keep colours, as escape sequences that begin and end within a row.
    """

    def __init__(self, colours: bool = False) -> None:
        self._colours = colours
        self._rows: list[str | _Row] = [""]
        #: Rows given up already, see :meth:`drop`.
        self.dropped = 0
        self._row = self._column = 0
        self._style = ""
        self._rest = ""
        #: Rows that were written to in any way since :meth:`drop` or :meth:`changed` looked, by absolute number.
        self.touched: set[int] = set()

    @property
    def row(self) -> int:
        """The row that the cursor is in, counted from the first one ever."""
        return self.dropped + self._row

    @property
    def count(self) -> int:
        """Rows so far, with those that were dropped."""
        return self.dropped + len(self._rows)

    def line(self, number: int) -> str:
        """A row by its absolute number."""
        row = self._rows[number - self.dropped]
        return row if isinstance(row, str) else row.text()

    def lines(self) -> list[str]:
        """All rows that are kept, without those that are empty behind the cursor or where it waits."""
        rows = [self.line(self.dropped + i) for i in range(len(self._rows))]
        while len(rows) > self._row and rows[-1] == "":
            rows.pop()
        return rows

    def drop(self) -> None:
        """Forget rows that no cursor can reach any more."""
        extra = len(self._rows) - _REACH
        if extra > 0:
            del self._rows[:extra]
            self.dropped += extra
            self._row = max(0, self._row - extra)
            self.touched = {number for number in self.touched if number >= self.dropped}

    def feed(self, text: str) -> None:
        """Write a piece."""
        text = self._rest + text
        cut = _CUT.search(text, max(0, len(text) - 600))
        self._rest = text[cut.start():] if cut else ""
        text = text[: cut.start()] if cut else text
        begin = 0
        while begin < len(text):
            end = text.find("\n", begin)
            stop = len(text) if end < 0 else end
            line = text[begin:stop] if end < 0 else text[begin:stop].rstrip("\r")
            if line:
                self._write(line)
            if end < 0:
                return
            self._newline()
            begin = end + 1

    def _newline(self) -> None:
        self._row += 1
        self._column = 0
        if self._row == len(self._rows):
            self._rows.append("")

    def _write(self, line: str) -> None:
        self.touched.add(self.row)
        row = self._rows[self._row]
        plain = not _CONTROL.search(line) and "\t" not in line and len(line) <= _WIDEST
        if plain and not self._style and self._column == 0 and row == "":
            self._rows[self._row] = line
            self._column = len(line)
            return
        if "\x1b" not in line:
            # Only the last state of a progress bar that rewrites its line matters, where no longer one shows behind it.
            states = line.rstrip("\r").split("\r")
            if len(states) > 2 and "\t" not in line and "\b" not in line:
                longest = max(len(state) for state in states[:-1])
                if len(states[-1]) >= longest:
                    line = "\r" + states[-1] + ("\r" if line.endswith("\r") else "")
        for token in _TOKEN.finditer(line):
            kind = token.lastgroup
            if kind == "text":
                self._put(token.group())
            elif kind == "move":
                self._move(token.group())
            elif kind == "command":
                self._command(token.group("command"), token.group("numbers"), token.group())

    def _current(self) -> _Row:
        row = self._rows[self._row]
        if isinstance(row, str):
            row = self._rows[self._row] = _Row(row)
        self.touched.add(self.row)
        return row

    def _put(self, text: str) -> None:
        while text:
            if self._column >= _WIDEST:
                self._newline()
            room = _WIDEST - self._column
            self._current().put(self._column, text[:room], self._style)
            self._column += len(text[:room])
            text = text[room:]

    def _move(self, char: str) -> None:
        if char == "\r":
            self._column = 0
        elif char == "\b":
            self._column = max(0, self._column - 1)
        else:
            self._put(" " * (8 - self._column % 8))

    def _command(self, command: str, numbers: str, sequence: str) -> None:
        if command == "m":
            if self._colours and re.fullmatch(r"[0-9;:]*", numbers):
                plain = numbers.split(";")
                self._style = "" if plain[-1] in ("", "0") else (self._style + sequence)[-80:]
                if plain[0] in ("", "0") and self._style:
                    self._style = sequence
                if len(self._style) >= 80:
                    self._style = sequence[:80] if len(sequence) < 80 else ""
            return
        first = re.match(r"[0-9]{1,5}", numbers)
        number = int(first.group()) if first else 0
        many = min(max(number, 1), _COLUMNS)
        if command in "AF":
            self._row = max(self._row - many, len(self._rows) - _REACH, 0)
        elif command in "BE":
            self._row = min(self._row + many, len(self._rows) - 1)
        elif command == "C":
            self._column = min(self._column + many, _COLUMNS)
        elif command == "D":
            self._column = max(self._column - many, 0)
        elif command in "G`":
            self._column = many - 1
        elif command == "K":
            begin, end = {0: (self._column, None), 1: (0, self._column + 1)}.get(number, (0, None))
            self._current().erase(begin, end)
        elif command == "J" and number == 0:
            self._current().erase(self._column, None)
            for below in range(self._row + 1, len(self._rows)):
                self._rows[below] = ""
                self.touched.add(self.dropped + below)
        if command in "EF":
            self._column = 0


def rendered(text: str, colours: bool = False) -> str:
    """A log as a terminal would leave it, each row with its line end but an unfinished last one."""
    screen = Screen(colours)
    screen.feed(text)
    lines = screen.lines()
    if not lines:
        return ""
    return "\n".join(lines) + ("\n" if text.endswith("\n") else "")


class Follower:
    """Turns a log that comes in pieces into text for an output that only appends.

    A row is told once it is finished. The row that is being written is told again, behind a carriage return, when
    ``partial``; rows that are rewritten later (several progress bars) are told anew now and then.

    Args:
        colours: as for :class:`Screen`.
        partial: whether the output knows what a carriage return is.
    """

    def __init__(self, colours: bool = False, partial: bool = True) -> None:
        self._screen = Screen(colours)
        self._partial = partial
        self._told = 0  # rows below this number have been told
        self._shown = ""  # of the row that is being written, as it was told last
        self._again = time.monotonic()

    def feed(self, text: str) -> str:
        """What to append for a piece."""
        self._screen.feed(text)
        return self._tell(time.monotonic() - self._again >= _AGAIN)

    def close(self) -> str:
        """What is left at the end."""
        said = self._tell(True)
        screen = self._screen
        if not self._partial and screen.count > self._told and screen.line(screen.count - 1):
            said += screen.line(screen.count - 1)
        return said

    def _tell(self, again: bool) -> str:
        screen, said = self._screen, []
        changed = sorted(number for number in screen.touched if screen.dropped <= number < self._told)
        if changed and again:
            said += [self._over(), *(screen.line(number) + "\n" for number in changed)]
            self._again = time.monotonic()
            screen.touched.difference_update(changed)
        last = screen.count - 1
        for number in range(max(self._told, screen.dropped), last):
            said.append(self._over(screen.line(number)) + "\n")
            screen.touched.discard(number)
        self._told = max(self._told, last)
        now = screen.line(last)
        if self._partial and now != self._shown:
            said.append(self._over(now))
            self._shown = now
        screen.touched.discard(last)
        screen.drop()
        return "".join(said)

    def _over(self, text: str = "") -> str:
        """``text`` in place of the unfinished row that was told last."""
        shown, self._shown = self._shown, ""
        if not shown:
            return text
        if text.startswith(shown):
            return text[len(shown):]
        return "\r" + " " * len(_CODES.sub("", shown)) + "\r" + text


_CODES = re.compile(r"\x1b\[[0-9;:]*m")
