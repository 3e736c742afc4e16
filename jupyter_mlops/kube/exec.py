"""Running a command in a container and speaking with it, over one websocket (``v5.channel.k8s.io``).

An own channel on aiohttp, because bulk transfer through the client's own stream gets slower with every megabyte.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ..core.errors import BackendTimeout, BackendUnreachable, MlopsError
from ..runtime import parcel
from .client import Kube
from .errors import from_answer, from_exception

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
#: Records of a parcel that may be on their way without an answer; bytes of an answer, at most.
WINDOW = 16
_LINE = 64 * 1024


class Exec:
    """One command in a container; use as an asynchronous context.

    Args:
        timeout: seconds for connecting.
        heartbeat: seconds between pings, without whose answer the connection counts as lost; None: no pings.
        tty: on a terminal; then all that it writes is its output.
    """

    def __init__(self, kube: Kube, pod: str, container: str, command: list[str], timeout: float = 10.0,
                 heartbeat: float | None = None, tty: bool = False) -> None:
        self.kube = kube
        self.pod = pod
        self.timeout = timeout
        self.heartbeat = heartbeat
        self.exit: dict[str, Any] = {}
        self.stderr = b""
        self._query = [("container", container), ("stdin", "1"), ("stdout", "1"),
                       ("tty", "1") if tty else ("stderr", "1"), *(("command", part) for part in command)]
        self._session: Any = None
        self._socket: Any = None

    async def __aenter__(self) -> Exec:
        import aiohttp

        client = await asyncio.to_thread(self.kube.client)
        path = self.kube.path("Pod", self.pod, "exec")
        _, url, headers, *_ = client.param_serialize("GET", path, header_params={}, auth_settings=["BearerToken"])
        headers.pop("Content-Type", None)
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls(client.configuration)))
        try:
            async with asyncio.timeout(self.timeout):
                self._socket = await self._session.ws_connect(
                    f"{url}?{urlencode(self._query)}", headers=headers, protocols=("v5.channel.k8s.io",),
                    max_msg_size=0, heartbeat=self.heartbeat)
        except aiohttp.WSServerHandshakeError as error:
            await self._session.close()
            raise from_answer(error.status, json.dumps({"message": error.message}), "executing in a pod",
                              self.kube.cluster) from error
        except Exception as error:
            await self._session.close()
            raise from_exception(error, self.kube.cluster, self.timeout) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.close()
        await self._session.close()

    async def send(self, data: bytes) -> None:
        """Write to its standard input."""
        await self._socket.send_bytes(bytes((STDIN,)) + data)

    async def resize(self, rows: int, columns: int) -> None:
        """Tell it the size of the terminal."""
        size = json.dumps({"Width": columns, "Height": rows}).encode()
        await self._socket.send_bytes(bytes((RESIZE,)) + size)

    async def hang_up(self) -> None:
        """End the connection; whoever reads its output sees an end."""
        await self._socket.close()

    async def end_input(self) -> None:
        """Tell it that there is no more input."""
        await self._socket.send_bytes(bytes((CLOSE, STDIN)))

    @property
    def exit_code(self) -> int | None:
        """Of the command, when it has ended; None: it has not, or nobody knows."""
        if self.exit.get("status") == "Success":
            return 0
        causes = (self.exit.get("details") or {}).get("causes") or []
        told = [c.get("message") for c in causes if c.get("reason") == "ExitCode"]
        return int(told[0]) if told and str(told[0]).isdigit() else None

    async def output(self) -> AsyncIterator[bytes]:
        """What it writes to standard output, as it comes, until it ends; then :attr:`exit` is set."""
        import aiohttp

        async for message in self._socket:
            if message.type is not aiohttp.WSMsgType.BINARY or not message.data:
                continue
            channel, data = message.data[0], message.data[1:]
            if channel == STDOUT and data:
                yield data
            elif channel == STDERR:
                self.stderr = (self.stderr + data)[-4096:]
            elif channel == ERROR:
                self.exit = json.loads(data)
                return


def tls(configuration: Any) -> ssl.SSLContext | bool:
    """What the client's configuration says of certificates, for aiohttp."""
    if not configuration.host.startswith("https"):
        return False
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert or None)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif configuration.assert_hostname is False:
        context.check_hostname = False
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file or None)
    return context


