"""A small load generator for endpoints: keep-alive connections on loopback, bounded in requests and time."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any


def request_bytes(path: str, body: Any, key: str = "", headers: dict[str, str] | None = None) -> bytes:
    """A POST as it goes over the wire."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json",
             f"Content-Length: {len(data)}"]
    if key:
        lines.append(f"Authorization: Bearer {key}")
    lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + data


@dataclass
class Result:
    """What came of a load: seconds of each good answer, and (seconds since the start, what) of each failure."""

    latencies: list[float] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    answers: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    def quantile(self, share: float) -> float:
        """Seconds that a share of the good answers did not exceed."""
        found = sorted(self.latencies)
        return found[min(len(found) - 1, int(share * len(found)))] if found else float("nan")


class _Client(asyncio.Protocol):
    """One connection; sends the next request when the last is answered, or, with a rate, when its time has come."""

    def __init__(self, load: Load, number: int) -> None:
        self.load = load
        self.number = number
        self.buffer = bytearray()
        self.sent_at = 0.0
        self.due = 0.0
        self.transport: Any = None
        self.busy = False

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.next()

    def next(self) -> None:
        load = self.load
        if load.over():
            self.transport.close()
            return
        now = time.perf_counter()
        if load.interval:
            self.due = load.begun + load.interval * load.taken
            load.taken += 1
            if self.due > now:
                asyncio.get_running_loop().call_later(self.due - now, self.send)
                return
            self.send()
        else:
            load.taken += 1
            self.due = now
            self.send()

    def send(self) -> None:
        if self.transport.is_closing():
            return
        self.busy = True
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        at = self.buffer.find(b"\r\n\r\n")
        if at < 0:
            return
        head = bytes(self.buffer[:at]).lower()
        start = head.find(b"content-length:")
        length = int(head[start + 15:head.find(b"\r\n", start) if head.find(b"\r\n", start) > 0 else None])
        if len(self.buffer) < at + 4 + length:
            return
        now = time.perf_counter()
        status = head[9:12].decode()
        result = self.load.result
        if status == "200":
            result.latencies.append(now - self.due)
            where = head.find(b"x-deployment:")
            if where >= 0:
                name = head[where + 13:head.find(b"\r\n", where)].strip().decode()
                result.answers[name] = result.answers.get(name, 0) + 1
        else:
            result.failures.append((now - self.load.begun, status + " " + bytes(self.buffer[at + 4:at + 200]).decode()))
        closing = b"connection: close" in head
        del self.buffer[:at + 4 + length]
        self.busy = False
        if closing:
            self.transport.close()
        else:
            self.next()

    def connection_lost(self, error: Exception | None) -> None:
        if self.busy:
            self.load.result.failures.append((time.perf_counter() - self.load.begun, f"connection lost: {error}"))
        self.load.left(self)


class Load:
    """Sends one request over and over.

    Args:
        count, seconds: whichever comes first ends it.
        rate: requests a second, at fixed times whether or not earlier ones were answered; 0: as fast as answers come.
    """

    def __init__(self, port: int, request: bytes, *, connections: int = 16, count: int = 1_000_000_000,
                 seconds: float = 60.0, rate: float = 0.0) -> None:
        self.port = port
        self.request = request
        self.connections = connections
        self.count = count
        self.seconds = seconds
        self.interval = 1 / rate if rate else 0.0
        self.taken = 0
        self.begun = 0.0
        self.result = Result()
        self._open = 0
        self._done: asyncio.Event | None = None
        self._stop = False

    def over(self) -> bool:
        """Whether no more requests are to be sent."""
        return self._stop or self.taken >= self.count or time.perf_counter() - self.begun > self.seconds

    def stop(self) -> None:
        """End soon; may be called from another thread."""
        self._stop = True

    def left(self, client: _Client) -> None:
        """A connection has ended; another one takes its place while there is something to do."""
        if not self.over():
            asyncio.get_running_loop().create_task(self._connect(client.number))
            return
        self._open -= 1
        if not self._open and self._done is not None:
            self._done.set()

    async def _connect(self, number: int) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(50):
            try:
                await loop.create_connection(lambda: _Client(self, number), "127.0.0.1", self.port)
                return
            except OSError as error:
                self.result.failures.append((time.perf_counter() - self.begun, f"cannot connect: {error}"))
                await asyncio.sleep(0.05)
        self._open -= 1
        if not self._open and self._done is not None:
            self._done.set()

    async def run_async(self) -> Result:
        """Send until it is over."""
        self._done = asyncio.Event()
        self._open = self.connections
        self.begun = time.perf_counter()
        for number in range(self.connections):
            await self._connect(number)
        await asyncio.wait_for(self._done.wait(), self.seconds + 60)
        self.result.seconds = time.perf_counter() - self.begun
        return self.result

    def run(self) -> Result:
        """The same, in an event loop of its own."""
        try:
            import uvloop
        except ImportError:
            return asyncio.run(self.run_async())
        return uvloop.run(self.run_async())
