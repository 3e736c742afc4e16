"""A look inside a rank that runs, from a terminal: a shell, and ports that are held open here."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import aiohttp

from ..core.errors import MlopsError, Unavailable
from .transport import Transport, segment

_PIECE = 65536


class Ended(Exception):
    """The shell has ended.

    Attributes:
        code: its exit code; None: not known. message: why the connection ended, when that was not the shell.
    """

    def __init__(self, code: int | None, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


async def shell(transport: Transport, job: str, rank: int) -> int:
    """Connect this terminal with a shell beside a rank, until that ends; its exit code.

    Raises:
        MlopsError: there is no such rank, or it does not run.
        Unavailable: the connection was lost.
    """
    async with transport.websocket(f"/jobs/{segment(job)}/shell", {"rank": rank}) as socket:
        with _raw():
            return await _converse(socket)


async def _converse(socket: aiohttp.ClientWebSocketResponse) -> int:
    loop = asyncio.get_running_loop()
    typed: asyncio.Queue[bytes] = asyncio.Queue()
    there, here = sys.stdin.fileno(), sys.stdout.fileno()

    def read() -> None:
        try:
            data = os.read(there, _PIECE)
        except OSError:
            data = b""
        if not data:
            loop.remove_reader(there)
        typed.put_nowait(data)

    async def tell_size() -> None:
        with contextlib.suppress(OSError, ConnectionError):
            size = os.get_terminal_size(here)
            await socket.send_str(json.dumps({"size": [size.lines, size.columns]}))

    async def send() -> None:
        await tell_size()
        while True:
            data = await typed.get()
            if not data:
                await socket.send_bytes(b"\x04")  # as Ctrl-D does
                return
            await socket.send_bytes(data)

    resizing: set[asyncio.Task[None]] = set()

    def resized() -> None:
        task = loop.create_task(tell_size())
        resizing.add(task)
        task.add_done_callback(resizing.discard)

    loop.add_reader(there, read)
    loop.add_signal_handler(signal.SIGWINCH, resized)
    sending = asyncio.ensure_future(send())
    try:
        await receive(socket, lambda data: _write(here, data))
    except Ended as end:
        if end.code is None:
            raise Unavailable(end.message or "the connection to the shell was lost", "") from None
        return end.code
    finally:
        loop.remove_reader(there)
        loop.remove_signal_handler(signal.SIGWINCH)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    raise Unavailable("the connection to the shell was lost", "the job goes on: try again")


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data):]


async def receive(socket: aiohttp.ClientWebSocketResponse, take: Callable[[bytes], Any]) -> None:
    """Hand on what comes, until the other side closes.

    Raises:
        Ended: with what it said last.
    """
    async for message in socket:
        if message.type is aiohttp.WSMsgType.BINARY:
            await asyncio.to_thread(take, message.data)
        elif message.type is aiohttp.WSMsgType.TEXT:
            word = json.loads(message.data)
            raise Ended(word.get("exit"), str(word.get("message") or ""))


@contextlib.contextmanager
def _raw() -> Any:
    """The terminal tells each key as it is pressed, and shows nothing by itself."""
    import termios
    import tty

    fd = sys.stdin.fileno()
    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd, termios.TCSADRAIN)  # what was typed ahead stays
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


async def forward(transport: Transport, job: str, rank: int, port: int, here: int,
                  ready: Callable[[int], None], trouble: Callable[[str], None]) -> None:
    """Hold a loopback port open, each connection to which goes to a port of a rank's pod; until cancelled.

    Args:
        here: the port on this machine; 0: any that is free.
        ready: called with it when it is open. trouble: called with what went wrong with a connection.

    Raises:
        MlopsError: there is no such rank, it does not run, or the port is taken.
    """
    path, params = f"/jobs/{segment(job)}/forward", {"rank": rank, "port": port}

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with transport.websocket(path, params) as socket:
                sending = asyncio.ensure_future(_pump(reader, socket))
                try:
                    async for message in socket:
                        if message.type is aiohttp.WSMsgType.BINARY:
                            writer.write(message.data)
                            await writer.drain()
                        elif message.type is aiohttp.WSMsgType.TEXT:
                            word = json.loads(message.data)
                            if word.get("exit") != 0:
                                trouble(str(word.get("message") or "the connection to the pod ended"))
                            break
                finally:
                    sending.cancel()
        except MlopsError as error:
            trouble(error.message)
        except (OSError, ConnectionError):
            pass  # whoever had connected here has gone
        finally:
            writer.close()

    try:
        server = await asyncio.start_server(connected, "127.0.0.1", here)
    except OSError as error:
        raise MlopsError(f"port {here} on this machine cannot be opened: {error.strerror or error}",
                         "name another one: PORT:OTHER") from None
    async with server:
        ready(server.sockets[0].getsockname()[1])
        await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, socket: aiohttp.ClientWebSocketResponse) -> None:
    with contextlib.suppress(OSError, ConnectionError):
        while data := await reader.read(_PIECE):
            await socket.send_bytes(data)
        await socket.send_str('{"end": true}')
