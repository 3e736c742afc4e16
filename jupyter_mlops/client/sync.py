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
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from ..core.errors import Conflict, MlopsError, NotFound, ParameterError, PreconditionFailed, Refused, Unavailable
from ..runtime.locate import Place
from . import captured, payload
from .aio import AsyncClient
from .deploy import Deployed, deploy, remove_older
from .history import History
from .job import Job, JobTable
from .logs import LogMatch, LogMatches, Piece, found_in, last_of, pinned, text_of
from .model import Model, ModelTable, ModelVersion
from .results import read_results
from .run import Comparison, Run, RunTable
from .serving import Deployment, DeploymentTable, Endpoint, EndpointTable, unknown_key
from .traffic import Traffic
from .transport import shared_loop
from .usage import JobUsage

if TYPE_CHECKING:
    from .export import Exported
    from .report import Report

T = TypeVar("T")

#: Tag by which a repeated submission knows its own job.
SUBMISSION = "mlops.submission"



class Client:
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

    def jobs(self, phase: str | None = None, limit: int | None = 50) -> JobTable:
        """Jobs, newest first."""
        return JobTable([Job(self, row) for row in self.call(self.aio.list_jobs(limit, phase))])

    def job(self, name: str) -> Job:
        """One job."""
        return Job(self, self.call(self.aio.get_job(name)))

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

    # -- serving --------------------------------------------------------------------------------------------------

    def endpoints(self) -> EndpointTable:
        """Endpoints."""
        return EndpointTable([Endpoint(self, row) for row in self.call(self.aio.list_endpoints())])

    def endpoint(self, name: str) -> Endpoint:
        """One endpoint."""
        return Endpoint(self, self.call(self.aio.get_endpoint(name)))

    def create_endpoint(self, name: str, spec: dict[str, Any] | None = None) -> Endpoint:
        """Make an endpoint, or return the one that is there; a new one's keys are kept in memory."""
        try:
            answer = self.call(self.aio.put_endpoint(name, spec or {}, new=True))
        except PreconditionFailed:
            return self.endpoint(name)
        keys = answer.pop("keys", None) or {}
        if "primary" in keys:
            self._keys[name] = keys["primary"]
        return Endpoint(self, answer)

    def route(
        self, name: str, traffic: dict[str, int] | None = None, mirror: dict[str, int] | None = None,
        sticky: str | None = None,
    ) -> Endpoint:
        """Share an endpoint's requests, mirror some, and send those that agree in a header to one deployment.

        All in one step; None leaves that as it is, an empty ``sticky`` is no header.
        """
        return Endpoint(self, self.call(self.aio.put_traffic(name, traffic, mirror, sticky)))

    def start_canary(self, name: str, deployment: str, **canary: Any) -> Endpoint:
        """Give ``deployment`` a part of the traffic, and then all or none by its errors and latency."""
        return Endpoint(self, self.call(self.aio.start_canary(name, {"deployment": deployment, **canary})))

    def promote(self, name: str) -> Endpoint:
        """End a canary: it takes all traffic."""
        return Endpoint(self, self.call(self.aio.promote(name)))

    def rollback(self, name: str, reason: str = "") -> Endpoint:
        """End a canary, or take the last change of the traffic back."""
        return Endpoint(self, self.call(self.aio.rollback(name, reason)))

    def endpoint_token(self, name: str, expires_in: float = 3600) -> dict[str, str]:
        """A bearer token for an endpoint of ``auth_mode: token``: ``{"token", "expires_at"}``."""
        return self.call(self.aio.endpoint_token(name, int(expires_in)))

    def traffic(self, name: str, detailed: bool = False) -> Traffic:
        """Shares, deployments and figures of an endpoint; the figures are None when the gateway does not answer."""
        endpoint = self.endpoint(name)
        try:
            stats: dict[str, Any] | None = self.endpoint_stats(name)
        except Unavailable:
            stats = None
        view = Traffic(self, endpoint, list(self.deployments(name)), stats, detailed)
        if detailed:
            view.records = self.call(self.aio.endpoint_records(name))
        return view

    def endpoint_stats(self, name: str) -> dict[str, Any]:
        """What the gateway has counted since its start, by deployment."""
        return self.call(self.aio.endpoint_stats(name))

    def endpoint_history(self, name: str, limit: int = 50) -> History:
        """Changes of an endpoint, newest first."""
        return History(name, self.call(self.aio.endpoint_history(name, limit)))

    def deployments(self, endpoint: str) -> DeploymentTable:
        """Deployments behind an endpoint."""
        rows = self.call(self.aio.list_deployments(endpoint))
        return DeploymentTable([Deployment(self, row) for row in rows])

    def deployment(self, endpoint: str, name: str) -> Deployment:
        """One deployment."""
        return Deployment(self, self.call(self.aio.get_deployment(endpoint, name)))

    def deploy(self, model: str, endpoint: str, name: str | None = None, **options: Any) -> Deployment:
        """Serve a model version at an endpoint, made when it is not there; options as :func:`.deploy.deploy`."""
        return deploy(self, model, endpoint, name, **options).deployment

    def deploy_version(self, model: str, endpoint: str, name: str | None = None, **options: Any) -> Deployed:
        """As :func:`.deploy.deploy`: the deployment, names of those that it replaced, and remarks."""
        return deploy(self, model, endpoint, name, **options)

    def remove_older(self, endpoint: str, name: str) -> list[str]:
        """Delete the deployments that got their names by themselves, other than ``name``; returns their names."""
        return remove_older(self, endpoint, name)

    def deployment_log(self, endpoint: str, name: str, tail: int | None = None) -> str:
        """A scorer's log, or its last ``tail`` lines."""
        return self.call(text_of(lambda offset: self.aio.deployment_log(endpoint, name, offset), tail))

    def invoke(self, endpoint: str, data: Any, deployment: str = "") -> Any:
        """Score rows and return a numpy array, DataFrame or list; by one deployment when it is named."""
        serving = self._serving(endpoint, deployment)
        script = serving is not None and bool(serving.spec.get("code_configuration"))
        body = payload.plain(data) if script else payload.build(data, serving.signature if serving else {})
        return payload.result(self.call(self.aio.invoke(endpoint, body, deployment)))

    def _serving(self, endpoint: str, deployment: str) -> Deployment | None:
        """The deployment that is named, else the one that takes most of the requests."""
        if deployment:
            return self.deployment(endpoint, deployment)
        shares = self.endpoint(endpoint).shares
        name = max(shares, key=lambda d: shares[d], default="")
        return self.deployment(endpoint, name) if name and shares[name] else None

    def invoke_example(self, endpoint: str, deployment: str = "") -> Any:
        """Score the sample that a deployment was made with.

        Raises:
            NotFound: it was made without one.
        """
        serving = self._serving(endpoint, deployment)
        request = ((serving.spec.get("proof") or {}).get("request") if serving else None)
        if not request:
            raise NotFound(
                f"endpoint {endpoint} was not deployed with a sample", f"give rows: %mlops invoke {endpoint} X[:3]"
            )
        return payload.result(self.call(self.aio.invoke(endpoint, request, deployment)))

    def captured(self, endpoint: str, **wanted: Any) -> Any:
        """Captured requests as a DataFrame in the order of time, with ``truth`` where there is some.

        Args:
            wanted: ``deployment``; ``since`` and ``until``, each a moment (ISO 8601) or a span such as ``2h``, so long
                ago; ``columns``, a list; ``limit``, only the newest so many rows.

        Raises:
            NotFound: nothing was captured; the hint says how to turn it on.
        """
        with captured.spool() as file:
            self.download_captured(endpoint, file, **wanted)
            file.seek(0)
            return captured.frame(file)

    def download_captured(self, endpoint: str, file: BinaryIO, **wanted: Any) -> None:
        """The same as Parquet into a file."""
        self.call(self.aio.download_captured(endpoint, file, **wanted))

    def captured_info(self, endpoint: str) -> dict[str, Any]:
        """How much an endpoint has captured: files, bytes, rows, oldest, newest, dropped; and by deployment."""
        return self.call(self.aio.captured_info(endpoint))

    def clear_captured(self, endpoint: str, before: str = "") -> int:
        """Delete what was captured before a moment (as for :meth:`captured`), or everything; returns the rows."""
        return self.call(self.aio.clear_captured(endpoint, before))

    def tell_truth(self, endpoint: str, truth: Any) -> int:
        """Keep the right values of captured rows, to be joined by id; returns how many.

        Args:
            truth: a DataFrame (``correlation_id``, ``row``, ``value``), a Series or a dict by id.
        """
        rows = captured.truth_rows(truth)
        for part in captured.chunks(rows):
            self.call(self.aio.tell_truth(endpoint, part))
        return len(rows)

    def export(self, source: str, folder: str | os.PathLike[str], **options: Any) -> Exported:
        """Hand a deployment off as a folder that serves without network; options as of :func:`export.export`."""
        from . import export

        return export.export(self, source, folder, **options)

    def import_record(self, path: str | os.PathLike[str], endpoint: str = "") -> Report:
        """Merge what a bundle captured and counted elsewhere; repeated, it changes nothing."""
        from . import export

        return export.import_record(self, path, endpoint)

    def knows_key(self, endpoint: str) -> bool:
        """Whether this process holds the endpoint's primary key."""
        return endpoint in self._keys

    def endpoint_key(self, endpoint: str) -> str:
        """The endpoint's primary key, if this process made it.

        Raises:
            Refused: it did not.
        """
        if endpoint not in self._keys:
            raise unknown_key(endpoint)
        return self._keys[endpoint]

    def rotate_key(self, endpoint: str, key: str = "primary") -> str:
        """Replace a key and return the new one; ``tokens`` ends all bearer tokens and returns an empty text."""
        value = self.call(self.aio.rotate_key(endpoint, key))["value"]
        if key == "primary":
            self._keys[endpoint] = value
        return value

    def delete_endpoint(self, name: str) -> None:
        """Delete an endpoint with its deployments."""
        self.call(self.aio.delete_endpoint(name))
        self._keys.pop(name, None)

    def delete_deployment(self, endpoint: str, name: str) -> None:
        """Delete a deployment."""
        self.call(self.aio.delete_deployment(endpoint, name))


def _reader(file: Path) -> BinaryIO:
    return open(file, "rb")  # the request closes it


def _close(reference: weakref.ref[Client]) -> None:
    client = reference()
    if client is not None and client._pid == os.getpid():
        try:
            shared_loop().run(client.aio.close(), timeout=2)
        except Exception:  # nothing may disturb the end of the process
            pass
