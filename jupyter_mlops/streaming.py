"""A reverse proxy for tornado handlers that streams both ways with flat memory.

Request bodies go on as they come, with back-pressure; responses likewise. Used by the control plane in front of its
MLflow child, and by the Jupyter extension in front of the control plane and the gateway. Works with a bare tornado
handler and with Jupyter's, whose ``prepare`` is asynchronous and does authentication::

    @stream_request_body
    class Proxy(StreamingProxy, JupyterHandler):
        async def route(self, path):
            authorize(self)                         # raises HTTPError or MlopsError to refuse
            return Upstream(self.settings["plane"], "/jupyter-mlops" + path, forward_headers(self.request))

Everything that decides whether a request may pass belongs in ``route`` (or in ``prepare`` of the base class), because
the verb methods only run when the whole body has been received.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from multidict import CIMultiDict
from tornado import web
from tornado.iostream import StreamClosedError
from yarl import URL

from .core.errors import BackendTimeout, BackendUnreachable, MlopsError, TooLarge

if TYPE_CHECKING:
    from tornado.httputil import HTTPServerRequest

#: Largest request body, in bytes; in front of tornado's own limit of 100 MB (Jupyter's: 512 MB).
MAX_BODY = 1 << 40
#: Bytes of a request body that may wait for the upstream.
PIPE_BYTES = 1 << 20
#: A refused body is read to its end up to this size, so that the client gets the answer instead of a reset.
DRAIN_BYTES = 1 << 30
DRAIN_UNAUTHENTICATED_BYTES = 1 << 20

HOP_BY_HOP = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade", "expect",
})


def unix_session(path: str, read_timeout: float = 300.0) -> aiohttp.ClientSession:
    """A client session for an upstream on a unix socket; call it in a running event loop, close it at the end.

    Args:
        read_timeout: seconds of silence from the upstream after which the request fails.
    """
    # One connection per request: cheap on a unix socket, and never a stale one after the upstream came back.
    return _session(aiohttp.UnixConnector(path=path, force_close=True, limit=0), read_timeout)


def kept_session(path: str, read_timeout: float) -> aiohttp.ClientSession:
    """As :func:`unix_session`, with connections that are used again: only for requests that may be repeated, since one
    may turn out to be stale."""
    return _session(aiohttp.UnixConnector(path=path, keepalive_timeout=20.0), read_timeout)


def tcp_session(read_timeout: float = 300.0) -> aiohttp.ClientSession:
    """A client session for an upstream on TCP; no proxy, no cookies, no decompression."""
    return _session(aiohttp.TCPConnector(force_close=True, limit=0), read_timeout)


def _session(connector: aiohttp.BaseConnector, read_timeout: float) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
        auto_decompress=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent", "Content-Type"),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=read_timeout),
        trust_env=False,
    )


def forward_headers(request: HTTPServerRequest, drop: Iterable[str] = ()) -> CIMultiDict[str]:
    """The request's headers without hop-by-hop ones, ``Host``, and those named in ``drop``."""
    unwanted = HOP_BY_HOP | {"host"} | {name.lower() for name in drop}
    unwanted |= {name.strip().lower() for name in request.headers.get("Connection", "").split(",")}
    return CIMultiDict((k, v) for k, v in request.headers.get_all() if k.lower() not in unwanted)


@dataclass
class Upstream:
    """Where a request goes on.

    Attributes:
        session: from :func:`unix_session` or :func:`tcp_session`.
        target: path and query, percent-encoded as they shall be sent (or a whole ``http://`` URL).
        headers: all headers to send; see :func:`forward_headers`.
        buffer: when not 0, the body is collected up to this many bytes and handed to ``inspect`` before it goes on.
    """

    session: aiohttp.ClientSession
    target: str
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    buffer: int = 0

    @property
    def url(self) -> URL:
        """``target`` as an URL that is sent exactly as written."""
        whole = self.target if self.target.startswith(("http://", "https://")) else "http://localhost" + self.target
        return URL(whole, encoded=True)


class BodyPipe:
    """A request body between two connections: a bounded queue of chunks with one writer and one reader."""

    def __init__(self, limit: int = PIPE_BYTES) -> None:
        self._limit = limit
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._ended = False
        self._abandoned = False
        self._error: BaseException | None = None
        self._changed = asyncio.Event()

    async def write(self, chunk: bytes) -> None:
        """Add a chunk; waits while the pipe is full. Chunks for a reader that has gone are dropped."""
        while self._size >= self._limit and not self._abandoned:
            self._changed.clear()
            await self._changed.wait()
        if not self._abandoned:
            self._chunks.append(chunk)
            self._size += len(chunk)
            self._changed.set()

    def end(self) -> None:
        """The body is complete."""
        self._ended = True
        self._changed.set()

    def fail(self, error: BaseException) -> None:
        """The body will not be completed: the reader gets ``error``, and so drops its connection."""
        if not self._ended:
            self._error = error
        self._changed.set()

    def abandon(self) -> None:
        """Nobody reads any more."""
        self._abandoned = True
        self._chunks.clear()
        self._size = 0
        self._changed.set()

    async def read(self) -> AsyncIterator[bytes]:
        """The chunks, as they come."""
        while True:
            if self._error is not None:
                raise self._error
            if self._chunks:
                chunk = self._chunks.popleft()
                self._size -= len(chunk)
                self._changed.set()
                yield chunk
            elif self._ended:
                return
            else:
                self._changed.clear()
                await self._changed.wait()


