"""The blocking client: objects in, objects out, over the async core on a thread of its own."""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import functools
import os
import secrets
import weakref
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..core.errors import Conflict, MlopsError, NotFound, ParameterError, PreconditionFailed, Refused
from ..runtime.locate import Place
from .aio import AsyncClient
from .compute import Compute, ComputeTable, Survey
from .endpoints import EndpointCalls
from .job import Job, JobTable
from .logs import LogMatch, LogMatches, Piece, found_in, last_of, pinned, text_of
from .model import Model, ModelTable, ModelVersion
from .results import read_results
from .run import Comparison, Run, RunTable
from .transport import shared_loop
from .usage import JobUsage

T = TypeVar("T")

#: Tag by which a repeated submission knows its own job.
SUBMISSION = "mlops.submission"


class Client(EndpointCalls):
    """Blocking client of one workspace; arguments as for :class:`AsyncClient`."""

    def __init__(
        self,
        where: Place | None = None,
        may_start: bool | None = None,
        role: str | None = None,
        url: str | None = None,
        token: str | None = None,
    ) -> None:
        self.aio = AsyncClient(where, may_start, role, url, token)
        self._keys: dict[str, str] = {}
        self._pid = os.getpid()
        shared_loop()  # first, so that at the end of the process it goes last
        reference = weakref.ref(self)
        atexit.register(_close, reference)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Client {self.aio.transport.where.home}>"

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of :attr:`aio` to its end."""
        return shared_loop().run(work)

    def submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Start a coroutine of :attr:`aio` and return its future."""
        return asyncio.run_coroutine_threadsafe(work, shared_loop().loop)

    def close(self) -> None:
        """End open connections."""
        if self._pid == os.getpid():
            self.call(self.aio.close())

    def _iterate(self, source: AsyncIterator[T]) -> Iterator[T]:
        async def step() -> T:
            return await anext(source)

        async def end() -> None:
            await source.aclose()  # type: ignore[attr-defined]

        try:
            while True:
                try:
                    yield self.call(step())
                except StopAsyncIteration:
                    return
        finally:
            self.call(end())

    # -- workspace ------------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """Base of our routes."""
        return self.call(self.aio.connect()).url

    @property
    def tracking_uri(self) -> str:
        """MLflow's address."""
        return self.call(self.aio.connect()).tracking_uri

    @property
    def tracking_uri_kept(self) -> str:
        """The same, or empty when not connected yet; asks nobody."""
        session = self.aio.transport.session
        return session.tracking_uri if session else ""

    def status(self) -> dict[str, Any]:
        """State of the workspace."""
        return self.call(self.aio.status())

    def watch(self, since: int | None = None) -> Iterator[dict[str, Any]]:
        """Changes as they come, for ever."""
        return self._iterate(self.aio.watch(since))

    # -- runs -----------------------------------------------------------------------------------------------------

    def experiments(self) -> list[dict[str, Any]]:
        """Experiments."""
        return self.call(self.aio.list_experiments())

    def runs(
        self, experiment: str | None = None, filter: str | None = None, order_by: str | None = None,
        limit: int | None = 20,
    ) -> RunTable:
        """Runs, newest first unless ``order_by`` says otherwise."""
        rows = self.call(self.aio.list_runs(experiment, filter, order_by, limit))
        return RunTable([Run(self, row) for row in rows])

    def run(self, reference: str) -> Run:
        """A run by id, by the first letters of its id, by its name or by the name of its job.

        Raises:
            NotFound: there is none.
            ParameterError: several fit.
        """
        if len(reference) == 32 and all(c in "0123456789abcdef" for c in reference):
            return Run(self, self.call(self.aio.get_run(reference)))
        rows = self.call(self.aio.list_runs(limit=1000))
        for fits in (
            lambda r: r.get("name") == reference or r.get("job") == reference,
            lambda r: len(reference) >= 4 and r["run_id"].startswith(reference),
        ):
            found = [row for row in rows if fits(row)]
            if len(found) == 1:
                return Run(self, found[0])
            if found:
                ids = ", ".join(row["run_id"][:8] for row in found[:5])
                raise ParameterError(f"{len(found)} runs are called {reference!r}", f"name one by id: {ids}")
        raise NotFound(f"there is no run {reference!r}", "see: %mlops runs")

    def run_metrics(
        self, run_id: str, keys: list[str] | None = None, max_points: int | None = None
    ) -> dict[str, dict[str, list[Any]]]:
        """Metric histories: ``{key: {"steps", "values", "timestamps", "last", "total"}}``."""
        return self.call(self.aio.run_metrics(run_id, keys, max_points))["metrics"]

    def delete_run(self, run_id: str) -> None:
        """Delete a run; it can be restored."""
        self.call(self.aio.delete_run(run_id))

    def compare(self, runs: list[Run], metric: str | None = None, curves: bool = True) -> Comparison:
        """Runs side by side, with the compared metric's curves."""
        plain = Comparison(runs, metric)
        key = metric or (plain.metrics[0] if plain.metrics else None)
        if not curves or key is None or len(runs) > 12:
            return plain
        series = {}
        for run in runs:
            if key in run.metrics:
                history = self.run_metrics(run.id, [key], 200).get(key)
                if history and len(history["values"]) > 1:
                    series[f"{run.name} {run.id[:4]}"] = history
        return Comparison(runs, metric, {key: series} if series else None)

    def mlflow(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """A call of MLflow's own REST API, e.g. ``mlflow("POST", "runs/search", {...})``."""
        return self.call(self.aio.mlflow(method, path, body, **options))

    def experiment_id(self, name: str) -> str:
        """Id of an experiment, which is made when it is not there."""
        try:
            found = self.mlflow("GET", "experiments/get-by-name", params={"experiment_name": name})["experiment"]
        except NotFound:
            try:
                return self.mlflow("POST", "experiments/create", {"name": name})["experiment_id"]
            except MlopsError:  # somebody else made it just now
                found = self.mlflow("GET", "experiments/get-by-name", params={"experiment_name": name})["experiment"]
        if found.get("lifecycle_stage") == "deleted":
            raise Conflict(f"experiment {name!r} is deleted", "restore it in the MLflow UI, or take another name")
        return found["experiment_id"]

    def artifact_path(self, run_id: str) -> str:
        """Where a run's artifacts lie, behind ``mlflow-artifacts:/``.

        Raises:
            Refused: they lie elsewhere.
        """
        uri = self.mlflow("GET", "runs/get", params={"run_id": run_id})["run"]["info"]["artifact_uri"]
        scheme, _, path = uri.partition(":")
        if scheme != "mlflow-artifacts":
            raise Refused(f"the artifacts of run {run_id} lie at {scheme}:, not in this workspace", "use MLflow itself")
        return path.lstrip("/")

    def log_artifact(self, run_id: str, path: str | os.PathLike[str]) -> None:
        """Upload a file, or a folder with all that is in it, as artifacts of a run."""
        source = Path(path)
        files = [source] if source.is_file() else sorted(p for p in source.rglob("*") if p.is_file())
        root = source.parent if source.is_file() else source
        self.put_artifacts(run_id, [(file.relative_to(root).as_posix(), file) for file in files])

    def put_artifacts(self, run_id: str, files: Iterable[tuple[str, Path]]) -> None:
        """Upload files as artifacts of a run: (name of the artifact, file)."""
        root = self.artifact_path(run_id)
        for name, file in files:
            self.call(self.aio.artifact("PUT", f"{root}/{name}", functools.partial(_reader, file)))

    # -- models ---------------------------------------------------------------------------------------------------

    def models(self) -> ModelTable:
        """Registered models."""
        return ModelTable([Model(self, row) for row in self.call(self.aio.list_models())])

    def model(self, name: str) -> Model:
        """One model with its versions."""
        return Model(self, self.call(self.aio.get_model(name)))

    def version(self, reference: str) -> ModelVersion:
        """A version by ``NAME@ALIAS``, ``NAME/3``, or ``NAME`` for the newest.

        Raises:
            NotFound: no such model, alias or version.
        """
        name, at, alias = reference.rpartition("@")
        if at and name:
            model = self.model(name)
            version = model.aliases.get(alias)
            if version is None:
                known = ", ".join(f"@{a}" for a in model.aliases) or "none"
                raise NotFound(f"model {name} has no alias @{alias}", f"its aliases: {known}")
        else:
            name, slash, version = reference.rpartition("/")
            if not (slash and name and version.isascii() and version.isdigit()):
                name, version = reference, self.model(reference).latest_version
                if not version:
                    raise NotFound(f"model {name} has no version", f"register one: %mlops register RUN {name}")
        return ModelVersion(self, self.call(self.aio.get_version(name, version)))

    def register(
        self, run_id: str, name: str, alias: str | None = None, artifact: str | None = None,
        description: str | None = None, model_id: str | None = None, tags: dict[str, str] | None = None,
    ) -> ModelVersion:
        """Register a run's model as a new version of ``name``."""
        body: dict[str, Any] = {"model_id": model_id} if model_id else {"run_id": run_id}
        body |= {k: v for k, v in (("artifact", artifact), ("alias", alias), ("description", description)) if v}
        if tags:
            body["tags"] = tags
        return ModelVersion(self, self.call(self.aio.create_version(name, body)))

    def delete_model(self, name: str) -> None:
        """Delete a model with its versions."""
        self.call(self.aio.delete_model(name))

    def delete_version(self, name: str, version: str) -> None:
        """Delete a version."""
        self.call(self.aio.delete_version(name, version))

    # -- jobs -----------------------------------------------------------------------------------------------------

    def computes(self) -> ComputeTable:
        """Where jobs run and models serve."""
        return ComputeTable([Compute(self, row) for row in self.call(self.aio.list_computes())])

    def compute(self, name: str) -> Compute:
        """One compute."""
        return Compute(self, self.call(self.aio.get_compute(name)))

    def check_compute(self, name: str, spec: dict[str, Any], create_namespace: bool = False) -> Survey:
        """Ask a cluster whether it can be attached; saves nothing."""
        return Survey(name, self.call(self.aio.check_compute(name, spec, create_namespace)))

    def attach_compute(self, name: str, spec: dict[str, Any]) -> Compute:
        """Save a compute, or change it."""
        return Compute(self, self.call(self.aio.put_compute(name, spec)))

    def jobs(self, phase: str | None = None, limit: int | None = 50) -> JobTable:
        """Jobs, newest first."""
        return JobTable([Job(self, row) for row in self.call(self.aio.list_jobs(limit, phase))])

    def job(self, name: str) -> Job:
        """One job."""
        return Job(self, self.call(self.aio.get_job(name)))

    def preview_job(self, spec: dict[str, Any], name: str | None = None) -> dict[str, Any]:
        """Whether a job would run, which limit is in the way, what it costs; starts nothing."""
        return self.call(self.aio.preview_job(name or "preview", spec))

    def submit_job(self, spec: dict[str, Any], name: str | None = None) -> Job:
        """Start a job at once. A name that is taken gets a number: ``train``, ``train-2``, ``train-3`` …"""
        from ..core.resources import check_name, generate_name

        mark = secrets.token_hex(8)
        spec = {**spec, "tags": {**(spec.get("tags") or {}), SUBMISSION: mark}}
        if name is None:
            name = generate_name(spec.get("display_name") or "job")
        check_name(name, "job name")
        for number in range(1, 1000):
            suffix = f"-{number}" if number > 1 else ""
            candidate = name[: 40 - len(suffix)].rstrip("-") + suffix
            try:
                return Job(self, self.call(self.aio.put_job(candidate, spec, new=True)))
            except PreconditionFailed:
                there = self.job(candidate)
                # Our own first try may have got through before its connection broke.
                if (there.spec.get("tags") or {}).get(SUBMISSION) == mark:
                    return there
        raise ParameterError(f"there are a thousand jobs called {name}", "give another name with -n")

    def _log_pieces(self, name: str, rank: int) -> Piece:
        return lambda offset, attempt: self.aio.job_log(name, rank, offset, attempt=attempt)

    def job_log(self, name: str, rank: int = 0, tail: int | None = None, attempt: int | None = None) -> str:
        """The log of a rank as it was written, or its last ``tail`` lines; of a very long one its end."""
        return self.call(text_of(pinned(self._log_pieces(name, rank), attempt), tail))

    def follow_job_log(
        self, name: str, rank: int = 0, tail: int | None = None, attempt: int | None = None
    ) -> Iterator[str]:
        """Pieces of a rank's log as they come, until the job ends; further attempts follow."""
        offset = 0
        if tail is not None:
            text, answer = self.call(last_of(pinned(self._log_pieces(name, rank), attempt), tail))
            offset, attempt = answer["next_offset"], answer["attempt"]
            if text:
                yield text
        yield from self._iterate(self.aio.follow_job_log(name, rank, offset, attempt))

    def search_job_log(
        self, name: str, text: str, rank: int = 0, regex: bool = False, case: bool = False,
        attempt: int | None = None, limit: int = 100,
    ) -> LogMatches:
        """The first ``limit`` lines of a rank's log that hold ``text``, or that match it as a regular expression."""
        found, whole = self.call(found_in(
            lambda offset, line, most: self.aio.search_job_log(
                name, rank, text, offset, line, min(most, 1000), attempt, regex, case
            ), limit,
        ))
        return LogMatches([LogMatch(self, row) for row in found], "" if whole else f"the first {len(found)}")

    def job_usage(self, name: str, max_points: int | None = None) -> JobUsage:
        """What a job's ranks use, over time."""
        return JobUsage(self, self.call(self.aio.job_usage(name, max_points)))

    def upload(self, path: str | os.PathLike[str], digest: str) -> None:
        """Upload a file whose SHA-256 is ``digest``, unless it is there already."""
        self.call(self.aio.put_blob(digest, functools.partial(_reader, Path(path))))

    def job_results(self, name: str) -> dict[str, Any]:
        """``{name: value}`` of what a completed job brought back. Reading it executes code of the job.

        Raises:
            NotFound: nothing was asked for, or nothing came.
            Refused: it cannot be read here.
        """
        return read_results(functools.partial(self._returns, name), name)

    def _returns(self, name: str, file: BinaryIO) -> None:
        self.call(self.aio.job_returns(name, file))

    def delete_job(self, name: str) -> None:
        """Delete a job that has ended; it can be restored until it is purged."""
        self.call(self.aio.delete_job(name))

    def purge_job(self, name: str) -> None:
        """Remove a job that has ended for good: folder, logs, record; its run stays."""
        self.call(self.aio.purge_job(name))


def _reader(file: Path) -> BinaryIO:
    return open(file, "rb")  # the request closes it


def _close(reference: weakref.ref[Client]) -> None:
    client = reference()
    if client is not None and client._pid == os.getpid():
        try:
            shared_loop().run(client.aio.close(), timeout=2)
        except Exception:  # nothing may disturb the end of the process
            pass
