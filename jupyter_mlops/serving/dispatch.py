"""One deployment's requests: a bounded queue in front of its scorer instances.

Whatever waits when an instance is free goes to it as one batch, so batches grow with the load and nobody ever waits for
a batch to fill (unless ``max_batch_wait_ms`` asks for it). A request whose instance dies is tried once more on another
one, alone: so its neighbours in the batch survive, and one that kills a process kills two at most.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from ..core.errors import BackendTimeout, MlopsError, ModelError, ParameterError, TooManyRequests, Unavailable
from ..runtime import frames
from .instances import MAX_INSTANCES
from .link import CONNECT_TIMEOUT, Link
from .stats import Stats

#: Seconds that a client is told to wait before it asks a deployment that is down again.
RETRY_AFTER = 2
#: Seconds that a request waits at most for an instance when there is none: one that died is back within this.
HOLD = 30.0
#: Batches under way at one instance. The second is read while the first is computed, so that the model never waits.
DEPTH = 2
#: Requests that wait at most before mirrored ones are left out.
MIRROR_QUEUE = 16


class ScorerDown(Unavailable):
    """There is no instance that answers."""


class Pending:
    """One request on its way. ``done`` is called once: with the answer's JSON, or with an error.

    ``over``: it was answered, has failed, or nobody waits for it any more.
    """

    __slots__ = ("alone", "arrived", "done", "limit", "over", "rows", "score", "tries")

    def __init__(self, score: bytes, done: Callable[[bytes | None, MlopsError | None], None],
                 arrived: float, rows: int = 1) -> None:
        self.score = score
        self.rows = rows
        self.done = done
        self.arrived = arrived
        self.limit = 0.0
        self.tries = 0
        self.alone = False
        self.over = False

    def answered(self, kind: int, body: bytes) -> None:
        """The scorer has answered."""
        if self.over:
            return
        self.over = True
        if kind == frames.RESULT:
            self.done(body, None)
        else:
            self.done(None, _error(body))

    def fail(self, error: MlopsError) -> None:
        """There will be no answer."""
        if not self.over:
            self.over = True
            self.done(None, error)


def _error(body: bytes) -> MlopsError:
    try:
        error: dict[str, Any] = json.loads(body)
    except ValueError:
        error = {}
    message = str(error.get("message") or "the scorer failed")
    if error.get("code") == "bad_parameter":
        return ParameterError(message)
    return ModelError(message, "the deployment's log has the traceback")


class Limits:
    """What a deployment's ``request_settings`` say; see :class:`~jupyter_mlops.core.resources.RequestSettings`."""

    def __init__(self, settings: dict[str, Any], batching: bool = True) -> None:
        self.timeout = int(settings.get("request_timeout_ms") or 30_000) / 1000
        self.max_bytes = int(settings.get("max_request_bytes") or 16 * 1024 * 1024)
        self.max_queue = int(settings.get("max_queue") or 512)
        self.max_wait = int(settings.get("max_queue_wait_ms") or 0) / 1000 or self.timeout
        self.per_instance = min(int(settings.get("max_concurrent_requests_per_instance") or 64), frames.MAX_REQUESTS)
        self.batch_bytes = 64 * 1024 * 1024
        self.batch_rows = int(settings.get("max_batch_rows") or 4096)
        self.batch_wait = float(settings.get("max_batch_wait_ms") or 0) / 1000
        self.batching = batching and settings.get("batching") is not False
        self.retry = settings.get("retry") is not False


def most_instances(settings: dict[str, Any]) -> int:
    """How many instances there may be of a deployment, by its entry in ``endpoint.json``.

    Also those that it starts with, where scaling (:class:`.scaling.Limits`) will leave fewer.
    """
    scale = settings.get("scale_settings") or {}
    most = scale.get("max_instances") if scale.get("type") == "target_utilization" else 0
    return min(MAX_INSTANCES, max(1, int(settings.get("instance_count") or 1), int(most or 0)))


