"""The copy here of a job folder in a pod, kept over one stream to :mod:`jupyter_mlops.runtime.mirror`: a connection
that the pod has made, where there is a route and it does, else an execution in it. There is one at a time.

Where what comes lands: :mod:`.landing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from ...core.errors import MlopsError
from ...kube.client import Kube
from ...kube.exec import Exec
from ...runtime import jobfolder, mirror
from ...runtime.berth import FOLDER
from .calls import Calls, Connection
from .deposits import Deposits
from .landing import Landing, number
from .manifests import KEEPER, ROUTED, WORK
from .outlets import Outlets
from .store import ObjectStore

log = logging.getLogger(__name__)

#: Seconds between two tries to connect, doubled up to the most.
RETRY, RETRY_MOST = 0.3, 5.0
#: Seconds without a word, not even to a ping, after which a connection counts as lost.
SILENCE = 20.0
#: Seconds for which one copy is dealt with before others are.
SLICE = 0.01
#: Frames that are taken before it is told: a part of those that may be on their way.
_TELL = mirror.WINDOW // 2
_HEADER_LIMIT = 64 * 1024
#: Large files that are fetched, or wait for it, until a pod is heard further.
_OFFERS = 1000


class Copy:
    """One pod's folder.

    Args:
        folder: the job's, here.
        changed: called when something came that may have moved the attempt on: its state, or the end; not for data.
        outlets: fetch large files.
        address: the pod's.
        store: what large files go through before that; None: nothing.
        there: path of the folder in the pod.
        calls: those of the pod, where there is a route for it.

    Whoever runs it calls :meth:`ask` now and then, and at once after a stop was asked for.
    """

    def __init__(self, kube: Kube, python: str, pod: str, node: int, folder: Path, attempt: int,
                 changed: Callable[[], None], outlets: Outlets, address: str, store: ObjectStore | None = None,
                 there: str = f"{WORK}/{FOLDER}", calls: Calls | None = None) -> None:
        self.kube = kube
        self.calls = calls
        self.python = python
        self.pod = pod
        self.landing = Landing(folder, attempt, node, changed, outlets)
        self.changed = changed
        self.outlets = outlets
        self.address = address
        self.deposits = Deposits(store, self.landing) if store is not None else None
        self.there = there
        #: Whether all is here that will ever be, and whether that is known there.
        self.landed = self.complete = False
        #: Why there is no connection, in one line; empty while there is one.
        self.trouble = "connecting"
        self._channel: Exec | Connection | None = None
        self._parting = False  # whether the pod was told that it may go: then nothing better is waited for
        self._hanging: set[asyncio.Task[None]] = set()
        self._over_route = False
        self._sent_stop = False
        self._fresh = True  # whether nothing was handed on over this connection yet

    async def run(self) -> None:
        """Until all is here."""
        try:
            if self.calls is not None:
                self.calls.ring = self._ring
            await self._run()
        finally:
            if self.calls is not None:
                self.calls.end()

    async def _run(self) -> None:
        pause = RETRY
        while not self.complete:
            before, full = self.landing.bytes, False
            try:
                await self._once()
                self.trouble = "the connection ended"
            except MlopsError as error:
                self.trouble = error.message
            except Exception as error:  # whatever a pod says that is none of ours: nobody else copies it
                self.trouble = f"{type(error).__name__}: {error}"[:300]
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    self.trouble, full = error.strerror or self.trouble, True
                log.warning("copying from pod %s: %s", self.pod, self.trouble)
            pause = RETRY if self.landing.bytes > before and not full else min(pause * 2, RETRY_MOST)
            if self.complete:
                return
            if self.calls is None:
                await asyncio.sleep(pause)
            elif not self._over_route:  # else exec takes over, or a further call, which is awaited there
                await self.calls.wait(pause)

    async def _once(self) -> None:
        self._parting = self._over_route = False
        connection = await self.calls.take() if self.calls is not None else None
        if self.calls is None or connection is None:
            if self.calls is not None and self.calls.trouble is not None:
                self._note_routed(self.calls.trouble)
            await self._by_exec()
            return
        self._over_route = True
        before = self.landing.bytes
        self._note_routed("")
        try:
            async with connection:
                await self._speak(connection, {"aside": True}, None)
        finally:
            if not self.complete:
                self._note_routed(f"the connection by the route {self.calls.route.address} broke",
                                  self.landing.bytes - before)
                self.calls.broke(self.landing.bytes > before)

    async def _by_exec(self) -> None:
        command = [self.python, "-m", "jupyter_mlops.runtime.mirror", self.there, str(self.landing.attempt.number)]
        async with Exec(self.kube, self.pod, KEEPER, command, heartbeat=SILENCE) as channel:
            first = {"outlet": self.address if self.outlets.usable else ""}
            await self._speak(channel, first, self.deposits)

    def _ring(self) -> None:
        """The pod has called: what is spoken over now ends, and the call is taken."""
        channel = self._channel
        if channel is not None and not (self._parting and isinstance(channel, Exec)):
            task = asyncio.ensure_future(channel.hang_up())
            self._hanging.add(task)
            task.add_done_callback(self._hanging.discard)

    async def _speak(self, channel: Exec | Connection, first: dict[str, Any], deposits: Deposits | None) -> None:
        """Take what the pod tells, until one of both ends.

        Args:
            first: what the pod is told beside what is here.
            deposits: what it has put into an object store, if that is used.
        """
        before = self.landing.bytes
        have, parts = await asyncio.to_thread(self.landing.here)
        first.update(have=have, parts=parts)
        if isinstance(channel, Exec) and deposits is not None:
            first["store"] = deposits.begin(channel)
        await channel.send(json.dumps(first).encode() + b"\n")
        self._sent_stop = False
        self._fresh = True
        self._channel = channel
        if isinstance(channel, Exec) and self.calls is not None and self.calls.waits:
            self._ring()  # it has come meanwhile
        taken = told = 0
        until = time.monotonic() + SLICE
        over = threading.Event()
        fetches: set[asyncio.Task[None]] = set()
        try:
            async for header, data in _frames(channel):
                if time.monotonic() > until:  # many small things came at once: the loop has other copies to serve
                    await asyncio.sleep(0)
                    until = time.monotonic() + SLICE
                self.trouble = ""
                if "pong" in header:
                    continue
                if "want" in header and deposits is not None:
                    deposits.want(number(header, "want"))
                    continue
                taken += 1
                if header.get("bye"):
                    if isinstance(channel, Connection):
                        self._note_routed("", self.landing.bytes - before)
                    await asyncio.to_thread(self.landing.note)
                    self.complete = True
                    self.changed()
                    return
                if header.get("even"):
                    if header.get("ended"):
                        if deposits is not None and not await deposits.all_taken():
                            break
                        await asyncio.to_thread(self.landing.sync)
                        self._parting = self.landed = True
                        await channel.send(b'{"done": true}\n')
                elif "offer" in header:
                    for name in ("at", "size", "port"):
                        number(header, name)
                    if len(fetches) >= _OFFERS:
                        await asyncio.wait(fetches, return_when=asyncio.FIRST_COMPLETED)
                    fetch = asyncio.ensure_future(self._fetch(channel, header, over))
                    fetches.add(fetch)
                    fetch.add_done_callback(fetches.discard)
                elif deposits is not None and ("key" in header or "store" in header):
                    deposits.put(header)
                else:
                    await self.landing.take(header, data)
                if taken - told >= _TELL:
                    told = taken
                    await channel.send(b'{"got": %d}\n' % taken)
            if channel.stderr:
                self.trouble = channel.stderr.decode("utf-8", "replace").strip().splitlines()[-1][:300]
                log.warning("copying from pod %s: %s", self.pod, self.trouble)
        finally:
            self._channel = None
            over.set()
            if deposits is not None:
                await deposits.end()
            # Nobody else may write to these files while a fetch still does.
            await asyncio.gather(*fetches, return_exceptions=True)

    @property
    def owes(self) -> bool:
        """Whether the pod may have to be told something soon."""
        return self._fresh or bool(self.landing.spool)

    async def ask(self) -> None:
        """Hand on what is wished for here: a stop, and that what was delivered need not be kept there."""
        channel, job, attempt = self._channel, self.landing.job, self.landing.attempt
        if channel is None:
            return  # it is asked again when there is a connection
        self._fresh = False
        try:
            if not self._sent_stop and job.stop_wish(attempt.number) is not None:
                self._sent_stop = True
                wish = jobfolder.read_json(os.path.join(job.path, "stop"))
                await channel.send(json.dumps({"put": "stop", "text": json.dumps(wish)}).encode() + b"\n")
            for name in sorted(self.landing.spool):
                # Delivered, or refused by MLflow and put aside: no need to keep it there.
                if not os.path.exists(os.path.join(job.spool, name)):
                    self.landing.spool.discard(name)
                    await channel.send(json.dumps({"gone": f"spool/{name}"}).encode() + b"\n")
        except (MlopsError, OSError):
            return  # the connection is about to be made anew, and all of it is told again

    def _note_routed(self, trouble: str, count: int = 0) -> None:
        """Note what came by the route, or why nothing does."""
        assert self.calls is not None
        self.landing.note_way(ROUTED, {"route": self.calls.route.address, "trouble": trouble}, count)

    async def _fetch(self, channel: Exec | Connection, offer: dict[str, Any], over: threading.Event) -> None:
        """Fetch a large file, and tell how much of it is here."""
        path, have = str(offer["offer"]), number(offer, "size")
        if self.landing.place(path) is not None:
            work = self.outlets.submit(self._fetched, path, offer, over)
            try:
                have = await asyncio.shield(asyncio.wrap_future(work))
            except asyncio.CancelledError:
                over.set()
                raise
        with contextlib.suppress(OSError, MlopsError):
            await channel.send(json.dumps({
                "fetched": path, "bytes": have, "again": self.outlets.usable}).encode() + b"\n")

    def _fetched(self, path: str, offer: dict[str, Any], over: threading.Event) -> int:
        """Bytes of a large file that are here now; in a thread."""
        target = self.landing.place(path)
        at, size, mtime = number(offer, "at"), number(offer, "size"), number(offer, "mtime", -1 << 63)
        if target is None or at > size:
            return size
        begun = at
        try:
            with contextlib.closing(self.outlets.fetch(self.pod, offer)) as pieces:
                for data in pieces:
                    if over.is_set():
                        break
                    self.landing.written(self.landing.keep(path, target, at, size, mtime, data), len(data))
                    self.landing.bytes += len(data)
                    at += len(data)
        except (MlopsError, OSError, ValueError) as error:
            log.info("a large file of pod %s comes over its stream: %s", self.pod, error)
            if at == begun:
                self.outlets.failed()
        return at

async def _frames(channel: Exec | Connection) -> AsyncIterator[tuple[dict[str, Any], bytes]]:
    """Frames as they come."""
    held = bytearray()
    size = need = mirror.HEAD.size
    async for piece in channel.output():
        held += piece
        begin = 0
        while len(held) - begin >= need:
            head, body = mirror.HEAD.unpack_from(held, begin)
            if head > _HEADER_LIMIT or body > mirror.PIECE:
                raise ValueError(f"the pod answers with something else than ours: {bytes(held[begin:begin + 200])!r}")
            need = size + head + body
            if len(held) - begin < need:
                break
            at = begin + size
            header = json.loads(held[at:at + head])
            if not isinstance(header, dict):
                raise ValueError("the pod answers with something else than ours")
            with memoryview(held) as whole:
                data = bytes(whole[at + head:begin + need])  # one copy; a slice of held itself would be two
            yield header, data
            begin += need
            need = size
        if begin:
            del held[:begin]
