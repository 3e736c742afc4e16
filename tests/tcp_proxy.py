"""A way between two processes that a test can take away: connections are cut and refused, or fall silent."""

from __future__ import annotations

import asyncio
import contextlib
import threading


class TcpProxy:
    """Listens on ``port`` of loopback and carries all bytes to ``host:to``."""

    def __init__(self, host: str, to: int) -> None:
        self.host, self.to, self.port = host, to, 0
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> TcpProxy:
        self._thread.start()
        self.mend()
        return self

    def _do(self, work) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._do(self._cut())

    def hang(self) -> None:
        """Carry nothing more, and say nothing of it."""
        self._loop.call_soon_threadsafe(self._open.clear)

    def mend(self) -> None:
        """All is well again."""
        self._do(self._listen())

    def stop(self) -> None:
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    async def _listen(self) -> None:
        self._open.set()
        if self._server is None:
            self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        for task in list(self._tasks):
            task.cancel()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        mine = {writer}
        self._writers.add(writer)
        try:
            there, out = await asyncio.open_connection(self.host, self.to)
            mine.add(out)
            self._writers.add(out)
            await asyncio.gather(self._pump(reader, out), self._pump(there, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for each in mine:
                self._writers.discard(each)
                each.close()
            self._tasks.discard(task)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof() if writer.can_write_eof() else None
