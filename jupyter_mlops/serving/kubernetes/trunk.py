"""From the gateway's pod to the scorers' pods.

The gateway meets its scorers as everywhere: on a unix socket for each instance. Here a trunk listens on them, and
carries each connection on to a pod that is ready (``/trunk`` of :mod:`jupyter_mlops.runtime.doorway`), byte by byte.
The cluster's Service picks the pod; when it picks one that another connection leads to already, it is asked again. A
pod that goes says so to the gateway by itself (the scorer's GOING), whose next connection then leads elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from ...runtime import frames
from ...runtime.doorway import copy

#: Seconds for a connection to a pod, and between looks for pods that came.
CONNECT, LOOK = 3.0, 2.0
#: How often the Service is asked for a pod that no other connection has.
ASKS = 4

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Trunk:
    """The sockets of one deployment's instances, and their ways to pods.

    Args:
        address: host and port of the deployment's Service.
        token: what pods want to hear.
        sockets: paths of the instances' sockets, in their order.
    """

    def __init__(self, address: str, token: str, sockets: list[Path]) -> None:
        self.address = address
        self.token = token
        self.sockets = sockets
        #: instance → the pod that its connection leads to
        self.pods: dict[int, str] = {}
        self._servers: list[asyncio.Server] = []
        self._moves: dict[int, _Carrier] = {}
        self._spare: dict[int, tuple[str, Streams]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Listen on the sockets, and look after them until :meth:`close`."""
        for number, path in enumerate(self.sockets):
            with contextlib.suppress(OSError):
                os.unlink(path)
            self._servers.append(await asyncio.start_unix_server(
                lambda r, w, n=number: self._accept(n, r, w), str(path), backlog=16, limit=1 << 20))  # type: ignore[misc]
            os.chmod(path, 0o600)
        self._keep(self._look())

    def close(self) -> None:
        """Give all connections up."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        for _, (_, writer) in self._spare.values():
            writer.close()
        for path in self.sockets:
            with contextlib.suppress(OSError):
                os.unlink(path)

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- one connection of the gateway ---------------------------------------------

    async def _accept(self, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        pod = ""
        try:
            found = self._spare.pop(number, None) or await self._best(number)
            if found is None:
                return  # the gateway comes again in a moment
            pod, (inner_reader, inner_writer) = found
            self.pods[number] = pod
            carrier = self._moves[number] = _Carrier(writer)
            ways = [asyncio.ensure_future(copy(reader, inner_writer)),
                    asyncio.ensure_future(carrier.carry(inner_reader))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                inner_writer.close()
                if self._moves.get(number) is carrier:
                    del self._moves[number]
        finally:
            if self.pods.get(number) == pod:
                self.pods.pop(number, None)
            writer.close()

    async def _best(self, number: int) -> tuple[str, Streams] | None:
        """A way to the pod with the fewest connections of ours, as far as the Service shows them."""
        best: tuple[str, Streams] | None = None
        load: Counter[str] = Counter()
        for _ in range(ASKS):
            found = await self._connect()
            if found is None:
                break
            load = Counter(pod for other, pod in self.pods.items() if other != number)
            if best is None or load[found[0]] < load[best[0]]:
                best, found = found, best
            if found is not None:
                found[1][1].close()
            if not load[best[0]]:
                break
        return best

    async def _connect(self) -> tuple[str, Streams] | None:
        host, _, port = self.address.rpartition(":")
        try:
            async with asyncio.timeout(CONNECT):
                reader, writer = await asyncio.open_connection(host, int(port), limit=1 << 20)
                writer.write(f"GET /trunk HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {self.token}\r\n"
                             "Upgrade: mlops-frames\r\nConnection: Upgrade\r\n\r\n".encode("ascii"))
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return None
        status, *lines = head.split("\r\n")
        names = {k.strip().lower(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
        if " 101 " not in f"{status} ":
            writer.close()
            return None
        return names.get("x-pod", ""), (reader, writer)

    # -- pods that come ------------------------------------------------------------

    async def _look(self) -> None:
        """Bring a connection that shares its pod with another one to a pod that has none."""
        while True:
            await asyncio.sleep(LOOK)
            load = Counter(self.pods.values())
            crowded = [n for n, pod in self.pods.items() if load[pod] > 1 and n in self._moves and n not in self._spare]
            if not crowded:
                continue
            found = await self._connect()
            if found is None:
                continue
            if found[0] in self.pods.values() or crowded[-1] not in self._moves:
                found[1][1].close()
                continue
            self._spare[crowded[-1]] = found
            self._moves[crowded[-1]].going = True


class _Carrier:
    """Copies a scorer's frames to the gateway; can say GOING between two of them, as if the scorer had."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.going = False
        self._left = 0
        self._head = b""

    async def carry(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 18):
                border = self._border(data)
                if self.going and border >= 0:
                    self.going = False
                    data = data[:border] + frames.pack(frames.GOING, 0) + data[border:]
                self.writer.write(data)
                await self.writer.drain()

    def _border(self, data: bytes) -> int:
        """Where in ``data`` its last frame ends; -1 when none does."""
        at, border = 0, -1
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
            else:
                need = frames.HEAD.size - len(self._head)
                self._head += data[at:at + need]
                at += min(need, len(data) - at)
                if len(self._head) < frames.HEAD.size:
                    break
                self._left = frames.HEAD.unpack(self._head)[0]
                self._head = b""
            if not self._left and not self._head:
                border = at
        return border
