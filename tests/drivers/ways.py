"""A way that connections take through a network: it can be cut, closed, opened again, or swallow what it carries."""

from __future__ import annotations

import contextlib
import socket
import threading


class Way:
    """From an own port, of loopback by default, to another address.

    ``cut_after``: a connection is cut when so many bytes came back from whoever calls; once, or each time if ``again``.
    ``swallow``: nothing is carried any more, and nothing is closed.
    """

    def __init__(self, to: str, at: str = "127.0.0.1") -> None:
        host, _, port = to.rpartition(":")
        self.to = host, int(port)
        self.cut_after = 0
        self.again = False
        self.cuts = 0
        self.swallow = False
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server((at, 0))
        self._where = self._listener.getsockname()
        self.address = f"{at}:{self._where[1]}"
        self._start()

    def _start(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def pause(self) -> None:
        """Cut all, and let nobody in."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            _end(one)

    close = pause

    def resume(self) -> None:
        """Let callers in again."""
        self._listener = socket.create_server(self._where)
        self._start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                caller, _ = listener.accept()
            except OSError:
                return
            try:
                called = socket.create_connection(self.to, 5)
            except OSError:
                caller.close()
                continue
            for one, other, counted in ((caller, called, True), (called, caller, False)):
                self._open.add(one)
                threading.Thread(target=self._carry, args=(one, other, counted), daemon=True).start()

    def _carry(self, one: socket.socket, other: socket.socket, counted: bool) -> None:
        count = 0
        with contextlib.suppress(OSError):
            while data := one.recv(65536):
                count += len(data)
                if counted and self.cut_after and count > self.cut_after:
                    self.cuts += 1
                    self.cut_after = self.cut_after if self.again else 0
                    break
                if not self.swallow:
                    other.sendall(data)
        if self.swallow:
            return
        for socket_ in (one, other):
            _end(socket_)
            self._open.discard(socket_)


def _end(one: socket.socket) -> None:
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
    one.close()
