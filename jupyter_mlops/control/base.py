"""What every handler of the control plane does first: host, token, version, policy; and how errors look."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError
from tornado import web
from tornado.iostream import StreamClosedError

from ..core import policy
from ..core.errors import Forbidden, MlopsError, NotFound, ParameterError, Unauthenticated, VersionMismatch
from ..core.identity import Identity
from ..core.resources.base import parameter_error
from ..runtime.locate import VERSION_HEADER
from .operations import Answer, Call, Operation

if TYPE_CHECKING:
    from .plane import ControlPlane

log = logging.getLogger(__name__)

#: Largest JSON body in bytes.
MAX_BODY = 8 * 1024 * 1024
#: Bytes of a file that are sent at a time.
_PIECE = 1024 * 1024

_HOST = re.compile(r"^(127\.0\.0\.1|localhost|\[::1\])(:\d+)?$", re.IGNORECASE)


def compatible(theirs: str, ours: str) -> bool:
    """Versions work together when the major agrees; before 1.0 the minor as well."""
    a, b = re.match(r"(\d+)\.(\d+)", theirs), re.match(r"(\d+)\.(\d+)", ours)
    if not a or not b:
        return False
    return a.group(1) == b.group(1) and (a.group(1) != "0" or a.group(2) == b.group(2))


class BaseHandler(web.RequestHandler):
    """A request handler of the control plane: bearer token only, never a cookie."""

    identity: Identity

    @property
    def plane(self) -> ControlPlane:
        """The control plane that serves this request."""
        return self.settings["plane"]

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def prepare(self) -> None:
        self.identify()

    def identify(self) -> None:
        """Check host, token and version; sets :attr:`identity`.

        Raises:
            Unauthenticated, Forbidden, VersionMismatch
        """
        if not _HOST.match(self.request.host or ""):
            # A name that resolves to loopback could let a web page talk to us.
            raise Forbidden("this host name is not served here", "use 127.0.0.1 or localhost")
        scheme, _, token = (self.request.headers.get("Authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthenticated("a workspace token is needed", "send it as `Authorization: Bearer …`")
        self.identity = self.plane.identify(token.strip())
        theirs = self.request.headers.get(VERSION_HEADER)
        if theirs and not compatible(theirs, self.plane.version):
            raise VersionMismatch(
                f"client {theirs} and control plane {self.plane.version} do not work together",
                "install the same jupyter-mlops in both environments, then `jupyter mlops down`",
            )

    def require(self, action: str, resource: str = "") -> None:
        """Raise Forbidden unless the caller may do ``action``."""
        policy.require(self.identity, action, resource)

    def answer(self, answer: Answer) -> None:
        """Send an answer."""
        self.set_status(answer.status)
        for name, value in answer.headers.items():
            self.set_header(name, value)
        if answer.raw is not None:
            self.set_header("Content-Type", answer.content_type)
            self.finish(answer.raw)
        elif answer.body is None:
            self.finish()
        else:
            self.set_header("Content-Type", "application/json")
            body = answer.body
            self.finish(body.model_dump_json() if isinstance(body, BaseModel) else json.dumps(body, allow_nan=False))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs.get("exc_info", (None, None))[1]
        if isinstance(error, MlopsError):
            body = error.body()
            self.set_status(error.status)
            if isinstance(error, Unauthenticated):
                self.set_header("WWW-Authenticate", "Bearer")
            if error.status == 503:
                self.set_header("Retry-After", "1")
        elif isinstance(error, web.HTTPError):
            names = {400: "bad_parameter", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}
            body = {"message": error.reason or self._reason, "code": names.get(status_code, "error"), "hint": ""}
            if status_code == 405 and isinstance(self, OperationHandler):
                self.set_header("Allow", ", ".join(sorted(self._operations)))
        else:
            body = {"message": "internal error", "code": "error", "hint": "see the log: jupyter mlops doctor"}
        self.set_header("Content-Type", "application/json")
        self.finish(json.dumps(body))

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        if isinstance(value, MlopsError) and value.status < 500:
            return
        if isinstance(value, MlopsError):
            log.warning("%s %s: %s", self.request.method, self.request.path, value)
            return
        super().log_exception(typ, value, tb)


class NotFoundHandler(BaseHandler):
    """Everything that is no route of ours, after authentication like all else."""

    def prepare(self) -> None:
        super().prepare()
        raise NotFound("there is no such route", "see /jupyter-mlops/api/v1/openapi.json")


class OperationHandler(BaseHandler):
    """Runs the operations of one path."""

    SUPPORTED_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")  # all answered below

    def initialize(self, operations: dict[str, Operation], parameters: tuple[str, ...]) -> None:
        self._operations = operations
        self._parameters = parameters

    def prepare(self) -> None:
        super().prepare()
        if self.request.method not in self._operations:
            raise web.HTTPError(405, reason="method not allowed here")

    async def _serve(self, *arguments: str) -> None:
        operation = self._operations[self.request.method or ""]
        path = dict(zip(self._parameters, arguments, strict=True))  # decoded by tornado, once
        # By name where there is one: a job may see itself, not its neighbours.
        policy.require(self.identity, operation.action, path.get("name", ""))
        if path.get("ws", self.plane.name) != self.plane.name:
            raise NotFound(f"workspace {path['ws']!r} is not served here", f"this is workspace {self.plane.name!r}")
        for name, value in path.items():
            if "\0" in value or len(value) > 500:
                raise ParameterError(f"{name} is not valid")
        call = Call(self.plane, self.identity, path, headers=self.request.headers)
        if operation.query is not None:
            call.query = self._query(operation.query)
        if operation.raw_body:
            call.raw = self.request.body
        elif operation.body is not None:
            call.body = self._body(operation.body)
        call.upload = getattr(self, "upload", None)
        answer = await operation.function(call)
        if answer.file is not None:
            await self._send(answer, answer.file)
        else:
            self.answer(answer)

    get = post = put = delete = patch = head = options = _serve  # type: ignore[assignment]
    trace = _serve

    async def _send(self, answer: Answer, path: Path) -> None:
        """Stream a file in flat memory."""
        with await asyncio.to_thread(open, path, "rb") as f:
            if answer.temporary:
                path.unlink(missing_ok=True)
            self.set_status(answer.status)
            for name, value in answer.headers.items():
                self.set_header(name, value)
            self.set_header("Content-Type", answer.content_type)
            self.set_header("Content-Length", os.fstat(f.fileno()).st_size)
            try:
                while data := await asyncio.to_thread(f.read, _PIECE):
                    self.write(data)
                    await self.flush()
                await self.finish()
            except StreamClosedError:
                self._auto_finish = False  # the client went away

    def _query(self, model: type[BaseModel]) -> BaseModel:
        values: dict[str, Any] = {}
        for key, given in self.request.query_arguments.items():
            if len(given) > 1:
                raise ParameterError(f"query parameter {key!r} is given twice")
            try:
                values[key] = given[0].decode("utf-8")
            except UnicodeDecodeError:
                raise ParameterError(f"query parameter {key!r} is not UTF-8") from None
        try:
            return model.model_validate(values)
        except ValidationError as e:
            raise parameter_error(e, "query") from e

    def _body(self, model: type[BaseModel]) -> Any:
        if len(self.request.body) > MAX_BODY:
            raise ParameterError(f"the body is larger than {MAX_BODY} bytes")
        if self.request.body:
            kind = (self.request.headers.get("Content-Type") or "application/json").partition(";")[0].strip().lower()
            if kind != "application/json":
                raise ParameterError(f"content type {kind!r} is not understood", "send application/json")
        try:
            value = json.loads(self.request.body or b"{}")
            json.dumps(value).encode("utf-8")  # lone surrogates would fail later, in the store
        except (ValueError, RecursionError) as e:
            text = "it nests too deep" if isinstance(e, RecursionError) else str(e)
            raise ParameterError(f"the body is not valid JSON: {text}") from None
        if not isinstance(value, dict):
            raise ParameterError("the body must be a JSON object")
        try:
            return model.model_validate(value)
        except ValidationError as e:
            raise parameter_error(e, "body") from e


def peer_is_us(handler: web.RequestHandler) -> bool:
    """Whether a request came over the unix socket from a process of this same user."""
    import os
    import struct

    stream = getattr(handler.request.connection, "stream", None)
    sock = getattr(stream, "socket", None)
    if sock is None or sock.family != socket.AF_UNIX:
        return False
    if hasattr(socket, "SO_PEERCRED"):
        data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        _pid, uid, _gid = struct.unpack("3i", data)
        return uid == os.getuid()
    return True  # macOS: the socket's mode and folder are the gate
