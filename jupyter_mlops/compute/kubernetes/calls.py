"""Connections that pods make to the control plane by a route of the operator's, see :mod:`.route`: who awaits them, and
what is said over them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from ...core.errors import BackendTimeout
from ...runtime import jobfolder
from ...runtime.jobfolder import Attempt
from .manifests import CALL_KEY

if TYPE_CHECKING:
    from .route import Route

#: Seconds for which a pod's first call is awaited, and a further one after its connection broke.
FIRST, AGAIN = 3.0, 2.0
#: Seconds for which a pod's calls are not taken after a connection of it brought nothing.
REST = 60.0
#: Seconds of silence after which the other side is asked whether it is there; after as many again it is not.
PING = 10.0
#: Bytes that are read at once.
PIECE = 1 << 20


def key_of(place: Attempt, make: bool = False) -> str:
    """The secret of the pods of an attempt; empty: they do not call.

    Args:
        make: it is made when there is none. A control plane that comes later finds it.
    """
    path = os.path.join(place.path, CALL_KEY)
    with contextlib.suppress(OSError), open(path, encoding="ascii") as f:
        return f.read().strip()
    if not make:
        return ""
    key = secrets.token_hex(32)
    jobfolder.write_file(path, key.encode())
    return key


class Connection:
    """A pod has called. It is spoken with as with an :class:`~jupyter_mlops.kube.exec.Exec`."""

    stderr = b""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def alive(self) -> bool:
        """As far as is known without asking."""
        return not self._writer.is_closing() and not self._reader.at_eof()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def send(self, data: bytes) -> None:
        """Write to the mirror there."""
        self._writer.write(data)
        try:
            async with asyncio.timeout(2 * PING):
                await self._writer.drain()
        except TimeoutError:
            raise BackendTimeout(f"the pod took nothing for {2 * PING:g} s") from None

    async def hang_up(self) -> None:
        """End it; whoever reads from it sees an end."""
        self.drop()

    def drop(self) -> None:
        """The same."""
        self._writer.transport.abort()

    async def output(self) -> AsyncIterator[bytes]:
        """What the mirror there says, as it comes.

        Raises:
            BackendTimeout: nothing came, not even an answer to whether anybody is there.
        """
        asked = False
        while True:
            try:
                async with asyncio.timeout(PING):
                    data = await self._reader.read(PIECE)
            except TimeoutError:
                if asked:
                    raise BackendTimeout(f"the pod said nothing for {2 * PING:g} s") from None
                asked = True
                await self.send(b'{"ping": true}\n')
                continue
            if not data:
                return
            asked = False
            yield data


class Calls:
    """Those of one pod: the newest counts."""

    def __init__(self, route: Route) -> None:
        self.route = route
        #: Called when one has come.
        self.ring: Callable[[], None] | None = None
        self._newest: Connection | None = None
        self._came = asyncio.Event()
        self._rests = 0.0
        self._over = False
        self._first, self._patience = True, FIRST
        #: Why none is taken, in words; None: as was said before.
        self.trouble: str | None = None

    @property
    def waits(self) -> bool:
        """Whether a call waits to be taken."""
        return self._newest is not None and self._newest.alive

    @property
    def early(self) -> bool:
        """Whether nobody here knows of that pod yet."""
        return self.ring is None and not self._over

    def put(self, connection: Connection) -> bool:
        """One has come; False when it is not wanted."""
        if self._over or time.monotonic() < self._rests:
            return False
        if self._newest is not None:
            self._newest.drop()
        self._newest = connection
        self._came.set()
        if self.ring is not None:
            self.ring()
        return True

    async def wait(self, seconds: float) -> None:
        """Until one comes, at most for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._came.wait()

    async def take(self) -> Connection | None:
        """The one that waits, or comes in a moment; None: there is none."""
        first, self._first = self._first, False
        if not self.waits and self._patience and self.route.awaited:
            await self.wait(self._patience)
            if first and not self.waits:
                self.route.missed()
        self._patience = 0.0
        found, self._newest = self._newest, None
        self._came.clear()
        if found is not None and found.alive:
            self.route.took()
            return found
        self.trouble = self.route.trouble or (self.route.pods if first else None)
        return None

    def broke(self, moved: bool) -> None:
        """A connection that was taken has ended too early; ``moved``: something had come over it."""
        self._patience = AGAIN
        if not moved:
            self._rests = time.monotonic() + REST
            self._patience = 0.0

    def expire(self, connection: Connection) -> None:
        """Drop one if nobody has taken it."""
        if self._newest is connection:
            self._newest = None
            self._came.clear()
            connection.drop()

    def end(self) -> None:
        """No further ones."""
        self._over = True
        self.ring = None
        if self._newest is not None:
            self.expire(self._newest)
