"""The gateway's side of one scorer: a persistent unix connection on which requests are pipelined."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from ..core.errors import BackendTimeout, MlopsError, ModelError, ParameterError, Unavailable
from ..runtime import frames

#: Seconds that a client is told to wait before it asks a scorer that is down again.
RETRY_AFTER = 2
CONNECT_TIMEOUT = 2.0


class ScorerDown(Unavailable):
    """Nobody answers on the scorer's socket."""


class ScorerLink:
    """Requests to one scorer. The connection is made on demand, and again after it was lost."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._writer: asyncio.StreamWriter | None = None
        self._reading: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._last = 0

    @property
    def in_flight(self) -> int:
        return len(self._waiting)

    async def score(self, body: bytes, timeout: float) -> bytes:
        """The answer's JSON.

        Raises:
            ModelError: the model raised.
            ParameterError: the scorer could not build the input.
            ScorerDown: no scorer there, or it went away meanwhile.
            BackendTimeout: no answer within ``timeout`` seconds; the request is cancelled where it waits.
        """
        kind, answer = await self._ask(frames.SCORE, body, timeout)
        if kind == frames.RESULT:
            return answer
        try:
            error: dict[str, Any] = json.loads(answer)
        except ValueError:
            error = {}
        message = str(error.get("message") or "the scorer failed")
        if error.get("code") == "unavailable":
            raise ScorerDown(message, "try again in a moment")
        if error.get("code") == "bad_parameter":
            raise ParameterError(message)
        raise ModelError(message, "the deployment's log has the traceback")

    async def ping(self, timeout: float = 2.0) -> bool:
        """Whether the scorer answers."""
        try:
            kind, _ = await self._ask(frames.PING, b"", timeout)
        except MlopsError:
            return False
        return kind == frames.PONG

    async def _ask(self, kind: int, body: bytes, timeout: float) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(timeout):
                writer = await self._connected()
                self._last = ident = self._last % 0xFFFFFFFF + 1
                future = asyncio.get_running_loop().create_future()
                self._waiting[ident] = future
                try:
                    writer.write(frames.pack(kind, ident, body))
                    await writer.drain()
                    return await future
                except asyncio.CancelledError:
                    # Timed out, or the caller hung up: nobody waits for this any more.
                    if not writer.is_closing():
                        writer.write(frames.pack(frames.CANCEL, ident))
                    raise
                finally:
                    self._waiting.pop(ident, None)
        except TimeoutError:
            raise BackendTimeout(f"the model did not answer within {timeout:g} s",
                                 "send fewer rows, or raise request_timeout_ms") from None
        except OSError:
            raise ScorerDown("the deployment does not answer", "it may be starting; try again in a moment") from None

    async def _connected(self) -> asyncio.StreamWriter:
        async with self._connecting:
            if self._writer is not None and not self._writer.is_closing():
                return self._writer
            async with asyncio.timeout(CONNECT_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(self.path, limit=1 << 20)
            self._writer = writer
            self._reading = asyncio.create_task(self._read(reader, writer))
            return writer

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                kind, ident, body = await frames.read(reader)
                future = self._waiting.get(ident)
                if future is not None and not future.done():
                    future.set_result((kind, body))
        except (asyncio.IncompleteReadError, frames.FrameError, OSError):
            pass
        finally:
            writer.close()
            if self._writer is writer:
                self._writer = None
                lost, self._waiting = self._waiting, {}
                for future in lost.values():
                    if not future.done():
                        future.set_exception(ScorerDown("the deployment ended while it answered", "try again"))

    def close(self) -> None:
        """Give the connection up; what is under way fails as if the scorer had gone."""
        if self._writer is not None:
            self._writer.close()
        if self._reading is not None:
            self._reading.cancel()
