"""Whole logs, their ends, what is found in them, and how they go on: from pieces by byte offset, in bounded memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from ..core.errors import BackendTimeout, Unavailable
from . import render
from .record import Record, Table

Answer = dict[str, Any]
#: Reads a piece of a log from an offset, as the REST API answers it.
Chunk = Callable[[int], Coroutine[Any, Any, Answer]]
#: The same of an attempt; None: the newest.
Piece = Callable[[int, int | None], Coroutine[Any, Any, Answer]]
#: Searches from an offset, with the number of the line there.
Search = Callable[[int, int | None, int], Coroutine[Any, Any, Answer]]

#: Most bytes of a log that are returned as one text: its end.
MAX_TEXT = 16 * 1024 * 1024
#: Bytes that are read first, and at most, to find the last lines.
_FIRST, _MOST = 32 * 1024, 4 * 1024 * 1024
#: Seconds for which nobody may answer while a log is followed.
PATIENCE = 600.0


def pinned(read: Piece, attempt: int | None) -> Chunk:
    """Reads of one attempt: the one named, else the one that is the newest at the first read."""
    known = [attempt]

    async def piece(offset: int) -> Answer:
        answer = await read(offset, known[0])
        known[0] = answer.get("attempt") or known[0]
        return answer

    return piece


def gap(answer: Answer) -> str:
    """A line on what is not kept before a piece, or nothing."""
    skipped = answer.get("skipped") or 0
    return f"… {render.size(skipped)} not kept …\n" if skipped else ""


async def text_of(read: Chunk, tail: int | None) -> str:
    """A log, or its last lines; of a log longer than :data:`MAX_TEXT` the end, and a line that says so."""
    if tail is not None:
        return (await tail_of(read, tail))[0]
    answer = await read(-MAX_TEXT)
    size, hole = answer["size"], answer.get("hole")
    parts = []
    if hole and size - (hole[1] - hole[0]) <= MAX_TEXT:
        answer = await read(0)
    if answer["offset"] > 0:
        parts = [f"… {render.size(answer['offset'])} before this are left out: follow() reads all of it …\n"]
        answer["text"] = answer["text"].partition("\n")[2] or answer["text"]
    while True:
        parts += [gap(answer), answer["text"]]
        following = answer["next_offset"]
        if following >= size or following == answer["offset"]:  # what comes later is for the next one who asks
            return "".join(parts)
        answer = await read(following)


async def tail_of(read: Chunk, tail: int) -> tuple[str, int]:
    """The last ``tail`` lines and the offset behind them; no more than some megabytes."""
    text, answer = await last_of(read, tail)
    return text, answer["next_offset"]


async def last_of(read: Chunk, tail: int) -> tuple[str, Answer]:
    """The last ``tail`` lines, and the answer that ends where they do."""
    window = min(max(_FIRST, tail * 200), _MOST)
    while True:
        answer = await read(-window)
        parts = [answer["text"]]
        begin, end = answer["offset"], answer["size"]
        while answer["next_offset"] < end and answer["next_offset"] > answer["offset"]:
            answer = await read(answer["next_offset"])
            parts += [gap(answer), answer["text"]]
        lines = "".join(parts).split("\n")
        last = lines.pop()
        if begin > 0 and lines:
            lines = lines[1:]  # it begins in the middle of a line
        if len(lines) + bool(last) >= tail or begin == 0 or window >= _MOST:
            break
        window = min(window * 8, _MOST)
    kept = [f"{line}\n" for line in lines] + ([last] if last else [])
    return "".join(kept[-tail:]) if tail > 0 else "", answer


async def follow(read: Piece, offset: int = 0, attempt: int | None = None) -> AsyncIterator[str]:
    """Text of a log as it comes, until nothing can follow; nothing is repeated or lost over reconnects.

    When an attempt has ended and the job was tried again, a line ``— attempt 2 —`` and the next attempt's log follow.

    Raises:
        Unavailable, BackendTimeout: nobody has answered for :data:`PATIENCE` seconds.
    """
    pause, lost, whole = 0.2, None, True
    while True:
        try:
            answer = await read(offset, attempt)
        except (Unavailable, BackendTimeout):
            lost = lost or time.monotonic()
            if time.monotonic() - lost > PATIENCE:
                raise
            await asyncio.sleep(1.0)
            continue
        lost = None
        attempt = attempt or answer.get("attempt")
        moved = answer["next_offset"] != offset
        offset = answer["next_offset"]
        missing = gap(answer)
        if missing:
            yield missing if whole else "\n" + missing
        if answer["text"]:
            whole = answer["text"].endswith("\n")
            yield answer["text"]
        if answer.get("complete"):
            if attempt is None or (answer.get("last_attempt") or 0) <= attempt:
                return
            attempt, offset = attempt + 1, 0
            yield f"{'' if whole else chr(10)}— attempt {attempt} —\n"
            whole = True
            continue
        pause = 0.2 if moved else min(pause * 1.5, 1.0)
        if not moved or answer.get("size", offset) <= offset:
            await asyncio.sleep(pause)


async def found_in(search: Search, limit: int) -> tuple[list[Answer], bool]:
    """Up to ``limit`` lines that were found, and whether all of the log was looked at."""
    found: list[Answer] = []
    offset, line = 0, 1
    while True:
        answer = await search(offset, line, limit - len(found))
        found += answer["matches"]
        if answer["complete"] or len(found) >= limit or answer["next_offset"] <= offset:
            return found, bool(answer["complete"])
        offset, line = answer["next_offset"], answer["next_line"]


class LogMatch(Record):
    """A line of a log that was found."""

    @property
    def line(self) -> int | None:
        """Its number, from 1; None behind a part of the log that is not kept."""
        return self._data["line"]

    @property
    def offset(self) -> int:
        """Where it begins in the log, in bytes."""
        return self._data["offset"]

    @property
    def content(self) -> str:
        """The line, or the part of a long one around what was looked for."""
        return self._data["text"]

    def _line(self) -> str:
        return f"{self.line or '?'}: {self.content}"

    def _facts(self) -> list[tuple[str, Any]]:
        return [("line", self.line), ("offset", self.offset), ("text", self.content)]


class LogMatches(Table[LogMatch]):
    """Lines of a log that were found."""

    empty = "nothing found"

    def _columns(self) -> list[str]:
        return ["line", "offset", "text"]

    def _row(self, item: LogMatch, html: bool) -> list[Any]:
        return [item.line, item.offset, render.code(item.content, 160) if html else item.content]

    def text(self, width: int | None = None) -> str:
        """Line numbers and lines, as ``grep -n`` shows them."""
        width = max((len(str(item.line or "?")) for item in self), default=0)
        lines = [f"{str(item.line or '?').rjust(width)}: {render.clean(item.content)}" for item in self]
        return "\n".join([*lines, *([render.clean(self.note)] if self.note else [])] or [self.empty])
