"""The copy here of a job folder in a pod, kept over one stream to :mod:`jupyter_mlops.runtime.mirror`: a connection
that the pod has made, where there is a route and it does, else an execution in it. There is one at a time.

It lands in the job's own folder, so that everything that reads a job's folder (journals, spool, logs, outputs) finds a
job on a cluster as it finds one on this machine. What the pods of several nodes would both write lies in
``attempts/<n>/node-<k>/``, and the outputs of all but the first node in ``outputs/node-<k>/``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import threading
import zlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...core.errors import MlopsError
from ...kube.client import Kube
from ...kube.exec import Exec
from ...runtime import jobfolder, logfile, mirror
from ...runtime.berth import FOLDER, PARCEL
from ...runtime.route import NOTE as CALL
from .calls import Calls, Connection
from .deposits import Deposits
from .manifests import CALL_KEY, COPIED, KEEPER, NOTE, ROUTE, ROUTED, WORK
from .outlets import Outlets
from .store import ObjectStore

log = logging.getLogger(__name__)

#: Seconds between two tries to connect, doubled up to the most.
RETRY, RETRY_MOST = 0.3, 5.0
#: Seconds without a word, not even to a ping, after which a connection counts as lost.
SILENCE = 20.0
#: Frames that are taken before it is told: a part of those that may be on their way.
_TELL = mirror.WINDOW // 2
#: Bytes written to a large file after which they are on their way to the disk, so that its end has not to wait for all.
_WRITEBACK = 64 * 1024 * 1024
_HEADER_LIMIT = 64 * 1024
#: Bytes of a frame that are dealt with on the loop itself.
_SMALL = 64 * 1024
#: Files that grow of which it is remembered where they lie.
_PLACES = 1000
#: Folders of the job that its pods may write to here.
_TOPS = frozenset({"attempts", "journal", "spool", "outputs", "returns", "figures"})
_PER_NODE = frozenset({"state.json", "limits.json", "inputs.json", "supervisor.log", "torchrun.log", "agent.pid",
                       "agent.exit", "image.json", CALL})
#: What is noted of an attempt here, and nobody there may write to.
_OURS = frozenset({NOTE, CALL_KEY, PARCEL})


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
        self.node = node
        self.job = jobfolder.JobFolder(folder)
        self.attempt = self.job.attempt(attempt)
        self.changed = changed
        self.outlets = outlets
        self.address = address
        self.deposits = Deposits(store, self) if store is not None else None
        self.there = there
        #: Whether all is here that will ever be.
        self.complete = False
        #: Why there is no connection, in one line; empty while there is one.
        self.trouble = "connecting"
        self.bytes = 0
        self._spool: set[str] = set()
        self._channel: Exec | Connection | None = None
        self._parting = False  # whether the pod was told that it may go: then nothing better is waited for
        self._hanging: set[asyncio.Task[None]] = set()
        self._over_route = False
        self._sent_stop = False
        self._fresh = True  # whether nothing was handed on over this connection yet
        self._dirty: set[str] = set()
        self._places: dict[str, str] = {}
        self._unsynced = 0
        self._syncing: Future[None] | None = None

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
            before = self.bytes
            try:
                await self._once()
                self.trouble = "the connection ended"
            except MlopsError as error:
                self.trouble = error.message
            except (OSError, ValueError, LookupError, TypeError, asyncio.IncompleteReadError) as error:
                self.trouble = f"{type(error).__name__}: {error}"[:300]
                log.warning("copying from pod %s: %s", self.pod, self.trouble)
            pause = RETRY if self.bytes > before else min(pause * 2, RETRY_MOST)
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
        before = self.bytes
        self._note_routed("")
        try:
            async with connection:
                await self._speak(connection, {"aside": True}, None)
        finally:
            if not self.complete:
                self._note_routed(f"the connection by the route {self.calls.route.address} broke",
                                  self.bytes - before)
                self.calls.broke(self.bytes > before)

    async def _by_exec(self) -> None:
        command = [self.python, "-m", "jupyter_mlops.runtime.mirror", self.there, str(self.attempt.number)]
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
        before = self.bytes
        have, parts = await asyncio.to_thread(self._here)
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
        over = threading.Event()
        fetches: set[asyncio.Task[None]] = set()
        try:
            async for header, data in _frames(channel):
                self.trouble = ""
                if "pong" in header:
                    continue
                if "want" in header and deposits is not None:
                    deposits.want(int(header["want"]))
                    continue
                taken += 1
                if header.get("bye"):
                    if isinstance(channel, Connection):
                        self._note_routed("", self.bytes - before)
                    await asyncio.to_thread(self.note)
                    self.complete = True
                    self.changed()
                    return
                if header.get("even"):
                    if header.get("ended"):
                        if deposits is not None and not await deposits.all_taken():
                            break
                        await asyncio.to_thread(self._sync)
                        self._parting = True
                        await channel.send(b'{"done": true}\n')
                elif "offer" in header:
                    fetch = asyncio.ensure_future(self._fetch(channel, header, over))
                    fetches.add(fetch)
                    fetch.add_done_callback(fetches.discard)
                elif deposits is not None and ("key" in header or "store" in header):
                    deposits.put(header)
                else:
                    await self.take(header, data)
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
        return self._fresh or bool(self._spool)

    async def ask(self) -> None:
        """Hand on what is wished for here: a stop, and that what was delivered need not be kept there."""
        channel = self._channel
        if channel is None:
            return  # it is asked again when there is a connection
        self._fresh = False
        try:
            if not self._sent_stop and self.job.stop_wish(self.attempt.number) is not None:
                self._sent_stop = True
                wish = jobfolder.read_json(os.path.join(self.job.path, "stop"))
                await channel.send(json.dumps({"put": "stop", "text": json.dumps(wish)}).encode() + b"\n")
            for name in sorted(self._spool):
                # Delivered, or refused by MLflow and put aside: no need to keep it there.
                if not os.path.exists(os.path.join(self.job.spool, name)):
                    self._spool.discard(name)
                    await channel.send(json.dumps({"gone": f"spool/{name}"}).encode() + b"\n")
        except (MlopsError, OSError):
            return  # the connection is about to be made anew, and all of it is told again

    # -- where things are here

    def place(self, path: str) -> str | None:
        """The path here of a file there; None for one that has no business here."""
        parts = path.split("/")
        if parts[0] not in _TOPS or len(parts) < 2 or any(p in ("", ".", "..") or "\0" in p for p in parts):
            return None
        if parts[0] == "attempts":
            if parts[1] != str(self.attempt.number) or len(parts) < 3 or parts[2] in _OURS:
                return None
            if parts[2] in _PER_NODE or len(parts) > 3 or (parts[2] == "usage.jsonl" and self.node):
                parts.insert(2, f"node-{self.node}")
        elif self.node and parts[0] in ("outputs", "figures"):
            parts.insert(1, f"node-{self.node}")
        elif self.node and parts[0] == "returns":
            return None
        return os.path.join(self.job.path, *parts)

    def _there(self, path: str) -> str | None:
        """The path there of a file here, as far as it is this node's."""
        parts = os.path.relpath(path, self.job.path).split(os.sep)
        own = f"node-{self.node}"
        for at in (1, 2):
            if len(parts) > at + 1 and parts[at].startswith("node-") and parts[0] in ("attempts", "outputs", "figures"):
                if parts[at] != own:
                    return None
                del parts[at]
                break
        there = "/".join(parts)
        return there if self.place(there) == path else None

    def _here(self) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
        """What has come already: sizes and times; and what of large files."""
        have: dict[str, list[int]] = {}
        for top in sorted(_TOPS):
            for folder, _, names in os.walk(os.path.join(self.job.path, top)):
                for name in names:
                    full = os.path.join(folder, name)
                    there = self._there(full)
                    if there is None or name.endswith(".tmp"):
                        continue
                    with contextlib.suppress(OSError):
                        info = os.lstat(full)
                        have[there] = [info.st_size, info.st_mtime_ns]
        parts: dict[str, list[int]] = {}
        with contextlib.suppress(OSError):
            for name in os.listdir(self._incoming):
                size, mtime, _, there = name.split("-", 3)
                full = os.path.join(self._incoming, name)
                with contextlib.suppress(OSError, ValueError):
                    parts[bytes.fromhex(there).decode()] = [int(size), int(mtime), os.path.getsize(full)]
        return have, parts

    @property
    def _incoming(self) -> str:
        return os.path.join(self.attempt.path, f"node-{self.node}", "incoming")

    # -- what comes

    def _note_routed(self, trouble: str, count: int = 0) -> None:
        """The same of the route, over which all comes."""
        assert self.calls is not None
        folder = jobfolder.private_folder(os.path.join(self.attempt.path, f"node-{self.node}"))
        path = os.path.join(folder, ROUTED)
        before = jobfolder.read_json(path)
        now = {"route": self.calls.route.address, "trouble": trouble, "bytes": int(before.get("bytes") or 0) + count}
        if now != before:
            jobfolder.write_json(path, now, durable=False)

    def note_route(self, count: int, trouble: str) -> None:
        """Note, for those who look at the job, what went through the object store, or why it does not."""
        assert self.deposits is not None
        folder = jobfolder.private_folder(os.path.join(self.attempt.path, f"node-{self.node}"))
        path = os.path.join(folder, ROUTE)
        before = jobfolder.read_json(path)
        jobfolder.write_json(path, {"store": self.deposits.store.options.url, "trouble": trouble,
                                    "bytes": int(before.get("bytes") or 0) + count}, durable=False)

    async def take(self, header: dict[str, Any], data: bytes) -> None:
        path, at, size, mtime = str(header["file"]), int(header["at"]), int(header["size"]), int(header["mtime"])
        target = self._places.get(path) or self.place(path)
        if target is None or at < 0 or size < 0:
            return
        if data and zlib.crc32(data) != header["crc"]:
            raise ValueError(f"a piece of {path} arrived damaged")
        if len(data) > _SMALL:  # the loop has other copies to serve
            self._written(await asyncio.to_thread(self._keep, path, target, at, size, mtime, data), len(data))
        else:
            self._keep(path, target, at, size, mtime, data)
        self.bytes += len(data)
        if path.startswith("attempts/") and not mirror.grows(path):
            self.changed()

    async def _fetch(self, channel: Exec | Connection, offer: dict[str, Any], over: threading.Event) -> None:
        """Fetch a large file, and tell how much of it is here."""
        path, have = str(offer["offer"]), int(offer["size"])
        if self.place(path) is not None:
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
        target = self.place(path)
        at, size, mtime = int(offer["at"]), int(offer["size"]), int(offer["mtime"])
        if target is None or not 0 <= at <= size:
            return size
        begun = at
        try:
            with contextlib.closing(self.outlets.fetch(self.pod, offer)) as pieces:
                for data in pieces:
                    if over.is_set():
                        break
                    self._written(self._keep(path, target, at, size, mtime, data), len(data))
                    self.bytes += len(data)
                    at += len(data)
        except (MlopsError, OSError, ValueError) as error:
            log.info("a large file of pod %s comes over its stream: %s", self.pod, error)
            if at == begun:
                self.outlets.failed()
        return at

    def _written(self, where: str, count: int) -> None:
        """Have what came for large files brought to the disk as it comes; the end has not to wait for all of it."""
        self._unsynced += count
        if self._unsynced >= _WRITEBACK and (self._syncing is None or self._syncing.done()):
            self._unsynced = 0
            self._syncing = self.outlets.submit(_to_disk, where, os.fdatasync)

    def _keep(self, path: str, target: str, at: int, size: int, mtime: int, data: bytes) -> str:
        """Write a piece where it belongs; returns the file that has it now."""
        if mirror.grows(path):
            if path not in self._places:
                jobfolder.private_folder(os.path.dirname(target))
                if len(self._places) < _PLACES:
                    self._places[path] = target  # it comes again and again
            self._append(target, at, data)
            return target
        jobfolder.private_folder(os.path.dirname(target))
        where = target
        if len(data) == size and not at:
            self._replace(target, data, mtime)
        else:
            where = self._piece(path, target, at, size, mtime, data)
        if path.startswith("spool/") and path.endswith("/entry.json"):
            self._spool.add(path.split("/")[1])
        if path.endswith(".hole"):
            self._punch(target)
        return where

    def _append(self, target: str, at: int, data: bytes) -> None:
        fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if at < os.fstat(fd).st_size:  # it was written anew there, shorter
                os.ftruncate(fd, at)
            _pwrite(fd, data, at)
        finally:
            os.close(fd)
        self._dirty.add(target)

    def _replace(self, target: str, data: bytes, mtime: int) -> None:
        jobfolder.write_file(target, data, durable=False)
        os.utime(target, ns=(mtime, mtime))
        self._dirty.add(target)

    def _piece(self, path: str, target: str, at: int, size: int, mtime: int, data: bytes) -> str:
        """A piece of a large file, which is put in its place when it is whole."""
        name = path.encode().hex()
        if len(name) > 180:
            name = sha256(path.encode()).hexdigest()  # then it cannot be gone on with
        part = os.path.join(jobfolder.private_folder(self._incoming), f"{size}-{mtime}-p-{name}")
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            _pwrite(fd, data, at)
        finally:
            os.close(fd)
        if at + len(data) >= size:
            os.utime(part, ns=(mtime, mtime))
            os.replace(part, target)
            self._dirty.add(target)
            return target
        return part

    @staticmethod
    def _punch(target: str) -> None:
        """Give back here, too, what is not kept of a log there."""
        entry = jobfolder.read_json(target)
        begin, end = entry.get("from"), entry.get("to")
        if isinstance(begin, int) and isinstance(end, int) and 0 <= begin < end:
            with contextlib.suppress(OSError):
                fd = os.open(target[:-5] + ".log", os.O_RDWR | os.O_NOFOLLOW)
                try:
                    logfile.punch(fd, begin, end - begin)
                finally:
                    os.close(fd)

    def note(self) -> None:
        """Leave word that all of the pod is here."""
        folder = jobfolder.private_folder(os.path.join(self.attempt.path, f"node-{self.node}"))
        jobfolder.write_file(os.path.join(folder, COPIED), b"", durable=False)

    def _sync(self) -> None:
        """After this the copy there may go."""
        for path in sorted(self._dirty):
            _to_disk(path, os.fsync)
        self._dirty.clear()


def _pwrite(fd: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(fd, left, at)
        left, at = left[count:], at + count


def _to_disk(path: str, sync: Callable[[int], None]) -> None:
    """Have ``os.fsync`` or ``os.fdatasync`` done to a file, if it is there."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            sync(fd)
        finally:
            os.close(fd)


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
