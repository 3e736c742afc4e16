"""Job controller: run created, folder written, driver started, journal delivered, end told; the same after a crash.

What its phases mean and what is guaranteed is in ``docs/jobs.md``. Every status that it writes goes through
:meth:`JobController._set`, which refuses changes of phase that ``resources/job.py`` does not list.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from ...compute.base import ComputeDriver, Grant
from ...runtime import jobfolder
from .. import context
from ..blobs import Blobs, returned
from ..errors import MlopsError, NotFound
from ..resources.base import Resource
from ..resources.job import RUN_STATUS, TERMINAL, AttemptStatus, JobSpec, check_transition
from . import attempts as tries
from .base import Key
from .folder import find_artifacts, put_artifacts, remove_folder, write_folder
from .pace import CALM
from .recorder import JournalShipper, RunRecorder
from .requests import AWAY, JobRequests

log = logging.getLogger(__name__)

#: Phases of a job that has slots, and of one that is watched without.
_HOLDING = ["Starting", "Running", "Stopping"]
#: Rounds between two comparisons of the queue in memory with the store.
_COMPARE = 20
#: Queued jobs that are read at once when the queue is rebuilt.
_PAGE = 100
#: Seconds between two tries to deliver the rest of a job that has ended, doubled up to the most.
_DELIVER, _DELIVER_MOST = 0.5, 4.0


class JobController(JobRequests):
    """``driver_for(compute name)`` gives the driver; ``environment(job)`` the addresses that ranks need.

    ``prepare`` are called with (folder, spec) on a thread before each attempt, to put there what the job needs,
    ``removed`` with the spec of a job that is gone.
    """

    period = 0.5

    def __init__(
        self,
        home: Path,
        recorder: RunRecorder,
        driver_for: Callable[[str], ComputeDriver],
        environment: Callable[[Resource], dict[str, str]],
        shipper: JournalShipper,
    ) -> None:
        super().__init__(home, recorder, driver_for)
        self._environment = environment
        self.shipper = shipper
        self.prepare: list[Callable[[Path, JobSpec], None]] = []
        self.removed: list[Callable[[dict[str, Any]], Awaitable[None]]] = []
        self._loaded = False
        self._rounds = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._look: Callable[[], Awaitable[tuple[list[str], list[str], list[str], list[Key]]]] | None = None

    def changed(self, name: str) -> None:
        """Look at a job now; may be called from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.wake, "", name)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        super().start()

    async def active(self) -> list[Key]:
        compare = self._rounds % _COMPARE == 0
        self._rounds += 1
        if not self._loaded:
            await self._load()
            self._dispatch()

        if self._look is None:
            self._look = self.workspace.store.glance(lambda tx: (
                tx.names("job", _HOLDING), tx.names("job", ["Finalizing"]), tx.names("job", ["Queued"]),
                tx.deleting_keys("job")))
        live, ended, queued, deleting = await self._look()
        queued = queued if compare else []
        for name in self._pace.ended(ended):
            self.wake("", name)
        if compare:  # those that only one of both knows are looked at, each by itself
            known = set(self.slots.names())
            live = live + sorted(known.difference(live, queued)) + [name for name in queued if name not in known]
        names = self._pace.wanted([*live, *self.slots.granted])
        return [*(("", name) for name in names), *deleting]

    async def _load(self) -> None:
        """Rebuild the queue from the store."""
        store = self.workspace.store
        running, _ = await store.read(lambda tx: tx.page("job", phases=_HOLDING, limit=10_000))
        for job in running:
            self.slots.hold(job)
        mark: int | None = None
        while True:
            page, mark = await store.read(partial(_queued_page, mark))
            for job in page:
                if not job.status.get("retry_at") and not job.status.get("stop_requested"):
                    self.slots.wait(job)
            if mark is None:
                break
        self._loaded = True

    def _dispatch(self) -> None:
        """Let those start whose turn it is."""
        if self._loaded:
            for name in self.slots.grant():
                self.wake("", name)

    def _release(self, name: str) -> None:
        if self.slots.release(name):
            self._dispatch()

    def computes_changed(self, computes: list[Resource]) -> None:
        """Told what computes there are, whenever one of them may have changed."""
        self.slots.resize(computes)
        self._dispatch()

    async def _set(self, name: str, changes: dict[str, Any]) -> Resource | None:
        """Every status that this controller writes. None: the job is gone.

        Raises:
            Conflict: the change of phase is not allowed.
        """

        def work(tx: Any) -> Resource | None:
            job = tx.find("job", name)
            if job is not None and "phase" in changes:
                check_transition(name, job.status["phase"], changes["phase"])
            return tx.set_status("job", name, changes)

        return await self.workspace.store.write(work)

    # -- one step ------------------------------------------------------------------------------------------------

    async def reconcile(self, parent: str, name: str) -> None:
        try:
            if self._pace.due(name):
                await self._reconcile(name)
        finally:
            for other in self._pace.looked_at(name):
                self.wake("", other)

    async def _reconcile(self, name: str) -> None:
        store = self.workspace.store
        job, deleting = await store.read(lambda tx: tx.look("job", name))
        if job is None or job.status["phase"] in TERMINAL:
            self._fresh.discard(name)
            self._pace.forget(name)
            self._release(name)
            if job is not None and deleting:
                await self._remove(job)
            return
        if not self._loaded:
            return
        spec = JobSpec.model_validate(job.spec)
        phase = job.status["phase"]
        if phase == "Finalizing":
            self._release(name)
            await self._conclude(job, AttemptStatus.model_validate(job.status["outcome"]), {})
            return
        try:
            driver = self._driver_for(spec.compute)
        except MlopsError as e:
            await self._fail(job, e.message)
            return
        if phase == "Queued":
            await self._queued(job, spec, driver)
        else:
            await self._observe(job, spec, driver)

    async def _queued(self, job: Resource, spec: JobSpec, driver: ComputeDriver) -> None:
        name, attempt = job.name, int(job.status.get("attempt") or 0)
        if job.status.get("stop_requested"):
            await self._cancel(job, spec)
            return
        if job.status.get("retry_at") and name not in self.slots:
            if not self._pace.paused(name):
                # Once: a clock that is set meanwhile delays nothing.
                pause = tries.epoch(job.status["retry_at"]) - datetime.now(UTC).timestamp()
                pause = min(max(pause, 0.0), tries.RETRY_MOST)
                asyncio.get_running_loop().call_at(self._pace.pause(name, pause), self.wake, "", name)
                if pause:
                    return
            self._pace.go_on(name)
        self.slots.wait(job)
        if name not in self.slots.granted:
            self._dispatch()
        if name in self.slots.granted:
            await self._launch(job, spec, driver, attempt + 1)

    async def _cancel(self, job: Resource, spec: JobSpec) -> None:
        """End a job that waits, and the run that it may have: we may have died right after making it."""
        attempt = int(job.status.get("attempt") or 0)
        if not job.status.get("run_id") and job.name not in self._fresh:
            try:
                job.status["run_id"] = await self._recorder.find_job_run(spec.experiment_name, job.name)
            except AWAY:
                return  # asked again at the next round
        reason = f"stopped before attempt {attempt + 1} started" if attempt else "stopped before it started"
        changes = {"run_id": job.status.get("run_id") or "", "exit_code": None, "failed_rank": None, "retry_at": ""}
        await self._conclude(job, tries.not_run(attempt, "Canceled", reason), changes)

    async def _launch(self, job: Resource, spec: JobSpec, driver: ComputeDriver, attempt: int) -> None:
        name, folder = job.name, self.ref(job.name).folder
        try:
            run = await self._run_of(job, spec, folder, attempt)
        except AWAY as e:
            await self._set(name, {"reason": f"waiting for MLflow: {e.message}"})
            return
        except MlopsError as e:
            await self._fail(job, f"MLflow refused the run: {e.message}")
            return
        try:
            artifacts = partial(put_artifacts, await find_artifacts(self._recorder, spec))
            await asyncio.to_thread(write_folder, folder, spec, run, [*self.prepare, artifacts])
        except AWAY as e:
            await self._set(name, {"reason": f"waiting for MLflow: {e.message}"})
            return
        except MlopsError as e:
            job.status.update(run_id=run["run_id"])
            await self._fail(job, e.message)
            return
        except OSError as e:  # a full disk: tried again at the next round
            await self._set(name, {"reason": f"the job's folder cannot be written: {e.strerror or e}"})
            return
        gpu_ids = list(self.slots.granted.get(name, ()))
        # The attempt is noted before the driver starts it: a crash between is put right by `absent` below.
        noted = await self._set(name, {
            "run_id": run["run_id"], "experiment_id": run["experiment_id"], "attempt": attempt, "phase": "Starting",
            "reason": "starting", "retry_at": "", "gpu_ids": gpu_ids, "started_at": "", "ended_at": "", "ranks": [],
            "exit_code": None, "failed_rank": None, "log_tail": [], "traceback": [], "outcome": None,
        })
        if noted is None:
            self._release(name)
            return
        self.slots.granted.pop(name, None)
        self._fresh.discard(name)
        self._watch_journal(noted)
        try:
            await self._start(noted, spec, driver)
        except MlopsError as e:
            await self._fail(noted, e.message)

    async def _run_of(self, job: Resource, spec: JobSpec, folder: Path, attempt: int) -> dict[str, Any]:
        """Facts of the job's run, which goes on from here."""
        run_id = job.status.get("run_id")
        if run_id:
            if attempt > 1 and attempt == int(job.status.get("resumed_after") or 0) + 1:
                await self._recorder.reopen_run(run_id)
            known = jobfolder.JobFolder(folder).run()
            return known if known.get("run_id") == run_id else await self._recorder.job_run(run_id)
        tags = await asyncio.to_thread(context.describe, Blobs(self._home), spec)
        fresh = job.name in self._fresh
        self._fresh.discard(job.name)
        return await self._recorder.create_job_run(
            spec.experiment_name, job.name, spec.display_name or job.name, tags, job.created_by, fresh
        )

    async def _start(self, job: Resource, spec: JobSpec, driver: ComputeDriver) -> None:
        grant = Grant(tuple(job.status.get("gpu_ids") or ()), tries.time_left(job.status, spec))
        await asyncio.to_thread(
            driver.start, self.ref(job.name), int(job.status["attempt"]), self._environment(job), grant
        )

    def _watch_journal(self, job: Resource) -> None:
        if job.status.get("run_id") and job.status.get("attempt"):
            self.shipper.watch(job.name, job.status["run_id"], self.ref(job.name).folder)

    async def _observe(self, job: Resource, spec: JobSpec, driver: ComputeDriver) -> None:
        name, ref, attempt = job.name, self.ref(job.name), int(job.status.get("attempt") or 1)
        self._watch_journal(job)
        seen = await asyncio.to_thread(driver.observe, ref, attempt)
        stop = job.status.get("stop_requested")
        if seen.phase == "running" and job.status["phase"] == "Running" and not stop:
            self._pace.runs(name, getattr(driver, "calm", CALM))
        if seen.phase == "absent":
            # Noted, but the driver was not reached before we died: starting is idempotent. What shall end is first
            # marked as such, so that none of its code runs.
            if stop:
                await asyncio.to_thread(driver.stop, ref, attempt, spec.limits.grace)
            try:
                await self._start(job, spec, driver)
            except MlopsError as e:
                await self._fail(job, e.message)
                return
            seen = await asyncio.to_thread(driver.observe, ref, attempt)
        if stop and not seen.terminal and seen.phase != "stopping":
            await asyncio.to_thread(driver.stop, ref, attempt, spec.limits.grace)
            await self._set(name, {"phase": "Stopping", "reason": "stopping"})
            return
        changes: dict[str, Any] = {"started_at": tries.iso(seen.started_at), "ranks": tries.ranks(seen)}
        if seen.route:
            changes["route"] = seen.route
        phase = tries.PHASES.get(seen.phase, "Starting")
        if not seen.terminal:
            if job.status["phase"] != "Stopping" or phase == "Stopping":  # what was noted last is nearer the end
                phase = "Running" if phase == "Starting" and job.status["phase"] == "Running" else phase
                changes.update(phase=phase, reason=seen.reason)
            if any(job.status.get(field) != value for field, value in changes.items()):
                await self._set(name, changes)
            return
        changes.update(exit_code=seen.exit_code, failed_rank=seen.failed_rank)
        if seen.incomplete:
            changes["metrics_incomplete"] = True
        if phase == "Failed":
            changes["traceback"] = [line[:500] for line in seen.traceback]
            changes["log_tail"] = await asyncio.to_thread(tries.log_tail, driver, ref, attempt, seen.failed_rank or 0)
        elif phase == "Completed" and spec.cell is not None and spec.cell.returns:
            changes["returned"] = await asyncio.to_thread(returned, ref.folder)
        ended = tries.outcome(attempt, seen)
        pause = tries.retry_pause(job.status, spec, ended, seen.cause)
        if pause is None:
            await self._conclude(job, ended, changes)
            return
        what = "had to make room" if seen.cause == "preempted" else "failed"
        reason = f"attempt {attempt} {what}: {seen.reason}; attempt {attempt + 1} in {pause:g} s"
        due = datetime.now(UTC).timestamp() + pause
        self._release(name)
        await self._set(name, {
            **changes, "phase": "Queued", "reason": reason[:2000], "retry_at": tries.iso(due), "ranks": [],
            "attempts": tries.added(job.status.get("attempts") or [], ended.model_dump()),
        })
        self.wake("", name)

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _fail(self, job: Resource, reason: str) -> None:
        """End a job whose attempt could not be started."""
        run = {"run_id": job.status.get("run_id") or ""}
        await self._conclude(job, tries.not_run(int(job.status.get("attempt") or 0), "Failed", reason), run)

    async def _conclude(self, job: Resource, ended: AttemptStatus, changes: dict[str, Any]) -> None:
        """Nothing of the job runs: first MLflow hears of all that it logged, then of its end, then our own status says
        so. A crash between repeats what was not noted."""
        name = job.name
        self._release(name)
        waits = ""
        try:
            run_id = changes.get("run_id") or job.status.get("run_id")
            if run_id and ended.attempt:
                self.shipper.know(name, run_id, self.ref(name).folder)
                if not await self.shipper.drain(name):
                    waits = "what it logged waits for MLflow"
            if run_id and not waits:
                end = int(tries.epoch(ended.ended_at) * 1000)
                incomplete = bool(changes.get("metrics_incomplete") or job.status.get("metrics_incomplete"))
                await self._recorder.finish_run(run_id, RUN_STATUS[ended.phase], ended.reason, end, incomplete)
        except NotFound:
            pass  # the run was deleted meanwhile: the job's own end stands
        except AWAY as e:
            waits = f"waits for MLflow: {e.message}"
        except MlopsError as e:
            log.warning("job %s: MLflow does not take its end: %s", name, e)
        delivery = self.shipper.status(name)
        final = {**changes, "outcome": ended.model_dump()}
        if any(delivery.values()):
            final["delivery"] = delivery
        if waits:
            pending = int(delivery.get("pending") or 0)
            if pending:
                waits = f"{max(pending / 1000, 0.1):.{0 if pending >= 10_000 else 1}f} kB wait for MLflow"
            final.update(phase="Finalizing", reason=f"{ended.phase.lower()}; {waits}"[:2000])
            self._pace.back_off(name, _DELIVER, _DELIVER_MOST)
        else:
            final.update(phase=ended.phase, reason=ended.reason, ended_at=ended.ended_at)
            self._pace.forget(name)
        await self._set(name, final)
        if not waits:
            self._fresh.discard(name)
            self.shipper.forget(name)

    async def _remove(self, job: Resource) -> None:
        try:
            driver = self._driver_for(job.spec.get("compute", "local"))
            await asyncio.to_thread(driver.delete, self.ref(job.name))
        except NotFound:
            pass
        self.shipper.forget(job.name)
        await asyncio.to_thread(remove_folder, self.ref(job.name).folder)
        await self.workspace.store.write(lambda tx: tx.remove("job", job.name))
        for removed in self.removed:
            await removed(job.spec)


def _queued_page(mark: int | None, tx: Any) -> tuple[list[Resource], int | None]:
    return tx.page("job", phases=["Queued"], limit=_PAGE, before=mark)
