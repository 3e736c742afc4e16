"""Jobs on a cluster that could not be removed there when they had ended: tried again until they are gone."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

from ...core.errors import Conflict, MlopsError
from ...kube.client import Kube
from ...kube.errors import Absent
from ...runtime import jobfolder

log = logging.getLogger(__name__)

#: Seconds between two tries, doubled up to the most.
RETRY, RETRY_MOST = 1.0, 60.0


class Leftovers:
    """What is to be removed, kept in a file so that a later control plane goes on.

    Args:
        path: the file; None: nothing is kept beyond this process.
    """

    def __init__(self, kube: Kube, path: Path | None) -> None:
        self.kube = kube
        self.path = path
        self._lock = threading.Lock()
        self._names: dict[str, str] = {}  # path of the Job in the API → its uid
        if path is not None:
            kept = jobfolder.read_json(str(path)).get("jobs")
            self._names = {str(k): str(v) for k, v in kept.items()} if isinstance(kept, dict) else {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._names)

    def add(self, name: str, uid: str, kind: str = "Job") -> None:
        """Note a Job, or what stands for one; from any thread."""
        with self._lock:
            self._names[self.kube.path(kind, name)] = uid
            self._save()
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._news.set)

    def _save(self) -> None:
        if self.path is None:
            return
        try:
            if self._names:
                jobfolder.private_folder(str(self.path.parent))
                jobfolder.write_json(str(self.path), {"schema": 1, "jobs": self._names})
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("what is left on compute '%s' cannot be noted: %s", self.kube.cluster, error)

    async def run(self) -> None:
        """Remove what there is, for ever; cancel it."""
        self._loop = asyncio.get_running_loop()
        pause = RETRY
        while True:
            self._news.clear()
            if not self._names:
                pause = RETRY
                await self._news.wait()
                await asyncio.sleep(pause)  # it has just failed
            before = len(self._names)
            await asyncio.to_thread(self._remove)
            if self._names:
                pause = RETRY if len(self._names) < before else min(pause * 2, RETRY_MOST)
                await asyncio.sleep(pause)

    def _remove(self) -> None:
        for path, uid in list(self._names.items()):
            body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background",
                                    "preconditions": {"uid": uid}}
            try:
                self.kube.call("DELETE", path, body, what="removing a Job that has ended")
            except (Absent, Conflict):
                pass  # it is gone, or another has its name
            except MlopsError as error:
                log.info("what is left on compute '%s' is tried again: %s", self.kube.cluster, error.message)
                return  # the others would fail as well
            with self._lock:
                self._names.pop(path, None)
                self._save()