class StreamingProxy(web.RequestHandler):
    """Mixin, first among the bases; the concrete class needs ``@tornado.web.stream_request_body``."""

    #: Largest request body, in bytes.
    max_body_size = MAX_BODY

    _upstream: Upstream | None = None
    _pipe: BodyPipe | None = None
    _asked: asyncio.Task[aiohttp.ClientResponse] | None = None
    _refusal: Exception | None = None
    _dropped = 0
    _buffered: bytearray | None = None
    _gone = False

    # What a concrete class defines

    async def route(self, *args: Any, **kwargs: Any) -> Upstream | None:
        """Decide on the request, from its head alone, and say where it goes.

        Gets the groups of the URL pattern. Raises MlopsError or HTTPError to refuse. None: ``answer_here`` is called
        instead of an upstream, when the body (of at most :attr:`Upstream.buffer`, here 1 MiB) has been received.
        """
        raise NotImplementedError

    async def inspect(self, upstream: Upstream, body: bytes) -> bytes | None:
        """With :attr:`Upstream.buffer`: the body to send on; None when the request was answered here."""
        return body

    async def answer_here(self, body: bytes) -> None:
        """Answer without an upstream."""
        raise NotImplementedError

    def adapt_response(self, status: int, headers: CIMultiDict[str]) -> None:
        """Change the upstream's response headers in place before they are sent."""

    async def on_answered(self, status: int) -> None:
        """Called when the upstream's status is known, before anything is sent to the client."""

    async def await_upstream(self) -> bool:
        """Whether to ask again, now that the upstream went away before it answered.

        Called only when the request can be repeated: nothing of it was sent, or its whole body is at hand.
        """
        return False

    def upstream_error(self, error: Exception) -> MlopsError:
        """The error for a client whose upstream did not answer."""
        if isinstance(error, TimeoutError):
            return BackendTimeout("the server behind this address did not answer in time", "try again in a moment")
        return BackendUnreachable("the server behind this address does not answer", "try again in a moment")

    def fail(self, error: MlopsError) -> None:
        """Finish with the JSON body of an error."""
        if self._headers_written:
            self._abort()
            return
        self.clear_header("Content-Length")
        self.set_status(error.status)
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        if error.status == 503:
            self.set_header("Retry-After", "1")
        self.finish(json.dumps(error.body()))

    # The machinery

    async def prepare(self) -> None:
        connection: Any = self.request.connection
        if hasattr(connection, "set_max_body_size"):
            connection.set_max_body_size(self.max_body_size)
        limit = DRAIN_UNAUTHENTICATED_BYTES
        try:
            prepared = super().prepare()
            if isinstance(prepared, Awaitable):
                await prepared
            if self._finished:
                return
            # Compression by the application would break ranges and lengths.
            self._transforms = []
            limit = DRAIN_BYTES
            upstream = await self.route(*self.path_args, **self.path_kwargs)
        except (MlopsError, web.HTTPError) as error:
            self._refuse(error, limit)
            return
        if self._finished or self._gone:
            return
        self._upstream = upstream
        if upstream is None or upstream.buffer:
            self._buffered = bytearray()
            if self._content_length() > self._buffer_limit():
                self._refuse(self._too_large(), DRAIN_BYTES)
            return
        if self._has_body():
            self._pipe = BodyPipe()
        self._ask(upstream, None)

    def _refuse(self, error: Exception, limit: int) -> None:
        """Answer with an error: at once when the body is too long to be drained, else when it has been received."""
        self._refusal = error
        self._buffered = None
        chunked = "Transfer-Encoding" in self.request.headers
        self._drain_limit = limit
        if self._content_length() > limit or (chunked and limit == DRAIN_UNAUTHENTICATED_BYTES):
            self._send_refusal()

    def _send_refusal(self) -> None:
        error = self._refusal
        assert error is not None
        if isinstance(error, MlopsError):
            self.fail(error)
            return
        try:
            raise error  # tornado takes message and traceback from the exception that is being handled
        except web.HTTPError as e:
            self._handle_request_exception(e)

    def _content_length(self) -> int:
        length = self.request.headers.get("Content-Length", "0")
        return int(length) if length.isascii() and length.isdigit() else 0

    def _has_body(self) -> bool:
        return "Transfer-Encoding" in self.request.headers or self._content_length() > 0

    def _buffer_limit(self) -> int:
        return self._upstream.buffer if self._upstream is not None else 1 << 20

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the request body is over {self._buffer_limit()} bytes", "send less at a time")

    def _ask(self, upstream: Upstream, body: bytes | None) -> None:
        self._asked = asyncio.ensure_future(self._request(upstream, body))
        self._asked.add_done_callback(self._on_asked)

    async def _request(self, upstream: Upstream, body: bytes | None) -> aiohttp.ClientResponse:
        while True:
            data = self._pipe.read() if self._pipe is not None else body
            try:
                return await upstream.session.request(
                    self.request.method or "GET", upstream.url, headers=upstream.headers, data=data,
                    allow_redirects=False,
                )
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
                sent = not isinstance(error, aiohttp.ClientConnectorError)
                if (sent and self._pipe is not None) or not await self.await_upstream():
                    raise

    def _on_asked(self, task: asyncio.Task[aiohttp.ClientResponse]) -> None:
        if self._pipe is not None:
            self._pipe.abandon()  # an upstream that answers early wants no more of the body
        if self._gone and not task.cancelled() and task.exception() is None:
            task.result().close()
        elif not task.cancelled():
            task.exception()  # seen: the client may be gone before relay() looks

    async def data_received(self, chunk: bytes) -> None:
        if self._finished or self._gone:
            return
        if self._refusal is not None:
            self._dropped += len(chunk)
            if self._dropped > self._drain_limit:
                self._send_refusal()
        elif self._buffered is not None:
            self._buffered += chunk
            if len(self._buffered) > self._buffer_limit():
                self._refuse(self._too_large(), DRAIN_BYTES)
        elif self._pipe is not None:
            await self._pipe.write(chunk)

    def on_connection_close(self) -> None:
        self._gone = True
        if self._pipe is not None:
            self._pipe.fail(ConnectionResetError("the client went away"))
            self._pipe.abandon()
        task = self._asked
        if task is not None:
            if not task.done():
                task.cancel()
            elif not task.cancelled() and task.exception() is None:
                task.result().close()
        super().on_connection_close()

    async def relay(self, *args: Any, **kwargs: Any) -> None:
        """What all verbs do: the body has been received, send the upstream's answer."""
        if self._refusal is not None:
            self._send_refusal()
            return
        try:
            if self._upstream is None:
                await self.answer_here(bytes(self._buffered or b""))
                return
            if self._buffered is not None:
                received = bytes(self._buffered)
                self._buffered = None
                body = await self.inspect(self._upstream, received)
                if body is None or self._finished or self._gone:
                    return
                headers = self._upstream.headers
                if body or self._has_body():
                    headers["Content-Length"] = str(len(body))
                self._ask(self._upstream, body if body else None)
            elif self._pipe is not None:
                self._pipe.end()
            assert self._asked is not None
            try:
                response = await self._asked
            except asyncio.CancelledError:
                if self._gone:
                    self._auto_finish = False
                    return
                raise
            except (aiohttp.ClientError, OSError) as error:
                if self._gone:
                    self._auto_finish = False
                    return
                raise self.upstream_error(error) from error
            try:
                await self.on_answered(response.status)
                await self._send(response)
            finally:
                response.close()
        except MlopsError as error:
            self.fail(error)

    async def _send(self, response: aiohttp.ClientResponse) -> None:
        unwanted = HOP_BY_HOP | {"server", "date"}
        unwanted |= {name.strip().lower() for name in response.headers.get("Connection", "").split(",")}
        headers: CIMultiDict[str] = CIMultiDict(
            (k, v) for k, v in response.headers.items() if k.lower() not in unwanted
        )
        self.adapt_response(response.status, headers)
        self.set_status(response.status, response.reason or None)
        self.clear_header("Content-Type")
        seen: set[str] = set()
        for name, value in headers.items():
            if name.lower() in seen:
                self.add_header(name, value)
            else:
                self.set_header(name, value)
                seen.add(name.lower())
        try:
            if self.request.method == "HEAD" or response.status in (204, 304):
                if response.status == 204:
                    self.clear_header("Content-Length")
            else:
                await self.flush()
                async for chunk in response.content.iter_any():
                    self.write(chunk)
                    await self.flush()
            if not self._headers_written:
                await self.flush()
            await self.finish()
        except StreamClosedError:
            self._auto_finish = False  # the client went away
        except (aiohttp.ClientError, OSError):
            self._abort()

    def _abort(self) -> None:
        """End a response that cannot be completed so that the client sees it: by closing its connection."""
        self._auto_finish = False
        stream = getattr(self.request.connection, "stream", None)
        if stream is not None:
            stream.close()

    get = head = post = put = patch = delete = relay
