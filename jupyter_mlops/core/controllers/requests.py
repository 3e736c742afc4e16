"""What users ask of jobs: to run one, whether it would run, to stop it, to go on with it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...compute.base import ComputeDriver, JobRef
from ..errors import BackendTimeout, BackendUnreachable, Conflict, NotFound, Refused, Unavailable
from ..identity import SYSTEM, Identity
from ..resources.base import Resource, utcnow
from ..resources.job import TERMINAL, JobSpec, JobStatus, check_transition
from . import attempts as tries
from .base import Controller
from .folder import find_artifacts
from .pace import Pace
from .recorder import RunRecorder
from .slots import Slots

#: MLflow is away for now: what was asked of it is asked again.
AWAY = (Unavailable, BackendUnreachable, BackendTimeout)


class JobRequests(Controller):
    """Answers at once; what follows is the controller's. ``check`` are called with a new spec, to refuse it.

    Args:
        home: the workspace's folder.
        driver_for: gives the driver of a compute by its name.
    """

    kind = "job"

    def __init__(self, home: Path, recorder: RunRecorder, driver_for: Callable[[str], ComputeDriver]) -> None:
        super().__init__()
        self._home = home
        self._recorder = recorder
        self._driver_for = driver_for
        self.check: list[Callable[[JobSpec], None]] = []
        self.slots = Slots()
        self._pace = Pace()
        #: Jobs that were submitted to this process: nobody can have made their run before.
        self._fresh: set[str] = set()

    def ref(self, name: str) -> JobRef:
        """The job as drivers see it."""
        return JobRef(name, self._home / "jobs" / name)

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
        await self._check(spec)
        for check in self.check:
            await asyncio.to_thread(check, spec)
        with contextlib.suppress(*AWAY):  # then they are looked for when the job starts
            await find_artifacts(self._recorder, spec)
        self._fresh.add(name)
        status = JobStatus(phase="Queued", reason="waiting to start", queued_at=utcnow())
        return status.model_dump(), {}, {}

    async def _check(self, spec: JobSpec) -> None:
        plain = spec.model_dump()
        await asyncio.to_thread(self._driver_for(spec.compute).check, plain)
        lacking = self.slots.lacks(spec.compute, plain)
        if lacking:
            raise Refused(f"the job {lacking} on compute {spec.compute!r}", "ask for less, or choose another compute")

    async def preview(self, name: str, spec: JobSpec) -> dict[str, Any]:
        """Whether a job would run, and what is in the way: ``{"fits", "reasons", "manifest", "instances",
        "price_per_hour"}``. Makes nothing; ``fits`` is None where it cannot be known.

        Raises:
            BackendUnreachable, BackendTimeout: the compute does not answer.
        """
        known = {"fits": True, "reasons": [], "manifest": None, "instances": spec.resources.instance_count,
                 "price_per_hour": None}
        plain = spec.model_dump()
        try:
            driver = self._driver_for(spec.compute)
            await self._check(spec)
            with contextlib.suppress(*AWAY):
                await find_artifacts(self._recorder, spec)
        except (Refused, NotFound) as error:
            return {**known, "fits": False, "reasons": [error.message]}
        ask = getattr(driver, "preview", None)  # only where there is somebody to ask
        if ask is not None:
            found: dict[str, Any] = await asyncio.to_thread(ask, name, plain, spec.limits.timeout)
            return found
        usage = self.slots.usage(spec.compute)
        waiting = int(usage.get("queued_jobs") or 0)
        if waiting:
            known["reasons"] = [f"{waiting} {'job waits' if waiting == 1 else 'jobs wait'} for the same compute"]
        return known

    async def request_stop(self, name: str, identity: Identity = SYSTEM) -> Resource:
        """Note that the job shall end; one whose ranks have ended stays as it is."""

        def work(tx: Any) -> Resource:
            job = tx.get("job", name)
            if job.status.get("phase") in (*TERMINAL, "Finalizing") or job.status.get("stop_requested"):
                return job
            tx.audit(identity, "jobs/write", f"jobs/{name}", {"op": "stop"})
            return tx.set_status("job", name, {"stop_requested": True})

        job = await self.workspace.store.write(work)
        self._pace.go_on(name)
        self.wake("", name)
        return job

    async def request_resume(self, name: str, identity: Identity = SYSTEM) -> Resource:
        """Queue a further attempt of a job that failed or was canceled, under the same run.

        ``limits.timeout`` and ``max_retries`` are counted anew.

        Raises:
            Conflict: it has not ended, has completed, or it, its folder or its run is deleted.
            Refused: it cannot run here any more.
        """
        job = await self.workspace.store.read(lambda tx: tx.get("job", name))
        tries.check_resumable(job, self.ref(name).folder)
        if job.status.get("run_id"):
            try:
                await self._recorder.job_run(job.status["run_id"])
            except NotFound:
                raise Conflict(f"the MLflow run of job {name!r} is deleted", "restore it, or submit the job again")
        await self._check(JobSpec.model_validate(job.spec))

        def work(tx: Any) -> Resource:
            job = tx.get("job", name)
            tries.check_resumable(job, self.ref(name).folder)
            if tx.deleting("job", name):
                raise Conflict(f"job {name!r} is being removed", "submit it again")
            check_transition(name, job.status["phase"], "Queued")
            tx.audit(identity, "jobs/write", f"jobs/{name}", {"op": "resume"})
            attempt, ended = int(job.status.get("attempt") or 0), job.status.get("outcome")
            return tx.set_status("job", name, {
                "phase": "Queued", "reason": f"resumed: waiting for attempt {attempt + 1}", "queued_at": utcnow(),
                "stop_requested": False, "retry_at": "", "ended_at": "", "outcome": None, "resumed_after": attempt,
                "attempts": tries.added(job.status.get("attempts") or [], ended),
            })

        job = await self.workspace.store.write(work)
        self.wake("", name)
        return job
