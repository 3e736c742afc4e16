"""The pods of attempts on one cluster, followed: a watch for all of them, a copy of each pod's folder, and the loop on
which they run."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from ...core.resources.compute import TrainingOptions
from ...kube.client import Kube
from ...kube.names import ours
from ...runtime.jobfolder import JobFolder
from ..base import JobRef
from . import verdict
from .calls import key_of
from .copy import Copy
from .outlets import Outlets
from .route import Route
from .store import ObjectStore
from .watch import Pod, PodWatch, key, node_of

#: Seconds between looks at wishes for the pods' folders: a stop, and what was delivered of them; and of how many such
#: looks one is at all pods. A stop is handed on at once by whoever asks for it here.
ASK, ASK_ALL = 1.0, 10
#: Least seconds between two words of one job's copies that something has moved on: each has it looked at, and stored.
TELL = 0.2


class Follower:
    """Those of one workspace.

    Args:
        options: of the compute.
        store: what large files go through; None: nothing.
        route: where pods call; None: nowhere.
        beside: what else is to run on the loop.
    """

    def __init__(self, kube: Kube, workspace: str, options: TrainingOptions, store: ObjectStore | None,
                 route: Route | None, *beside: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.kube = kube
        self.options = options
        self.store = store
        self.route = route
        #: Called with a job's name when a pod of it changed, or something came out of one.
        self.changed: list[Callable[[str], None]] = []
        self.watch = PodWatch(kube, {**ours(workspace), "app.kubernetes.io/component": "job"}, self._pod_changed,
                              self._troubled)
        self.outlets = Outlets(kube, options.transfer == "auto")
        self._beside = beside
        self._copies: dict[tuple[str, int, int], tuple[Copy, asyncio.Task[None]]] = {}
        self._wanted: dict[tuple[str, int], JobFolder] = {}
        self._last: dict[tuple[str, int], dict[int, Pod]] = {}
        self._asking: set[asyncio.Task[None]] = set()
        self._told: dict[str, float] = {}
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    # -- the loop

    def loop(self) -> asyncio.AbstractEventLoop:
        """It is started when it is wanted first."""
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name=f"cluster-{self.kube.cluster}",
                                 daemon=True).start()
                work = [self.watch.run, self._ask_all, *self._beside]
                if self.route is not None:
                    work.append(self.route.run)
                for one in work:
                    asyncio.run_coroutine_threadsafe(one(), self._loop)
            return self._loop

    def close(self) -> None:
        """End watch and copies; what runs on the cluster goes on."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None:
            async def end() -> None:
                tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

            with contextlib.suppress(Exception):
                asyncio.run_coroutine_threadsafe(end(), loop).result(5)
            loop.call_soon_threadsafe(loop.stop)
        self.outlets.close()
        self._copies.clear()

    def _soon(self, what: Callable[..., object], *arguments: Any) -> None:
        """Have something done on the loop, if it runs."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(what, *arguments)

    # -- attempts

    def follow(self, job: JobRef, attempt: int, pods: int = 1) -> None:
        """Have copies of the pods of an attempt, of which there are so many at once, from now on."""
        at = (job.name, attempt)
        if at not in self._wanted:
            self._wanted[at] = JobFolder(job.folder)
            if self.route is not None and (secret := key_of(self._wanted[at].attempt(attempt))):
                self.route.know(job.name, attempt, secret, pods)
            self.loop().call_soon_threadsafe(self._begin, *at)

    def forget(self, job: JobRef, attempt: int) -> None:
        """No longer."""
        at = (job.name, attempt)
        for where in [w for w in self._copies if w[:2] == at]:
            _, task = self._copies.pop(where)
            self._soon(task.cancel)
        self._wanted.pop(at, None)
        self._last.pop(at, None)
        self._told.pop(job.name, None)
        if self.route is not None:
            self._soon(self.route.forget, *at)

    def pods(self, job: str, attempt: int) -> dict[int, Pod]:
        """Those that there are, by node."""
        return {node_of(pod): pod for pod in self.watch.of(job, attempt)}

    def last(self, job: str, attempt: int) -> dict[int, Pod]:
        """The last that was seen of each node, also where that is gone."""
        return self._last.get((job, attempt), {})

    def copies(self, job: str, attempt: int) -> dict[int, Copy]:
        """By node."""
        return {at[2]: copy for at, (copy, _) in list(self._copies.items()) if at[:2] == (job, attempt)}

    def tell(self, job: str) -> None:
        """Something has changed."""
        for changed in self.changed:
            changed(job)

    def _moved(self, job: str) -> None:
        """A copy says that something has moved on; at once, when it does not say so all the time. On the loop."""
        loop = asyncio.get_running_loop()
        now, told = loop.time(), self._told.get(job, 0.0)
        if told > now:
            return  # it is told then
        self._told[job] = max(now, told + TELL)
        loop.call_at(self._told[job], self.tell, job)

    def ask(self, job: str, attempt: int) -> None:
        """Hand a wish on to the pods of an attempt at once."""
        self._soon(self._ask_now, job, attempt)

    # -- on the loop

    def _begin(self, job: str, attempt: int) -> None:
        """Have a copy of each pod that has a keeper."""
        folder = self._wanted.get((job, attempt))
        if folder is None:
            return
        for pod in self.watch.of(job, attempt):
            at = (job, attempt, node_of(pod))
            if at in self._copies or not verdict.keeper_runs(pod):
                continue
            copy = Copy(self.kube, self.options.python, pod["metadata"]["name"], at[2], Path(folder.path), attempt,
                        lambda: self._moved(job), self.outlets, pod["status"].get("podIP", ""), self.store,
                        calls=self.route.calls(*at) if self.route is not None else None)
            self._copies[at] = (copy, asyncio.get_running_loop().create_task(copy.run()))

    def _pod_changed(self, pod: Pod, gone: bool) -> None:
        job, attempt = key(pod)
        if not job or not (attempt.isascii() and attempt.isdigit() and len(attempt) < 7):
            return
        at = (job, int(attempt))
        if at not in self._wanted:
            return  # its pods are read when somebody asks
        self._last.setdefault(at, {})[node_of(pod)] = {**pod, "gone": True} if gone else pod
        self._begin(*at)
        self.tell(job)

    def _troubled(self) -> None:
        for job, _ in list(self._wanted):
            self.tell(job)

    async def _ask_all(self) -> None:
        """Hand wishes on to all pods that have a copy: one timer for all of them."""
        for turn in itertools.count():
            for copy, _ in list(self._copies.values()):
                if copy.owes or turn % ASK_ALL == 0:
                    await copy.ask()
            await asyncio.sleep(ASK)

    def _ask_now(self, job: str, attempt: int) -> None:
        for copy in self.copies(job, attempt).values():
            task = asyncio.ensure_future(copy.ask())
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
