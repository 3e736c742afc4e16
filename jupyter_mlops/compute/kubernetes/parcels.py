"""What the pods of an attempt need of the job's folder, brought to those that wait for it."""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

from ...core.errors import MlopsError, Refused
from ...kube.client import Kube
from ...kube.errors import Absent
from ...kube.exec import fetch_parcel, send_parcel
from ...runtime import parcel
from ...runtime.berth import PARCEL
from ...runtime.jobfolder import Attempt, JobFolder
from . import verdict
from .manifests import KEEPER, WORK
from .store import ObjectStore, place_of
from .watch import Pod, PodWatch

log = logging.getLogger(__name__)


def pack(folder: JobFolder, place: Attempt) -> Path | None:
    """A zip of what was shipped with the job, and of what earlier attempts left; None: there is nothing.

    Raises:
        Refused: there are links or special files in it.
    """
    entries = []
    if os.path.isdir(folder.inputs) and os.listdir(folder.inputs):
        entries.append(("inputs", folder.inputs))
    if os.path.isdir(folder.outputs) and os.listdir(folder.outputs):
        entries.append(("outputs", folder.outputs))
    if not entries:
        return None
    target = Path(place.path) / PARCEL
    try:
        parcel.pack(str(target), entries)
    except parcel.ParcelError as error:
        raise Refused(f"what the job needs cannot be sent: {error}", "put plain files there") from error
    return target


class Parcels:
    """Those of one compute that are too large for Secrets.

    Args:
        python: name of the interpreter in the pods.
        watch: knows which pods there are.
        store: what they go through, where it works; None: they are streamed into each pod.
    """

    def __init__(self, kube: Kube, python: str, watch: PodWatch, store: ObjectStore | None) -> None:
        self.kube = kube
        self.python = python
        self.watch = watch
        self.store = store
        self._brought: set[tuple[str, int, int]] = set()

    def bring(self, place: Attempt, pods: dict[int, Pod], loop: asyncio.AbstractEventLoop) -> None:
        """Have it sent into pods that wait for it, each once; by number of their node."""
        path = Path(place.path) / PARCEL
        for node, pod in pods.items():
            at = (place.job.path, place.number, node)
            if verdict.main_runs(pod) and at not in self._brought:
                self._brought.add(at)
                asyncio.run_coroutine_threadsafe(self._send(at, pod["metadata"]["name"], path), loop)

    def forget(self, folder: str, attempt: int) -> None:
        """An attempt has ended."""
        self._brought = {at for at in self._brought if at[:2] != (folder, attempt)}

    async def _send(self, at: tuple[str, int, int], pod: str, path: Path) -> None:
        digest = await asyncio.to_thread(parcel.sha256, str(path))
        while True:
            try:
                if self.store is not None and self.store.usable and await self._send_stored(at, pod, path, digest):
                    return
                await send_parcel(self.kube, pod, KEEPER, self.python, path, f"{WORK}/{PARCEL}", digest)
                return
            except Absent:
                return
            except (MlopsError, OSError) as error:
                log.warning("bringing inputs into pod %s: %s", pod, getattr(error, "message", error))
                if pod not in self.watch.pods:
                    return
                await asyncio.sleep(1.0)

    async def _send_stored(self, at: tuple[str, int, int], pod: str, path: Path, digest: str) -> bool:
        """The same through the object store; False when it does not go that way.

        Raises:
            MlopsError: of the cluster.
        """
        assert self.store is not None
        key = self.store.key(place_of(os.path.basename(at[0]), at[1]), digest)
        try:
            if not await asyncio.to_thread(self.store.there, key):
                await asyncio.to_thread(self.store.put, key, path)
            address = self.store.get_address(key)
        except MlopsError as error:
            self.store.failed(error)
            return False
        why = await fetch_parcel(self.kube, pod, KEEPER, self.python, address, f"{WORK}/{PARCEL}", digest,
                                 path.stat().st_size)
        if why:
            log.warning("pod %s cannot fetch its inputs from %s: %s", pod, self.store.options.url, why)
        return not why
