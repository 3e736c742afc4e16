"""The async core: one method per REST route, plain JSON in and out.

Names are percent-encoded here and nowhere else. Lists come as ``{"items": [...], "next_token": str | None}``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, BinaryIO

from ..core.errors import Gone, MlopsError, Unavailable
from ..runtime.locate import Place, Session
from .logs import follow
from .transport import Transport, segment

Json = dict[str, Any]

#: Most bytes of a log that one request asks for.
LOG_CHUNK = 256 * 1024
#: Most items of one page, as the server clamps it.
PAGE = 200


class AsyncClient:
    """Client of one workspace; use it from one event loop.

    Args:
        where: the workspace's place; default is what the environment names.
        may_start: whether a control plane may be started when none answers.
        role: ``owner`` (default) or ``reader``.
        url, token: a control plane on another machine.
    """

    def __init__(
        self,
        where: Place | None = None,
        may_start: bool | None = None,
        role: str | None = None,
        url: str | None = None,
        token: str | None = None,
    ) -> None:
        self.transport = Transport(where, may_start, role, url, token)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """End open connections."""
        await self.transport.close()

    async def connect(self, fresh: bool = False) -> Session:
        """The session in use; starts a control plane when it must and may."""
        return await self.transport.connect(fresh)

    async def _call(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        return (await self.transport.request(method, path, body=body, **options)).body

    # -- workspace ------------------------------------------------------------------------------------------------

    async def openapi(self) -> Json:
        """The OpenAPI document."""
        return await self._call("GET", "/openapi.json", scope="api")

    async def whoami(self) -> Json:
        """``{user, role, workspace}``."""
        return await self._call("GET", "/whoami", scope="api")

    async def status(self) -> Json:
        """State of the control plane, its MLflow child and the gateway, with counts."""
        return await self._call("GET", "")

    async def changes(self, since: int | None = None, wait: float = 0) -> Json:
        """One read of the change feed: ``{seq, items}``; without ``since`` just where it stands.

        Raises:
            Gone: ``since`` is older than what is kept; list anew.
        """
        params = {"since": since, "wait": wait if since is not None else None}
        return await self._call("GET", "/changes", params=params, timeout=wait + 30)

    async def watch(self, since: int | None = None, wait: float = 25) -> AsyncIterator[Json]:
        """Changes as they come, for ever; ``{"op": "reset"}`` says that some were missed: list anew."""
        while True:
            try:
                answer = await self.changes(since, wait)
            except Gone:
                since = None
                yield {"op": "reset", "kind": "", "name": "", "parent": "", "phase": "", "revision": 0, "seq": 0}
                continue
            except Unavailable:
                await asyncio.sleep(1)
                continue
            for item in answer["items"]:
                yield item
            since = answer["seq"]

    async def audit(self, limit: int | None = None, page_token: str | None = None) -> Json:
        """Audit rows, newest first."""
        return await self._call("GET", "/audit", params={"limit": limit, "page_token": page_token})

    async def doctor(self) -> Json:
        """``{checks, processes, folders, ports}`` as the control plane sees them."""
        return await self._call("GET", "/doctor", timeout=120)

    async def shutdown(self, everything: bool = False) -> Json:
        """End the control plane; with ``everything`` jobs and endpoints too."""
        return await self._call("POST", "/actions/shutdown", {"all": everything}, timeout=120)

    async def pages(self, path: str, limit: int | None = None, **params: Any) -> list[Json]:
        """Items of a list route over all its pages, at most ``limit``."""
        items: list[Json] = []
        token = None
        while True:
            size = PAGE if limit is None else min(PAGE, limit - len(items))
            answer = await self._call("GET", path, params={"limit": size, "page_token": token, **params})
            items += answer["items"]
            token = answer.get("next_token")
            if not token or (limit is not None and len(items) >= limit):
                return items if limit is None else items[:limit]

    # -- jobs -----------------------------------------------------------------------------------------------------

    async def list_jobs(self, limit: int | None = None, phase: str | None = None) -> list[Json]:
        """Jobs, newest first."""
        return await self.pages("/jobs", limit, phase=phase)

    async def get_job(self, name: str) -> Json:
        """One job."""
        return await self._call("GET", f"/jobs/{segment(name)}")

    async def put_job(self, name: str, spec: Json, new: bool = False) -> Json:
        """Submit a job; with ``new`` an existing one of that name is an error.

        Raises:
            PreconditionFailed: ``new``, and the name is taken.
        """
        return await self._put(f"/jobs/{segment(name)}", spec, new)

    async def delete_job(self, name: str) -> None:
        """Delete a job that has ended; it can be restored until it is purged."""
        await self._call("DELETE", f"/jobs/{segment(name)}")

    async def restore_job(self, name: str) -> Json:
        """Take a job's deletion back."""
        return await self._call("POST", f"/jobs/{segment(name)}/actions/restore")

    async def purge_job(self, name: str) -> None:
        """Remove a job that has ended for good: folder, logs, record; its run stays."""
        await self._call("POST", f"/jobs/{segment(name)}/actions/purge")

    async def stop_job(self, name: str) -> Json:
        """Ask a job to end."""
        return await self._call("POST", f"/jobs/{segment(name)}/actions/stop")

    async def resume_job(self, name: str) -> Json:
        """Queue a further attempt of a job that failed or was canceled."""
        return await self._call("POST", f"/jobs/{segment(name)}/actions/resume")

    async def job_returns(self, name: str, file: BinaryIO) -> None:
        """Write what a job brought back into a file.

        Raises:
            NotFound: nothing was asked for, or nothing came.
        """
        await self.transport.download(f"/jobs/{segment(name)}/returns", file)

    async def has_blob(self, digest: str) -> bool:
        """Whether a blob of that SHA-256 is there; it then stays for a day at least."""
        try:
            await self.transport.request("HEAD", f"/blobs/{segment(digest)}", raw=True)
            return True
        except MlopsError as error:  # the reply to a HEAD has no body that could name the class
            if error.status != 404:
                raise
            return False

    async def put_blob(self, digest: str, data: bytes | Callable[[], BinaryIO]) -> None:
        """Upload a blob of that SHA-256, unless it is there; callable ``data`` opens a file, which is streamed."""
        if not await self.has_blob(digest):
            await self.transport.request(
                "PUT", f"/blobs/{segment(digest)}", data=data, timeout=3600,
                headers={"Content-Type": "application/octet-stream"},
            )

    async def job_log(
        self, name: str, rank: int = 0, offset: int = 0, limit: int = LOG_CHUNK, attempt: int | None = None
    ) -> Json:
        """A piece of a rank's log from a byte offset; a negative one counts from the end."""
        params = {"offset": offset, "limit": limit, "attempt": attempt}
        return await self._call("GET", f"/jobs/{segment(name)}/logs/{int(rank)}", params=params)

    async def follow_job_log(
        self, name: str, rank: int = 0, offset: int = 0, attempt: int | None = None
    ) -> AsyncIterator[str]:
        """Text of a rank's log until the job ends, over its attempts; nothing is repeated or lost over reconnects."""
        async for text in follow(lambda at, which: self.job_log(name, rank, at, LOG_CHUNK, which), offset, attempt):
            yield text

    async def search_job_log(
        self, name: str, rank: int, text: str, offset: int = 0, line: int | None = None, limit: int = 100,
        attempt: int | None = None, regex: bool = False, case: bool = False,
    ) -> Json:
        """One stretch of a search: ``{matches, next_offset, next_line, complete}``; go on until ``complete``."""
        params = {"q": text, "offset": offset, "line": line, "limit": limit, "attempt": attempt, "regex": regex,
                  "case": case}
        return await self._call("GET", f"/jobs/{segment(name)}/logs/{int(rank)}/search", params=params)

    async def job_usage(self, name: str, max_points: int | None = None) -> Json:
        """CPU, memory and GPU of a job's ranks: ``{cpus, memory_bytes, attempts}``."""
        return await self._call("GET", f"/jobs/{segment(name)}/usage", params={"max_points": max_points})

    # -- endpoints and deployments --------------------------------------------------------------------------------

    async def list_endpoints(self, limit: int | None = None) -> list[Json]:
        """Endpoints, newest first."""
        return await self.pages("/endpoints", limit)

    async def get_endpoint(self, name: str) -> Json:
        """One endpoint."""
        return await self._call("GET", f"/endpoints/{segment(name)}")

    async def put_endpoint(self, name: str, spec: Json, new: bool = False) -> Json:
        """Make or change an endpoint; the answer that makes it carries ``keys``, once."""
        return await self._put(f"/endpoints/{segment(name)}", spec, new)

    async def delete_endpoint(self, name: str) -> None:
        """Delete an endpoint with its deployments."""
        await self._call("DELETE", f"/endpoints/{segment(name)}")

    async def rotate_key(self, name: str, key: str) -> Json:
        """Replace the ``primary`` or ``secondary`` key, or end all ``tokens``: ``{"key": name, "value": secret}``."""
        return await self._call("POST", f"/endpoints/{segment(name)}/actions/rotate-keys", {"key": key})

    async def put_traffic(
        self, name: str, traffic: dict[str, int] | None = None, mirror: dict[str, int] | None = None,
        sticky: str | None = None,
    ) -> Json:
        """Change shares, mirror and the header of sticky routing in one step; None leaves them as they are."""
        given = (("traffic", traffic), ("mirror_traffic", mirror), ("sticky_header", sticky))
        body = {k: v for k, v in given if v is not None}
        return await self._call("POST", f"/endpoints/{segment(name)}/actions/traffic", body)

    async def start_canary(self, name: str, canary: Json) -> Json:
        """Give a deployment a part of the traffic, and then all or none; see ``CanarySpec``."""
        return await self._call("POST", f"/endpoints/{segment(name)}/actions/canary", canary)

    async def promote(self, name: str) -> Json:
        """End a canary: it takes all traffic."""
        return await self._call("POST", f"/endpoints/{segment(name)}/actions/promote", {})

    async def rollback(self, name: str, reason: str = "") -> Json:
        """End a canary, or take the last change back: the traffic is as it was before."""
        body = {"reason": reason} if reason else {}
        return await self._call("POST", f"/endpoints/{segment(name)}/actions/rollback", body)

    async def endpoint_token(self, name: str, expires_in: int = 3600) -> Json:
        """A bearer token for an endpoint of ``auth_mode: token``: ``{"token", "expires_at"}``."""
        return await self._call("POST", f"/endpoints/{segment(name)}/actions/token", {"expires_in": expires_in})

    async def endpoint_stats(self, name: str) -> Json:
        """What the gateway has counted since its start, by deployment."""
        return await self._call("GET", f"/endpoints/{segment(name)}/stats")

    async def endpoint_history(self, name: str, limit: int | None = None) -> list[Json]:
        """Changes of an endpoint, newest first: ``{"at", "by", "action", "detail"}``."""
        return (await self._call("GET", f"/endpoints/{segment(name)}/history", params={"limit": limit}))["items"]

    async def invoke(self, name: str, payload: Json, deployment: str = "", timeout: float = 120) -> Any:
        """Score ``payload`` (MLflow's scoring JSON), by one ``deployment`` when it is named."""
        return await self._call(
            "POST", f"/endpoints/{segment(name)}/actions/invoke", payload, timeout=timeout,
            params={"deployment": deployment or None},
        )

    async def download_captured(self, name: str, file: BinaryIO, **wanted: Any) -> None:
        """Write captured requests into a file as Parquet; ``deployment, since, until, columns, limit`` choose."""
        given = {key: value for key, value in wanted.items() if value not in (None, "", [], ())}
        await self.transport.download(f"/endpoints/{segment(name)}/data", file, params=given)

    async def captured_info(self, name: str) -> Json:
        """How much an endpoint has captured, by deployment."""
        return await self._call("GET", f"/endpoints/{segment(name)}/data/info", timeout=900)

    async def clear_captured(self, name: str, before: str = "") -> int:
        """Delete what was captured before a moment, or everything; returns how many rows went."""
        params = {"before": before or None}
        return (await self._call("DELETE", f"/endpoints/{segment(name)}/data", params=params, timeout=900))["rows"]

    async def tell_truth(self, name: str, rows: list[Json]) -> None:
        """Tell the right values of rows: ``{"correlation_id", "row", "value"}`` each."""
        await self._call("POST", f"/endpoints/{segment(name)}/actions/truth", {"rows": rows})

    async def batch(self, name: str, asked: Json) -> Json:
        """Have files scored by an endpoint's model; the job that does it."""
        return await self._call("POST", f"/endpoints/{segment(name)}/actions/batch", asked, timeout=600)

    async def export_bundle(
        self, source: str, file: BinaryIO, deployment: str = "", name: str = "", keys: str = "new"
    ) -> dict[str, str]:
        """Write a bundle into a file as a zip: of an endpoint, ``NAME@ALIAS`` or ``NAME/VERSION``; returns new keys."""
        body = {"source": source, "deployment": deployment, "name": name, "keys": keys}
        headers = await self.transport.download("/actions/export", file, method="POST", body=body)
        return json.loads(headers.get("X-Bundle-Keys") or "{}")

    async def merge_record(self, endpoint: str, digest: str) -> Json:
        """Merge the record of a bundle, uploaded as a blob, into an endpoint."""
        path = f"/endpoints/{segment(endpoint)}/actions/merge-record"
        return await self._call("POST", path, {"blob": digest}, timeout=3600)

    async def endpoint_records(self, endpoint: str) -> list[Json]:
        """What bundles of an endpoint did elsewhere, as far as their records were merged."""
        return (await self._call("GET", f"/endpoints/{segment(endpoint)}/records"))["items"]

    async def list_deployments(self, endpoint: str) -> list[Json]:
        """Deployments behind an endpoint."""
        return await self.pages(f"/endpoints/{segment(endpoint)}/deployments")

    async def get_deployment(self, endpoint: str, name: str) -> Json:
        """One deployment."""
        return await self._call("GET", f"/endpoints/{segment(endpoint)}/deployments/{segment(name)}")

    async def put_deployment(self, endpoint: str, name: str, spec: Json, new: bool = False) -> Json:
        """Make or change a deployment."""
        return await self._put(f"/endpoints/{segment(endpoint)}/deployments/{segment(name)}", spec, new)

    async def delete_deployment(self, endpoint: str, name: str) -> None:
        """Delete a deployment."""
        await self._call("DELETE", f"/endpoints/{segment(endpoint)}/deployments/{segment(name)}")

    async def deployment_log(self, endpoint: str, name: str, offset: int = 0, limit: int = LOG_CHUNK) -> Json:
        """A piece of a scorer's log."""
        path = f"/endpoints/{segment(endpoint)}/deployments/{segment(name)}/logs"
        return await self._call("GET", path, params={"offset": offset, "limit": limit})

    async def preview_job(self, name: str, spec: Json) -> Json:
        """Ask whether a job would run; starts nothing."""
        return await self._call("POST", f"/jobs/{segment(name)}/actions/preview", spec)

    async def open_tensorboard(self, sources: list[str], interpreter: str = "") -> Json:
        """TensorBoard over jobs, runs and folders: ``{"path", "event_files", "sources"}``."""
        return await self._call("POST", "/tensorboards", {"sources": sources, "interpreter": interpreter})

    # -- computes -------------------------------------------------------------------------------------------------

    async def list_computes(self) -> list[Json]:
        """Computes."""
        return await self.pages("/computes")

    async def get_compute(self, name: str) -> Json:
        """One compute."""
        return await self._call("GET", f"/computes/{segment(name)}")

    async def put_compute(self, name: str, spec: Json, new: bool = False) -> Json:
        """Make or change a compute."""
        return await self._put(f"/computes/{segment(name)}", spec, new)

    async def delete_compute(self, name: str) -> None:
        """Delete a compute."""
        await self._call("DELETE", f"/computes/{segment(name)}")

    async def check_compute(self, name: str, spec: Json, create_namespace: bool = False) -> Json:
        """Ask a cluster whether it can be attached; saves nothing."""
        body = {"spec": spec, "create_namespace": create_namespace}
        return await self._call("POST", f"/computes/{segment(name)}/actions/check", body)

    async def survey_compute(self, name: str) -> Json:
        """What is true of an attached cluster now."""
        return await self._call("GET", f"/computes/{segment(name)}/survey")

    # -- views over MLflow ----------------------------------------------------------------------------------------

    async def list_experiments(self, limit: int | None = None) -> list[Json]:
        """Experiments."""
        return await self.pages("/experiments", limit)

    async def list_runs(
        self, experiment: str | None = None, filter: str | None = None, order_by: str | None = None,
        limit: int | None = None,
    ) -> list[Json]:
        """Runs, newest first unless ``order_by`` says otherwise (MLflow's syntax)."""
        return await self.pages("/runs", limit, experiment=experiment, filter=filter, order_by=order_by)

    async def get_run(self, run_id: str) -> Json:
        """One run."""
        return await self._call("GET", f"/runs/{segment(run_id)}")

    async def delete_run(self, run_id: str) -> None:
        """Delete a run; it can be restored."""
        await self._call("DELETE", f"/runs/{segment(run_id)}")

    async def restore_run(self, run_id: str) -> None:
        """Bring a deleted run back."""
        await self._call("POST", f"/runs/{segment(run_id)}/actions/restore")

    async def run_metrics(self, run_id: str, keys: list[str] | None = None, max_points: int | None = None) -> Json:
        """Down-sampled metric histories of a run."""
        params = {"keys": keys or None, "max_points": max_points}
        return await self._call("GET", f"/runs/{segment(run_id)}/metrics", params=params)

    async def list_models(self, limit: int | None = None) -> list[Json]:
        """Registered models."""
        return await self.pages("/models", limit)

    async def get_model(self, name: str) -> Json:
        """One model with its versions."""
        return await self._call("GET", f"/models/{segment(name)}")

    async def get_version(self, name: str, version: str | int) -> Json:
        """One model version."""
        return await self._call("GET", f"/models/{segment(name)}/versions/{segment(str(version))}")

    async def create_version(self, name: str, body: Json) -> Json:
        """Register a model: ``{run_id | model_id, artifact?, alias?, description?, tags?}``."""
        return await self._call("POST", f"/models/{segment(name)}/versions", body, timeout=300)

    async def put_alias(self, name: str, alias: str, version: str | int) -> Any:
        """Let ``alias`` name a version."""
        path = f"/models/{segment(name)}/aliases/{segment(alias)}"
        return await self._call("PUT", path, {"version": str(version)})

    async def delete_alias(self, name: str, alias: str) -> None:
        """Remove an alias."""
        await self._call("DELETE", f"/models/{segment(name)}/aliases/{segment(alias)}")

    async def delete_model(self, name: str) -> None:
        """Delete a registered model with its versions."""
        await self._call("DELETE", f"/models/{segment(name)}")

    async def delete_version(self, name: str, version: str | int) -> None:
        """Delete a version that no deployment uses."""
        await self._call("DELETE", f"/models/{segment(name)}/versions/{segment(str(version))}")

    async def mlflow(self, method: str, path: str, body: Any = None, **options: Any) -> Any:
        """A call of MLflow's own REST API, e.g. ``mlflow("POST", "runs/search", {...})``."""
        return await self._call(method, f"/api/2.0/mlflow/{path}", body, scope="mlflow", **options)

    async def artifact(
        self, method: str, path: str, data: bytes | Callable[[], BinaryIO] | None = None
    ) -> bytes:
        """GET, PUT or DELETE one artifact; ``path`` is what follows ``mlflow-artifacts:/``."""
        encoded = "/".join(segment(part) for part in path.split("/"))
        answer = await self.transport.request(
            method, f"/api/2.0/mlflow-artifacts/artifacts/{encoded}", data=data, scope="mlflow", raw=True, timeout=3600
        )
        return answer.body

    # -- shared ---------------------------------------------------------------------------------------------------

    async def _put(self, path: str, spec: Json, new: bool) -> Json:
        return await self._call("PUT", path, spec, headers={"If-None-Match": "*"} if new else None)
