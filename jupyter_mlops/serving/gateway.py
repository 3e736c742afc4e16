"""The gateway: one detached process per workspace, in front of all scorers.

``python -m jupyter_mlops.serving.gateway --home H --runtime-dir R``. HTTP on 127.0.0.1 at a port that is kept across
restarts (``gateway.port``; another one is chosen, and then kept, only when somebody else has taken it) and on
``gateway.sock`` for Jupyter's public route; both want an endpoint's key. ``gateway-admin.sock`` (0600) is the control
plane's: no key, plus ``GET /admin/info`` and ``POST /admin/reload``.

    POST /endpoints/<e>/invocations    score; body and errors are JSON
    GET  /endpoints/<e>/health         200 when the deployment that has the traffic answers, else 503

It reads ``endpoints/*/endpoint.json`` again whenever one changes, and owns nothing: killed and started anew it serves
as before. The access log has neither keys nor bodies. Exit code 3: another gateway holds the lock.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import secrets
import signal
import socket
import sys
import time
from typing import Any

import aiohttp.web_response
from aiohttp import web

import jupyter_mlops

from ..core.errors import MlopsError, RequestTimeout, TooLarge, TooManyRequests, Unauthenticated, UnsupportedMedia
from ..runtime.processes import start_time
from . import keys
from .link import RETRY_AFTER, ScorerDown
from .payload import canonical
from .places import Places, write_json
from .routes import Endpoint, Routes

LOCKED = 3
POLL = 0.2
DRAIN = 10.0
#: Seconds in which a body must have arrived.
BODY_TIMEOUT = 60.0
#: Requests under way for one deployment, and bytes of bodies held for all; over them the answer is 429.
MAX_IN_FLIGHT = 512
MAX_BYTES = 512 * 1024 * 1024
#: Bytes of a body from which on it is parsed on a thread, so that small requests need not wait for it. One at a time:
#: parsed, a body takes several times its size.
THREAD_FROM = 256 * 1024
ACCESS_LOG_LIMIT = 5_000_000

_PATH = re.compile(r"/endpoints/([a-z][a-z0-9-]{0,39})/(invocations|health)\Z")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")


class AccessLog:
    """One line a request, in a file of bounded size with one predecessor: no key, no body, no query."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.size = os.fstat(self.fd).st_size

    def write(self, line: str) -> None:
        data = line.encode("ascii", "backslashreplace")
        with contextlib.suppress(OSError):
            self.size += os.write(self.fd, data)
            if self.size > ACCESS_LOG_LIMIT:
                os.replace(self.path, self.path + ".1")
                os.close(self.fd)
                self._open()


