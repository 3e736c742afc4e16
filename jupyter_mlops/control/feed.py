"""The change feed: what changed, in commit order, for whoever waits."""

from __future__ import annotations

import asyncio
from typing import Any

from ..core import policy
from ..core.errors import Gone
from ..core.identity import Identity
from ..core.store import Store, Transaction

#: Rows kept; a client further behind lists anew.
KEEP = 10_000
#: Seconds within which several writes to MLflow become one change.
COALESCE = 1.0

#: feed kind → the action one must be allowed to see it.
_ACTIONS = {
    "job": "jobs/read", "endpoint": "endpoints/read", "deployment": "deployments/read", "compute": "computes/read",
    "run": "runs/read", "model": "models/read", "workspace": "workspaces/read",
}


class Feed:
    """Wakes waiters when the store commits; coalesces what comes from MLflow (:meth:`touch`)."""

    def __init__(self, store: Store) -> None:
        self._store = store
        store.on_commit = self._wake
        self._event = asyncio.Event()
        self._touched: set[str] = set()
        self._flusher: asyncio.Task[None] | None = None
        self.waiting = 0
        self._closed = False

    def _wake(self) -> None:
        self._event.set()
        self._event = asyncio.Event()

    def touch(self, kind: str) -> None:
        """Note that runs or models changed in MLflow; appears in the feed within a second."""
        self._touched.add(kind)
        if self._flusher is None or self._flusher.done():
            self._flusher = asyncio.create_task(self._flush())

    async def _flush(self) -> None:
        while self._touched:
            kinds, self._touched = self._touched, set()

            def work(tx: Transaction, kinds: set[str] = kinds) -> None:
                for kind in sorted(kinds):
                    tx.record_change(kind)

            await self._store.write(work)
            await asyncio.sleep(COALESCE)

    async def note(self, kind: str, phase: str) -> None:
        """Append a change that belongs to no resource (the state of MLflow, of the gateway)."""
        await self._store.write(lambda tx: tx.record_change(kind, phase=phase))

    async def changes(self, identity: Identity, since: int | None, wait: float) -> tuple[int, list[dict[str, Any]]]:
        """(newest seq, rows after ``since`` that ``identity`` may see); waits up to ``wait`` seconds for one.

        Raises:
            Gone: ``since`` is older than what is kept, or from another life of the store.
        """
        deadline = asyncio.get_running_loop().time() + wait
        while True:
            event = self._event

            def work(tx: Transaction, after: int | None = since) -> tuple[tuple[int, int], list[dict[str, Any]]]:
                return tx.change_bounds(), tx.changes(after) if after is not None else []

            (low, high), rows = await self._store.read(work)
            if since is None:
                return high, []
            if since > high or (low and since < low - 1):
                raise Gone(f"change {since} is not kept any more", "list anew, then follow from the newest seq")
            last = rows[-1]["seq"] if rows else since
            visible = [r for r in rows if policy.allowed(identity, _ACTIONS.get(r["kind"], "*"), r["name"])]
            remaining = deadline - asyncio.get_running_loop().time()
            if visible or remaining <= 0 or self._closed:
                return last, visible
            since = last
            self.waiting += 1
            try:
                await asyncio.wait_for(event.wait(), remaining)
            except TimeoutError:
                pass
            finally:
                self.waiting -= 1

    async def prune(self) -> None:
        """Keep the newest rows only."""
        await self._store.write(lambda tx: tx.prune_changes(KEEP))

    def release(self) -> None:
        """Answer all waiters now: the control plane ends."""
        self._closed = True
        self._wake()

    async def close(self) -> None:
        """Write what was touched last."""
        if self._flusher is not None and not self._flusher.done():
            self._flusher.cancel()
        for kind in sorted(self._touched):
            await self.note(kind, "")
