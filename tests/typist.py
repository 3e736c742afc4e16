"""A terminal in which a command of ours runs, and somebody who types and reads."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

from conftest import REPO


class Typist:
    """Starts ``command`` on a terminal of its own; ``more`` goes into its environment."""

    def __init__(self, command: list[str], **more: str) -> None:
        self.master, theirs = pty.openpty()
        self.size(31, 97)
        env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "MLFLOW"))}
        self.process = subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**env, "PYTHONPATH": str(REPO), **more})
        os.close(theirs)
        self.seen = ""

    def size(self, rows: int, columns: int) -> None:
        """Make the terminal larger or smaller."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self.master, text.encode())

    def sees(self, text: str, timeout: float = 60.0) -> str:
        """All that was shown, once ``text`` is among it."""
        until = time.monotonic() + timeout
        while text not in self.seen:
            assert time.monotonic() < until, self.seen
            if select.select([self.master], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    self.seen += os.read(self.master, 65536).decode("utf-8", "replace")
        return self.seen

    def close(self) -> None:
        """Close the terminal."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
