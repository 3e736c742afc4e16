"""Job controller: run created, folder written, driver started, end told to MLflow; the same code after a crash."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from ...compute.base import ComputeDriver, JobRef, Observation
from ..errors import BackendTimeout, BackendUnreachable, MlopsError, NotFound, Refused, Unavailable
from ..identity import Identity
from ..resources.base import Resource, utcnow
from ..resources.job import ACTIVE, RUN_STATUS, TERMINAL, JobSpec, JobStatus
from .base import Controller, Key

_PHASES = {
    "starting": "Starting", "running": "Running", "stopping": "Stopping", "completed": "Completed",
    "failed": "Failed", "canceled": "Canceled",
}
#: Bytes of the failing rank's log from which the last lines are kept in the status.
_TAIL_BYTES = 8192
_TAIL_LINES = 20


class RunRecorder(Protocol):
    """Where runs are kept (MLflow)."""

    async def create_job_run(
        self, experiment: str, job: str, name: str, tags: dict[str, str], user: str
    ) -> tuple[str, str]:
        """(run id, experiment id) of the job's run; the same one when asked again for the same job."""

    async def find_job_run(self, experiment: str, job: str) -> str:
        """That run, when it was made and goes on; else empty."""

    async def finish_run(self, run_id: str, status: str, reason: str, end_time_ms: int | None) -> None:
        """Set the terminal status of a run."""


