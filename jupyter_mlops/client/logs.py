"""Whole logs and their ends, from pieces by byte offset."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

#: Reads a piece of a log from an offset, as the REST API answers it.
Chunk = Callable[[int], Coroutine[Any, Any, dict[str, Any]]]


async def text_of(read: Chunk, tail: int | None) -> str:
    """A whole log, or its last lines."""
    if tail is not None:
        return (await tail_of(read, tail))[0]
    parts = []
    offset = 0
    while True:
        answer = await read(offset)
        parts.append(answer["text"])
        if answer["next_offset"] >= answer["size"] or answer["next_offset"] == offset:
            return "".join(parts)
        offset = answer["next_offset"]


async def tail_of(read: Chunk, tail: int) -> tuple[str, int]:
    """The last ``tail`` lines and the offset behind them."""
    answer = await read(-max(4096, min(tail * 200, 200_000)))
    end = answer["next_offset"]
    lines = answer["text"].splitlines(keepends=True)
    if answer["offset"] > 0 and lines:
        lines = lines[1:]  # it begins in the middle of a line
    return "".join(lines[-tail:]) if tail > 0 else "", end
