"""Keeps the folders of ended jobs within the setting ``retention``: the oldest go first, records and runs stay.

Only what has ended and has been delivered to MLflow is ever touched. A job whose folder has gone keeps its record, and
its run in MLflow; its log can no longer be read. A deleted job is purged when it has been deleted for some days.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from .controllers.folder import remove_folder
from .errors import MlopsError
from .resources import TERMINAL
from .resources.base import Resource, utcnow
from .resources.retention import Retention, parse_retention
from .store import Store

log = logging.getLogger(__name__)

#: Seconds for which a deleted job can be restored, at most.
DELETED_LIFE = 7 * 86400.0
#: Jobs looked at in one read.
_PAGE = 500


def disk_usage(folder: Path) -> int:
    """Bytes that a folder takes on disk (holes do not count); 0 when there is none."""
    total, todo = 0, [str(folder)]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue  # it is being removed
    return total


def configured(home: Path) -> Retention:
    """What the workspace's config file asks for; the default when that is missing or cannot be read."""
    try:
        text = json.loads((home / "config.json").read_text(encoding="utf-8")).get("retention", "")
        return parse_retention(str(text))
    except (OSError, ValueError, AttributeError, MlopsError):
        return parse_retention("")


@dataclass(frozen=True)
class Kept:
    """An ended job that still has a folder. ``ended`` and ``deleted`` are seconds since the epoch, 0: not so."""

    name: str
    ended: float
    deleted: float
    bytes: int


def choose(kept: list[Kept], retention: Retention, now: float) -> tuple[list[str], list[str]]:
    """Which jobs to purge, and which lose their folder only.

    Returns:
        (names to purge: deleted long ago, names whose folder goes: too old, or the oldest of too many bytes)
    """
    purged: list[str] = []
    stripped: list[str] = []
    left: list[Kept] = []
    life = DELETED_LIFE if retention.seconds is None else min(DELETED_LIFE, retention.seconds)
    for job in kept:
        if job.deleted and now - job.deleted > life:
            purged.append(job.name)
        elif retention.seconds is not None and now - job.ended > retention.seconds:
            (purged if job.deleted else stripped).append(job.name)
        else:
            left.append(job)
    if retention.bytes is not None:
        total = sum(job.bytes for job in left)
        # What the user has thrown away goes before what he has not.
        for job in sorted(left, key=lambda job: (not job.deleted, job.ended)):
            if total <= retention.bytes:
                break
            total -= job.bytes
            (purged if job.deleted else stripped).append(job.name)
    return purged, stripped


class RetentionSweep:
    """Looks now and then; ``remove_folder(name)`` and ``purge(name)`` do the work and must be repeatable.

    Args:
        store: where jobs are.
        folder: job name → its folder.
    """

    def __init__(self, home: Path, store: Store, folder: Callable[[str], Path], purge: Callable[[str], Any]) -> None:
        self._home = home
        self._store = store
        self._folder = folder
        self._purge = purge
        self._sizes: dict[str, tuple[str, int]] = {}  # of ended jobs: they do not change any more

    async def sweep(self, now: float | None = None) -> dict[str, list[str]]:
        """One round. Returns the names of the jobs that were purged, and of those that lost their folder."""
        now = time.time() if now is None else now
        retention = configured(self._home)
        kept = await self._kept()
        purged, stripped = choose(kept, retention, now)
        for name in purged:
            try:
                await self._purge(name)
            except MlopsError as e:  # somebody was faster
                log.info("retention: job %s is not purged: %s", name, e)
        for name in stripped:
            await self._strip(name)
        if purged or stripped:
            log.info("retention (%s): purged %s, removed the folders of %s", retention, purged, stripped)
        return {"purged": purged, "stripped": stripped}

    async def _kept(self) -> list[Kept]:
        kept: list[Kept] = []
        sizes: dict[str, tuple[str, int]] = {}
        for deleted in (False, True):
            mark: int | None = None
            while True:
                before = mark

                def work(tx: Any, before: int | None = before, deleted: bool = deleted) -> Any:
                    phases = ["Deleted"] if deleted else sorted(TERMINAL)
                    return tx.page("job", phases=phases, limit=_PAGE, before=before)

                jobs, mark = await self._store.read(work)
                for job in jobs:
                    # Where somebody died between the note and the removal, the folder is still there.
                    gone = job.status.get("folder_removed_at") and not self._folder(job.name).exists()
                    if gone and not deleted:
                        continue
                    size = self._sizes.get(job.name)
                    ended = str(job.status.get("ended_at") or "")
                    if size is None or size[0] != ended:
                        size = (ended, await asyncio.to_thread(disk_usage, self._folder(job.name)))
                    sizes[job.name] = size
                    kept.append(_kept(job, size[1]))
                if mark is None:
                    break
        self._sizes = sizes
        return kept

    async def _strip(self, name: str) -> None:
        def note(tx: Any) -> bool:
            job = tx.find("job", name)
            # It may have been resumed since it was looked at.
            if job is None or job.status.get("phase") not in TERMINAL:
                return False
            if not job.status.get("folder_removed_at"):
                tx.set_status("job", name, {"folder_removed_at": utcnow()})
            return True

        if await self._store.write(note):
            await asyncio.to_thread(remove_folder, self._folder(name))


def _seconds(text: str) -> float:
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return 0.0


def _kept(job: Resource, size: int) -> Kept:
    ended = str(job.status.get("ended_at") or job.updated_at)
    return Kept(job.name, _seconds(ended), _seconds(str(job.status.get("deleted_at") or "")), size)