class Gateway:
    """Answers requests. One instance serves all three listeners; ``admin`` tells the trusted one apart."""

    def __init__(self, places: Places, log: AccessLog) -> None:
        self.places = places
        self.routes = Routes(places)
        self.log = log
        self.port = 0
        self.started_at = time.time()
        self.held = 0
        self.requests = 0
        self.large = asyncio.Semaphore(1)

    # -- one request -------------------------------------------------------------

    async def public(self, request: web.BaseRequest) -> web.StreamResponse:
        return await self.handle(request, admin=False)

    async def admin(self, request: web.BaseRequest) -> web.StreamResponse:
        path = request.raw_path.partition("?")[0]
        if path == "/admin/info" and request.method == "GET":
            return self.respond(200, self.info())
        if path == "/admin/reload" and request.method == "POST":
            self.routes.reload()
            return self.respond(200, self.info())
        return await self.handle(request, admin=True)

    async def handle(self, request: web.BaseRequest, admin: bool) -> web.StreamResponse:
        begun = time.monotonic()
        self.requests += 1
        given = request.headers.get("X-Request-Id", "")
        request_id = given if _REQUEST_ID.match(given) else secrets.token_hex(8)
        match = _PATH.match(request.raw_path.partition("?")[0])
        held = Held(self)
        try:
            if match is None:
                response = self.error(404, "not_found", "there is nothing here",
                                      "POST /endpoints/<name>/invocations with the endpoint's key")
            else:
                response = await self.endpoint(request, match[1], match[2], admin, held)
        except MlopsError as error:
            response = self.refusal(error)
        except (ConnectionError, asyncio.CancelledError):
            raise  # the client hung up; nobody reads an answer
        except Exception:
            logging.getLogger(__name__).exception("request %s failed", request_id)
            response = self.error(500, "error", "the gateway failed", f"its log has request {request_id}")
        finally:
            held.release()
        response.headers["X-Request-Id"] = request_id
        if not request.content.is_eof():
            response.force_close()  # what is left of the body must not be read as a request
        name = match[1] if match and (admin or response.status != 401) else "-"
        self.log.write(
            f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} {request_id} {ascii(request.method)[1:-1][:10]} "
            f"{name} {match[2] if match else '-'} {response.status} {(time.monotonic() - begun) * 1000:.1f}ms "
            f"{held.bytes} {len(response.body or b'')}\n"  # type: ignore[arg-type]
        )
        return response

    async def endpoint(
        self, request: web.BaseRequest, name: str, action: str, admin: bool, held: Held
    ) -> web.Response:
        wanted = "POST" if action == "invocations" else "GET"
        endpoint = self.routes.get(name)
        if not admin:
            self.check_key(request, endpoint)
        if request.method != wanted:
            response = self.error(405, "method_not_allowed", f"{wanted} is the method here")
            response.headers["Allow"] = wanted
            return response
        if endpoint is None:
            return self.error(404, "not_found", f"endpoint '{name}' is not published")
        deployment = endpoint.pick()
        if action == "health":
            if await deployment.link.ping():
                return self.respond(200, {"status": "ready", "deployment": deployment.name})
            return self.refusal(ScorerDown("the deployment does not answer", "it may be starting"))
        if deployment.link.in_flight >= MAX_IN_FLIGHT:
            raise TooManyRequests("too many requests are under way", "try again in a moment")
        encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding != "identity":
            raise UnsupportedMedia("compressed bodies are not understood", "send the body as it is")
        body = await self.body(request, deployment.max_bytes, held)
        content_type = request.headers.get("Content-Type", "")
        if len(body) > THREAD_FROM:
            async with self.large:
                score = await asyncio.to_thread(canonical, deployment.signature, body, content_type)
        else:
            score = canonical(deployment.signature, body, content_type)
        del body
        answer = await deployment.link.score(score, deployment.timeout)
        return web.Response(status=200, body=answer, headers={"Content-Type": "application/json", **SAFE})

    def check_key(self, request: web.BaseRequest, endpoint: Endpoint | None) -> None:
        """The same answer, after the same work, for no key, a wrong key and an endpoint that is not there."""
        scheme, _, key = request.headers.get("Authorization", "").strip().partition(" ")
        key = key.strip() if scheme.lower() == "bearer" else ""
        if not keys.check(key, endpoint.keys if endpoint else keys.NOBODY) or endpoint is None:
            raise Unauthenticated("a valid key of this endpoint is needed", "send Authorization: Bearer <key>")

    async def body(self, request: web.BaseRequest, limit: int, held: Held) -> bytes:
        """The whole body, within its limit and in time."""
        over = TooLarge(f"the body is larger than {limit} bytes", "send fewer rows, or raise max_request_bytes")
        if (request.content_length or 0) > limit:
            raise over
        if request.headers.get("Expect", "").lower() == "100-continue" and request.transport is not None:
            request.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        parts = []
        try:
            async with asyncio.timeout(BODY_TIMEOUT):
                while part := await request.content.readany():
                    held.take(len(part))
                    if held.bytes > limit:
                        raise over
                    parts.append(part)
        except TimeoutError:
            raise RequestTimeout(f"the body did not arrive within {BODY_TIMEOUT:g} s") from None
        except (web.RequestPayloadError, aiohttp.ClientPayloadError, ValueError) as error:
            raise MlopsBadBody(f"the body is broken: {type(error).__name__}") from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    # -- answers -------------------------------------------------------------------

    def respond(self, status: int, value: Any) -> web.Response:
        # ASCII, because messages may quote what a client sent, such as a lone surrogate.
        return web.Response(status=status, body=json.dumps(value).encode("ascii"),
                            headers={"Content-Type": "application/json", **SAFE})

    def error(self, status: int, code: str, message: str, hint: str = "") -> web.Response:
        return self.respond(status, {"message": message, "code": code, "hint": hint})

    def refusal(self, error: MlopsError) -> web.Response:
        response = self.respond(error.status, error.body())
        if error.status == 401:
            response.headers["WWW-Authenticate"] = 'Bearer realm="endpoint"'
        if error.status in (429, 503):
            response.headers["Retry-After"] = str(RETRY_AFTER)
        return response

    def info(self) -> dict[str, Any]:
        """What the control plane sees: who we are, and which version of each endpoint's file is in force."""
        return {
            "pid": os.getpid(), "start_time": start_time(os.getpid()), "port": self.port, "started_at": self.started_at,
            "requests": self.requests, "endpoints": self.routes.describe(),
        }

    async def watch(self) -> None:
        """Take up changed files, until the workspace folder is gone.

        Polled: a handful of stat calls works on every file system and cannot be lost.
        """
        while self.places.home.is_dir():
            await asyncio.sleep(POLL)
            try:
                self.routes.reload()
            except Exception:
                logging.getLogger(__name__).exception("reading the endpoints failed")


