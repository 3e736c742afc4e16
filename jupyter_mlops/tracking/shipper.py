"""The shipper: what ranks have journalled and spooled is brought into MLflow, across crashes of everything.

How far it has come is in ``delivery.json`` of each job folder, written after what it counts was acknowledged.
Delivery is at least once and all that is delivered can be repeated without a trace, so the result in MLflow is exactly
once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from ..core.errors import BackendTimeout
from ..runtime.jobfolder import JobFolder, read_json, write_json
from . import spooler as spools
from .api import MlflowApi
from .batches import Group, Journals, journal_size, sort_journals
from .delivery import Sender, Tally
from .permit import Permit
from .proxy import JobScope
from .spooler import Spooler

log = logging.getLogger(__name__)
T = TypeVar("T")

SCHEMA = 1
#: Seconds between two looks at the journals of a job: at first, and when nothing has come for a while.
QUICK, SLOW = 0.2, 0.5
#: Seconds between deliveries of a job that logs little but steadily, at most: each costs processors on which the job
#: trains. What is more than ``BURST`` bytes, or the first for a while, goes at once.
STEADY = 2.0
BURST = 32 * 1024
#: Seconds that each of the jobs which log steadily adds to the time between its deliveries, once that is more than
#: ``STEADY``: what a hundred of them cost together is bounded. Of a hundred, each is delivered every 15 s.
SHARE = 0.15
#: Seconds between two writes of ``delivery.json`` while records flow.
SAVE = 0.5
#: Seconds that :meth:`Shipper.drain` waits before it says that it is not done.
PATIENCE = 1.0
#: Requests of all jobs together that are with MLflow at once: its database has one writer.
WIDTH = 2
#: Seconds until a delivery that failed for a reason of its own (an unreadable file) is tried again.
RETRY = 5.0
_COUNTS = ("delivered", "duplicates", "rejected", "damaged")


class Progress:
    """``delivery.json``: ``{"schema", "run_id", "files": {name: {"offset"}}, counts…, "message", "resume",
    "models"}``; ``models`` has MLflow's ids of models that had a local one."""

    def __init__(self, path: str, run_id: str) -> None:
        self.path = path
        self.run_id = run_id
        value = read_json(path)
        files = value.get("files")
        self.offsets: dict[str, int] = {
            str(k): v["offset"] for k, v in (files if isinstance(files, dict) else {}).items()
            if isinstance(v, dict) and isinstance(v.get("offset"), int) and 0 <= v["offset"] < 1 << 62
        }
        self.counts = {k: value[k] if isinstance(value.get(k), int) else 0 for k in _COUNTS}
        self.message = str(value.get("message", ""))
        models = value.get("models")
        self.models: dict[str, str] = models if isinstance(models, dict) else {}
        resume = value.get("resume")
        self.resume: dict[str, Any] = {
            k: v for k, v in resume.items() if isinstance(v, dict)
        } if isinstance(resume, dict) else {}
        self.saved = time.monotonic()
        self.unsaved = False

    def take(self, group: Group, tally: Tally) -> None:
        """Count a group whose requests are all answered."""
        if group.name:
            self.offsets[group.name] = group.offset
        if group.resume is not None:
            self.resume[str(group.resume[0])] = group.resume[1]
        self.counts["duplicates"] += group.duplicates
        self.counts["damaged"] += group.damaged
        self.add(tally)

    def add(self, tally: Tally) -> None:
        """Count answered records."""
        self.counts["delivered"] += tally.delivered
        self.counts["rejected"] += tally.rejected
        self.message = tally.message or self.message
        self.unsaved = True

    def save(self, durable: bool = False) -> None:
        """Write the file; in a worker thread.

        Raises:
            OSError: it cannot be written.
        """
        value = {
            "schema": SCHEMA, "run_id": self.run_id, "files": {k: {"offset": v} for k, v in self.offsets.items()},
            **self.counts, "message": self.message, "resume": self.resume, "models": self.models,
        }
        if os.path.isdir(os.path.dirname(self.path)):
            write_json(self.path, value, durable)
        self.unsaved = False
        self.saved = time.monotonic()

    @property
    def held(self) -> bool:
        """Whether points of a resumed attempt are held back."""
        return any(state.get("held") for state in self.resume.values() if isinstance(state, dict))


