"""The part of the blocking client about endpoints and deployments."""

from __future__ import annotations

import os
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from ..core.errors import NotFound, PreconditionFailed, Unavailable
from . import captured, payload
from .deploy import Deployed, deploy, remove_older
from .deployment import Deployment, DeploymentTable
from .history import History
from .logs import text_of
from .serving import Endpoint, EndpointTable, unknown_key
from .traffic import Traffic

if TYPE_CHECKING:
    from .aio import AsyncClient
    from .export import Exported
    from .report import Report
    from .sync import Client

T = TypeVar("T")


class EndpointCalls:
    """What :class:`.sync.Client` has for endpoints and deployments."""

    aio: AsyncClient
    #: Primary keys of endpoints that this process made.
    _keys: dict[str, str]

    if TYPE_CHECKING:

        def call(self, work: Coroutine[Any, Any, T]) -> T: ...

    @property
    def _whole(self) -> Client:
        return cast("Client", self)

    def endpoints(self) -> EndpointTable:
        """Endpoints."""
        return EndpointTable([Endpoint(self._whole, row) for row in self.call(self.aio.list_endpoints())])

    def endpoint(self, name: str) -> Endpoint:
        """One endpoint."""
        return Endpoint(self._whole, self.call(self.aio.get_endpoint(name)))

    def create_endpoint(self, name: str, spec: dict[str, Any] | None = None) -> Endpoint:
        """Make an endpoint, or return the one that is there; a new one's keys are kept in memory."""
        try:
            answer = self.call(self.aio.put_endpoint(name, spec or {}, new=True))
        except PreconditionFailed:
            return self.endpoint(name)
        keys = answer.pop("keys", None) or {}
        if "primary" in keys:
            self._keys[name] = keys["primary"]
        return Endpoint(self._whole, answer)

    def route(
        self, name: str, traffic: dict[str, int] | None = None, mirror: dict[str, int] | None = None,
        sticky: str | None = None,
    ) -> Endpoint:
        """Share an endpoint's requests, mirror some, and send those that agree in a header to one deployment.

        All in one step; None leaves that as it is, an empty ``sticky`` is no header.
        """
        return Endpoint(self._whole, self.call(self.aio.put_traffic(name, traffic, mirror, sticky)))

    def start_canary(self, name: str, deployment: str, **canary: Any) -> Endpoint:
        """Give ``deployment`` a part of the traffic, and then all or none by its errors and latency."""
        return Endpoint(self._whole, self.call(self.aio.start_canary(name, {"deployment": deployment, **canary})))

    def promote(self, name: str) -> Endpoint:
        """End a canary: it takes all traffic."""
        return Endpoint(self._whole, self.call(self.aio.promote(name)))

    def rollback(self, name: str, reason: str = "") -> Endpoint:
        """End a canary, or take the last change of the traffic back."""
        return Endpoint(self._whole, self.call(self.aio.rollback(name, reason)))

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
        view = Traffic(self._whole, endpoint, list(self.deployments(name)), stats, detailed)
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
        return DeploymentTable([Deployment(self._whole, row) for row in rows])

    def deployment(self, endpoint: str, name: str) -> Deployment:
        """One deployment."""
        return Deployment(self._whole, self.call(self.aio.get_deployment(endpoint, name)))

    def deploy(self, model: str, endpoint: str, name: str | None = None, **options: Any) -> Deployment:
        """Serve a model version at an endpoint, made when it is not there; options as :func:`.deploy.deploy`."""
        return deploy(self._whole, model, endpoint, name, **options).deployment

    def deploy_version(self, model: str, endpoint: str, name: str | None = None, **options: Any) -> Deployed:
        """As :func:`.deploy.deploy`: the deployment, names of those that it replaced, and remarks."""
        return deploy(self._whole, model, endpoint, name, **options)

    def remove_older(self, endpoint: str, name: str) -> list[str]:
        """Delete the deployments that got their names by themselves, other than ``name``; returns their names."""
        return remove_older(self._whole, endpoint, name)

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

        return export.export(self._whole, source, folder, **options)

    def import_record(self, path: str | os.PathLike[str], endpoint: str = "") -> Report:
        """Merge what a bundle captured and counted elsewhere; repeated, it changes nothing."""
        from . import export

        return export.import_record(self._whole, path, endpoint)

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
