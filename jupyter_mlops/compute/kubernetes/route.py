"""The route from pods to here (``training.route``): an address on which the control plane listens, and pods call.

TLS with a certificate of our own making, which pods know by its fingerprint; who calls is known by a token of its node
and attempt. Only attempts that run are taken. What comes over such a connection is what comes over an execution in the
pod, see :mod:`jupyter_mlops.runtime.route`; nothing is ever asked of this side.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import logging
import os
import secrets
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ...core.errors import BackendTimeout
from ...core.resources.compute import RouteOptions, host_and_port
from ...runtime import jobfolder, route
from ...runtime.jobfolder import Attempt
from .manifests import CALL_KEY

log = logging.getLogger(__name__)

#: Seconds in which who connects has to say who it is; such connections at a time.
GREETING, STRANGERS = 5.0, 32
#: Connections of known callers that may wait to be taken, of all jobs, and seconds for which each may.
WAITING, WAITS = 1000, 40.0
#: Seconds for which a pod's first call is awaited, and a further one after its connection broke.
FIRST, AGAIN = 3.0, 2.0
#: Seconds for which no call is awaited after a pod did not reach us.
RESPITE = 300.0
#: Seconds for which a pod's calls are not taken after a connection of it brought nothing.
REST = 60.0
#: Seconds of silence after which the other side is asked whether it is there; after as many again it is not.
PING = 10.0
#: Seconds between tries to listen.
LISTEN = 15.0
#: Days for which a certificate is good.
DAYS = 3650
#: Bytes that are read at once, and about half of what is held of who is not read from.
_PIECE, _HELD = 1 << 20, 1 << 18
_NODES = 100_000


def key_of(place: Attempt, make: bool = False) -> str:
    """The secret of the pods of an attempt; empty: they do not call.

    Args:
        make: it is made when there is none. A control plane that comes later finds it.
    """
    path = os.path.join(place.path, CALL_KEY)
    with contextlib.suppress(OSError), open(path, encoding="ascii") as f:
        return f.read().strip()
    if not make:
        return ""
    key = secrets.token_hex(32)
    jobfolder.write_file(path, key.encode())
    return key


class Connection:
    """A pod has called. It is spoken with as with an :class:`~jupyter_mlops.kube.exec.Exec`."""

    stderr = b""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def alive(self) -> bool:
        """As far as is known without asking."""
        return not self._writer.is_closing() and not self._reader.at_eof()

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    async def send(self, data: bytes) -> None:
        """Write to the mirror there."""
        self._writer.write(data)
        try:
            async with asyncio.timeout(2 * PING):
                await self._writer.drain()
        except TimeoutError:
            raise BackendTimeout(f"the pod took nothing for {2 * PING:g} s") from None

    async def hang_up(self) -> None:
        """End it; whoever reads from it sees an end."""
        self.drop()

    def drop(self) -> None:
        """The same."""
        self._writer.transport.abort()

    async def output(self) -> AsyncIterator[bytes]:
        """What the mirror there says, as it comes.

        Raises:
            BackendTimeout: nothing came, not even an answer to whether anybody is there.
        """
        asked = False
        while True:
            try:
                async with asyncio.timeout(PING):
                    data = await self._reader.read(_PIECE)
            except TimeoutError:
                if asked:
                    raise BackendTimeout(f"the pod said nothing for {2 * PING:g} s") from None
                asked = True
                await self.send(b'{"ping": true}\n')
                continue
            if not data:
                return
            asked = False
            yield data


class Calls:
    """Those of one pod: the newest counts."""

    def __init__(self, route: Route) -> None:
        self.route = route
        #: Called when one has come.
        self.ring: Callable[[], None] | None = None
        self._newest: Connection | None = None
        self._came = asyncio.Event()
        self._rests = 0.0
        self._over = False
        self._first, self._patience = True, FIRST
        #: Why none is taken, in words; None: as was said before.
        self.trouble: str | None = None

    @property
    def waits(self) -> bool:
        """Whether a call waits to be taken."""
        return self._newest is not None and self._newest.alive

    def put(self, connection: Connection) -> bool:
        """One has come; False when it is not wanted."""
        if self._over or time.monotonic() < self._rests:
            return False
        if self._newest is not None:
            self._newest.drop()
        self._newest = connection
        self._came.set()
        if self.ring is not None:
            self.ring()
        return True

    async def wait(self, seconds: float) -> None:
        """Until one comes, at most for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._came.wait()

    async def take(self) -> Connection | None:
        """The one that waits, or comes in a moment; None: there is none."""
        first, self._first = self._first, False
        if not self.waits and self._patience and self.route.awaited:
            await self.wait(self._patience)
            if first and not self.waits:
                self.route.missed()
        self._patience = 0.0
        found, self._newest = self._newest, None
        self._came.clear()
        if found is not None and found.alive:
            self.route.took()
            return found
        self.trouble = self.route.trouble or (self.route.pods if first else None)
        return None

    def broke(self, moved: bool) -> None:
        """A connection that was taken has ended too early; ``moved``: something had come over it."""
        self._patience = AGAIN
        if not moved:
            self._rests = time.monotonic() + REST
            self._patience = 0.0

    def expire(self, connection: Connection) -> None:
        """Drop one if nobody has taken it."""
        if self._newest is connection:
            self._newest = None
            self._came.clear()
            connection.drop()

    def end(self) -> None:
        """No further ones."""
        self._over = True
        self.ring = None
        if self._newest is not None:
            self.expire(self._newest)


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
        self._keys: dict[tuple[str, int], str] = {}
        self._calls: dict[tuple[str, int, int], Calls] = {}
        self._greeting: set[asyncio.Task[None]] = set()
        self._parked = 0
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
                context = context_of(self.certificate, self.address)
                der = ssl.PEM_cert_to_DER_cert(_certificate(self.certificate.read_text("ascii")))
                self._own = context, route.fingerprint(der)
            return self._own

    # -- who may call

    def know(self, job: str, attempt: int, key: str) -> None:
        """Take calls of the pods of an attempt."""
        self._keys[job, attempt] = key

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
            if calls is not None and self._parked < WAITING:
                connection = Connection(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
                kept = calls.put(connection)
                if kept:
                    self._parked += 1
                    loop.call_later(WAITS, self._expire, calls, connection)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass  # TimeoutError and all of TLS are among them
        finally:
            if not kept and transport is not None:
                transport.abort()

    def _expire(self, calls: Calls, connection: Connection) -> None:
        self._parked -= 1
        calls.expire(connection)

    def _known(self, hello: bytes) -> Calls | None:
        try:
            said = json.loads(hello)
            job, attempt, node, token = said["job"], said["attempt"], said["node"], said["token"]
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
        if not (isinstance(job, str) and isinstance(token, str) and type(attempt) is int and type(node) is int
                and 0 <= node < _NODES):
            return None
        key = self._keys.get((job, attempt), "")
        wanted = route.token(key or secrets.token_hex(32), node)  # nobody learns from the time which jobs there are
        right = hmac.compare_digest(wanted.encode(), token.encode("utf-8", "replace"))
        return self.calls(job, attempt, node) if right and key else None


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


# -- the certificate

def context_of(path: Path, address: str) -> ssl.SSLContext:
    """TLS of our side; the certificate is made when there is none that can be read.

    Raises:
        OSError: it cannot be kept.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(path)
    except (OSError, ssl.SSLError):
        jobfolder.private_folder(str(path.parent))
        jobfolder.write_file(str(path), make_certificate(address))
        context.load_cert_chain(path)
    return context


def make_certificate(address: str) -> bytes:
    """A key and a certificate that nobody has signed, as PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "jupyter-mlops")])
    host, _ = host_and_port(address)
    try:
        alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        alternative = x509.DNSName(host)
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectAlternativeName([alternative]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(key, hashes.SHA256()))
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption())
    return private + certificate.public_bytes(serialization.Encoding.PEM)


def _certificate(pem: str) -> str:
    """The certificate of a file that has the key too."""
    begin = pem.index("-----BEGIN CERTIFICATE-----")
    return pem[begin:]
