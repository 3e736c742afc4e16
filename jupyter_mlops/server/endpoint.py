"""The one public route: calling an endpoint from outside, with the endpoint's key as only credential.

Jupyter's login, cookies and XSRF play no part, so nothing of Jupyter's user reaches the gateway, and nobody who holds
only an endpoint key reaches anything else.
"""

from __future__ import annotations

import hmac
import json
import os
import re
from typing import TYPE_CHECKING, Any, cast

from jupyter_server.auth.decorator import allow_unauthenticated
from multidict import CIMultiDict
from tornado import web

from ..core.errors import BackendUnreachable, MlopsError, NotFound, TooLarge, Unauthenticated
from ..streaming import DRAIN_UNAUTHENTICATED_BYTES, StreamingProxy, Upstream, forward_headers
from .base import OneSlot, Refusal, clean_query, error_body
from .link import check_socket

if TYPE_CHECKING:
    from .app import MlopsApp

#: Calls under way at once; further ones are refused.
MAX_CALLS = 64
_ROUTE = re.compile(
    r"/endpoints/([a-z](?:[a-z0-9-]{0,38}[a-z0-9])?)/"
    r"(?:(invocations|score|v2/models/[^/]+(?:/versions/[^/]+)?/infer)|health|metrics|openapi\.json|docs|v2(?:/[^?]*)?)")
#: Headers of a caller that the gateway gets, beside the key and those that begin with ``x-`` (an endpoint may route by
#: one of them), other than Jupyter's and the hub's own.
PASSED = frozenset({
    "accept", "accept-encoding", "content-encoding", "content-length", "content-type", "user-agent",
    "azureml-model-deployment", "inference-header-content-length", "traceparent", "tracestate",
})
_OURS = ("x-xsrf", "x-forwarded", "x-jupyter", "x-csrf", "x-real-ip", "x-scheme")


def _passes(header: str) -> bool:
    return header in PASSED or (header.startswith("x-") and not header.startswith(_OURS))


@web.stream_request_body
class EndpointHandler(OneSlot, StreamingProxy, web.RequestHandler):
    """Not a handler of Jupyter's: it never asks who is logged in."""

    _received = 0

    def initialize(self, app: MlopsApp) -> None:
        """Called by tornado with what the handler table says."""
        self.mlops = app

    def set_default_headers(self) -> None:
        """Nothing here is a page."""
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; sandbox")
        self.set_header("Cache-Control", "no-store")

    def check_xsrf_cookie(self) -> None:
        """No cookie counts here, so there is nothing to forge."""

    async def route(self, *args: Any, **kwargs: Any) -> Upstream:
        """The gateway, on its own socket."""
        path = "/" + self.request.path[len(self.mlops.base_url) :].partition("/")[2]
        match = _ROUTE.fullmatch(path)
        if match is None:
            raise Refusal(NotFound("there is no such route", "…/endpoints/<name>/invocations"))
        verb = "POST" if match.group(2) else "GET"
        if self.request.method != verb:
            raise web.HTTPError(405, f"use {verb}")
        key = self._key()
        if not key:
            raise Refusal(Unauthenticated("this endpoint needs its key", "send it as Authorization: Bearer KEY"))
        if self._content_length() > self.mlops.max_call_bytes:
            raise Refusal(self._over_limit())
        socket = os.path.join(self.mlops.link.runtime_dir, "gateway.sock")
        check_socket(socket, "the endpoint's gateway")
        everything = forward_headers(self.request)
        headers = CIMultiDict((k, v) for k, v in everything.items() if _passes(k.lower()))
        headers["Authorization"] = "Bearer " + key
        self.take_slot("endpoints", MAX_CALLS)
        return Upstream(self.mlops.gateway_client(socket), path + clean_query(self.request.query), headers)

    def _key(self) -> str:
        """The key that came with the request; never Jupyter's own token, however it came."""
        scheme, _, value = self.request.headers.get("Authorization", "").strip().partition(" ")
        value = value.strip()
        if scheme.lower() != "bearer" or not value:
            return ""
        own = getattr(self.settings.get("identity_provider"), "token", "") or ""
        if own and hmac.compare_digest(own.encode(), value.encode("utf-8", "surrogateescape")):
            return ""
        return value

    def _over_limit(self) -> TooLarge:
        return TooLarge(f"the request body is over {self.mlops.max_call_bytes} bytes", "send fewer rows at a time")

    async def data_received(self, chunk: bytes) -> None:
        """Pass on, up to the limit also when the length was not told."""
        self._received += len(chunk)
        if self._received > self.mlops.max_call_bytes and self._refusal is None and self._pipe is not None:
            self._pipe.fail(ConnectionAbortedError("the body is too long"))
            if self._asked is not None:
                self._asked.cancel()
            self._refuse(Refusal(self._over_limit()), DRAIN_UNAUTHENTICATED_BYTES)
            return
        await super().data_received(chunk)

    def _refuse(self, error: Exception, limit: int) -> None:
        # Whoever is refused here is a stranger: little of what they send is taken.
        super()._refuse(error, DRAIN_UNAUTHENTICATED_BYTES)

    def upstream_error(self, error: Exception) -> MlopsError:
        """Say what it is that does not answer."""
        if isinstance(error, TimeoutError):
            return super().upstream_error(error)
        return BackendUnreachable("the endpoint's gateway does not answer", "try again in a moment")

    def adapt_response(self, status: int, headers: CIMultiDict[str]) -> None:
        """The answer is data: it sets no cookie and opens nothing to other origins."""
        for name in list(headers):
            if name.lower() == "set-cookie" or name.lower().startswith("access-control-"):
                del headers[name]
        for name in ("Content-Security-Policy", "X-Content-Type-Options"):
            headers.popall(name, None)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Errors are ``{message, code, hint}``."""
        error = cast(BaseException | None, (kwargs.get("exc_info") or (None, None, None))[1])
        self.set_header("Content-Type", "application/json")
        if status_code == 401:
            self.set_header("WWW-Authenticate", "Bearer")
        self.finish(json.dumps(error_body(status_code, error)))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """What strangers send is no news."""
        if not isinstance(value, web.HTTPError):
            super().log_exception(typ, value, tb)

    # StreamingProxy defines all verbs; Jupyter wants each marked, and ``route`` refuses those that do not belong.
    get = allow_unauthenticated(StreamingProxy.relay)
    head = allow_unauthenticated(StreamingProxy.relay)
    post = allow_unauthenticated(StreamingProxy.relay)
    put = allow_unauthenticated(StreamingProxy.relay)
    patch = allow_unauthenticated(StreamingProxy.relay)
    delete = allow_unauthenticated(StreamingProxy.relay)
    options = allow_unauthenticated(StreamingProxy.relay)
