"""Pieces of large files that one pod has put into an object store, see :mod:`jupyter_mlops.runtime.depot`: taken from
there one after the other, while everything else goes on coming over the stream."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from ...core.errors import MlopsError
from ...kube.exec import Exec
from .landing import number
from .manifests import ROUTE
from .store import GOOD, LEAST, PIECE, ObjectStore, place_of

if TYPE_CHECKING:
    from .landing import Landing

log = logging.getLogger(__name__)

#: Pieces that may wait in the store before a pod is given further addresses, and addresses of one answer, at most.
WAITING, MOST = 8, 16
#: Wishes for addresses, and pieces that were told, of a pod that does not wait for answers: those of ours do.
_WISHES, _TOLD = 8, 256
#: Addresses that a pod has got and not used yet: those of ours use nearly all.
_UNUSED = 1024


class Deposits:
    """Those of one pod. All of it runs on the loop of the copy.

    Args:
        store: where they are.
        landing: takes what came.
    """

    def __init__(self, store: ObjectStore, landing: Landing) -> None:
        self.store = store
        self.landing = landing
        self._keys: dict[str, float] = {}  # and until when their addresses are good
        self._wishes = 0
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._room = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._channel: Exec | None = None
        self._failed = False

    def begin(self, channel: Exec) -> dict[str, int] | None:
        """A new connection: what the pod is told of the store; None: it is not to be used."""
        self._keys.clear()
        self._wishes = 0
        self._queue = asyncio.Queue()
        self._room.set()
        self._channel = channel
        self._failed = False
        if not self.store.usable:
            return None
        self._spawn(self._work())
        return {"least": LEAST, "piece": PIECE}

    async def end(self) -> None:
        """The connection is over. What is not taken by now is put there again, or goes with the attempt."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def want(self, count: int) -> None:
        """The pod wants so many addresses.

        Raises:
            ValueError: it wants more than it can use.
        """
        if len(self._keys) > _UNUSED:
            for key in [key for key, until in list(self._keys.items()) if until < time.monotonic()]:
                self._keys.pop(key, None)
        if self._wishes >= _WISHES or len(self._keys) > _UNUSED:
            raise ValueError("the pod wants more addresses of objects than it uses")
        self._wishes += 1
        self._spawn(self._give(max(0, min(count, MOST))))

    def put(self, header: dict[str, Any]) -> None:
        """The pod has put a piece there, or could not.

        Raises:
            ValueError: it tells of more than it can have put there.
        """
        if self._failed:
            return  # nobody takes it any more; over the next connection it is told again
        if self._queue.qsize() >= _TOLD:
            raise ValueError("the pod tells of more objects than it has got addresses for")
        self._queue.put_nowait(header)
        if self._queue.qsize() > WAITING:
            self._room.clear()

    async def all_taken(self) -> bool:
        """Wait until all that was put is here; False when it will not be, over this connection."""
        if not self._failed:
            await self._queue.join()
        return not self._failed

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _give(self, count: int) -> None:
        try:
            await self._room.wait()
            answer = await asyncio.to_thread(self.addresses, count)
        finally:
            self._wishes -= 1
        if self._channel is not None:
            with contextlib.suppress(OSError, MlopsError):
                await self._channel.send(json.dumps(answer).encode() + b"\n")

    def addresses(self, count: int) -> dict[str, Any]:
        """Keys and addresses of so many objects, and for how many seconds they are good (blocking)."""
        attempt = self.landing.attempt
        try:
            keys = [self.store.key(place_of(os.path.basename(attempt.job.path), attempt.number)) for _ in range(count)]
            urls = [[key, self.store.put_address(key)] for key in keys]
        except MlopsError as error:
            self.store.failed(error)
            return {"urls": [["", error.message]] * count, "good": GOOD}
        self._keys.update(dict.fromkeys(keys, time.monotonic() + GOOD))
        return {"urls": urls, "good": GOOD * 3 // 4}

    async def _work(self) -> None:
        while True:
            header = await self._queue.get()
            if self._queue.qsize() <= WAITING:
                self._room.set()
            try:
                if "store" in header:
                    trouble = " ".join(str(header["store"]).split())[:300]
                    self.store.took(trouble)
                    self._note(0, trouble)
                else:
                    await self.take(header)
            except (MlopsError, OSError, ValueError) as error:
                # The connection is made anew, and does without the store: the pod goes on after what has come.
                self.store.failed(error)
                self._failed = True
                while not self._queue.empty():
                    self._queue.get_nowait()
                    self._queue.task_done()
                if self._channel is not None:
                    await self._channel.hang_up()
                return
            finally:
                self._queue.task_done()

    async def take(self, header: dict[str, Any]) -> None:
        """Take a piece from the store.

        Raises:
            MlopsError: the store does not answer.
            ValueError: the piece is damaged, or none that this pod may speak of.
        """
        key, count = str(header["key"]), number(header, "bytes")
        if key not in self._keys or not 0 < count <= PIECE:
            raise ValueError("the pod tells of an object that is none of its own")
        data = await asyncio.to_thread(self.store.take, key, count)
        writing = asyncio.ensure_future(self.landing.take(header, data))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            await writing  # the next connection writes to the same file
            raise
        self._keys.pop(key, None)
        self.store.took("")
        self._note(count, "")
        with contextlib.suppress(MlopsError):  # it goes with the attempt
            await asyncio.to_thread(self.store.remove, key)

    def _note(self, count: int, trouble: str) -> None:
        """Note what came through the store, or why nothing does."""
        self.landing.note_way(ROUTE, {"store": self.store.options.url, "trouble": trouble}, count)
