"""One HTTP request to the control plane: token, version, errors, and following it when it was restarted or moved.

A local control plane is called over its unix socket, whose owner is checked each time: so a token never goes to
somebody else who took the port of one that ended.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, BinaryIO, TypeVar
from urllib.parse import quote

import aiohttp
from yarl import URL

from .. import __version__
from ..core.errors import BackendTimeout, MlopsError, Unauthenticated, Unavailable, from_body
from ..runtime import locate

T = TypeVar("T")

#: Seconds for one request; long polls add their own wait.
REQUEST_TIMEOUT = 60.0
#: Seconds during which a busy or restarting control plane is asked again.
PATIENCE = 20.0

#: Methods that may be sent twice without harm.
IDEMPOTENT = frozenset({"GET", "HEAD", "PUT", "DELETE"})

_UNSENT = (aiohttp.ClientConnectorError, ConnectionRefusedError, FileNotFoundError)


def segment(name: str) -> str:
    """A name as one path segment: everything but unreserved characters is percent-encoded."""
    return quote(str(name), safe="")


class Answer:
    """Status, headers and decoded JSON of a reply."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int, headers: Any, body: Any) -> None:
        self.status = status
        self.headers = headers
        self.body = body


class Transport:
    """Sends requests for one workspace from one event loop.

    Args:
        where: the workspace; default is what arguments and environment name.
        may_start: whether a control plane may be started; default is :func:`locate.may_start`.
        role: ``owner`` or ``reader``.
        url, token: a control plane on another machine; both or none.
    """

    def __init__(
        self,
        where: locate.Place | None = None,
        may_start: bool | None = None,
        role: str | None = None,
        url: str | None = None,
        token: str | None = None,
    ) -> None:
        self.where = where or locate.place()
        self._may = may_start
        self._role = role
        self._fixed = locate.Session(url, token or "", self.where.name) if url else None
        self._http: aiohttp.ClientSession | None = None
        self._socket = ""
        self.session: locate.Session | None = None

    async def connect(self, fresh: bool = False) -> locate.Session:
        """The session, asked for again when ``fresh``.

        Raises:
            Unavailable: no control plane can be reached or started.
        """
        if self._fixed is not None:
            self.session = self._fixed
        elif self.session is None or fresh:
            try:
                self.session = await asyncio.to_thread(locate.connect, self.where, self._may, self._role, fresh)
            except locate.LocateError as error:
                raise Unavailable(error.message, error.hint) from None
        assert self.session is not None
        return self.session

    async def _client(self) -> aiohttp.ClientSession:
        path = self._local_socket()
        if self._http is None or self._http.closed or path != self._socket:
            await self.close()
            # No connection is reused: a request that fails on a stale one could not be told from a half-done one.
            connector: aiohttp.BaseConnector = (
                aiohttp.UnixConnector(path, force_close=True) if path else aiohttp.TCPConnector(force_close=True)
            )
            self._http, self._socket = aiohttp.ClientSession(connector=connector, trust_env=False), path
        return self._http

    def _local_socket(self) -> str:
        """Path of the control plane's socket; empty for one on another machine.

        Raises:
            Unavailable: somebody else owns it.
        """
        if self._fixed is not None or (os.environ.get("JUPYTER_MLOPS_URL") and os.environ.get("JUPYTER_MLOPS_TOKEN")):
            return ""
        path = self.where.socket_path
        if os.stat(path).st_uid != os.getuid():
            raise Unavailable(f"the socket {path} belongs to somebody else", "set XDG_RUNTIME_DIR to a private folder")
        return path

    async def close(self) -> None:
        """End open connections."""
        if self._http is not None:
            await self._http.close()
            self._http = None

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, Any] | None = None,
        body: Any = None,
        data: bytes | Callable[[], BinaryIO] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = REQUEST_TIMEOUT,
        scope: str = "workspace",
        raw: bool = False,
    ) -> Answer:
        """One request; ``path`` is relative to ``scope`` (``workspace``, ``api`` or ``mlflow``) and already encoded.

        ``data`` that is callable opens a file, which is streamed; it is called anew for each try.

        Raises:
            MlopsError: the class that the error body names.
        """
        begun = time.monotonic()
        pause = 0.1
        renewed = False
        fresh = False
        while True:
            session = await self.connect(fresh)
            fresh = False
            try:
                async with self.open(
                    method, path, session, params=params, body=body, data=data, headers=headers, timeout=timeout,
                    scope=scope,
                ) as response:
                    content = await response.read()
                    if response.status < 400:
                        return Answer(response.status, response.headers, content if raw else _decode(content))
                    failure = error_of(response.status, content, response.headers)
                    retry_after = response.headers.get("Retry-After")
            except TimeoutError:
                raise BackendTimeout(
                    f"the control plane did not answer within {timeout:g} s", "see: jupyter mlops doctor"
                ) from None
            except (aiohttp.ClientError, OSError) as error:
                unsent = isinstance(error, _UNSENT)
                patient = time.monotonic() - begun < PATIENCE
                if not (patient and (unsent or method in IDEMPOTENT)):
                    raise Unavailable(
                        f"the connection to the control plane broke during {method} {path.split('?')[0]}",
                        "try again" if method in IDEMPOTENT or unsent else "look whether it was done, then try again",
                    ) from error
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)
                fresh = True
                continue
            if isinstance(failure, Unauthenticated) and not renewed:
                renewed = fresh = True
                continue
            busy = failure.status == 503 and (method in IDEMPOTENT or retry_after is not None)
            if busy and time.monotonic() - begun < PATIENCE:
                await asyncio.sleep(min(_seconds(retry_after) or pause, 2.0))
                pause = min(pause * 2, 2.0)
                continue
            raise failure

    async def download(
        self, path: str, file: BinaryIO, timeout: float = 3600.0, method: str = "GET", body: Any = None,
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Write a reply into a file, in flat memory; that to a GET is begun anew when the connection breaks.

        Returns:
            the reply's headers.

        Raises:
            MlopsError: the class that the error body names.
        """
        begun, fresh, renewed = time.monotonic(), False, False
        while True:
            session = await self.connect(fresh)
            fresh = True
            file.seek(0)
            file.truncate()
            try:
                async with self.open(method, path, session, params=params, body=body, timeout=timeout) as response:
                    if response.status < 400:
                        async for piece in response.content.iter_chunked(1 << 20):
                            file.write(piece)
                        return response.headers
                    failure = error_of(response.status, await response.read(), response.headers)
            except (aiohttp.ClientError, OSError) as error:
                sent = method not in IDEMPOTENT and not isinstance(error, _UNSENT)
                if sent or time.monotonic() - begun > PATIENCE:
                    raise Unavailable(f"the connection to the control plane broke during {method} {path}") from error
                await asyncio.sleep(0.2)
                continue
            if not isinstance(failure, Unauthenticated) or renewed:
                raise failure
            renewed = True

    @asynccontextmanager
    async def websocket(self, path: str, params: dict[str, Any]) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket to the control plane.

        Raises:
            MlopsError: the class that the refusal names.
            Unavailable: it cannot be reached.
        """
        session = await self.connect()
        send = {"Authorization": f"Bearer {session.token}", locate.VERSION_HEADER: __version__}
        query = "&".join(f"{k}={quote(_text(v), safe='')}" for k, v in params.items())
        try:
            socket = await (await self._client()).ws_connect(
                URL(f"{session.api}{path}?{query}", encoded=True), headers=send, max_msg_size=0, autoping=True)
        except aiohttp.WSServerHandshakeError as error:
            told = error.headers.get(locate.ERROR_HEADER, "") if error.headers else ""
            raise error_of(error.status, told.encode() or error.message.encode()) from None
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unavailable("the control plane cannot be reached", "see: jupyter mlops doctor") from error
        try:
            yield socket
        finally:
            await socket.close()

    @asynccontextmanager
    async def open(
        self,
        method: str,
        path: str,
        session: locate.Session,
        *,
        params: dict[str, Any] | None = None,
        body: Any = None,
        data: bytes | Callable[[], BinaryIO] | None = None,
        headers: dict[str, str] | None = None,
        timeout: float = REQUEST_TIMEOUT,
        scope: str = "workspace",
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The bare exchange, without retry; the caller reads the reply."""
        base = {
            "workspace": session.api,
            "api": f"{session.url}/api/v1",
            "mlflow": session.tracking_uri,
        }[scope]
        query = "&".join(
            f"{quote(k, safe='')}={quote(_text(v), safe='')}" for k, v in (params or {}).items() if v is not None
        )
        send = {"Authorization": f"Bearer {session.token}", locate.VERSION_HEADER: __version__, **(headers or {})}
        if body is not None:
            data = json.dumps(body, allow_nan=False).encode()
            send["Content-Type"] = "application/json"
        async with (await self._client()).request(
            method,
            URL(f"{base}{path}{'?' + query if query else ''}", encoded=True),
            data=data() if callable(data) else data,
            headers=send,
            timeout=aiohttp.ClientTimeout(total=timeout, sock_connect=5),
            allow_redirects=False,
        ) as response:
            yield response


def error_of(status: int, content: bytes, headers: Any = None) -> MlopsError:
    """The exception for an error reply, ours or MLflow's."""
    try:
        body = json.loads(content)
    except ValueError:
        body = None
    if isinstance(body, dict) and "code" in body:
        return from_body(body, status)
    if isinstance(body, dict) and "message" in body:  # MLflow's own form: {"error_code", "message"}
        code = {400: "bad_parameter", 401: "unauthenticated", 403: "forbidden", 404: "not_found", 409: "conflict"}
        return from_body({"message": body["message"], "code": code.get(status, "")}, status)
    text = content[:200].decode("utf-8", "replace").strip()
    where = (headers or {}).get("Server", "")
    return from_body({"message": f"HTTP {status} from {where or 'the server'}: {text or 'no message'}"}, status)


def _decode(content: bytes) -> Any:
    if not content:
        return None
    try:
        return json.loads(content)
    except ValueError:
        raise MlopsError("the control plane's answer is not JSON", "see: jupyter mlops doctor") from None


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return ",".join(str(v) for v in value)
    return str(value)


def _seconds(text: str | None) -> float:
    try:
        return max(0.0, float(text)) if text else 0.0
    except ValueError:
        return 0.0


class LoopThread:
    """An event loop on a daemon thread, on which blocking callers run coroutines."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="jupyter-mlops-client", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()

    def run(self, work: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run to the end and return the result; an interrupt cancels it."""
        if threading.current_thread() is self._thread:
            work.close()
            raise RuntimeError("a blocking call on the client's own event loop; use AsyncClient there")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def stop(self) -> None:
        """End the loop; only for the end of the process."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(1)


_shared: LoopThread | None = None
_shared_lock = threading.Lock()


def shared_loop() -> LoopThread:
    """The loop thread of this process; a forked child gets its own."""
    global _shared
    with _shared_lock:
        if _shared is None or _shared.pid != os.getpid():
            _shared = LoopThread()
            atexit.register(_shared.stop)
        return _shared