def iso(seconds: float | None) -> str:
    """Seconds since the epoch as RFC 3339 in UTC; empty for None."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class JobController(Controller):
    """``driver_for(compute name)`` gives the driver; ``environment(job)`` the addresses that ranks need."""

    kind = "job"
    period = 0.5

    def __init__(
        self,
        home: Path,
        recorder: RunRecorder,
        driver_for: Callable[[str], ComputeDriver],
        environment: Callable[[Resource], dict[str, str]],
    ) -> None:
        super().__init__()
        self._home = home
        self._recorder = recorder
        self._driver_for = driver_for
        self._environment = environment

    def ref(self, name: str) -> JobRef:
        """The job as drivers see it."""
        return JobRef(name, self._home / "jobs" / name)

    async def active(self) -> list[Key]:
        def work(tx: Any) -> list[Key]:
            live, _ = tx.page("job", phases=ACTIVE, limit=10_000)
            return [("", r.name) for r in live] + tx.deleting_keys("job")

        return await self.workspace.store.read(work)

    async def admit(
        self, parent: str, name: str, spec: JobSpec, identity: Identity
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        compute = await self.workspace.store.read(lambda tx: tx.find("compute", spec.compute))
        if compute is None:
            raise Refused(f"compute {spec.compute!r} does not exist", "`local` is always there")
        most = int(compute.spec.get("max_processes") or 0)
        if most and spec.processes > most:
            raise Refused(
                f"{spec.processes} processes are more than compute {spec.compute!r} allows ({most})",
                f"use --processes {most} or fewer",
            )
        if self.ref(name).folder.exists():
            raise Refused(f"the folder of an earlier job {name!r} still exists", "choose another name")
        await asyncio.to_thread(self._driver_for(spec.compute).check, spec.model_dump())
        status = JobStatus(phase="Queued", reason="waiting to start", queued_at=utcnow())
        return status.model_dump(), {}, {}

    async def request_stop(self, name: str) -> Resource:
        """Note that the job shall end; a job that has ended stays as it is."""

        def work(tx: Any) -> Resource:
            job = tx.get("job", name)
            if job.status.get("phase") in TERMINAL or job.status.get("stop_requested"):
                return job
            return tx.set_status("job", name, {"stop_requested": True})

        job = await self.workspace.store.write(work)
        self.wake("", name)
        return job

    # -- one step ------------------------------------------------------------------------------------------------

    async def reconcile(self, parent: str, name: str) -> None:
        store = self.workspace.store
        job, deleting = await store.read(lambda tx: (tx.find("job", name), tx.deleting("job", name)))
        if job is None:
            return
        phase = job.status.get("phase")
        if phase in TERMINAL:
            if deleting:
                await self._remove(job)
            return
        spec = JobSpec.model_validate(job.spec)
        try:
            driver = self._driver_for(spec.compute)
        except MlopsError as e:
            await self._end(job, "Failed", e.message)
            return
        attempt = int(job.status.get("attempt") or 0)
        if attempt == 0:
            if job.status.get("stop_requested"):
                await self._cancel(job, spec)
                return
            attempt = await self._launch(job, spec, driver)
            if not attempt:
                return
            job = await store.read(lambda tx: tx.get("job", name))
        ref = self.ref(name)
        seen = await asyncio.to_thread(driver.observe, ref, attempt)
        if seen.phase == "absent":
            # Noted, but the driver was not reached before we died: starting is idempotent. What shall end is first
            # marked as such, so that none of its code runs.
            if job.status.get("stop_requested"):
                await asyncio.to_thread(driver.stop, ref, attempt, spec.limits.grace)
            try:
                await asyncio.to_thread(driver.start, ref, attempt, self._environment(job))
            except MlopsError as e:
                await self._end(job, "Failed", e.message)
                return
            seen = await asyncio.to_thread(driver.observe, ref, attempt)
        if job.status.get("stop_requested") and not seen.terminal and seen.phase != "stopping":
            await asyncio.to_thread(driver.stop, ref, attempt, spec.limits.grace)
            await store.write(lambda tx: tx.set_status("job", name, {"phase": "Stopping", "reason": "stopping"}))
            return
        await self._note(job, seen, driver)

    async def _cancel(self, job: Resource, spec: JobSpec) -> None:
        """End a job that has not started, and the run that it may have: we may have died right after making it."""
        if not job.status.get("run_id"):
            try:
                job.status["run_id"] = await self._recorder.find_job_run(spec.experiment_name, job.name)
            except (Unavailable, BackendUnreachable, BackendTimeout):
                return  # asked again at the next round
        run = {"run_id": job.status["run_id"]}
        await self._end(job, "Canceled", "stopped before it started", changes=run)

    async def _launch(self, job: Resource, spec: JobSpec, driver: ComputeDriver) -> int:
        name, store = job.name, self.workspace.store
        if not job.status.get("run_id"):
            tags = dict(spec.tags)
            if spec.cell is not None:
                tags["mlflow.source.name"] = spec.cell.notebook or "notebook cell"
                tags["mlflow.source.type"] = "NOTEBOOK" if spec.cell.notebook else "LOCAL"
            else:
                tags["mlflow.source.name"] = spec.script or spec.command or ""
                tags["mlflow.source.type"] = "LOCAL"
            try:
                run_id, experiment_id = await self._recorder.create_job_run(
                    spec.experiment_name, name, spec.display_name or name, tags, job.created_by
                )
            except (Unavailable, BackendUnreachable, BackendTimeout) as e:
                waiting = {"reason": f"waiting for MLflow: {e.message}"}
                await store.write(lambda tx: tx.set_status("job", name, waiting))
                return 0
            except MlopsError as e:
                await self._end(job, "Failed", f"MLflow refused the run: {e.message}")
                return 0
            job.status.update(run_id=run_id, experiment_id=experiment_id)
        await asyncio.to_thread(self._write_folder, name, spec)
        # The attempt is noted before the driver starts it: a crash between is put right by `absent` above.
        run = {key: job.status[key] for key in ("run_id", "experiment_id")}
        noted = await store.write(
            lambda tx: tx.set_status("job", name, {**run, "attempt": 1, "phase": "Starting", "reason": "starting"})
        )
        if noted is None:
            return 0
        try:
            await asyncio.to_thread(driver.start, self.ref(name), 1, self._environment(noted))
        except MlopsError as e:
            await self._end(noted, "Failed", e.message)
            return 0
        return 1

    def _write_folder(self, name: str, spec: JobSpec) -> None:
        folder = self.ref(name).folder
        for sub in ("", "code", "outputs", "attempts"):
            (folder / sub).mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = folder / f".spec.{os.getpid()}"
        temporary.write_text(json.dumps(spec.model_dump(), indent=1), encoding="utf-8")
        temporary.chmod(0o600)
        temporary.replace(folder / "spec.json")

    async def _note(self, job: Resource, seen: Observation, driver: ComputeDriver) -> None:
        phase = _PHASES.get(seen.phase, "Starting")
        changes: dict[str, Any] = {
            "started_at": iso(seen.started_at),
            "ranks": [
                {"rank": r.rank, "phase": "Running" if r.running else ("Exited" if r.pid else "Starting"),
                 "pid": r.pid, "exit_code": r.exit_code}
                for r in seen.ranks
            ],
        }
        if not seen.terminal:
            changes.update(phase=phase, reason=seen.reason)
            await self.workspace.store.write(lambda tx: tx.set_status("job", job.name, changes))
            return
        changes.update(exit_code=seen.exit_code, failed_rank=seen.failed_rank)
        if phase == "Failed":
            rank = seen.failed_rank or 0
            changes["log_tail"] = await asyncio.to_thread(self._tail, driver, job.name, seen.attempt or 1, rank)
        await self._end(job, phase, seen.reason, seen.ended_at, changes)

    def _tail(self, driver: ComputeDriver, name: str, attempt: int, rank: int) -> list[str]:
        try:
            chunk = driver.read_log(self.ref(name), attempt, rank, -_TAIL_BYTES, _TAIL_BYTES)
        except MlopsError:
            return []
        text = chunk.data.decode("utf-8", "replace")
        # A progress bar rewrites its line with \r: only what was last shown counts.
        lines = [line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n")]
        return [line[:500] for line in lines if line.strip()][-_TAIL_LINES:]

    async def _end(
        self,
        job: Resource,
        phase: str,
        reason: str,
        ended: float | None = None,
        changes: dict[str, Any] | None = None,
    ) -> None:
        """MLflow hears of the end before our own status does, so that a crash between repeats both."""
        end = ended if ended is not None else datetime.now(UTC).timestamp()
        run_id = job.status.get("run_id")
        if run_id:
            try:
                await self._recorder.finish_run(run_id, RUN_STATUS[phase], reason, int(end * 1000))
            except NotFound:
                pass  # the run was deleted meanwhile: the job's own end stands
        final = {**(changes or {}), "phase": phase, "reason": reason, "ended_at": iso(end)}
        await self.workspace.store.write(lambda tx: tx.set_status("job", job.name, final))

    async def _remove(self, job: Resource) -> None:
        try:
            driver = self._driver_for(job.spec.get("compute", "local"))
            await asyncio.to_thread(driver.delete, self.ref(job.name))
        except NotFound:
            pass
        await asyncio.to_thread(shutil.rmtree, self.ref(job.name).folder, True)
        await self.workspace.store.write(lambda tx: tx.remove("job", job.name))