class Dispatcher:
    """Owns the links to the instances of one deployment.

    Args:
        socket_of: the socket's path of an instance's number.
        wake: called when a request waits and no instance is there.
    """

    def __init__(self, socket_of: Callable[[int], os.PathLike[str]], limits: Limits, wake: Callable[[], None]) -> None:
        self.socket_of = socket_of
        self.limits = limits
        self.wake = wake
        self.stats = Stats()
        #: Instances that there may be, and that there are without scaling.
        self.instances = self.least = 1
        self.leaving: frozenset[int] = frozenset()
        #: It has been removed: no instance comes any more for what still waits.
        self.retired = False
        self.last_request = time.monotonic()
        self.links: dict[int, Link] = {}
        self._queue: deque[Pending] = deque()
        self._connecting: dict[int, asyncio.Task[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._scheduled = False
        self._closed = False

    # -- requests ------------------------------------------------------------------

    def submit(self, pending: Pending) -> None:
        """Take a request.

        Raises:
            TooManyRequests: too many wait.
        """
        if len(self._queue) >= self.limits.max_queue:
            raise TooManyRequests("too many requests wait", "try again in a moment")
        now = pending.arrived
        self.last_request = now
        pending.limit = now + self.limits.timeout
        self._queue.append(pending)
        if not self._scheduled:
            # What else arrives in this turn of the loop goes along.
            self._scheduled = True
            if self.limits.batch_wait:
                self._loop.call_later(self.limits.batch_wait, self._pump)
            else:
                self._loop.call_soon(self._pump)

    @property
    def queued(self) -> int:
        return len(self._queue)

    @property
    def in_flight(self) -> int:
        return sum(link.in_flight for link in self.links.values())

    @property
    def ready(self) -> int:
        """Instances that answer and stay."""
        return sum(link.ready and not link.going for link in self.links.values())

    def busy_seconds(self) -> float:
        """Seconds in which instances had something to do, added up over those that are there."""
        return sum(link.busy_seconds() for link in self.links.values())

    def _pump(self) -> None:
        self._scheduled = False
        queue = self._queue
        while queue:
            free = self._free()
            if not free:
                if not self.links or not any(link.ready and not link.going for link in self.links.values()):
                    self.tend()
                    self.wake()
                return
            link = free[0]
            batch = self._next(link, -(-len(queue) // len(free)))
            if batch:
                self.stats.batches += 1
                link.send(batch)
            elif queue:
                return

    def _free(self) -> list[Link]:
        """Instances that can take a batch, the one with the least to do first."""
        found = []
        for link in self.links.values():
            stays = link.ready and not link.going and link.index not in self.leaving
            if stays and not link.alone and len(link.batches) < DEPTH and link.in_flight < self.limits.per_instance:
                found.append(link)
        if len(found) > 1:
            found.sort(key=lambda link: (len(link.batches), link.in_flight))
        return found

    def _next(self, link: Link, share: int) -> list[Pending]:
        """The requests that go to ``link`` now."""
        queue = self._queue
        most = min(share, self.limits.per_instance - link.in_flight)
        if not (self.limits.batching and link.batch_safe):
            most = 1
        batch: list[Pending] = []
        size = rows = 0
        while queue and len(batch) < most:
            first = queue[0]
            if first.over:
                queue.popleft()
                continue
            if first.alone:
                if not batch and not link.batches:
                    link.alone = True
                    batch.append(queue.popleft())
                break
            size += len(first.score)
            rows += first.rows
            if batch and (size > self.limits.batch_bytes or rows > self.limits.batch_rows):
                break
            batch.append(queue.popleft())
        return batch

    # -- instances -----------------------------------------------------------------

    def tend(self) -> None:
        """Connect to every instance that has a socket and no link; expire what waits too long. Called often."""
        if self._closed:
            return
        for index in range(self.instances):
            link = self.links.get(index)
            if link is None and index not in self._connecting and index not in self.leaving:
                task = self._loop.create_task(self._connect(index))
                self._connecting[index] = task
                task.add_done_callback(lambda _, i=index: self._connecting.pop(i, None))  # type: ignore[misc]
            elif link is not None and index in self.leaving and not link.going:
                link.leave()
        for index, link in list(self.links.items()):
            if index >= self.instances and not link.going:
                link.leave()
        self._expire()

    async def _connect(self, index: int) -> None:
        link = Link(index, self._freed, self._lost)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await self._loop.create_unix_connection(lambda: link, os.fspath(self.socket_of(index)))
        except (OSError, TimeoutError):
            return
        if self._closed:
            link.close()
        else:
            self.links[index] = link

    def _freed(self, link: Link) -> None:
        if link.ready and self.links.get(link.index) is not link and not self._closed:
            self.links[link.index] = link  # HELLO came before the connection was noted
        if self._queue and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _lost(self, link: Link, left: list[Pending]) -> None:
        if self.links.get(link.index) is link:
            del self.links[link.index]
        again = []
        waiting = sum(not pending.over for pending in left)
        for pending in left:
            if pending.over:
                continue
            # Alone with the instance when it died, it is the suspect; the only instance is not put at risk again.
            suspect = waiting == 1 and not self.ready
            if pending.tries or suspect or not self.limits.retry or self._closed:
                pending.fail(ScorerDown("the deployment ended while it answered", "try again"))
                continue
            pending.tries += 1
            pending.alone = True
            self.stats.retried += 1
            again.append(pending)
        self._queue.extendleft(reversed(again))
        if self._queue and not self._scheduled and not self._closed:
            self._scheduled = True
            self._loop.call_soon(self._pump)

    def _expire(self) -> None:
        now = time.monotonic()
        hold = self.limits.max_wait if self.ready else min(self.limits.max_wait, 0.0 if self.retired else HOLD)
        while self._queue:
            first = self._queue[0]
            if first.over:
                self._queue.popleft()
            elif now > first.limit:
                self._queue.popleft()
                first.fail(_late(self.limits.timeout))
            elif now > first.arrived + hold:
                self._queue.popleft()
                if self.ready:
                    first.fail(TooManyRequests(f"the request waited {hold:g} s in the queue", "try again in a moment"))
                else:
                    first.fail(ScorerDown("the deployment does not answer",
                                          "it may be starting; try again in a moment"))
            else:
                break
        for link in list(self.links.values()):
            for ident, batch in list(link.batches.items()):
                waiting = False
                for item in batch.values():
                    assert isinstance(item, Pending)
                    if now > item.limit:
                        item.fail(_late(self.limits.timeout))
                    waiting = waiting or not item.over
                if not waiting:
                    link.give_up(ident)

    @property
    def quiet(self) -> bool:
        """Whether nothing waits and nothing is under way."""
        return not self._queue and not any(link.batches for link in self.links.values())

    async def ping(self) -> bool:
        """Whether an instance answers."""
        for link in list(self.links.values()):
            if await link.ping():
                return True
        return False

    def close(self) -> None:
        """Give everything up; what is under way fails as if the scorers had gone."""
        self._closed = True
        for task in self._connecting.values():
            task.cancel()
        for link in list(self.links.values()):
            link.close()
        while self._queue:
            self._queue.popleft().fail(ScorerDown("the deployment was removed", "try again"))


def _late(seconds: float) -> BackendTimeout:
    return BackendTimeout(f"the model did not answer within {seconds:g} s",
                          "send fewer rows, or raise request_timeout_ms")