class Held:
    """The bytes of one request's body, counted against the gateway's bound."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.bytes = 0

    def take(self, count: int) -> None:
        self.bytes += count
        self.gateway.held += count
        if self.gateway.held > MAX_BYTES:
            raise TooManyRequests("too many large requests are under way", "try again in a moment")

    def release(self) -> None:
        self.gateway.held -= self.bytes


class MlopsBadBody(MlopsError):
    """The body's transfer broke off or is malformed."""

    code = "bad_parameter"
    status = 400


#: On every answer; also so that aiohttp does not tell its own and Python's version.
SAFE = {"Server": "jupyter-mlops", "X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}


# -- the process ---------------------------------------------------------------


def listen_tcp(places: Places) -> socket.socket:
    """The kept port of this workspace, on loopback only; another one, kept from then on, when it is taken."""
    try:
        kept = int(places.gateway_port.read_text())
    except (OSError, ValueError):
        kept = 0
    for port in (kept, 0) if 1024 <= kept < 65536 else (0,):
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(512)
        except OSError as error:
            listener.close()
            if port and error.errno in (errno.EADDRINUSE, errno.EACCES):
                continue
            raise
        bound = listener.getsockname()[1]
        if bound != kept:
            temporary = places.gateway_port.with_name(".gateway.port")
            temporary.write_text(str(bound))
            os.replace(temporary, places.gateway_port)
        return listener
    raise OSError(errno.EADDRINUSE, "no port is free")


def listen_unix(path: os.PathLike[str]) -> socket.socket:
    """A 0600 socket, in place only when it can be called."""
    temporary = f"{os.fspath(path)}.new"
    with contextlib.suppress(OSError):
        os.unlink(temporary)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(temporary)
    os.chmod(temporary, 0o600)
    listener.listen(512)
    os.replace(temporary, path)
    return listener


async def serve(places: Places) -> None:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    gateway = Gateway(places, AccessLog(str(places.logs / "gateway-access.log")))
    gateway.routes.reload()
    quiet = logging.getLogger("aiohttp.server")
    quiet.setLevel(logging.CRITICAL + 1)  # it quotes malformed header lines, which may hold a key
    options: dict[str, Any] = {
        "access_log": None, "logger": quiet, "keepalive_timeout": 75, "auto_decompress": False, "tcp_keepalive": False,
    }
    tcp = listen_tcp(places)
    gateway.port = tcp.getsockname()[1]
    listeners = [(tcp, gateway.public), (listen_unix(places.gateway_socket), gateway.public),
                 (listen_unix(places.admin_socket), gateway.admin)]
    runners = []
    for listener, handler in listeners:
        runner = web.ServerRunner(web.Server(handler, **options), shutdown_timeout=DRAIN)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        runners.append(runner)
    write_json(places.gateway_json, {
        "schema": 1, "pid": os.getpid(), "start_time": start_time(os.getpid()), "port": gateway.port,
        "url": f"http://127.0.0.1:{gateway.port}", "started_at": gateway.started_at,
        "version": jupyter_mlops.__version__,
    })
    print(f"listening on 127.0.0.1:{gateway.port}", flush=True)
    watching = asyncio.create_task(gateway.watch())
    watching.add_done_callback(lambda _: stop.set())
    await stop.wait()
    print("stopping", flush=True)
    watching.cancel()
    for path in (places.gateway_socket, places.admin_socket):
        with contextlib.suppress(OSError):
            os.unlink(path)
    await asyncio.gather(*(runner.cleanup() for runner in runners))
    gateway.routes.close()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gateway")
    parser.add_argument("--home", required=True)
    parser.add_argument("--runtime-dir", required=True)
    args = parser.parse_args(argv)
    places = Places(args.home, args.runtime_dir)
    os.umask(0o077)
    places.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = open(places.home / "gateway.lock", "a")  # noqa: SIM115 (held for life)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return LOCKED
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    # Answers that aiohttp makes itself (to malformed HTTP) carry this too.
    aiohttp.web_response.SERVER_SOFTWARE = SAFE["Server"]  # type: ignore[misc]
    asyncio.run(serve(places))
    return 0


if __name__ == "__main__":
    sys.exit(main())
