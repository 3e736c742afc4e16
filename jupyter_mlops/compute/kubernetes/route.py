"""The route from pods to here (``training.route``): an address on which the control plane listens, and pods call.

TLS with a certificate of our own making, which pods know by its fingerprint; who calls is known by a token of its node
and attempt. Only attempts that run are taken. What comes over such a connection is what comes over an execution in the
pod, see :mod:`jupyter_mlops.runtime.route`; nothing is ever asked of this side.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

from ...core.resources.compute import RouteOptions, host_and_port
from ...runtime import route
from . import certificate as certificates
from .calls import PIECE, Calls, Connection

log = logging.getLogger(__name__)

#: Seconds in which who connects has to say who it is; such connections at a time.
GREETING, STRANGERS = 5.0, 32
#: Connections of known callers that may wait to be taken, of all jobs, and seconds for which each may. Of one attempt,
#: which may call in the name of any node, twice as many as it has pods.
WAITING, WAITS = 1000, 40.0
#: Seconds for which no call is awaited after a pod did not reach us.
RESPITE = 300.0
#: Seconds between tries to listen.
LISTEN = 15.0
#: About half of the bytes that are held of who is not read from.
_HELD = PIECE // 4
_NODES = 100_000


class Route:
    """Where the pods of one compute call.

    Args:
        options: the operator's.
        certificate: where certificate and key are kept, for the control planes after this one.
    """

    def __init__(self, options: RouteOptions, certificate: Path) -> None:
        self.options = options
        self.address = options.address or options.listen
        self.certificate = certificate
        #: Why nobody can call, in one line; and why the pod that was awaited last did not.
        self.trouble = self.pods = ""
        self.listening = False
        self._not_before = 0.0
        self._keys: dict[tuple[str, int], tuple[str, int]] = {}
        self._calls: dict[tuple[str, int, int], Calls] = {}
        self._greeting: set[asyncio.Task[None]] = set()
        self._own: tuple[ssl.SSLContext, str] | None = None
        self._lock = threading.Lock()

    # -- what is said of it

    @property
    def way(self) -> str:
        """The way of what comes over it, in words."""
        return f"by the route {self.address}"

    @property
    def awaited(self) -> bool:
        """Whether a call is worth waiting for."""
        return not self.trouble and time.monotonic() >= self._not_before

    def missed(self) -> None:
        """A pod did not call in time."""
        self.pods = f"the route {self.address} is configured, but pods do not reach it"
        self._not_before = time.monotonic() + RESPITE

    def took(self) -> None:
        """A call was taken."""
        self.pods = ""
        self._not_before = 0.0

    # -- what pods are told

    def order(self, key: str) -> dict[str, Any] | None:
        """What the pods of an attempt need to call; None: they cannot (blocking)."""
        try:
            _, fingerprint = self._identity()
        except (OSError, ValueError, ImportError) as error:
            self.trouble = f"the certificate of the route cannot be made: {error}"
            log.warning("%s", self.trouble)
            return None
        host, port = host_and_port(self.address)
        return {"host": host, "port": port, "fingerprint": fingerprint, "key": key}

    def _identity(self) -> tuple[ssl.SSLContext, str]:
        """TLS of our side, and the fingerprint of its certificate; from any thread."""
        with self._lock:
            if self._own is None:
                self._own = certificates.load(self.certificate, self.address)
            return self._own

    # -- who may call

    def know(self, job: str, attempt: int, key: str, pods: int = 1) -> None:
        """Take calls of the pods of an attempt, of which there are so many at once."""
        self._keys[job, attempt] = key, pods

    def calls(self, job: str, attempt: int, node: int) -> Calls | None:
        """Those of one pod; None when those of its attempt are not taken. On the loop, as all that follows."""
        if (job, attempt) not in self._keys:
            return None
        return self._calls.setdefault((job, attempt, node), Calls(self))

    def forget(self, job: str, attempt: int) -> None:
        """No longer."""
        self._keys.pop((job, attempt), None)
        for at in [at for at in self._calls if at[:2] == (job, attempt)]:
            self._calls.pop(at).end()

    # -- listening

    async def run(self) -> None:
        """Listen, as long as the compute is in use."""
        while True:
            try:
                context, _ = await asyncio.to_thread(self._identity)
                listener = await listen(self.options.listen)
            except (OSError, ValueError, ImportError) as error:
                trouble = cannot(self.options.listen, error)
                if trouble != self.trouble:
                    log.warning("%s", trouble)
                self.trouble = trouble
                await asyncio.sleep(LISTEN)
                continue
            self.trouble, self.listening = "", True
            try:
                await self._accept(listener, context)
            finally:
                self.listening = False
                listener.close()
                for task in self._greeting:
                    task.cancel()
                for calls in self._calls.values():
                    calls.end()

    async def _accept(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                caller, _ = await loop.sock_accept(listener)
            except OSError as error:  # too many open files
                log.warning("route %s: %s", self.options.listen, error)
                await asyncio.sleep(1.0)
                continue
            if len(self._greeting) >= STRANGERS:
                caller.close()
                continue
            task = loop.create_task(self._greet(caller, context))
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, caller: socket.socket, context: ssl.SSLContext) -> None:
        """Hear who has called; who does not say it at once, or is not known, is nobody."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=_HELD)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport: Any = None
        kept = False
        try:
            async with asyncio.timeout(GREETING):
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol, caller, ssl=context, ssl_handshake_timeout=GREETING, ssl_shutdown_timeout=2.0)
                hello = await _hello(reader)
            calls = self._known(hello)
            if calls is not None:
                connection = Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
                kept = calls.put(connection)
                if kept:
                    loop.call_later(WAITS, calls.expire, connection)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass  # TimeoutError and all of TLS are among them
        finally:
            if not kept and transport is not None:
                transport.abort()

    def _known(self, hello: bytes) -> Calls | None:
        try:
            said = json.loads(hello)
            job, attempt, node, token = said["job"], said["attempt"], said["node"], said["token"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not (isinstance(job, str) and isinstance(token, str) and type(attempt) is int and type(node) is int
                and 0 <= node < _NODES):
            return None
        key, pods = self._keys.get((job, attempt), ("", 0))
        wanted = route.token(key or secrets.token_hex(32), node)  # nobody learns from the time which jobs there are
        right = hmac.compare_digest(wanted.encode(), token.encode("utf-8", "replace"))
        if not (right and key):
            return None
        calls = self._calls.get((job, attempt, node))
        early = sum(1 for at, other in self._calls.items() if at[:2] == (job, attempt) and other.early)
        if calls is None and early < 2 * pods:  # whoever has the secret may call in the name of any node
            calls = self.calls(job, attempt, node)
        full = sum(1 for other in self._calls.values() if other.waits) >= WAITING
        return calls if calls is not None and (calls.waits or not full) else None


async def _hello(reader: asyncio.StreamReader) -> bytes:
    """The first line of a caller, after which it says nothing until it is spoken to.

    Raises:
        ValueError: it is something else.
    """
    said = b""
    while not said.endswith(b"\n"):
        more = await reader.read(route.HELLO + 1 - len(said))
        said += more
        if not more or len(said) > route.HELLO or b"\n" in said[:-1]:
            raise ValueError("that is not one of ours")
    return said


async def listen(address: str) -> socket.socket:
    """A socket that listens on ``HOST:PORT``. Raises OSError."""
    host, port = host_and_port(address)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                         flags=socket.AI_PASSIVE)
    family, kind, proto, _, where = found[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setblocking(False)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def cannot(address: str, error: Exception) -> str:
    """Why nobody can be listened to, in words."""
    why = getattr(error, "strerror", None) or str(error)
    return f"the control plane cannot listen on {address}: {why}"


def check(options: RouteOptions) -> str:
    """Listen for a moment.

    Returns:
        why that cannot be done, in one line; empty when it can
    """
    async def look() -> None:
        (await listen(options.listen)).close()

    try:
        asyncio.run(look())
    except OSError as error:
        return cannot(options.listen, error)
    return ""
