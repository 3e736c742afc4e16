"""Calls to the MLflow child over its unix socket, with its errors turned into ours."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
from yarl import URL

from ..core.errors import (
    BackendTimeout,
    BackendUnreachable,
    Conflict,
    Forbidden,
    MlopsError,
    NotFound,
    ParameterError,
    Unavailable,
)
from ..streaming import kept_session, unix_session
from .child import MlflowChild

#: Seconds that a call waits for a child that is starting again.
WAIT = 10.0
#: Seconds of silence after which a call fails.
READ_TIMEOUT = 30.0

API = "/api/2.0/mlflow/"

_ERRORS: dict[str, type[MlopsError]] = {
    "RESOURCE_DOES_NOT_EXIST": NotFound,
    "NOT_FOUND": NotFound,
    "ENDPOINT_NOT_FOUND": NotFound,
    "RESOURCE_ALREADY_EXISTS": Conflict,
    "ALREADY_EXISTS": Conflict,
    "INVALID_STATE": Conflict,
    "INVALID_PARAMETER_VALUE": ParameterError,
    "BAD_REQUEST": ParameterError,
    "MALFORMED_REQUEST": ParameterError,
    "PERMISSION_DENIED": Forbidden,
    "TEMPORARILY_UNAVAILABLE": Unavailable,
}


def is_starting(child: MlflowChild) -> Unavailable:
    """The error for a caller who should come again."""
    return Unavailable(child.message or "MLflow is starting", "it is restarted by itself: try again in a moment")


def error_from(status: int, body: bytes) -> MlopsError:
    """The error that an answer of MLflow stands for."""
    try:
        value = json.loads(body)
    except ValueError:
        value = {}
    if not isinstance(value, dict):
        value = {}
    message = str(value.get("message") or f"MLflow answered {status}")[:2000]
    known = _ERRORS.get(str(value.get("error_code")))
    if known is None:
        known = {400: ParameterError, 403: Forbidden, 404: NotFound, 409: Conflict}.get(status, BackendUnreachable)
    return known(message, _hint(status, message))


def _hint(status: int, message: str) -> str:
    if status >= 500:
        return "see the log: jupyter mlops doctor"
    if "filter string" in message or "filter_string" in message:
        return "for example: metrics.accuracy > 0.9 and params.model = 'forest'"
    if message.startswith("Invalid model name"):
        return "use letters, digits, dashes and underscores"
    return ""


class NotSent(BackendUnreachable):
    """MLflow did not get the request, so nothing has happened."""


class MlflowApi:
    """A client of the child; use it in one event loop, and :meth:`close` it at the end."""

    def __init__(self, child: MlflowChild) -> None:
        self.child = child
        self._session: aiohttp.ClientSession | None = None
        self._streams: aiohttp.ClientSession | None = None
        self._kept: aiohttp.ClientSession | None = None

    @property
    def kept(self) -> aiohttp.ClientSession:
        """For many short calls that may be repeated: connections stay open."""
        if self._kept is None:
            self._kept = kept_session(self.child.socket, READ_TIMEOUT)
        return self._kept

    @property
    def session(self) -> aiohttp.ClientSession:
        """For short calls."""
        if self._session is None:
            self._session = unix_session(self.child.socket, READ_TIMEOUT)
        return self._session

    @property
    def streams(self) -> aiohttp.ClientSession:
        """For what is streamed through."""
        if self._streams is None:
            self._streams = unix_session(self.child.socket)
        return self._streams

    async def close(self) -> None:
        """Close the connections."""
        for session in (self._session, self._streams, self._kept):
            if session is not None:
                await session.close()
        self._session = self._streams = self._kept = None

    async def ready(self) -> None:
        """Return when the child answers.

        Raises:
            Unavailable: it does not within ``WAIT`` seconds.
        """
        if not await self.child.ready(WAIT):
            raise is_starting(self.child)

    async def call(
        self, method: str, path: str, *, query: str = "", params: Any = None, body: Any = None, data: Any = None,
        keep: bool = False,
    ) -> tuple[int, bytes]:
        """One request: (status, body of the answer). ``path`` is percent-encoded, ``body`` becomes JSON.

        Args:
            data: instead of ``body``: JSON as bytes, or another source of bytes that aiohttp knows, sent as it is.
            keep: over a connection that was used before: the caller repeats what got no answer.

        Raises:
            Unavailable: the child is not there.
            NotSent, BackendUnreachable, BackendTimeout: it did not answer.
        """
        await self.ready()
        headers = {"Host": "localhost"}
        if body is not None:
            # Halves of characters, as in names of files that are no UTF-8, would fail in MLflow's database for ever.
            data = json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        if data is not None:
            headers["Content-Type"] = "application/json" if isinstance(data, bytes) else "application/octet-stream"
        url = URL(f"http://localhost{path}{'?' + query if query else ''}", encoded=True)
        if params:
            url = url.extend_query(params)
        session = self.session if data is None or isinstance(data, bytes) else self.streams
        if keep:
            session = self.kept
        until = asyncio.get_running_loop().time() + WAIT
        try:
            while True:
                try:
                    async with session.request(
                        method, url, data=data, headers=headers, allow_redirects=False
                    ) as response:
                        return response.status, await response.read()
                except aiohttp.ClientConnectorError:
                    if not await self.child.reconnect(until):
                        raise NotSent("MLflow does not answer", "it is restarted by itself: try again") from None
        except TimeoutError:
            raise BackendTimeout("MLflow did not answer in time", "try again; see: jupyter mlops doctor") from None
        except (aiohttp.ClientError, OSError) as error:
            raise BackendUnreachable(f"MLflow broke off: {error}", "try again in a moment") from None

    async def ask(self, method: str, path: str, *, params: Any = None, body: Any = None) -> dict[str, Any]:
        """The JSON answer to a call of ``/api/2.0/mlflow/<path>`` (or of a whole path).

        Raises:
            MlopsError: what MLflow answered, or that it did not.
        """
        whole = path if path.startswith("/") else API + path
        status, data = await self.call(method, whole, params=params, body=body)
        if status >= 300:
            raise error_from(status, data)
        try:
            value = json.loads(data or b"{}")
        except ValueError:
            raise BackendUnreachable("MLflow gave an answer that is not JSON") from None
        return value if isinstance(value, dict) else {}

    async def get(self, path: str, /, **params: Any) -> dict[str, Any]:
        """GET with query parameters."""
        return await self.ask("GET", path, params={k: str(v) for k, v in params.items() if v is not None})

    async def post(self, path: str, /, **body: Any) -> dict[str, Any]:
        """POST with a JSON body; fields that are None are left out."""
        return await self.ask("POST", path, body={k: v for k, v in body.items() if v is not None})
