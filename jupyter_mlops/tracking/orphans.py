"""Runs whose opener is gone: what a killed kernel left RUNNING becomes FAILED, what a job left ends with the job.

A run that a local process opens through our proxy carries who holds it: process, its start time, boot of the machine.
Only holders are watched; runs are searched for when one has ended, and once when the control plane starts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from typing import Any

from ..core.errors import MlopsError
from ..core.identity import Identity
from ..runtime.processes import alive, boot_id
from .api import MlflowApi
from .proxy import HOLDER_TAG, PARENT_TAG
from .shape import quoted

log = logging.getLogger(__name__)

REASON = "the kernel that opened it ended"
REASON_TAG = "mlops.reason"
#: Seconds between two looks at the holders.
PERIOD = 5.0
#: Seconds after a write by somebody else in which a run is left alone.
WRITTEN = 30.0
#: Runs whose last writer is remembered.
_WRITERS = 10_000
_DEPTH = 10
_PAGE = 1000


class Orphans:
    """Watches the holders of runs; :meth:`run` is its loop.

    Args:
        holder_of: (pid, start time) of the local process behind a caller, or None.
    """

    def __init__(self, api: MlflowApi, holder_of: Callable[[Identity], tuple[int, str] | None]) -> None:
        self._api = api
        self._holder_of = holder_of
        self._boot = boot_id()
        self._holders: set[str] = set()
        self._listed = False
        #: run → (when, holder) of the last write that came through the proxy
        self._writes: OrderedDict[str, tuple[float, str]] = OrderedDict()
        #: Runs that got runs beneath them since we started; runs that were made since then.
        self._parents: set[str] = set()
        self._new: set[str] = set()

    # -- what passes through the proxy -------------------------------------------------------------------------------

    def holder(self, identity: Identity) -> str:
        """The tag's value for a caller; empty for jobs and for callers that cannot be seen from here."""
        found = self._holder_of(identity) if identity.role != "job" else None
        return f"{found[0]}:{found[1]}:{self._boot}" if found else ""

    def marked(self, identity: Identity, body: dict[str, Any], direct: bool) -> dict[str, Any]:
        """The body of ``runs/create`` with its holder; a copied tag of another run's holder is dropped.

        Args:
            direct: whether the caller itself speaks to us, rather than Jupyter on behalf of a browser.
        """
        tags = [t for t in body.get("tags") or [] if not (isinstance(t, dict) and t.get("key") == HOLDER_TAG)]
        self._parents.update(
            str(t["value"]) for t in tags if isinstance(t, dict) and t.get("key") == PARENT_TAG and t.get("value")
        )
        holder = self.holder(identity) if direct else ""
        if holder:
            self._holders.add(holder)
            tags.append({"key": HOLDER_TAG, "value": holder})
        return {**body, "tags": tags}

    def wrote(self, identity: Identity, run_id: str) -> None:
        """Somebody has written to a run."""
        self._writes[run_id] = (time.monotonic(), self.holder(identity))
        self._writes.move_to_end(run_id)
        while len(self._writes) > _WRITERS:
            self._writes.popitem(last=False)

    async def claim(self, identity: Identity, run_id: str) -> None:
        """A run that goes on belongs to whoever made it go on."""
        holder = self.holder(identity)
        if holder:
            self._holders.add(holder)
            try:
                await self._api.post("runs/set-tag", run_id=run_id, key=HOLDER_TAG, value=holder)
            except MlopsError as e:
                log.warning("run %s goes on without a holder: %s", run_id, e)

    # -- holders -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look again and again; ends by being cancelled."""
        while True:
            try:
                await self.sweep()
            except MlopsError as e:
                log.info("runs without a holder are looked for later: %s", e)
            except Exception:
                log.exception("looking for runs without a holder failed")
            await asyncio.sleep(PERIOD)

    async def sweep(self) -> None:
        """End what gone holders left.

        Raises:
            MlopsError: MLflow did not answer; the next sweep goes on.
        """
        if not self._listed:
            async for run in self._search(f"tags.`{HOLDER_TAG}` LIKE '%:%' and attributes.status = 'RUNNING'"):
                self._holders.add(_tags(run).get(HOLDER_TAG, ""))
            self._listed = True
        for holder in [h for h in self._holders if not self._lives(h)]:
            left = False
            wanted = f"tags.`{HOLDER_TAG}` = {quoted(holder)} and attributes.status = 'RUNNING'"
            for run in [run async for run in self._search(wanted)]:
                run_id = run["info"]["run_id"]
                if self._in_use(run_id, holder):
                    left = True
                else:
                    await self._end(run_id, "FAILED", REASON, None)
            if not left:
                self._holders.discard(holder)

    def _lives(self, holder: str) -> bool:
        pid, _, rest = holder.partition(":")
        started, _, boot = rest.rpartition(":")
        return boot == self._boot and pid.isdigit() and alive(int(pid), started)

    def _in_use(self, run_id: str, holder: str) -> bool:
        when, by = self._writes.get(run_id, (float("-inf"), ""))
        return time.monotonic() - when < WRITTEN and by != holder and (not by or self._lives(by))

    # -- jobs --------------------------------------------------------------------------------------------------------

    def made(self, run_id: str) -> None:
        """A job's run was made just now: nothing is beneath it yet."""
        self._new.add(run_id)

    async def end_beneath(self, run_id: str, status: str, reason: str, end: int | None) -> None:
        """Give the runs beneath a job's run that are still RUNNING the job's end (``end`` in ms).

        Raises:
            MlopsError: MLflow did not answer.
        """
        level = [run_id]
        for _ in range(_DEPTH):
            level = [r for r in level if r in self._parents or r not in self._new]
            below: list[str] = []
            for parent in level:
                found = [run async for run in self._search(f"tags.`{PARENT_TAG}` = {quoted(parent)}")]
                for run in found:
                    if run["info"].get("status") == "RUNNING":
                        await self._end(run["info"]["run_id"], status, reason, end)
                below += [run["info"]["run_id"] for run in found]
            if not below:
                break
            level = below
        self._new.discard(run_id)
        self._parents.discard(run_id)

    # -- MLflow ------------------------------------------------------------------------------------------------------

    async def _end(self, run_id: str, status: str, reason: str, end: int | None) -> None:
        try:
            if reason:
                await self._api.post("runs/set-tag", run_id=run_id, key=REASON_TAG, value=reason[:5000])
            await self._api.post(
                "runs/update", run_id=run_id, status=status, end_time=end if end else int(time.time() * 1000)
            )
        except MlopsError as e:
            if e.status >= 500:
                raise
            log.info("run %s keeps its state: %s", run_id, e)

    async def _search(self, wanted: str) -> AsyncIterator[dict[str, Any]]:
        """Runs of all experiments that match."""
        experiments = None
        while True:
            answer = await self._api.post("experiments/search", max_results=_PAGE, page_token=experiments)
            ids = [e["experiment_id"] for e in answer.get("experiments", [])]
            page = None
            while ids:
                found = await self._api.post(
                    "runs/search", experiment_ids=ids, filter=wanted, max_results=_PAGE, page_token=page,
                )
                for run in found.get("runs", []):
                    yield run
                page = found.get("next_page_token")
                if not page:
                    break
            experiments = answer.get("next_page_token")
            if not experiments:
                return


def _tags(run: dict[str, Any]) -> dict[str, str]:
    return {t["key"]: t.get("value", "") for t in run.get("data", {}).get("tags", [])}
