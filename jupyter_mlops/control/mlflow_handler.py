"""``/jupyter-mlops/mlflow/…``: MLflow behind our tokens, by an allow-list, streamed both ways."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from typing import Any

from multidict import CIMultiDict
from tornado.web import stream_request_body

from ..core.errors import Conflict, MlopsError, ParameterError, Unauthenticated
from ..streaming import HOP_BY_HOP, StreamingProxy, Upstream
from ..tracking.api import WAIT, is_starting
from ..tracking.proxy import REQUEST_ID_HEADER, Proxy, mlflow_error, parse_body
from ..tracking.rules import Match, match
from .base import BaseHandler
from .operations import ROOT

PREFIX = ROOT + "/mlflow"
#: Largest JSON body that is looked at, in bytes; MLflow's own limit for a batch is 1 MB.
MAX_JSON = 16 * 1024 * 1024
#: Bodies up to this size, in bytes, are kept until MLflow has answered.
SMALL = 1024 * 1024
#: Request headers that go on to MLflow.
PASSED = frozenset({
    "accept", "accept-encoding", "accept-language", "content-type", "content-length", "content-encoding", "range",
    "if-none-match", "if-modified-since", "if-match", "if-range", "if-unmodified-since", "user-agent",
    "x-mlflow-experiment-id", "x-mlflow-run-id",
})
#: The run that a JSON body names; where it names several, the first.
_RUN_ID = re.compile(rb'"run_(?:id|uuid)"\s*:\s*"([A-Za-z0-9]{1,64})"')
SANDBOX = "sandbox; default-src 'none'"


@stream_request_body
class MlflowHandler(StreamingProxy, BaseHandler):  # type: ignore[misc]  # prepare: async here, not there
    """One request to MLflow."""

    _match: Match
    _written = ""  # the run to which this request writes, where that is easily seen
    _resumed = False
    _patience = 0.0  # loop time until which a restart is waited for

    @property
    def _proxy(self) -> Proxy:
        settings = self.application.settings
        if "mlflow_proxy" not in settings:
            settings["mlflow_proxy"] = Proxy(self.plane.store, self.plane.views.api)
        return settings["mlflow_proxy"]

    async def route(self, *args: Any) -> Upstream | None:
        raw = self.request.path[len(PREFIX):]
        if not raw:
            self.redirect("mlflow/")
            return None
        method = self.request.method or "GET"
        self._match = found = match(method, raw)
        rule = found.rule
        self.require(rule.action)
        if rule.template == "users/current":
            # MLflow knows users only with its own sign-in; here it is ours, in the same form.
            self.set_header("Content-Type", "application/json")
            self.set_header("Content-Security-Policy", SANDBOX)
            user = {"id": 1, "username": self.identity.user, "is_admin": False}
            await self.finish(json.dumps({"user": user, "is_basic_auth": False}))
            return None
        query = self.request.query
        seen = self._proxy.must_see_body(self.identity, rule)
        if not seen:
            await self._proxy.check(self.identity, found, query, None)
        elif self.request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ParameterError("compressed bodies are not taken here", "send plain JSON")
        if not await self.plane.mlflow.ready(WAIT):
            raise is_starting(self.plane.mlflow)
        headers: CIMultiDict[str] = CIMultiDict(
            (k, v) for k, v in self.request.headers.get_all() if k.lower() in PASSED and k.lower() not in HOP_BY_HOP
        )
        headers["Host"] = "localhost"
        # What is small is kept at hand, so that it can be sent again when MLflow is restarted in between. All that is
        # not audited may be repeated: MLflow keeps equal points, params and tags once.
        small = rule.space == "api" and 0 < self._content_length() <= SMALL
        target = found.path + ("?" + query if query else "")
        return Upstream(self._proxy.api.streams, target, headers, buffer=MAX_JSON if seen else SMALL if small else 0)

    async def await_upstream(self) -> bool:
        if self._patience == 0:
            self._patience = asyncio.get_running_loop().time() + WAIT
        return not self._gone and await self.plane.mlflow.reconnect(self._patience)

    @property
    def _direct(self) -> bool:
        """Whether the caller itself speaks to us; Jupyter, on behalf of browsers, comes over the unix socket."""
        return getattr(self.request.connection.context, "address_family", None) != socket.AF_UNIX  # type: ignore

    async def inspect(self, upstream: Upstream, body: bytes) -> bytes | None:
        found = self._match
        if found.rule.template.startswith("runs/") and not found.rule.reads and not found.rule.audit:
            named = _RUN_ID.search(body)
            self._written = named[1].decode() if named else ""
            # Who has a run go on that had ended holds it from now on.
            self._resumed = found.rule.template == "runs/update" and b'"RUNNING"' in body and self._direct
        if not self._proxy.must_see_body(self.identity, found.rule):
            return body
        if found.rule.template == "/v1/traces":
            kind, run_id = (self.request.headers.get(n, "") for n in ("Content-Type", "X-Mlflow-Run-Id"))
            await self._proxy.check_spans(self.identity, body, kind, run_id)
            return body
        value = await self._proxy.check(self.identity, found, self.request.query, parse_body(body))
        if found.rule.template in ("registered-models/delete", "model-versions/delete"):
            await self._unused(value or {})
        if found.rule.audit:
            if found.rule.operation == "POST runs/create":
                value = self.plane.orphans.marked(self.identity, value or {}, self._direct)
            request_id = self.request.headers.get(REQUEST_ID_HEADER)
            status, data = await self._proxy.perform(self.identity, found, self.request.query, value, request_id)
            self._changed(status)
            self.set_status(status)
            self.set_header("Content-Type", "application/json")
            await self.finish(data)
            return None
        if value is None:
            return b""
        upstream.headers["Content-Type"] = "application/json"
        return json.dumps(value).encode()

    async def _unused(self, body: dict[str, Any]) -> None:
        name, version = str(body.get("name", "")), body.get("version")
        users = await self.plane.workspace.deployments_using(name, str(version) if version else None)
        if users:
            raise Conflict(f"model {name!r} is in use by {', '.join(users)}", "delete that deployment first")

    async def on_answered(self, status: int) -> None:
        self._changed(status)
        if self._written and status < 300:
            self.plane.orphans.wrote(self.identity, self._written)
            if self._resumed:
                await self.plane.orphans.claim(self.identity, self._written)

    def _changed(self, status: int) -> None:
        if status < 300 and self._match.rule.changes:
            self.plane.feed.touch(self._match.rule.changes)

    def adapt_response(self, status: int, headers: CIMultiDict[str]) -> None:
        rule = self._match.rule
        for name in ("Access-Control-Allow-Origin", "Access-Control-Allow-Credentials", "Set-Cookie"):
            headers.popall(name, None)
        if rule.ui:
            return
        # Nothing here is a page of ours: should a browser show it, it runs no script and has no origin.
        headers["Content-Security-Policy"] = SANDBOX
        headers["X-Content-Type-Options"] = "nosniff"
        if rule.artifact and not headers.get("Content-Disposition", "").lower().startswith("attachment"):
            headers["Content-Disposition"] = "attachment"

    def upstream_error(self, error: Exception) -> MlopsError:
        if isinstance(error, TimeoutError):
            return super().upstream_error(error)
        return is_starting(self.plane.mlflow)

    def fail(self, error: MlopsError) -> None:
        if self._headers_written:
            super().fail(error)
            return
        self.set_status(error.status)
        if isinstance(error, Unauthenticated):
            self.set_header("WWW-Authenticate", "Bearer")
        if error.status == 503:
            self.set_header("Retry-After", "1")
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(mlflow_error(error)))
