"""The loop that all controllers share."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from ..errors import MlopsError
from ..identity import Identity

if TYPE_CHECKING:
    from ..workspace import Workspace

log = logging.getLogger(__name__)

Key = tuple[str, str]  # (parent, name)


class Controller:
    """Calls :meth:`reconcile` for each resource that needs it: when woken, and every ``period`` seconds.

    One resource is worked on by one task at a time; up to ``width`` resources at once. An exception is logged and the
    resource tried again at the next round: nothing is remembered that is not in the store or with the driver.
    """

    kind = ""
    period = 1.0
    width = 8

    def __init__(self) -> None:
        self.workspace: Workspace = None  # type: ignore[assignment]  # set by Workspace.add
        self._wanted: dict[Key, None] = {}  # a set that keeps its order
        self._busy: set[Key] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._event = asyncio.Event()
        self._loop_task: asyncio.Task[None] | None = None

    # -- what a kind implements --------------------------------------------------------------------------------

    async def active(self) -> list[Key]:
        """Resources that need watching."""
        raise NotImplementedError

    async def reconcile(self, parent: str, name: str) -> None:
        """Bring one resource a step nearer to its spec."""
        raise NotImplementedError

    async def admit(
        self, parent: str, name: str, spec: Any, identity: Identity
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Check a new spec. Returns (first status, private data, what the creator is told once).

        Raises:
            Refused: it cannot be done here.
        """
        return {}, {}, {}

    # -- the loop ------------------------------------------------------------------------------------------------

    def wake(self, parent: str, name: str) -> None:
        """Look at this resource now."""
        self._wanted[parent, name] = None
        self._event.set()

    def start(self) -> None:
        """Begin; the first round looks at everything."""
        self._loop_task = asyncio.create_task(self._run(), name=f"{self.kind}-controller")

    async def stop(self) -> None:
        """End the loop, letting steps under way finish for a moment."""
        if self._loop_task is not None:
            self._loop_task.cancel()
        if self._tasks:
            _, pending = await asyncio.wait(self._tasks, timeout=3)
            for task in pending:
                task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if loop.time() >= due:
                try:
                    self._wanted.update(dict.fromkeys(await self.active()))
                except Exception:
                    log.exception("%s controller: listing failed", self.kind)
                due = loop.time() + self.period
            for key in [k for k in self._wanted if k not in self._busy][: self.width - len(self._busy)]:
                del self._wanted[key]
                self._busy.add(key)
                task = asyncio.create_task(self._step(key))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
            self._event.clear()
            ready = self._wanted.keys() - self._busy and len(self._busy) < self.width
            if not ready:
                try:
                    await asyncio.wait_for(self._event.wait(), max(0.01, due - loop.time()))
                except TimeoutError:
                    pass

    async def _step(self, key: Key) -> None:
        try:
            await self.reconcile(*key)
        except asyncio.CancelledError:
            raise
        except MlopsError as e:
            log.warning("%s %s: %s", self.kind, "/".join(filter(None, key)), e)
        except Exception:
            log.exception("%s %s: reconcile failed", self.kind, "/".join(filter(None, key)))
        finally:
            self._busy.discard(key)
            self._event.set()
