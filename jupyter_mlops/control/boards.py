"""TensorBoard as child processes: one for each choice of folders, on a unix socket, until nobody looks any more."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import aiohttp

from ..core.errors import BackendTimeout, Refused, Unavailable
from ..runtime import board as runner
from ..runtime.locate import private_dir
from ..streaming import unix_session
from ..tracking.processes import signal_group

#: Seconds without a request after which one is ended; and most at a time.
IDLE, MOST = 900.0, 4
#: Seconds that one may take to come up, on a busy machine; clients wait 60.
START = 50.0
LOG_BYTES = 1_000_000
_EVENTS = ".tfevents."
#: Entries of a folder that are looked at for event files.
_LOOK = 20_000


@dataclass
class Board:
    """One that runs.

    Attributes:
        socket: path of its unix socket. session: for requests to it.
        used: when it was last asked, of the monotonic clock. busy: requests under way.
    """

    process: subprocess.Popen[bytes]
    folder: Path
    session: aiohttp.ClientSession
    used: float = field(default_factory=time.monotonic)
    busy: int = 0

    @contextlib.contextmanager
    def asked(self) -> Iterator[None]:
        """Around a request: it is not ended meanwhile."""
        self.take()
        try:
            yield
        finally:
            self.leave()

    def take(self) -> None:
        """A request begins."""
        self.busy += 1
        self.used = time.monotonic()

    def leave(self) -> None:
        """A request ended."""
        self.busy -= 1
        self.used = time.monotonic()


def event_files(folder: Path) -> int:
    """How many event files lie below a folder, as far as it is looked through (blocking)."""
    found = seen = 0
    for _, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        found += sum(_EVENTS in name for name in names)
        seen += len(names) + len(folders)
        if seen > _LOOK:
            break
    return found


class Boards:
    """All of one control plane.

    Args:
        runtime_dir: for sockets, entered by this user only. log: file for what they print.
    """

    def __init__(self, runtime_dir: str, log: Path) -> None:
        self._place = Path(runtime_dir) / "tb"  # paths of sockets must be short
        self._log = log
        self._running: dict[str, Board] = {}
        self._starting: dict[str, asyncio.Task[Board]] = {}
        #: Folders that somebody asked for, by the name that stands for them in addresses.
        self.folders: dict[str, tuple[Path, str]] = {}

    def name(self, folder: Path, python: str) -> str:
        """Have a name for a folder of this machine, and the Python to look at it with."""
        name = "~" + sha256(os.fsencode(folder)).hexdigest()[:16]
        self.folders[name] = (folder, python)
        return name

    def running(self, key: str) -> Board | None:
        """The one for a key, if it runs."""
        board = self._running.get(key)
        return board if board is not None and board.process.poll() is None else None

    async def open(self, key: str, sources: list[tuple[str, Path]], pythons: list[str]) -> Board:
        """The one for these folders, started when it does not run.

        Args:
            key: what tells it from others.
            sources: (name, folder); several are shown side by side under their names.
            pythons: interpreters to try, until one has TensorBoard.

        Raises:
            Refused: none of them has it, or the folders cannot be shown together.
            BackendTimeout: it does not come up.
            Unavailable: as many as allowed are in use.
        """
        board = self.running(key)
        if board is not None:
            return board
        if key not in self._starting:
            self._starting[key] = asyncio.ensure_future(self._start(key, sources, pythons))
            self._starting[key].add_done_callback(lambda _: self._starting.pop(key, None))
        return await asyncio.shield(self._starting[key])

    async def _start(self, key: str, sources: list[tuple[str, Path]], pythons: list[str]) -> Board:
        await self._make_room(key)
        folder = Path(private_dir(str(self._place))) / sha256(key.encode()).hexdigest()[:8]
        arguments = [*_folders(sources), "--reload_multifile", "true", "--reload_interval", "5",
                     "--window_title", ", ".join(name for name, _ in sources)]
        missing: list[str] = []
        for python in dict.fromkeys(pythons):
            process = await asyncio.to_thread(self._spawn, python, folder, arguments)
            try:
                code = await self._until_up(process, folder / "sock")
            except BaseException:
                await asyncio.to_thread(_end, process, folder)
                raise
            if code is None:
                board = Board(process, folder, unix_session(str(folder / "sock")))
                self._running[key] = board
                return board
            await asyncio.to_thread(_end, process, folder)
            if code != runner.MISSING:
                said = (await asyncio.to_thread(self._last_line)) or f"exit code {code}"
                raise Refused(f"TensorBoard did not start: {said}", f"all it said: {self._log}")
            missing.append(python)
        raise Refused(f"TensorBoard is not installed in {missing[-1]}", f"{missing[-1]} -m pip install tensorboard")

    def _spawn(self, python: str, folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
        shutil.rmtree(folder, ignore_errors=True)
        private_dir(str(folder))
        self._log.parent.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(OSError):
            if self._log.stat().st_size > LOG_BYTES:
                self._log.unlink()
        # It leaves notes for others in the folder for temporary files: ours is nobody else's.
        env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER_MLOPS_", "TENSORBOARD_"))}
        env |= {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1", "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
        with open(os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as log:
            return subprocess.Popen(
                [python, runner.__file__, str(folder / "sock"), *arguments], stdin=subprocess.PIPE, stdout=log,
                stderr=log, env=env, cwd=folder, process_group=0, umask=0o077)

    async def _until_up(self, process: subprocess.Popen[bytes], socket: Path) -> int | None:
        """None when it takes connections, or the code with which it has ended."""
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            code = process.poll()
            if code is not None:
                return code
            if socket.exists():
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_unix_connection(str(socket))
                    writer.close()
                    return None
            await asyncio.sleep(0.05)
        raise BackendTimeout(f"TensorBoard did not come up within {START:g} s", f"see {self._log}")

    def _last_line(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._log.read_text("utf-8", "replace")[-4000:].strip().splitlines()
            return lines[-1][:300] if lines else ""
        return ""

    async def _make_room(self, key: str) -> None:
        await self._close(key)  # one that ended by itself
        for other in [k for k, b in self._running.items() if b.process.poll() is not None]:
            await self._close(other)
        while len(self._running) >= MOST:
            idle = [k for k, b in self._running.items() if not b.busy]
            if not idle:
                raise Unavailable(f"{MOST} TensorBoards are in use", "close one of their tabs, then try again")
            await self._close(min(idle, key=lambda k: self._running[k].used))

    async def sweep(self) -> None:
        """End those that nobody has asked for a while."""
        now = time.monotonic()
        for key in [k for k, b in self._running.items() if not b.busy and now - b.used > IDLE]:
            await self._close(key)

    async def stop(self) -> None:
        """End all."""
        for task in list(self._starting.values()):
            task.cancel()
        await asyncio.gather(*self._starting.values(), return_exceptions=True)
        await asyncio.gather(*(self._close(key) for key in list(self._running)))

    async def _close(self, key: str) -> None:
        board = self._running.pop(key, None)
        if board is not None:
            await board.session.close()
            await asyncio.to_thread(_end, board.process, board.folder)


def _folders(sources: list[tuple[str, Path]]) -> list[str]:
    """TensorBoard's arguments for what it shall show. Raises Refused: they cannot be told apart."""
    if len(sources) == 1:
        return ["--logdir", str(sources[0][1])]
    odd = next((str(path) for _, path in sources if set(str(path)) & set(",:")), "")
    if odd:
        raise Refused(f"{odd} cannot be shown beside others: commas and colons divide them", "show it alone")
    return ["--logdir_spec", ",".join(f"{name}:{path}" for name, path in sources)]


def _end(process: subprocess.Popen[bytes], folder: Path) -> None:
    signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        signal_group(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdin is not None:
        process.stdin.close()
    shutil.rmtree(folder, ignore_errors=True)


#: The interpreter of the control plane, which is asked first.
HERE = sys.executable
