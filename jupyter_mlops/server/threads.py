"""Blocking calls off the event loop, in threads that never hold up the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def in_thread(function: Callable[..., T], *args: object) -> asyncio.Future[T]:
    """Call ``function(*args)`` in a daemon thread; the future gets its result or exception.

    An executor's threads are joined when the interpreter ends, so one that waits for a silent control plane would
    keep Jupyter from ending. Callers see to it that only a few run at once.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():  # cancelled meanwhile
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = function(*args)
        except BaseException as e:
            error = e
        try:
            loop.call_soon_threadsafe(settle, result, error)
        except RuntimeError:
            pass  # the loop has ended

    threading.Thread(target=work, daemon=True, name=f"mlops-{function.__name__}").start()
    return future
