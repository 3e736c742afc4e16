"""A command on a terminal of this machine, as :class:`jupyter_mlops.kube.exec.Exec` is one in a pod."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import struct
import subprocess
import termios
from collections.abc import AsyncIterator
from typing import Any, Protocol


class Channel(Protocol):
    """What both are to whoever connects them with somebody; use as an asynchronous context."""

    async def __aenter__(self) -> Channel: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def send(self, data: bytes) -> None:
        """Write to its standard input."""

    async def resize(self, rows: int, columns: int) -> None:
        """Tell it the size of the terminal."""

    def output(self) -> AsyncIterator[bytes]:
        """What it writes, until it ends."""

    @property
    def exit_code(self) -> int | None:
        """Set when it has ended; None: not known."""


class Terminal:
    """A process with a terminal of its own.

    Args:
        command: what to run; cwd, env: where and with what.
    """

    def __init__(self, command: list[str], env: dict[str, str], cwd: str | None = None) -> None:
        self._command = command
        self._env = env
        self._cwd = cwd
        self._process: subprocess.Popen[bytes] | None = None
        self._fd = -1

    async def __aenter__(self) -> Terminal:
        self._fd, theirs = os.openpty()
        os.set_blocking(self._fd, False)
        try:
            self._process = await asyncio.to_thread(
                subprocess.Popen, self._command, stdin=theirs, stdout=theirs, stderr=theirs, env=self._env,
                cwd=self._cwd, start_new_session=True)
        except BaseException:
            os.close(self._fd)
            raise
        finally:
            os.close(theirs)
        return self

    async def __aexit__(self, *_: object) -> None:
        process = self._process
        if process is not None and process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGHUP)
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(process.wait, 2)
            if process.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await asyncio.to_thread(process.wait)
        os.close(self._fd)

    async def send(self, data: bytes) -> None:
        """Write what was typed."""
        while data:
            try:
                data = data[os.write(self._fd, data):]
            except BlockingIOError:
                await _ready(self._fd, writing=True)
            except OSError:
                return  # it has ended

    async def resize(self, rows: int, columns: int) -> None:
        """Tell it the size of the terminal."""
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    async def output(self) -> AsyncIterator[bytes]:
        """What it writes, until it ends."""
        while True:
            try:
                data = os.read(self._fd, 65536)
            except BlockingIOError:
                await _ready(self._fd)
                continue
            except OSError:  # EIO: nobody has the other side any more
                break
            if not data:
                break
            yield data
        assert self._process is not None
        await asyncio.to_thread(self._process.wait)

    @property
    def exit_code(self) -> int | None:
        """As a shell tells it: 128 and more for a signal."""
        code: Any = self._process.poll() if self._process else None
        return 128 - code if code is not None and code < 0 else code


async def _ready(fd: int, writing: bool = False) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()

    def set_() -> None:
        if not done.done():
            done.set_result(None)

    add, remove = (loop.add_writer, loop.remove_writer) if writing else (loop.add_reader, loop.remove_reader)
    add(fd, set_)
    try:
        await done
    finally:
        remove(fd)
