"""An HTTP/1.1 server made for many small requests: one protocol object a connection, no task a request.

Parsing is llhttp's (through httptools), in its strict mode: what two servers might read differently is refused. The
application is asked twice, through plain calls:

    application.admit(request)  when the headers are there: the most bytes that the body may have; raises MlopsError
    application.handle(request) when the body is there, too; it answers with ``request.respond``, now or later

Requests that are pipelined on one connection are answered in their order. Bounds: size of the head, size of the body,
time for either, number of connections, bytes held for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
import ssl
import time
from collections import deque
from email.utils import formatdate
from typing import Any, Protocol

import httptools

from ..core.errors import MlopsError, ParameterError, RequestTimeout, TooLarge, TooManyRequests

#: Seconds: between requests, for the head, for the body, for a reader to take an answer, to read on after a refusal.
KEEPALIVE, HEAD_TIMEOUT, BODY_TIMEOUT, WRITE_TIMEOUT, LINGER = 75.0, 20.0, 60.0, 60.0, 2.0
#: Bytes of a request's head, and its number of headers.
MAX_HEAD, MAX_HEADERS = 32 * 1024, 100
#: Connections at once; bytes of bodies held for all of them; bytes that are thrown away after a refusal.
MAX_CONNECTIONS, MAX_HELD, MAX_LINGER = 4000, 512 * 1024 * 1024, 1 << 20

REASONS = {
    200: b"OK", 202: b"Accepted", 400: b"Bad Request", 401: b"Unauthorized", 403: b"Forbidden", 404: b"Not Found",
    405: b"Method Not Allowed", 408: b"Request Timeout", 413: b"Content Too Large", 415: b"Unsupported Media Type",
    422: b"Unprocessable Content", 424: b"Failed Dependency", 429: b"Too Many Requests",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error", 502: b"Bad Gateway",
    503: b"Service Unavailable", 504: b"Gateway Timeout",
}
#: On every answer: it is data, not a page, and not to be kept.
COMMON = b"Server: jupyter-mlops\r\nX-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n"
JSON = b"application/json"


class HeadTooLarge(MlopsError):
    """The request line and the headers are over their limit."""

    code = "head_too_large"
    status = 431


class Application(Protocol):
    """What answers requests."""

    def admit(self, request: Request) -> int:
        """Called when the head has come. Returns the most bytes of a body. Raises MlopsError to refuse."""

    def handle(self, request: Request) -> None:
        """Called when the body has come, or when ``request.refusal`` says why it is refused."""


class Request:
    """One request. ``headers`` has lower-case names; ``body`` is complete when the application handles it."""

    __slots__ = ("arrived", "body", "chunked", "connection", "context", "gone", "headers", "id", "keep_alive", "limit",
                 "method", "refusal", "responded", "size", "target")

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.method = ""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.body: bytes = b""
        self.size = 0
        self.limit = 0
        self.arrived = 0.0
        self.keep_alive = True
        self.refusal: MlopsError | None = None
        self.responded = False
        #: The peer has hung up: nobody reads an answer.
        self.gone = False
        self.id = ""
        #: The application's own.
        self.context: Any = None

    def header(self, name: bytes) -> str:
        """A header's value as text, or empty."""
        return self.headers.get(name, b"").decode("latin-1")

    def respond(self, status: int, body: bytes, content_type: bytes = JSON, extra: bytes = b"") -> None:
        """Answer, once. ``extra`` is further header lines, each with its line end."""
        if not self.responded:
            self.responded = True
            self.connection.answer(self, status, body, content_type, extra)

    @property
    def admin(self) -> bool:
        """Whether it came over the trusted socket."""
        return self.connection.server.admin


