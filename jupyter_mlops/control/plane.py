"""The control plane: all parts of one workspace put together."""

from __future__ import annotations

import asyncio
import getpass
import json
import logging
import os
import time
from collections.abc import Awaitable
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from ..compute.base import ComputeDriver
from ..compute.kubernetes.clusters import JobClusters
from ..core import context
from ..core.blobs import Blobs, named_by, needed_blobs, put_inputs
from ..core.controllers import CanaryController, DeploymentController, EndpointController, JobController
from ..core.errors import BackendTimeout, BackendUnreachable, MlopsError, NotFound, Refused, Unauthenticated
from ..core.identity import SYSTEM, Identity
from ..core.resources import ACTIVE, TERMINAL
from ..core.resources.base import Resource, utcnow
from ..core.retention import RetentionSweep
from ..core.store import Store, Transaction
from ..core.workspace import Workspace
from ..runtime import locate
from ..serving.kubernetes.clusters import Clusters
from ..serving.local import LocalServing
from ..tracking.child import MlflowChild
from ..tracking.orphans import Orphans
from ..tracking.proxy import Proxy
from ..tracking.shipper import Shipper
from ..tracking.views import MlflowViews
from .boards import Boards
from .captured import CapturedData
from .exporting import Exporter
from .feed import Feed
from .tokens import Tokens

log = logging.getLogger(__name__)
T = TypeVar("T")

#: Seconds between rounds of housekeeping.
_HOUSEKEEPING = 5.0
#: Seconds between looks at what retention allows, and until the first one.
_SWEEP, _FIRST_SWEEP = 600.0, 30.0
#: Seconds for which facts about a machine are believed.
_FACTS_LIFE = 10.0
#: Seconds that a gateway that is needed may be away until it counts as failed: it is started by itself.
_GATEWAY_START = 15.0


def user_name() -> str:
    """On whose behalf this workspace works: the hub's user, else the account's name."""
    name = os.environ.get("JUPYTERHUB_USER")
    if name:
        return name
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return str(os.getuid())


def _set_compute(name: str, status: dict[str, Any], tx: Transaction) -> Resource | None:
    return tx.set_status("compute", name, status)