class _Job:
    """What the shipper knows of one job."""

    def __init__(self, name: str, run_id: str, folder: Path) -> None:
        self.name = name
        self.run_id = run_id
        self.folder = JobFolder(folder)
        self._journal, self._spool = self.folder.journal, self.folder.spool
        self.progress = Progress(self.folder.delivery_path, run_id)
        self.sizes: dict[str, int] = {}
        #: The journals could not be looked at.
        self.hidden = False
        self.spooled: list[str] = []
        self.spooled_bytes = 0
        self.final = False
        self.done = False
        self.waiting = ""
        self.journals: Journals | None = None
        self.task: asyncio.Task[None] | None = None
        self.due = 0.0
        self.pause = QUICK
        self.flow = 0.0
        self.held_until = 0.0
        self.changed = asyncio.Event()

    @property
    def pending(self) -> int:
        """Bytes of journals and spool that are not delivered, as of the last look."""
        return self.spooled_bytes + self._behind

    @property
    def _behind(self) -> int:
        return sum(max(0, size - self.progress.offsets.get(name, 0)) for name, size in self.sizes.items())

    @property
    def empty(self) -> bool:
        """Whether there is nothing to deliver, as of the last look."""
        if self.hidden or self._behind or self.spooled:
            return False
        return not (self.final and self.progress.held)

    def look(self) -> None:
        """Take the sizes of the journals and the entries of the spool; in a worker thread."""
        folder = self._journal
        self.hidden = True  # until all of it was seen
        names = [name for names in sort_journals(folder).values() for name in names]
        self.sizes = {name: journal_size(os.path.join(folder, name)) for name in names}
        self.hidden = False
        self.spooled, self.spooled_bytes = [], 0
        if os.path.exists(self._spool):  # most jobs have none
            self.spooled = spools.entries(Path(self._spool))
            self.spooled_bytes = spools.size(Path(self._spool), self.spooled)

    def settle(self) -> None:
        """Keep how far it has come, and look again; in a worker thread."""
        if self.progress.unsaved:
            self.progress.save()
        self.look()

    def tell(self) -> None:
        """Wake whoever waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()


class Shipper:
    """Delivers for all jobs that are watched. Use it in one event loop: :meth:`start`, :meth:`stop`.

    Args:
        on_change: called with a job's name when its run has got something.
    """

    def __init__(self, api: MlflowApi, on_change: Callable[[str], None] | None = None) -> None:
        self._api = api
        self._on_change = on_change
        self._jobs: dict[str, _Job] = {}
        self._threads = ThreadPoolExecutor(2, "mlops-shipper")
        self._turn = asyncio.Semaphore(WIDTH)
        self._scope = JobScope(api)
        self._kick = asyncio.Event()
        self._steady = STEADY
        self._loop_task: asyncio.Task[None] | None = None

    # -- life --------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look at the watched jobs."""
        self._loop_task = asyncio.create_task(self._run(), name="shipper")

    async def stop(self) -> None:
        """End; what is under way is delivered again by the next control plane, which leaves no trace."""
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        if self._loop_task is not None:
            tasks.append(self._loop_task)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for job in self._jobs.values():
            if job.progress.unsaved:
                try:
                    await self._in_thread(job.progress.save)
                except OSError:
                    pass
        self._threads.shutdown(wait=False)

    # -- what the job controller asks --------------------------------------------------------------------------------

    def know(self, job: str, run_id: str, folder: Path) -> None:
        """Whose journal lies where; may be repeated. The run is not read from the folder, where the job writes."""
        known = self._jobs.get(job)
        if known is None or known.run_id != run_id:
            self.forget(job)
            self._jobs[job] = _Job(job, run_id, folder)

    def watch(self, job: str, run_id: str, folder: Path) -> None:
        """Deliver what this job logs from now on; it runs, or is about to. May be repeated."""
        self.know(job, run_id, folder)
        known = self._jobs[job]
        known.final = known.done = False

    async def drain(self, job: str) -> bool:
        """Whether all that a known job has logged is in MLflow, or refused by it for good.

        Nobody writes to the job's journals any more: what is torn at their end is damage now. Returns after about a
        second at most; ask again when it is False (there is much, or MLflow is away).
        """
        found = self._jobs.get(job)
        if found is None:
            return True
        if not found.final:
            found.final = True
            if found.task is None:
                await self._in_thread(_look_at, [found])
                found.done = found.empty
            if not found.done:
                found.due, found.pause = 0.0, QUICK
                self._kick.set()
        until = time.monotonic() + PATIENCE
        while not found.done and time.monotonic() < until:
            await _wait(found.changed, until - time.monotonic())
        return found.done

    async def flush(self, job: str, timeout: float) -> None:
        """Return when all that was journalled and spooled before this call is in MLflow, or refused by it for good.

        Raises:
            BackendTimeout: not within ``timeout`` seconds.
        """
        found = self._jobs.get(job)
        if found is None:
            return  # it has no run yet
        await self._in_thread(_look_at, [found])
        sizes, spooled = dict(found.sizes), set(found.spooled)
        until = time.monotonic() + timeout
        while True:
            offsets = found.progress.offsets
            delivered = all(offsets.get(n, 0) >= size for n, size in sizes.items())
            if delivered and not spooled & set(found.spooled) and not found.hidden:
                return
            left = until - time.monotonic()
            if left <= 0:
                why = found.waiting or f"{found.pending} bytes are under way"
                raise BackendTimeout(f"not all is in MLflow after {timeout:g} s: {why}", "nothing is lost: try again")
            if found.task is None:
                found.due, found.held_until, found.pause = 0.0, 0.0, QUICK
                self._kick.set()
            await _wait(found.changed, min(left, 0.2))

    def status(self, job: str) -> dict[str, Any]:
        """Fields of ``status.delivery`` of a job: counts of records, ``pending`` in bytes."""
        found = self._jobs.get(job)
        if found is None:
            return {**dict.fromkeys(_COUNTS, 0), "pending": 0, "message": ""}
        return {**found.progress.counts, "pending": found.pending, "message": found.waiting or found.progress.message}

    def forget(self, job: str) -> None:
        """Look at a job no more."""
        found = self._jobs.pop(job, None)
        if found is not None and found.task is not None:
            found.task.cancel()

    # -- the loop ----------------------------------------------------------------------------------------------------

    def _in_thread(self, function: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._threads, function, *args)

    async def _run(self) -> None:
        while True:
            self._kick.clear()
            now = time.monotonic()
            due = [j for j in self._jobs.values() if j.task is None and not j.done and j.due <= now]
            try:
                if due:
                    await self._in_thread(_look_at, due)
            except Exception:
                log.exception("looking at journals failed")
            steady = self._steady = max(STEADY, SHARE * sum(1 for j in self._jobs.values() if j.flow))
            for job in due:
                if job.empty and not job.final:
                    job.pause = min(job.pause * 1.2, SLOW)
                    job.due = now + job.pause
                    if now > job.held_until + STEADY:
                        job.flow = 0.0
                elif now < job.held_until and job.pending < BURST and not job.final:
                    job.due = min(now + max(2 * SLOW, steady / 2), max(job.held_until, now + QUICK))
                elif job.task is None:
                    job.task = asyncio.create_task(self._deliver(job), name=f"deliver-{job.name}")
            await _wait(self._kick, QUICK if steady <= STEADY else SLOW)  # of many jobs some are always due

    async def _deliver(self, job: _Job) -> None:
        """One pass over all that a job has logged so far."""
        began = time.monotonic()
        before = dict(job.progress.counts)
        pause = 0.0
        try:
            final = job.final
            await self._pass(job, final)
            await self._in_thread(job.settle)
            if job.final and final and job.empty:
                if job.progress.unsaved or job.progress.offsets:
                    await self._in_thread(job.progress.save, True)
                job.done = True
        except asyncio.CancelledError:
            raise
        except Exception as e:
            log.exception("delivery of job %s failed", job.name)
            job.waiting = f"delivery failed: {e}"[:500]
            pause = RETRY
        finally:
            took = time.monotonic() - began
            if job.progress.counts != before:
                job.pause = QUICK
                job.flow = min(job.flow * 3 or QUICK, self._steady)
                job.held_until = began + job.flow
                if self._on_change is not None and not job.done:
                    self._on_change(job.name)
            else:
                job.pause = min(job.pause * 1.2, SLOW)
            # A job that logs little but steadily costs MLflow a small part of its time only.
            job.due = time.monotonic() + (pause or max(job.pause, min(5 * took, SLOW)))
            if job.flow >= STEADY and job.empty:  # more comes, but a look costs something too
                job.due = max(job.due, min(began + max(2 * SLOW, self._steady / 2), job.held_until))
            if job.final and not job.done and not pause:
                job.due = 0.0
            job.task = None
            job.tell()

    async def _pass(self, job: _Job, final: bool) -> None:
        def waiting(why: str) -> None:
            job.waiting = why

        sender = Sender(self._api, waiting, self._turn, Permit(self._scope, job.name, job.run_id))
        progress = job.progress

        def save() -> Awaitable[None]:
            return self._in_thread(progress.save, True)

        spooler = Spooler(sender, Path(job.folder.spool), job.run_id, progress.models, save)
        sender.resolve = spooler.resolve
        if not job.spooled:  # what comes meanwhile is seen by the look after this
            await self._journals(job, sender, final)
            return
        # Large files do not keep the metrics that are logged meanwhile waiting.
        spooled = asyncio.create_task(self._spool(job, spooler))
        try:
            while True:
                await self._journals(job, sender, final)
                await asyncio.wait([spooled], timeout=QUICK)
                if spooled.done():
                    break
            await spooled
        finally:
            spooled.cancel()
            await asyncio.gather(spooled, return_exceptions=True)

    async def _spool(self, job: _Job, spooler: Spooler) -> None:
        tally = Tally()
        try:
            await spooler.deliver(tally)
        finally:
            job.progress.add(tally)

    async def _journals(self, job: _Job, sender: Sender, final: bool) -> None:
        progress = job.progress
        # Kept only while all that it has read was acknowledged: what interrupted a pass begins there anew.
        journals, job.journals = job.journals, None
        if journals is None:
            journals = Journals(Path(job.folder.journal), job.run_id, progress.offsets, progress.resume)
        ahead = self._in_thread(journals.next, final)
        try:
            while True:
                group = await ahead
                if group is None:
                    job.journals = journals
                    return
                if not final and job.sizes == {group.name: group.offset}:  # the few points of a job that logs little
                    progress.take(group, await sender.group(group))
                    job.journals = journals
                    job.tell()
                    return
                # The next group is read and encoded while MLflow works on this one.
                ahead = self._in_thread(journals.next, final)
                progress.take(group, await sender.group(group))
                if time.monotonic() - progress.saved > SAVE:
                    await self._in_thread(progress.save)
                job.tell()
        finally:
            if not ahead.done():
                await asyncio.wait([ahead])
            if not ahead.cancelled():
                ahead.exception()


def _look_at(jobs: list[_Job]) -> None:
    for job in jobs:
        try:
            job.look()
        except OSError:
            continue  # `hidden`: its delivery finds out why, the others do not wait for it


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), max(0.0, seconds))
    except TimeoutError:
        pass
