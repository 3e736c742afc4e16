"""Large files of a pod on their way through an object store, in pieces under signed addresses.

The other side gives addresses when they are asked for, takes each piece from the store when it is told of it, and
removes it. A piece that cannot be put there is told over the connection itself, and for a while so is everything.
"""

import os
import time
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from urllib.error import HTTPError
from urllib.request import Request, urlopen

#: Pieces that are put at the same time, tries of each, seconds without progress after which a try has failed.
PARALLEL, TRIES, SILENCE = 4, 2, 15.0
#: Seconds for which the store is left alone after it has failed.
REST = 300.0


class Depot:
    """The way through the store.

    Args:
        about: ``{"least": bytes of a file from which on it is used, "piece": bytes}``; None: there is no store.
        mirror: knows addresses (``address``), and whether anybody still listens (``closed``).
    """

    def __init__(self, about, mirror):
        self.least = int(about["least"]) if about else 0
        self.piece = int(about["piece"]) if about else 0
        self.mirror = mirror
        self.trouble = ""
        self._rests = 0.0
        self._pool = self._files = None  # type: ThreadPoolExecutor | None

    def takes(self, left):
        """Whether that many bytes of a file go this way."""
        return bool(self.least) and left >= self.least and time.monotonic() >= self._rests

    def submit(self, work, *arguments):
        """Have one file after the other dealt with."""
        if self._files is None:
            self._files = ThreadPoolExecutor(1)
        self._files.submit(work, *arguments)

    def pieces(self, fd, at, size):
        """Put a file there from an offset on, and yield ``(offset, bytes, checksum, key)`` of each piece, in order.

        It ends early when the store cannot be reached, then :attr:`trouble` says why; or when the file got shorter.
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(PARALLEL)
        waiting = deque()  # type: deque
        self.trouble = ""
        try:
            while (at < size or waiting) and not self.mirror.closed:
                if at < size and len(waiting) < PARALLEL:
                    count = min(self.piece, size - at)
                    waiting.append((at, self._pool.submit(self._put, fd, at, count)))
                    at += count
                    continue
                begin, future = waiting.popleft()
                count, crc, key = future.result()
                if not key:
                    return
                yield begin, count, crc, key
        finally:
            for _, future in waiting:
                if not future.cancel():
                    future.exception()  # it reads from the file, which is closed after this

    def _put(self, fd, at, count):
        """Put one piece; returns its bytes, checksum and key, the last empty when that failed."""
        data = os.pread(fd, count, at)
        if len(data) < count:
            return 0, 0, ""
        why = ""
        for _ in range(TRIES):
            key, url = self.mirror.address()
            if not key:
                why = url or "no address was given"
                break
            try:
                with urlopen(Request(url, data, {"Content-Type": "application/octet-stream"}, method="PUT"),
                             timeout=SILENCE) as answer:
                    answer.read()
                return count, zlib.crc32(data), key
            except HTTPError as error:
                with error:
                    why = "the store answers %d %s" % (error.code, error.reason)
            except Exception as error:  # whatever a proxy or TLS may come up with
                why = "the store is not reached from the pod: %s" % (getattr(error, "reason", None) or error)
            if self.mirror.closed:
                break
        self.trouble = " ".join(why.split())[:300]
        self._rests = time.monotonic() + REST
        return 0, 0, ""
