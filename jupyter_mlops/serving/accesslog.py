"""The gateway's access log: one line a request in a file of bounded size; no key, no body, no query."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time

LIMIT = 5_000_000


class AccessLog:
    """Lines of one turn of the event loop are written together; one predecessor of the file is kept."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lines: list[str] = []
        self._second = 0
        self._stamp = ""
        self._open()

    def _open(self) -> None:
        self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self.size = os.fstat(self.fd).st_size

    def note(self, request_id: str, method: str, endpoint: str, action: str, status: int, took_ms: float, size: int,
             answered: int) -> None:
        """Add the line of a request."""
        if not self._lines:
            asyncio.get_running_loop().call_soon(self.flush)
        now = int(time.time())
        if now != self._second:
            self._second = now
            self._stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
        self._lines.append(
            f"{self._stamp} {request_id} {method} {endpoint} {action} {status} {took_ms:.1f}ms {size} {answered}\n")

    def flush(self) -> None:
        """Write what waits."""
        if not self._lines:
            return
        data = "".join(self._lines).encode("ascii", "backslashreplace")
        self._lines.clear()
        with contextlib.suppress(OSError):
            self.size += os.write(self.fd, data)
            if self.size > LIMIT:
                os.replace(self.path, self.path + ".1")
                os.close(self.fd)
                self._open()
