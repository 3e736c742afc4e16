"""Search in logs: a stretch per call, in flat memory and bounded time, whatever is looked for."""

from __future__ import annotations

import json
import re
import select
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import ParameterError

#: Most bytes, and seconds, that one call looks at.
MAX_BYTES, MAX_SECONDS = 64 * 1024 * 1024, 0.5
#: Seconds after which an expression is given up that has not finished a piece: a loaded machine is slow too.
PATIENCE = 3.0
_PIECE = 1024 * 1024
#: Characters shown of a line.
_WIDTH = 400
_ESCAPES = re.compile(r"\x1b(?:\[[0-9;:?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")

#: Reads ``(offset, limit)`` of a log.
Read = Callable[[int, int], Any]


@dataclass
class Found:
    """What a call found, and where to go on; ``line`` numbers are None where they cannot be known."""

    matches: list[dict[str, Any]] = field(default_factory=list)
    next_offset: int = 0
    next_line: int | None = None
    size: int = 0
    complete: bool = False


class Finder(Protocol):
    """Finds lines in a piece of a log."""

    def find(self, frame: bytes, most: int) -> list[tuple[int, int, int]]:
        """Begin and end of lines that match, and where in them the match begins."""

    def close(self) -> None:
        """Nothing more will be looked for."""


class Words:
    """Plain text, upper and lower case the same unless ``case``."""

    def __init__(self, text: str, case: bool) -> None:
        self._pattern = re.compile(re.escape(text.encode()) if case else b"".join(map(_either, text)))

    def find(self, frame: bytes, most: int) -> list[tuple[int, int, int]]:
        found: list[tuple[int, int, int]] = []
        at = 0
        while len(found) < most:
            match = self._pattern.search(frame, at)
            if match is None:
                break
            begin = max(frame.rfind(b"\n", 0, match.start()), frame.rfind(b"\r", 0, match.start())) + 1
            ends = [end for end in (frame.find(b"\n", match.end()), frame.find(b"\r", match.end(), match.end() + 65536))
                    if end >= 0]
            at = min(ends) if ends else len(frame)
            found.append((begin, at, match.start() - begin))
        return found

    def close(self) -> None:
        pass


def _either(char: str) -> bytes:
    """A pattern of bytes for one character in either case."""
    forms = {char, char.lower(), char.upper(), char.casefold()}
    return b"(?:" + b"|".join(re.escape(form.encode()) for form in sorted(forms)) + b")"


class Expression:
    """A regular expression, tried in a process that is ended when it takes too long.

    Raises:
        ParameterError: it is none.
    """

    def __init__(self, pattern: str, case: bool) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(__file__).with_name("grep.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, close_fds=True,
        )
        try:
            answer = self._ask(json.dumps({"pattern": pattern, "case": case}).encode() + b"\n")
        except ParameterError:
            self.close()
            raise
        if "error" in answer:
            self.close()
            raise ParameterError(f"{pattern[:100]!r} is no regular expression: {answer['error']}",
                                 "without regex it is looked for as plain text")

    def _ask(self, data: bytes) -> Any:
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            self._child.stdin.write(data)
            self._child.stdin.flush()
        except BrokenPipeError:
            raise _too_slow() from None
        if not select.select([self._child.stdout], [], [], PATIENCE)[0]:
            raise _too_slow()
        line = self._child.stdout.readline()
        if not line:
            raise _too_slow()
        return json.loads(line)

    def find(self, frame: bytes, most: int) -> list[tuple[int, int, int]]:
        return [tuple(entry) for entry in self._ask(struct.pack("<II", len(frame), most) + frame)]

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    pass


def _too_slow() -> ParameterError:
    return ParameterError("this regular expression takes too much time or memory",
                          "make it simpler: repetitions inside repetitions, as in (a+)+, are what takes time")


def search(
    read: Read, finder: Finder, offset: int, line: int | None, limit: int, ended: bool
) -> Found:
    """Look at a log from ``offset`` on until ``limit`` lines are found, or the bounds of one call are reached.

    Args:
        line: number of the line that begins at ``offset``, from 1; None: not known.
        ended: nothing more will be written; else a last line without its end is left for the next call.
    """
    found = Found(next_offset=offset, next_line=1 if offset == 0 else line)
    until = time.monotonic() + MAX_SECONDS
    begun = offset
    rest = b""  # the start of a line whose end is not read yet; `found.next_offset` is where it begins
    while True:
        asked = found.next_offset + len(rest)
        chunk = read(asked, _PIECE)
        found.size = chunk.size
        if chunk.offset > asked and rest:  # a hole: the line before it has no end
            if not _take(found, finder, rest, limit):
                return found
            rest = b""
        if chunk.offset > asked:
            found.next_offset, found.next_line = chunk.offset, None
        data = rest + chunk.data
        last = chunk.next_offset >= chunk.size
        whole = (last and ended) or len(data) >= 2 * _PIECE
        cut = len(data) if whole else 1 + max(data.rfind(b"\n"), data.rfind(b"\r"))
        if not _take(found, finder, data[:cut], limit):
            return found
        rest = data[cut:]
        if last:
            found.complete = True
            if rest and len(found.matches) < limit:
                here, number = found.next_offset, found.next_line
                before = len(found.matches)
                _take(found, finder, rest, limit)
                if len(found.matches) == before:
                    found.next_offset, found.next_line = here, number  # once its end is written it may match
            return found
        if chunk.next_offset - begun >= MAX_BYTES or time.monotonic() > until:
            return found


def _take(found: Found, finder: Finder, frame: bytes, limit: int) -> bool:
    """Add what matches in ``frame``, which begins at ``found.next_offset``; returns False when the limit is reached."""
    at = 0
    entries = finder.find(frame, limit - len(found.matches)) if frame else []
    for begin, end, inner in entries:
        if found.next_line is not None:
            found.next_line += frame.count(b"\n", at, begin)
        found.matches.append({
            "offset": found.next_offset + begin, "line": found.next_line, "text": _shown(frame[begin:end], inner),
        })
        at = begin
    full = len(found.matches) >= limit
    stop = entries[-1][1] if full and entries else len(frame)
    if found.next_line is not None:
        found.next_line += frame.count(b"\n", at, stop)
    found.next_offset += stop
    return not full


def _shown(line: bytes, inner: int) -> str:
    """A line without control sequences, cut around the match that begins at byte ``inner``."""
    begin = max(0, inner - 600)
    piece = line[begin: inner + 1600]
    text = _ESCAPES.sub("", piece.decode("utf-8", "replace").lstrip("�"))
    text = "".join(c if c.isprintable() else " " for c in text)
    where = len(_ESCAPES.sub("", line[begin:inner].decode("utf-8", "replace")))
    start = max(0, min(where - _WIDTH // 4, len(text) - _WIDTH))
    more = start + _WIDTH < len(text) or len(line) > inner + 1600
    return ("…" if begin or start else "") + text[start: start + _WIDTH] + ("…" if more else "")
