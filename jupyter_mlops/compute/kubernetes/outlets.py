"""Fetching large files from pods through the API server's proxy, from :mod:`jupyter_mlops.runtime.outlet`.

It is about twice as fast as an execution stream. Where these credentials may not use the proxy, or the API server does
not reach pods, large files come over the stream, as all others do.
"""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from ...core.errors import BackendTimeout, BackendUnreachable, MlopsError
from ...kube.client import Kube
from ...kube.errors import from_answer, from_exception
from ...runtime import outlet

#: Files that are fetched at a time, of all jobs of a compute: two keep the connection busy.
AT_ONCE = 2
#: Seconds until the first byte, and between two; and for a whole piece: the threads are those of all jobs.
PATIENCE, SLOWEST = 10.0, 30.0
#: Seconds for which an end waits for the piece that is being fetched.
CLOSING = 3.0
#: Seconds for which it is not tried again after it failed.
RESPITE = 300.0

T = TypeVar("T")


class Outlets:
    """Those of one compute.

    Args:
        wanted: whether the proxy is to be used at all.
    """

    def __init__(self, kube: Kube, wanted: bool) -> None:
        self.kube = kube
        self.wanted = wanted
        self._pool = ThreadPoolExecutor(AT_ONCE + 1, "outlet")  # one more, that brings to the disk what was written
        self._running: set[Future[Any]] = set()
        self._not_before = 0.0

    @property
    def usable(self) -> bool:
        """Whether it is worth trying."""
        return self.wanted and time.monotonic() >= self._not_before

    def failed(self) -> None:
        """The proxy did not lead there: for a while nobody tries."""
        self._not_before = time.monotonic() + RESPITE

    def submit(self, work: Callable[..., T], *arguments: Any) -> Future[T]:
        """Have work done in a thread of these."""
        future = self._pool.submit(work, *arguments)
        self._running.add(future)
        future.add_done_callback(self._running.discard)
        return future

    def fetch(self, pod: str, offer: dict[str, Any]) -> Generator[bytes, None, None]:
        """The pieces of a file from ``offer["at"]`` on; none when it is not any more as it was. In a thread.

        Raises:
            MlopsError: no answer, or not this file's.
            ValueError: a piece arrived damaged.
        """
        port, ident = int(offer["port"]), int(offer["id"])
        path = f"{self.kube.path('Pod', f'{pod}:{port}', 'proxy')}/{ident}"
        left = int(offer["size"]) - int(offer["at"])
        response = self.kube.stream(path, {"at": int(offer["at"])}, {outlet.TOKEN: str(offer["token"])}, PATIENCE)
        try:
            if response.status == outlet.CHANGED:
                return
            if response.status != 200:
                raise from_answer(response.status, response.read(2000), "fetching a large file", self.kube.cluster)
            while left > 0:
                with _in_time(response):
                    size, crc = outlet.HEAD.unpack(_exactly(response, outlet.HEAD.size))
                    if not 0 < size <= min(outlet.PIECE, left):
                        raise ValueError("the pod answers with something else than ours")
                    data = _exactly(response, size)
                if zlib.crc32(data) != crc:
                    raise ValueError("a piece arrived damaged")
                left -= size
                yield data
        except (MlopsError, ValueError):
            raise
        except Exception as error:
            raise from_exception(error, self.kube.cluster, PATIENCE) from error
        finally:
            response.close()

    def close(self) -> None:
        """No further fetches; those that were told to end have ended then, or do not hear."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        wait(set(self._running), CLOSING)


@contextlib.contextmanager
def _in_time(response: Any) -> Iterator[None]:
    """Have reading end after ``SLOWEST`` seconds, also when a byte comes now and then.

    Raises:
        BackendTimeout: it did not end by itself.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        with contextlib.suppress(Exception):  # it is over already
            response.shutdown()

    timer = threading.Timer(SLOWEST, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except Exception as error:
        if not late.is_set():
            raise
        raise BackendTimeout(
            f"a pod has not sent a piece of a file within {SLOWEST:g} s", "it is tried otherwise") from error
    finally:
        timer.cancel()


def _exactly(response: Any, size: int) -> bytes:
    data: bytes = response.read(size)
    while len(data) < size:
        more = response.read(size - len(data))
        if not more:
            raise BackendUnreachable("the answer of a pod ended too early", "it is tried again")
        data += more
    return data