class Connection(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.deadline = server.now + HEAD_TIMEOUT
        self._transport: asyncio.Transport = None  # type: ignore[assignment]
        self._parser = httptools.HttpRequestParser(self)
        self._request: Request | None = None  # the one that is being read
        self._parts: list[bytes] = []
        self._head = self._seen = 0  # bytes of the head that came, and of the headers in it
        self._queue: deque[Request] = deque()  # read in full, in the order of their answers
        self._closing = False  # nothing is read any more
        self._lingering = 0
        self._paused = False
        self._full = False
        self.held = 0

    # -- asyncio's side --------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        if not self.server.add(self):
            self._closing = True
            transport.write(_plain(503, "too many connections"))  # type: ignore[attr-defined]
            transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._closing = True
        self.server.remove(self)
        self._release(self.held)
        for request in self._queue:
            request.gone = True
        self._queue.clear()
        self._request = None

    def data_received(self, data: bytes) -> None:
        if self._closing:
            self._lingering += len(data)
            if self._lingering > MAX_LINGER:
                self._transport.abort()
            return
        request = self._request
        if request is None:
            self.deadline = self.server.now + HEAD_TIMEOUT
            self._head = 0
        if request is None or not request.arrived:
            self._head += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            if isinstance(cause, MlopsError):
                self._refuse_now(cause)
            elif cause is not None and isinstance(error, httptools.HttpParserCallbackError):
                self.server.failed(cause)
                self._refuse_now(MlopsError("the gateway failed"))
            else:
                self._refuse_now(ParameterError("the request cannot be read as HTTP"))
            return
        request = self._request
        if request is not None:
            if request.refusal is not None:
                self._refuse_now(request.refusal)  # what is left of the body must not be read as a request
            elif not request.arrived and self._head > MAX_HEAD:
                self._refuse_now(HeadTooLarge(f"the headers are larger than {MAX_HEAD} bytes"))

    def eof_received(self) -> bool:
        # A client that has sent all it has may still read: the answers that are due go out first.
        if self._queue and not self._closing:
            self._closing = True
            return True
        return False

    def pause_writing(self) -> None:
        self._full = True
        self.deadline = self.server.now + WRITE_TIMEOUT
        self._pace()

    def resume_writing(self) -> None:
        self._full = False
        self._pace()

    # -- httptools' side ---------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._request = Request(self)
        self._parts = []
        self._seen = 0

    def on_url(self, url: bytes) -> None:
        request = self._request
        assert request is not None
        request.target += url
        if len(request.target) > MAX_HEAD:
            raise HeadTooLarge("the path is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        request = self._request
        assert request is not None
        self._seen += len(name) + len(value)
        if self._seen > MAX_HEAD:
            raise HeadTooLarge(f"the headers are larger than {MAX_HEAD} bytes")
        if request.arrived:
            return  # a trailer: it came too late to mean anything
        name = name.lower()
        headers = request.headers
        if name in headers:
            if name in _SINGLE:
                raise ParameterError(f"the header {name.decode('latin-1')} is there twice")
            value = headers[name] + b", " + value
        headers[name] = value
        if len(headers) > MAX_HEADERS:
            raise HeadTooLarge(f"there are more than {MAX_HEADERS} headers")

    def on_headers_complete(self) -> None:
        request = self._request
        assert request is not None
        request.arrived = time.monotonic()
        self.deadline = self.server.now + BODY_TIMEOUT
        request.method = self._parser.get_method().decode("latin-1")
        request.keep_alive = self._parser.should_keep_alive()
        headers = request.headers
        coding = headers.get(b"transfer-encoding")
        if coding is not None and (coding.strip().lower() != b"chunked" or b"content-length" in headers):
            raise ParameterError("the length of the body is not clear")
        try:
            request.limit = self.server.application.admit(request)
            length = headers.get(b"content-length")
            if length is not None and int(length) > request.limit:
                raise self._too_large(request)
        except MlopsError as error:
            request.refusal = error
            return
        if headers.get(b"expect", b"").lower() == b"100-continue":
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, data: bytes) -> None:
        request = self._request
        assert request is not None
        if request.refusal is not None:
            return
        size = len(data)
        request.size += size
        if request.size > request.limit:
            request.refusal = self._too_large(request)
            return
        self.held += size
        self.server.held += size
        if self.server.held > MAX_HELD:
            request.refusal = TooManyRequests("too many large requests are under way", "try again in a moment")
            return
        self._parts.append(data)

    def on_message_complete(self) -> None:
        request = self._request
        assert request is not None
        self._request = None
        parts = self._parts
        request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self.deadline = float("inf")
        self._queue.append(request)
        if len(self._queue) == 1:
            self.server.application.handle(request)
        self._pace()

    # -- answering -------------------------------------------------------------------------

    def answer(self, request: Request, status: int, body: bytes, content_type: bytes, extra: bytes) -> None:
        """Write an answer; called by the request."""
        if request.gone or self._transport.is_closing():
            return
        server, queue = self.server, self._queue
        if queue and queue[0] is request:
            queue.popleft()
        # A client that has sent its last may have sent several: those are answered still.
        stay = bool(queue) if self._closing else request.keep_alive and not server.draining
        self._transport.write(b"".join((
            b"HTTP/1.1 %d %b\r\nDate: " % (status, REASONS.get(status, b"Unknown")), server.date, b"\r\n", COMMON,
            b"Content-Type: ", content_type, b"\r\n", extra,
            b"Content-Length: %d\r\n" % len(body), b"\r\n" if stay else b"Connection: close\r\n\r\n",
            b"" if request.method == "HEAD" else body,
        )))
        self._release(request.size)
        if not stay:
            self._close()
            return
        if queue:
            following = queue[0]
            # Not from here: a long pipeline must not become a deep stack.
            asyncio.get_running_loop().call_soon(self._next, following)
        else:
            self.deadline = server.now + KEEPALIVE
        if self._paused:
            self._pace()

    def _next(self, request: Request) -> None:
        if not request.gone and not request.responded:
            self.server.application.handle(request)

    def _refuse_now(self, error: MlopsError) -> None:
        """Refuse a request whose rest is not read; the connection ends with it."""
        request = self._request or Request(self)
        self._request = None
        self._closing = True
        request.keep_alive = False
        request.refusal = error
        request.arrived = request.arrived or time.monotonic()
        self._queue.append(request)
        if len(self._queue) == 1:
            self.server.application.handle(request)

    def _close(self) -> None:
        """End the connection when the answer has gone out; what still comes is read for a moment and thrown away.

        Closed at once, a client that is still sending would get a reset in place of its answer.
        """
        self._closing = True
        self.deadline = self.server.now + LINGER
        transport = self._transport
        if transport.is_closing():
            return
        if self._paused:
            self._paused = False
            transport.resume_reading()
        if transport.can_write_eof() and self.server.lingers:
            with contextlib.suppress(OSError, RuntimeError):
                transport.write_eof()
                return
        transport.close()

    def _pace(self) -> None:
        """Read no more while much waits to be answered or to be sent."""
        stop = self._full or len(self._queue) > 8
        if stop == self._paused or self._transport.is_closing():
            return
        self._paused = stop
        if stop:
            self._transport.pause_reading()
        else:
            self._transport.resume_reading()

    def _release(self, size: int) -> None:
        size = min(size, self.held)
        self.held -= size
        self.server.held -= size

    @staticmethod
    def _too_large(request: Request) -> TooLarge:
        return TooLarge(f"the body is larger than {request.limit} bytes", "send fewer rows, or raise max_request_bytes")

    def check(self, now: float) -> None:
        """End what takes too long. Called every second."""
        if now < self.deadline:
            return
        if self._closing or self._full:
            self._transport.abort()
        elif self._request is not None and self._request.arrived:
            self._refuse_now(RequestTimeout(f"the body did not arrive within {BODY_TIMEOUT:g} s"))
        elif self._request is not None:
            self._refuse_now(RequestTimeout(f"the headers did not arrive within {HEAD_TIMEOUT:g} s"))
        else:
            self._transport.close()

    def drain(self) -> None:
        """Close it when nothing is under way."""
        if not self._queue and self._request is None and not self._closing:
            self._transport.close()


#: Headers of which two cannot be told apart from an attack.
_SINGLE = frozenset((b"authorization", b"content-length", b"content-type", b"host", b"transfer-encoding",
                     b"x-request-id", b"expect", b"content-encoding"))


def _plain(status: int, message: str) -> bytes:
    body = json.dumps({"message": message, "code": "unavailable", "hint": "try again in a moment"}).encode("ascii")
    return (b"HTTP/1.1 %d %b\r\n" % (status, REASONS[status]) + COMMON
            + b"Retry-After: 2\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            % len(body) + body)


class Server:
    """All connections of one listener.

    Args:
        admin: whether it is the trusted one.
    """

    def __init__(self, application: Application, admin: bool = False, public: bool = False) -> None:
        self.application = application
        self.admin = admin
        #: Whether its callers come from outside, through Jupyter.
        self.public = public
        self.lingers = True
        self.draining = False
        self.held = 0
        self.now = time.monotonic()
        self.date = formatdate(usegmt=True).encode("ascii")
        self._connections: set[Connection] = set()
        self._server: asyncio.Server | None = None
        self._clock: asyncio.Task[None] | None = None

    async def listen(self, listener: Any, tls: ssl.SSLContext | None = None) -> None:
        """Take connections of a bound socket."""
        loop = asyncio.get_running_loop()
        self.lingers = tls is None
        unix = getattr(socket, "AF_UNIX", None)
        make: Any = loop.create_unix_server if listener.family == unix else loop.create_server
        self._server = await make(lambda: Connection(self), sock=listener, ssl=tls, backlog=1024,
                                  **({"ssl_handshake_timeout": 10} if tls else {}))
        self._clock = loop.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            self.now = time.monotonic()
            self.date = formatdate(usegmt=True).encode("ascii")
            for connection in list(self._connections):
                connection.check(self.now)
            await asyncio.sleep(1)

    def add(self, connection: Connection) -> bool:
        """Note a connection; False when there are too many."""
        if len(self._connections) >= MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def remove(self, connection: Connection) -> None:
        """Forget a connection."""
        self._connections.discard(connection)

    def failed(self, error: BaseException) -> None:
        """Told of an exception of the application's."""
        logging.getLogger(__name__).error("a request failed", exc_info=error)

    async def close(self, grace: float) -> None:
        """Take no more connections, answer what is under way for at most ``grace`` seconds."""
        self.draining = True
        if self._server is not None:
            self._server.close()
        deadline = time.monotonic() + grace
        while self._connections and time.monotonic() < deadline:
            for connection in list(self._connections):
                connection.drain()
            await asyncio.sleep(0.05)
        if self._clock is not None:
            self._clock.cancel()
        for connection in list(self._connections):
            connection._transport.abort()