async def send_parcel(kube: Kube, pod: str, container: str, python: str, path: Path, into: str, digest: str,
                      stall: float = 30.0) -> int:
    """Bring a parcel into a container; goes on where an earlier attempt ended.

    Args:
        python: the interpreter in there, which can import our runtime.
        into: path of the file in there.
        stall: seconds without progress after which it is given up.

    Returns:
        the bytes that were sent now.

    Raises:
        BackendTimeout, BackendUnreachable: the connection was lost; call it again.
        MlopsError: it cannot be done, with the pod's own words.
    """
    size = path.stat().st_size
    command = [python, "-m", "jupyter_mlops.runtime.parcel", "--into", into, "--sha256", digest, "--size", str(size)]
    async with Exec(kube, pod, container, command) as channel:
        answers = _lines(channel)
        first = await _next(answers, stall, channel)
        if first.get("done"):
            return 0
        have = begun = int(first.get("have", 0))
        waiting = 0
        for record in parcel.records(str(path), have):
            await channel.send(record)
            waiting += 1
            if waiting >= WINDOW:
                await _next(answers, stall, channel)
                waiting -= 1
        while True:
            answer = await _next(answers, stall, channel)
            if answer.get("done"):
                return size - begun


async def fetch_parcel(kube: Kube, pod: str, container: str, python: str, address: str, into: str, digest: str,
                       size: int, stall: float = 60.0) -> str:
    """Have a container fetch a parcel by itself; ``address``, which may be a signed one, is in no argument there.

    Returns:
        why it could not; empty when it is there

    Raises:
        BackendTimeout, BackendUnreachable: the connection to the container was lost.
    """
    command = [python, "-m", "jupyter_mlops.runtime.parcel", "--into", into, "--sha256", digest, "--size", str(size),
               "--fetch"]
    async with Exec(kube, pod, container, command) as channel:
        await channel.send(address.encode() + b"\n")
        answers = _lines(channel)
        while True:
            answer = await _next(answers, stall, channel)
            if "why" in answer:
                return str(answer["why"])
            if answer.get("done"):
                return ""


async def _lines(channel: Exec) -> AsyncIterator[dict[str, Any]]:
    held = b""
    async for data in channel.output():
        held += data
        *lines, held = held.split(b"\n")
        for line in lines:
            try:
                answer = json.loads(line)
            except (ValueError, RecursionError):
                answer = None
            if not isinstance(answer, dict) or type(answer.get("have", 0)) is not int or answer.get("have", 0) < 0:
                raise _foreign(line)
            yield answer
        if len(held) > _LINE:
            raise _foreign(held)


def _foreign(said: bytes) -> MlopsError:
    return MlopsError(f"the pod answers with something else than ours: {said[:200]!r}")


async def _next(answers: AsyncIterator[dict[str, Any]], seconds: float, channel: Exec) -> dict[str, Any]:
    try:
        async with asyncio.timeout(seconds):
            answer = await anext(answers)
    except TimeoutError:
        raise BackendTimeout(f"the pod took nothing for {seconds:g} s", "it is tried again") from None
    except StopAsyncIteration:
        said = channel.stderr.decode("utf-8", "replace").strip().splitlines()
        cause = (said[-1] if said else str(channel.exit.get("message") or "the connection ended"))[:300]
        raise BackendUnreachable(f"the transfer into the pod ended: {cause}", "it goes on where it ended") from None
    if answer.get("error"):
        raise BackendUnreachable(f"the transfer into the pod failed: {answer['error']}", "it is tried again")
    return answer
