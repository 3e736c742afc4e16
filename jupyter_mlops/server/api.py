"""The state of the link, and the proxy in front of the control plane's REST API."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from jupyter_server.auth.decorator import authorized
from tornado import web
from tornado.iostream import StreamClosedError

from ..core.errors import BackendTimeout, BackendUnreachable, Gone, MlopsError, NotFound, TooLarge, Unavailable
from .base import RESOURCE, MlopsHandler, Refusal, clean_path, clean_query

#: Seconds for a request that only looks into the control plane's store; for one that asks MLflow; for any other.
QUICK, VIEW, LONG = 5.0, 20.0, 60.0
#: Seconds for an answer that may be large, with all of it.
TRANSFER = 3600.0
#: Largest body of a request, in bytes.
MAX_BODY = 32 << 20
#: Requests under way at once; further ones are refused.
MAX_REQUESTS = 64
#: Headers that pass to the control plane, and back.
SENT = ("Accept", "Content-Type", "If-Match", "If-None-Match", "Jupyter-Mlops-Version")
RETURNED = ("Content-Type", "ETag", "Jupyter-Mlops-Version", "Retry-After", "Content-Disposition", "Content-Encoding",
            "Allow", "Last-Modified", "X-Deployment", "X-Request-Id", "Content-Security-Policy", "Referrer-Policy")

_WS = r"/api/v1/workspaces/[^/]+"
LAUNCH = re.compile(_WS + r"/(jobs/[^/]+|endpoints/[^/]+/deployments/[^/]+|endpoints/[^/]+/actions/invoke)/*")
_CHANGES = re.compile(_WS + r"/changes/*")
_VIEWS = re.compile(_WS + r"/(experiments|runs|models)(/.*)?")
_DOCTOR = re.compile(_WS + r"/doctor/*")
#: Captured requests are read by a process that is started for it, and may be as large as disks are.
_DATA, _DATA_INFO = (re.compile(_WS + r"/endpoints/[^/]+/data" + rest + r"/*") for rest in ("", "/info"))


class StatusHandler(MlopsHandler):
    """Whether the control plane is up, from memory: asking it would make Jupyter wait for it."""

    _track_activity = False

    @web.authenticated
    @authorized("read", RESOURCE)
    async def get(self) -> None:
        """``{version, workspace, state, message, readonly, hide_launch, command}``"""
        self.set_header("Cache-Control", "no-store")
        self.finish(json.dumps(self.mlops.status()))

    @web.authenticated
    @authorized("write", RESOURCE)
    async def post(self) -> None:
        """Start the control plane again after ``jupyter mlops down``; answers the status at once."""
        await self.demand("write")
        self.link.resume()
        self.set_status(202)
        self.finish(json.dumps(self.mlops.status()))


class ApiHandler(MlopsHandler):
    """Requests go on with our own token and without cookies; answers come back whole."""

    @web.authenticated
    @authorized("read", RESOURCE)
    async def get(self, path: str) -> None:
        """Read."""
        self._track_activity = False
        await self.pass_on("read")

    @web.authenticated
    @authorized("write", RESOURCE)
    async def put(self, path: str) -> None:
        """Create or update."""
        await self.pass_on("write")

    @web.authenticated
    @authorized("write", RESOURCE)
    async def post(self, path: str) -> None:
        """Act."""
        await self.pass_on("write")

    @web.authenticated
    @authorized("write", RESOURCE)
    async def delete(self, path: str) -> None:
        """Delete."""
        await self.pass_on("write")

    async def pass_on(self, action: str) -> None:
        """Send the request to the control plane and its answer back.

        Raises:
            Refusal: it is not allowed, or nobody answers.
        """
        path = clean_path(self.raw_path)
        plain = unquote(path)
        if action == "write" and self.request.method in ("PUT", "POST") and LAUNCH.fullmatch(plain):
            # Belongs to LaunchHandler; here only in a spelling that the control plane does not know either.
            raise Refusal(NotFound("there is no such route"))
        await self.demand(action)
        if _CHANGES.fullmatch(plain):
            raise Refusal(Gone("the change feed does not pass through Jupyter",
                               "listen to the Jupyter event https://jupyter-mlops.github.io/events/changes/v1"))
        if len(self.request.body) > MAX_BODY:
            raise Refusal(TooLarge(f"the request body is over {MAX_BODY} bytes"))
        if action != "read":
            await self._exchange(path, LONG, writer=True)
            return
        if _DATA.fullmatch(plain):
            await self._stream(path)
            return
        slow = _DOCTOR.fullmatch(plain) or _DATA_INFO.fullmatch(plain)
        timeout = LONG if slow else VIEW if _VIEWS.fullmatch(plain) else QUICK
        # Defence in depth: the control plane itself refuses writes by those who may only read here.
        await self._exchange(path, timeout, writer=await self.may_write())

    async def _stream(self, path: str) -> None:
        """The answer to a GET, passed on in flat memory."""
        writer = await self.may_write()
        with self._refusing(TRANSFER), self.mlops.slot("api", MAX_REQUESTS):
            async with self.link.opened(
                "GET", path + clean_query(self.request.query), timeout=TRANSFER, writer=writer
            ) as response:
                self._head(response.status, response.headers)
                kind = response.headers.get("Content-Type", "application/json")
                self.set_header("Content-Type", kind)
                if "Content-Length" in response.headers:  # what breaks off must not look whole
                    self.set_header("Content-Length", response.headers["Content-Length"])
                try:
                    async for chunk in response.content.iter_chunked(1 << 20):
                        self.write(chunk)
                        await self.flush()
                except StreamClosedError:
                    return  # the browser went away
                self.finish(set_content_type=kind)

    async def _exchange(self, path: str, timeout: float, *, writer: bool) -> None:
        method = self.request.method or "GET"
        sent = {name: self.request.headers[name] for name in SENT if name in self.request.headers}
        with self._refusing(timeout), self.mlops.slot("api", MAX_REQUESTS):
            status, headers, body = await self.link.request(
                method, path + clean_query(self.request.query), timeout=timeout, headers=sent,
                body=self.request.body, writer=writer,
            )
        self._head(status, headers)
        if status in (204, 304):
            self.clear_header("Content-Type")
            self.finish(set_content_type="application/json")
        else:
            self.finish(body, set_content_type=headers.get("Content-Type", "application/json"))

    @contextlib.contextmanager
    def _refusing(self, timeout: float) -> Iterator[None]:
        """What goes wrong between us and the control plane, as a Refusal."""
        import aiohttp

        try:
            yield
        except MlopsError as e:
            raise Refusal(e)
        except TimeoutError:
            self.link.suspect()
            raise Refusal(BackendTimeout(f"the control plane did not answer within {timeout:g} s",
                                         "try again in a moment; %mlops doctor tells more"))
        except (aiohttp.ClientError, OSError):
            self.link.suspect()
            raise Refusal(BackendUnreachable("the control plane does not answer", "it is looked after; try again"))

    def _head(self, status: int, headers: Any) -> None:
        """Take over the status, and the headers that pass."""
        if status == 401:
            # Our token, not the user's: it is renewed, and the browser must not take it for a lost login.
            self.link.suspect()
            raise Refusal(Unavailable("the control plane knows this Jupyter server no more", "try again in a moment"))
        self.set_status(status)
        for name in RETURNED:
            if name in headers:
                self.set_header(name, headers[name])
        self.set_header("Cache-Control", "no-store")
        if "Location" in headers:
            self.set_header("Location", self.mlops.public(headers["Location"]))


class LaunchHandler(ApiHandler):
    """Routes whose PUT or POST runs code: training, deploying, calling a model. They ask for ``execute``."""

    @web.authenticated
    @authorized("execute", RESOURCE)
    async def put(self, path: str) -> None:
        """Submit or deploy."""
        await self.pass_on("execute")

    @web.authenticated
    @authorized("execute", RESOURCE)
    async def post(self, path: str) -> None:
        """Call."""
        await self.pass_on("execute")
