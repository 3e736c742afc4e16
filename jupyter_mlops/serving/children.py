"""Detached processes: reaped when they end while we live, ended when asked, whoever started them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from ..runtime.processes import alive, family, send, start_time

MARKER = "JUPYTER_MLOPS_SCORER_DIR"
#: Bytes of a log from which on the next process begins another one.
LOG_LIMIT = 10_000_000


class Children:
    """Reaps the children of this process and remembers how they ended."""

    def __init__(self) -> None:
        self._exits: dict[int, int] = {}

    def watch(self, child: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """Reap ``child`` when it ends."""
        def wait() -> None:
            self._exits[child.pid] = child.wait()
            while len(self._exits) > 200:
                self._exits.pop(next(iter(self._exits)))

        threading.Thread(target=wait, name=f"reap-{child.pid}", daemon=True).start()
        return child

    def exit_code(self, pid: Any) -> int | None:
        """How a watched child ended: negative for a signal; None when it runs, or was not ours."""
        return self._exits.get(int(pid or 0))


def open_log(path: Path) -> IO[bytes]:
    """A private log that a process may append to; one that has become long is put aside as ``<name>.1`` first."""
    with contextlib.suppress(OSError):
        if path.stat().st_size > LOG_LIMIT:
            os.replace(path, path.with_name(f"{path.name}.1"))
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")


def end(pid: int, grace: float) -> None:
    """TERM, and KILL after ``grace`` seconds; returns when the process is gone."""
    end_all([pid], grace)


def end_all(pids: Iterable[int], grace: float) -> None:
    """As :func:`end`, for several processes at once."""
    left = {pid: started for pid in pids if (started := start_time(pid))}
    for pid, started in left.items():
        send(pid, started, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while left := {pid: started for pid, started in left.items() if alive(pid, started)}:
        if time.monotonic() >= deadline:
            for pid, started in left.items():
                send(pid, started, signal.SIGKILL)
            deadline = time.monotonic() + 5.0
        time.sleep(0.02)


def how_it_ended(code: int | None) -> str:
    """`` by SIGKILL``, `` with exit code 1`` or nothing, to append to a sentence."""
    if code is None:
        return ""
    if code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = str(-code)
        return f" by {name}" + (" (perhaps out of memory)" if name == "SIGKILL" else "")
    return f" with exit code {code}"


def mark(folder: Path) -> dict[str, str]:
    """The environment entry that all processes of a scorer carry, also those that its model makes."""
    return {MARKER: str(folder)}


def clear_leftovers(folder: Path, pid: Any) -> None:
    """End what a dead scorer left: its process group, and whatever left that but carries the scorer's mark.

    Forked workers hold the scorer's lock, and nothing of a model outlives its deployment. The pid cannot have been
    reused as another group's while the group has members, and is not touched when reused.
    """
    if pid and not start_time(int(pid)):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(int(pid), signal.SIGKILL)
    for stray, started in family([], set(), os.fsencode(f"{MARKER}={folder}")).items():
        send(stray, started, signal.SIGKILL)
