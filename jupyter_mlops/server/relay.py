"""Follows the control plane's change feed and hands it on as small Jupyter events, at most four a second."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from logging import Logger
from typing import Any

from ..core.errors import MlopsError
from .link import UP, Link, Lost

SCHEMA_ID = "https://jupyter-mlops.github.io/events/changes/v1"
#: Seconds between two events at least.
EVERY = 0.25
#: Seconds to wait after changes before asking for more.
BREATH = 0.1
#: Most items in an event; a longer burst is told as "anything may have changed".
MOST_ITEMS = 100
#: Seconds for which the control plane may hold a request for changes, and what it gets on top to answer.
WAIT, MARGIN = 25, 10
#: Seconds after which the number of running jobs, once known, counts no more when it cannot be asked again.
ACTIVITY_MEMORY = 900.0
_FIELDS = ("seq", "kind", "name", "parent", "op", "revision", "phase")


class Relay:
    """Pending changes, one per thing, and the number of running jobs."""

    def __init__(
        self, emit: Callable[[dict[str, Any]], None], log: Logger, on_count: Callable[[], None] = lambda: None
    ) -> None:
        """
        Args:
            emit: sends an event.
            on_count: called when the number of running jobs has been asked.
        """
        self.log = log
        self._on_count = on_count
        self.seq = 0
        self._emit = emit
        self._state = "starting"
        self._pending: dict[tuple[str, str, str], dict[str, Any]] = {}
        self._state_pending = False
        self._sent = 0.0
        self._flushing: asyncio.Task[None] | None = None
        self._running = 0
        self._counted = 0.0

    # What goes out

    def state(self, state: str) -> None:
        """Tell the state of the link."""
        self._state = state
        self._state_pending = True
        self._schedule()

    def changed(self, items: list[dict[str, Any]], seq: int) -> None:
        """Tell changes; of one thing only the last is kept."""
        self.seq = seq
        for item in items:
            slim = {k: item[k] for k in _FIELDS if item.get(k) is not None}
            key = (str(item.get("kind")), str(item.get("parent") or ""), str(item.get("name") or ""))
            self._pending.pop(key, None)  # so that the order is that of the last change
            self._pending[key] = slim
        if self._pending:
            self._schedule()

    def anything(self, workspace: str, seq: int) -> None:
        """Tell that anything may have changed."""
        self._pending.clear()
        self.changed([{"seq": seq, "kind": "workspace", "name": workspace, "op": "put"}], seq)

    def _schedule(self) -> None:
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.ensure_future(self._flush())

    async def _flush(self) -> None:
        while self._pending or self._state_pending:
            wait = self._sent + EVERY - time.monotonic()
            if wait > 0:
                await asyncio.sleep(wait)
            items, self._pending, self._state_pending = list(self._pending.values()), {}, False
            if len(items) > MOST_ITEMS:
                items = [{"seq": self.seq, "kind": "workspace", "name": "", "op": "put"}]
            self._sent = time.monotonic()
            try:
                self._emit({"seq": self.seq, "state": self._state, "items": items})
            except Exception:  # an event that nobody gets must not end the feed
                self.log.exception("Jupyter MLOps: an event could not be emitted")

    def close(self) -> None:
        """Send nothing any more."""
        if self._flushing is not None:
            self._flushing.cancel()

    # What comes in

    @property
    def running_jobs(self) -> int:
        """Number of jobs that have not ended, as far as is known."""
        return self._running if time.monotonic() - self._counted < ACTIVITY_MEMORY else 0

    async def follow(self, link: Link) -> None:
        """Long-poll the change feed for as long as the control plane answers.

        Raises:
            Lost: it does not.
        """
        import aiohttp

        base = link.workspace_path
        since: int | None = None
        while True:
            query = "" if since is None else f"?since={since}&wait={WAIT}"
            try:
                status, _, body = await link.request("GET", f"{base}/changes{query}", timeout=WAIT + MARGIN)
                answer = json.loads(body) if body else {}
                if status == 200:
                    items = answer.get("items") or []
                    seq = int(answer["seq"])
                    if since is None:
                        self.anything(link.place.name, seq)
                    else:
                        self.changed(items, seq)
                    if since is None or not items or any(i.get("kind") in ("job", "workspace") for i in items):
                        await self._count(link)
                    since = seq
                    if items:
                        await asyncio.sleep(BREATH)  # a burst comes in few answers
                elif status == 410:
                    since = None
                elif status in (401, 403, 404):
                    raise Lost(f"the control plane refused the change feed: {answer.get('message') or status}")
                else:
                    await asyncio.sleep(1.0)
            except TimeoutError:
                raise Lost("the control plane does not answer") from None
            except (aiohttp.ClientError, OSError) as e:
                raise Lost("the control plane ended or closed the connection") from e
            except MlopsError as e:
                raise Lost(e.message) from e
            except (ValueError, KeyError, TypeError) as e:
                self.log.warning("Jupyter MLOps: the change feed gave an answer of another form: %s", e)
                await asyncio.sleep(1.0)
            if link.state != UP:
                raise Lost(link.message)

    async def _count(self, link: Link) -> None:
        status, _, body = await link.request("GET", link.workspace_path, timeout=10)
        if status == 200:
            counts = json.loads(body).get("counts") or {}
            self._running, self._counted = int(counts.get("running_jobs") or 0), time.monotonic()
            self._on_count()
