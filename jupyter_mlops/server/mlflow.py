"""MLflow, and TensorBoard, behind Jupyter's login: they stream through, to the control plane's own proxies."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from jupyter_server.auth.decorator import authorized
from jupyter_server.base.handlers import JupyterHandler
from tornado import web

from ..core.errors import Forbidden, MlopsError, Unavailable
from ..streaming import StreamingProxy, Upstream, forward_headers
from ..tracking.rules import match
from .base import RESOURCE, MlopsHandler, OneSlot, Refusal, clean_path, clean_query
from .origin import same_origin

if TYPE_CHECKING:
    from multidict import CIMultiDict

#: Requests under way at once; further ones are refused.
MAX_REQUESTS = 64
#: What the browser and Jupyter tell of themselves stays here.
KEPT_BACK = (
    "Authorization", "Cookie", "Origin", "Referer", "Forwarded", "X-Real-Ip", "X-Scheme", "X-XSRFToken",
    "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Proto", "X-Forwarded-Prefix",
    "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest", "Sec-Fetch-User",
)
_PAGE = re.compile(r"/mlflow/?(index\.html)?")
_BOARD = re.compile(r"/tensorboard/([^/]+)/.*")


def is_read(method: str, path: str) -> bool:
    """Whether a request to MLflow changes nothing; ``path`` is MLflow's own, percent-encoded.

    MLflow asks many questions by POST. What the control plane would refuse counts by its method; it decides anyway.
    """
    try:
        return match(method, path).rule.reads
    except MlopsError:
        return method in ("GET", "HEAD")


@web.stream_request_body
class MlflowHandler(OneSlot, StreamingProxy, MlopsHandler):  # type: ignore[misc]
    """Decides in :meth:`route`, before any of the body is taken; the verbs only relay."""

    #: What requests count as against :data:`MAX_REQUESTS`.
    slot = "mlflow"

    @property
    def content_security_policy(self) -> str:
        """As for Jupyter's own pages, not as for its REST API: MLflow's pages load scripts."""
        return JupyterHandler.content_security_policy.__get__(self)

    def check_xsrf_cookie(self) -> None:
        """MLflow's pages know no XSRF token: a cookie counts only from a page of our own origin."""
        if not hasattr(self, "_jupyter_current_user") or self.request.method in ("GET", "HEAD", "OPTIONS"):
            return  # Jupyter asks again when it knows the user
        if self.token_authenticated:
            return
        if not same_origin(self.request.headers, self.request.protocol, self.request.host):
            raise Refusal(Forbidden("this request does not come from a page of this server",
                                    "other clients: send Jupyter's token, or use the address of `jupyter mlops env`"))

    def check_origin(self, origin_to_satisfy_tornado: str = "") -> bool:
        """Writes have passed the stricter check above."""
        if self.request.method not in ("GET", "HEAD", "OPTIONS"):
            return True
        return super().check_origin(origin_to_satisfy_tornado)

    async def route(self, *args: Any, **kwargs: Any) -> Upstream:
        """The control plane's proxy, with the rights that the user has here."""
        path = clean_path(self.raw_path)
        action = self.action(path)
        self._track_activity = self.is_activity(action)
        await self.demand(action)
        writer = await self.may_write() if action == "read" else True
        client = self.link.client()
        headers = forward_headers(self.request, drop=KEPT_BACK)
        headers["Authorization"] = await self.link.bearer(writer)
        self.take_slot(self.slot, MAX_REQUESTS)
        return Upstream(client, self.link.target(path + clean_query(self.request.query)), headers)

    def action(self, path: str) -> str:
        """What the user must be allowed to do, ``read`` or ``write``."""
        return "read" if is_read(self.request.method or "", path.removeprefix("/mlflow") or "/") else "write"

    def is_activity(self, action: str) -> bool:
        """Whether somebody does something, rather than looks at a page that renews itself."""
        return action != "read"

    def may_be_framed(self) -> bool:
        """Whether it is a page that one of ours shows in a frame."""
        return _PAGE.fullmatch(unquote(self.raw_path)) is not None

    async def on_answered(self, status: int) -> None:
        """Our token is not the user's: a browser must not take its end for a lost login."""
        if status == 401:
            self.link.suspect()
            raise Unavailable("the control plane knows this Jupyter server no more", "try again in a moment")

    def upstream_error(self, error: Exception) -> MlopsError:
        """Nobody answers, so the link looks after it."""
        self.link.suspect()
        return super().upstream_error(error)

    def adapt_response(self, status: int, headers: CIMultiDict[str]) -> None:
        """Only a tool's own page may be shown in a frame, and only in one of ours."""
        for name in list(headers):
            if name.lower() == "set-cookie" or name.lower().startswith("access-control-"):
                del headers[name]
        if "Location" in headers:
            headers["Location"] = self.mlops.public(headers["Location"])
        policy = "; ".join(headers.popall("Content-Security-Policy", []))
        if self.may_be_framed():
            # Jupyter's own policy says who may frame its pages (a hub may have changed it).
            policy = f"{policy}; {self.content_security_policy}" if policy else self.content_security_policy
            headers["X-Frame-Options"] = "SAMEORIGIN"
        else:
            if "frame-ancestors" not in policy:
                policy = f"{policy}; frame-ancestors 'none'" if policy else "frame-ancestors 'none'"
            headers["X-Frame-Options"] = "DENY"
        headers["Content-Security-Policy"] = policy
        headers["X-Content-Type-Options"] = "nosniff"

    # ``route`` has asked for what the request needs; here Jupyter sees that each verb is guarded.

    @web.authenticated
    @authorized("read", RESOURCE)
    async def get(self, *args: Any) -> None:  # type: ignore[override]
        """Relay."""
        await self.relay()

    @web.authenticated
    @authorized("read", RESOURCE)
    async def head(self, *args: Any) -> None:  # type: ignore[override]
        """Relay."""
        await self.relay()

    @web.authenticated
    @authorized("read", RESOURCE)
    async def post(self, *args: Any) -> None:  # type: ignore[override]
        """Relay."""
        await self.relay()

    @web.authenticated
    @authorized("read", RESOURCE)
    async def put(self, *args: Any) -> None:  # type: ignore[override]
        """Relay."""
        await self.relay()

    @web.authenticated
    @authorized("read", RESOURCE)
    async def patch(self, *args: Any) -> None:  # type: ignore[override]
        """Relay."""
        await self.relay()

    @web.authenticated
    @authorized("read", RESOURCE)
    async def delete(self, *args: Any) -> None:  # type: ignore[override]
        """Relay."""
        await self.relay()


@web.stream_request_body
class TensorboardHandler(MlflowHandler):
    """TensorBoard of jobs, runs and folders: it starts a program, so only those who may write see it."""

    slot = "tensorboard"

    def action(self, path: str) -> str:
        """Its pages ask by POST; nothing is changed by it."""
        return "write"

    def is_activity(self, action: str) -> bool:
        """A page that renews itself must not keep a server up."""
        return False

    def may_be_framed(self) -> bool:
        """Its plugins have frames of their own."""
        return _BOARD.fullmatch(unquote(self.raw_path)) is not None