class ControlPlane:
    """Owns store, MLflow child, controllers; :meth:`start` and :meth:`stop` are its life."""

    def __init__(self, place: locate.Place, version: str, mlflow: MlflowChild, idle: float) -> None:
        self.place = place
        self.name = place.name
        self.version = version
        self.user = user_name()
        self.started_at = utcnow()
        self.port = 0
        self.mlflow = mlflow
        self.idle = idle
        home = Path(place.home)
        self.home = home
        self.store = Store(home / "store.db")
        self.feed = Feed(self.store)
        self.tokens = Tokens(self.store)
        self.views = MlflowViews(mlflow)
        self.serving = LocalServing(home, Path(locate.private_dir(place.runtime_dir)))
        self.clusters = Clusters(self.serving, place.name)
        self.workspace = Workspace(place.name, home, self.store)
        self.orphans = self.views.orphans = Orphans(self.views.api, self.tokens.holder)
        self.shipper = Shipper(self.views.api, lambda job: self.feed.touch("run"))
        self.jobs = JobController(home, self.views, self.driver_for, self.job_environment, self.shipper)
        self.job_clusters = JobClusters(home, place.name, self.jobs.changed)
        self.blobs = Blobs(home)
        self.endpoints = EndpointController(self.serving_for)
        self.deployments = DeploymentController(self.serving_for, self.views, self.blobs)
        for controller in (self.jobs, self.endpoints, self.deployments, CanaryController(self.serving_for)):
            self.workspace.add(controller)
        self.jobs.check.append(self.blobs.require_all)
        self.jobs.prepare += [partial(put_inputs, self.blobs), context.deliver]
        self.jobs.removed.append(self._forget_blobs)
        self.retention = RetentionSweep(
            home, self.store, lambda name: self.jobs.ref(name).folder, partial(self.workspace.purge, SYSTEM)
        )
        self.captured = CapturedData(home)
        self.exporter = Exporter(self)
        self.boards = Boards(place.runtime_dir, home / "logs" / "tensorboard.log")
        self._swept_at = time.monotonic() + _FIRST_SWEEP - _SWEEP
        self.exit = asyncio.Event()
        self._drivers: dict[str, ComputeDriver] = {}
        self._computes: dict[str, str] = {"local": "local"}
        #: job → its run, for job tokens
        self._job_runs: dict[str, str] = {}
        self._facts_at = 0.0
        #: When a gateway that is needed was first missed; None while it is there.
        self._gateway_missed: float | None = None
        self._busy_at = time.monotonic()
        self._tasks: list[asyncio.Task[None]] = []
        self._background: set[asyncio.Task[Any]] = set()

    @property
    def url(self) -> str:
        """Base of our routes on loopback."""
        return locate.url_for(self.port)

    # -- life ------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to converge; the store is open and the port known."""
        await self.tokens.load()
        self.mlflow.on_state = self._mlflow_changed
        self.workspace.on_gateway = self._gateway_changed
        await self.workspace.ensure_local_compute({})
        await self.refresh_computes()
        self.shipper.start()
        self.workspace.start()
        self._tasks = [
            asyncio.create_task(self._housekeeping()), asyncio.create_task(self._close_intents()),
            asyncio.create_task(self.orphans.run()),
        ]

    async def stop(self) -> None:
        """Leave everything durable; jobs and endpoints go on."""
        for task in self._tasks:
            task.cancel()
        # Whoever waits for a change or for MLflow is answered while the store is still open.
        self.feed.release()
        self.mlflow.on_state = None
        await asyncio.gather(
            self.mlflow.stop(), self.workspace.stop(), self.shipper.stop(), self.captured.stop(), self.boards.stop()
        )
        await asyncio.to_thread(self.job_clusters.close)
        if not await self.store.read(lambda tx: tx.count("endpoint")):
            await asyncio.to_thread(self.serving.stop_gateway)
        await self.feed.close()
        await self.tokens.prune()
        self.store.close()

    def request_exit(self) -> None:
        """End soon: the answer that is under way still goes out."""
        asyncio.get_running_loop().call_later(0.1, self.exit.set)

    def _mlflow_changed(self, child: MlflowChild) -> None:
        task = asyncio.ensure_future(self.feed.note("workspace", child.state))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _gateway_changed(self, gateway: dict[str, Any]) -> None:
        await self.feed.note("workspace", "gateway")

    async def _housekeeping(self) -> None:
        while True:
            await asyncio.sleep(min(_HOUSEKEEPING, max(0.2, self.idle / 4)))
            try:
                await self.tokens.prune()
                await self.feed.prune()
                self.captured.sweep()
                await self.boards.sweep()
                if time.monotonic() - self._swept_at > _SWEEP:
                    self._swept_at = time.monotonic()
                    await self.retention.sweep()
                    await asyncio.to_thread(self.blobs.sweep, await self.store.read(needed_blobs))
                if await self._wanted():
                    self._busy_at = time.monotonic()
                elif time.monotonic() - self._busy_at > self.idle:
                    log.info("idle for %.0f s: ending", self.idle)
                    self.exit.set()
            except Exception:
                log.exception("housekeeping failed")

    async def _forget_blobs(self, spec: dict[str, Any]) -> None:
        """What was uploaded for a job goes with it, unless a waiting one needs the same."""
        gone = named_by(spec)
        if gone:
            for digest in gone - await self.store.read(needed_blobs):
                await asyncio.to_thread(self.blobs.remove, digest)

    async def _wanted(self) -> bool:
        """Whether anybody needs us: a token holder, a waiter, an active job, an endpoint. Calls count by themselves."""
        if self.tokens.holders(exclude=os.getpid()) or self.feed.waiting:
            return True

        def work(tx: Any) -> bool:
            return bool(tx.count("job", without=tuple(TERMINAL)) or tx.count("endpoint"))

        return await self.store.read(work)

    async def _close_intents(self) -> None:
        """Changes that passed to MLflow when somebody died: find out what became of them."""
        left = await self.store.open_intents()
        while left and not await self.mlflow.ready(60):
            pass
        if left:
            await Proxy(self.store, self.views.api).settle(left)

    # -- callers ---------------------------------------------------------------------------------------------------

    def identify(self, token: str) -> Identity:
        """The caller behind a token. Raises Unauthenticated."""
        identity = self.tokens.check(token)
        self._busy_at = time.monotonic()  # also for callers whose process cannot be seen from here
        if identity.role == "job":
            run_id = self._job_runs.get(identity.job)
            if run_id is None:
                raise Unauthenticated(f"job {identity.job!r} does not exist any more")
            return Identity(identity.user, "job", identity.job, run_id, identity.token_id)
        return identity

    async def issue_token(self, pid: int | None, role: str, job: str) -> str:
        """A token for a local process, or for a job's process the job's own.

        Raises:
            NotFound: no such job.
        """
        if job:
            found = await self.store.read(lambda tx: tx.get("job", job))
            self._job_runs[job] = found.status.get("run_id", "")
            return await self.tokens.issue(user=found.created_by, role="job", pid=pid, job=job)
        if role == "job":
            raise Refused("a job token needs the job's name")
        return await self.tokens.issue(user=self.user, role=role, pid=pid)

    async def remember_jobs(self) -> None:
        """Read the runs of jobs whose tokens outlived a restart."""

        def work(tx: Any) -> dict[str, str]:
            live, _ = tx.page("job", phases=ACTIVE[1:], limit=10_000)  # no process of a queued one runs
            return {j.name: j.status.get("run_id", "") for j in live}

        self._job_runs.update(await self.store.read(work))

    async def audited(
        self, identity: Identity, action: str, resource: str, detail: dict[str, Any], change: Awaitable[T], kind: str
    ) -> T:
        """Run a change that passes to MLflow between an intent and its outcome."""
        intent = await self.store.intent(None, identity, action, resource, detail)
        try:
            result = await change
        except MlopsError as e:
            await self.store.outcome(intent.id, "unknown" if e.status in (502, 504) else "failed")
            raise
        except BaseException:
            await self.store.outcome(intent.id, "unknown")
            raise
        await self.store.outcome(intent.id, "done")
        self.feed.touch(kind)
        return result

    # -- compute -----------------------------------------------------------------------------------------------------

    def driver_for(self, compute: str) -> ComputeDriver:
        """The driver of a compute.

        Raises:
            NotFound: no such compute, or its driver is not installed.
        """
        kind = self._computes.get(compute)
        if kind is None:
            raise NotFound(f"compute {compute!r} does not exist", "`local` is always there")
        if kind == "kubernetes" and (cluster := self.job_clusters.get(compute)) is not None:
            return cluster
        if kind not in self._drivers:
            if kind == "local":
                from ..compute.local import LocalCompute

                driver: ComputeDriver = LocalCompute()
            else:
                found = list(entry_points(group="jupyter_mlops.compute", name=kind))
                if not found:
                    raise NotFound(f"there is no compute driver {kind!r}", "install the extra that brings it")
                driver = found[0].load()()
            driver.subscribe(self.jobs.changed)
            self._drivers[kind] = driver
        return self._drivers[kind]

    def serving_for(self, compute: str) -> Any:
        """The serving driver of a compute; empty: this machine's.

        Raises:
            NotFound: nothing serves there.
        """
        if compute in ("", "local"):
            return self.serving
        cluster = self.clusters.get(compute)
        if cluster is None:
            raise NotFound(f"compute {compute!r} does not serve endpoints", "`local` always does")
        return cluster

    async def refresh_computes(self) -> None:
        """Bring the facts of computes up to date, at most every few seconds, and their slots with them."""
        computes, _ = await self.store.read(lambda tx: tx.page("compute", limit=1000))
        self._computes = {c.name: c.spec["type"] for c in computes}
        self.clusters.take(computes)
        self.job_clusters.take(computes)
        stale = time.monotonic() - self._facts_at > _FACTS_LIFE or not self._facts_at
        for index, compute in enumerate(computes):
            status: dict[str, Any] = {"phase": "Ready", "reason": ""}
            if compute.spec["type"] == "kubernetes":
                status.update(self.clusters.facts(compute.name))
            elif stale or "cpus" not in compute.status:
                try:
                    status.update(await asyncio.to_thread(self.driver_for(compute.name).facts))
                except MlopsError as e:
                    status.update(phase="Unreachable", reason=e.message)
            if any(compute.status.get(k) != v for k, v in status.items()):
                changed = await self.store.write(partial(_set_compute, compute.name, status))
                computes[index] = changed or compute
        if stale:
            self._facts_at = time.monotonic()
        self.jobs.computes_changed(computes)

    def job_environment(self, job: Resource) -> dict[str, str]:
        """Addresses for the ranks of a job; no secret among them."""
        self._job_runs[job.name] = job.status.get("run_id", "")
        environment = {
            "JUPYTER_MLOPS_JOB": job.name,
            "JUPYTER_MLOPS_JOB_DIR": str(self.jobs.ref(job.name).folder),
            "JUPYTER_MLOPS_RUN_ID": job.status.get("run_id", ""),
            "JUPYTER_MLOPS_HOME": str(self.home),
            "JUPYTER_MLOPS_WORKSPACE": self.name,
            "JUPYTER_MLOPS_URL": self.url,
        }
        user = job.spec.get("environment_variables", {})
        if "MLFLOW_TRACKING_URI" not in user:
            environment["MLFLOW_TRACKING_URI"] = self.url + "/mlflow"
            environment["MLFLOW_EXPERIMENT_NAME"] = job.spec.get("experiment_name", "Default")
        return environment

    # -- the whole ---------------------------------------------------------------------------------------------------

    async def describe(self, identity: Identity) -> dict[str, Any]:
        """The body of ``GET workspaces/{ws}``."""

        def work(tx: Any) -> dict[str, int]:
            return {
                "jobs": tx.count("job"), "running_jobs": tx.count("job", without=tuple(TERMINAL)),
                "endpoints": tx.count("endpoint"), "computes": tx.count("compute"),
            }

        counts = await self.store.read(work)
        gateway = await asyncio.to_thread(self.serving.gateway_info)
        if gateway or not counts["endpoints"]:
            self._gateway_missed = None
        if gateway:
            state = {"state": "ready", **{k: gateway.get(k) for k in ("pid", "port", "url")}}
        elif not counts["endpoints"]:
            state = {"state": "stopped"}
        else:
            now = time.monotonic()
            self._gateway_missed = self._gateway_missed or now
            state = {"state": "starting" if now - self._gateway_missed < _GATEWAY_START else "failed"}
        return {
            "name": self.name, "version": self.version, "pid": os.getpid(), "owner": self.user,
            "role": identity.role, "started_at": self.started_at, "home": str(self.home), "url": self.url,
            "tracking_uri": self.url + "/mlflow", "mlflow": {
                k: getattr(self.mlflow, k) for k in ("state", "pid", "restarts", "version", "message")
            }, "gateway": state,
            "counts": counts,
        }

    async def stop_all(self, identity: Identity) -> dict[str, list[str]]:
        """Stop every job and take every endpoint down, wherever it runs; their records stay.

        ``left`` says, a line each, what could not be stopped.
        """

        def work(tx: Any) -> tuple[list[str], list[tuple[str, str, str]]]:
            computes = {e.name: e.spec.get("compute") or "" for e in tx.page("endpoint", limit=10_000)[0]}
            deployments, _ = tx.page("deployment", limit=10_000)
            return tx.names("job", ACTIVE), [(computes.get(d.parent, ""), d.parent, d.name) for d in deployments]

        jobs, deployments = await self.store.read(work)
        for name in jobs:
            await self.jobs.request_stop(name)
        deadline = time.monotonic() + 30
        running = jobs
        while running and time.monotonic() < deadline:
            await asyncio.sleep(0.1)
            running = [name for name in (await self.store.read(work))[0] if name in jobs]
        left = [f"job {name} has been asked to stop, and goes on" for name in running]
        for kind in ("canary", "endpoint", "deployment"):
            await self.workspace.controllers[kind].stop()
        what = [(c, e, f"deployment {d} of endpoint {e}", d) for c, e, d in deployments]
        what += [(c, e, f"the gateway of endpoint {e}", "")
                 for c, e in sorted({(c, e) for c, e, _ in deployments if c not in ("", "local")})]
        stopped: set[str] = set()
        away: dict[str, MlopsError] = {}
        for compute, endpoint, title, deployment in what:
            try:
                if compute in away:
                    raise away[compute]  # it is not waited for again and again
                serving = self.serving_for(compute)
                if deployment:
                    await asyncio.to_thread(serving.stop, endpoint, deployment)
                    stopped.add(endpoint)
                else:
                    await asyncio.to_thread(serving.unpublish, endpoint)
            except MlopsError as error:
                left.append(f"{title}: {error.message}")
                if isinstance(error, (BackendUnreachable, BackendTimeout)):
                    away[compute] = error
        await asyncio.to_thread(self.serving.stop_gateway)
        await self.store.write(
            lambda tx: tx.audit(identity, "workspaces/write", f"workspaces/{self.name}", {"op": "down --all"})
        )
        return {"jobs": [name for name in jobs if name not in running],
                "endpoints": sorted(stopped), "left": left}

    def write_record(self, socket_path: str) -> None:
        """Tell clients where we are: ``control.json``, 0600."""
        import socket as socket_module

        record = {
            "pid": os.getpid(), "started": locate.start_time(os.getpid()), "port": self.port, "url": self.url,
            "socket": socket_path, "host": socket_module.gethostname(), "version": self.version,
            "workspace": self.name,
        }
        path = self.home / "control.json"
        temporary = self.home / f".control.{os.getpid()}"
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as f:
            json.dump(record, f)
        os.replace(temporary, path)


