"""The gateway's side of one scorer instance: a connection on which batches of requests travel."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any, Protocol

from ..runtime import frames

#: Seconds until a scorer that took the connection must have said HELLO.
CONNECT_TIMEOUT = 5.0
#: Bytes of a batch up to which it is written as one piece.
JOIN_BELOW = 4 << 20


class Item(Protocol):
    """One request in a batch."""

    score: bytes

    def answered(self, kind: int, body: bytes) -> None:
        """Told the answer of the scorer: RESULT or ERROR."""


class Link(asyncio.Protocol):
    """A connection to one scorer. Made once; when it is lost another link takes its place.

    Args:
        index: number of the instance.
        freed: called with the link whenever a batch has been answered in full, and when the scorer has said HELLO.
        lost: called once with the link and the requests that were not answered, when the connection has ended.
    """

    def __init__(self, index: int, freed: Callable[[Link], None],
                 lost: Callable[[Link, list[Any]], None]) -> None:
        self.index = index
        self.ready = False
        self.going = False
        self.batch_safe = False
        #: batch id → place in the batch → request that waits
        self.batches: dict[int, dict[int, Item]] = {}
        self.in_flight = 0
        #: A request that may have killed another instance is on its way alone.
        self.alone = False
        self.busy_since = 0.0
        self.busy = 0.0
        self._freed = freed
        self._lost = lost
        self._last = 0
        self._reader = frames.Reader()
        self._transport: asyncio.Transport | None = None
        self._pings: dict[int, asyncio.Future[bool]] = {}

    # -- asyncio's side ------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        transport.set_write_buffer_limits(high=1 << 26)  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        try:
            for kind, ident, body in self._reader.feed(data):
                if kind == frames.ANSWERS:
                    self._take(ident, frames.unpack_answers(body))
                elif kind == frames.PONG:
                    future = self._pings.pop(ident, None)
                    if future is not None and not future.done():
                        future.set_result(True)
                elif kind == frames.HELLO:
                    hello: dict[str, Any] = json.loads(body)
                    self.batch_safe = bool(hello.get("batch_safe"))
                    self.ready = True
                    self._freed(self)
                elif kind == frames.GOING:
                    self.leave()
        except (frames.FrameError, ValueError):
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.ready = False
        self._idle()
        left = [item for batch in self.batches.values() for item in batch.values()]
        self.batches.clear()
        self.in_flight = 0
        for future in self._pings.values():
            if not future.done():
                future.set_result(False)
        self._pings.clear()
        self._lost(self, left)

    # -- the dispatcher's side -------------------------------------------------------

    def send(self, items: list[Any]) -> None:
        """Give the scorer a batch."""
        assert self._transport is not None
        self._last = ident = self._last % 0xFFFFFFFF + 1
        if not self.batches:
            self.busy_since = time.monotonic()
        self.batches[ident] = dict(enumerate(items))
        self.in_flight += len(items)
        parts = frames.pack_batch(ident, [item.score for item in items])
        # One call into the kernel where copying is cheaper than several of them.
        if sum(map(len, parts)) < JOIN_BELOW:
            self._transport.write(b"".join(parts))
        else:
            self._transport.writelines(parts)

    def _take(self, ident: int, answers: list[tuple[int, int, bytes]]) -> None:
        batch = self.batches.get(ident)
        if batch is None:
            return  # given up meanwhile
        for place, kind, body in answers:
            item = batch.pop(place, None)
            if item is not None:
                self.in_flight -= 1
                item.answered(kind, body)
        if not batch:
            del self.batches[ident]
            self.alone = False
            self._idle()
            self._hang_up()
            self._freed(self)

    def give_up(self, ident: int) -> None:
        """Forget a batch that takes too long; the scorer skips it where it has not begun with it."""
        batch = self.batches.pop(ident, {})
        self.in_flight -= len(batch)
        self.alone = False
        self._idle()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames.pack(frames.CANCEL, ident))
        self._hang_up()

    def leave(self) -> None:
        """Send nothing more, and hang up when all is answered."""
        self.going = True
        self._hang_up()

    def _hang_up(self) -> None:
        if self.going and not self.batches:
            self.close()

    def _idle(self) -> None:
        if not self.batches and self.busy_since:
            self.busy += time.monotonic() - self.busy_since
            self.busy_since = 0.0

    def busy_seconds(self) -> float:
        """Seconds so far in which it had something to do."""
        return self.busy + (time.monotonic() - self.busy_since if self.busy_since else 0.0)

    async def ping(self, timeout: float = 2.0) -> bool:
        """Whether the scorer answers."""
        if not self.ready or self._transport is None:
            return False
        self._last = ident = self._last % 0xFFFFFFFF + 1
        future = self._pings[ident] = asyncio.get_running_loop().create_future()
        self._transport.write(frames.pack(frames.PING, ident))
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            return False
        finally:
            self._pings.pop(ident, None)

    def close(self) -> None:
        """End the connection; what is under way is lost as if the scorer had gone."""
        if self._transport is not None:
            self._transport.close()
