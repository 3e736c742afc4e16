"""Job folders of pods in a claim (``training.store.claim``): what a lost node leaves is read by a pod made for that."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import MlopsError, Refused
from ...core.resources.compute import TrainingOptions
from ...core.resources.job import JobSpec
from ...kube import pods as words
from ...kube import podspec
from ...kube.client import Kube
from ...kube.errors import NotAllowed
from ...kube.podspec import mount
from ...runtime.shelf import ABSENT, FOLDER
from . import claims, manifests, verdict
from .copy import Copy
from .manifests import BOOT, KEEPER, KEEPER_RESOURCES, Names, Order

if TYPE_CHECKING:
    from .outlets import Outlets
    from .store import ObjectStore

log = logging.getLogger(__name__)

#: Seconds for which a reading waits for its pod, and for something to come, at least.
PATIENCE = 60.0
#: Seconds for which its pod waits to be read, when no control plane ends it.
LONGEST = 24 * 3600
#: Seconds that its pod has to tidy up.
GRACE = 60.0
#: Seconds between looks at the pod.
LOOK = 1.0


def claim_of(options: TrainingOptions) -> str:
    """Name of the claim in which job folders lie, or empty."""
    return options.store.claim if options.store is not None else ""


def name_of(names: Names, run: dict[str, Any]) -> str:
    """Name of the folder of an attempt there: another one for a later job of the same name."""
    return f"{names.object}-{str(run.get('run_id') or '')[:12]}".rstrip("-")


def check(kube: Kube, options: TrainingOptions, spec: JobSpec) -> str:
    """Refuse a job whose pods cannot all have the claim.

    Returns:
        a line on it; empty when there is no such claim

    Raises:
        Refused: see its message.
        BackendUnreachable, BackendTimeout: the cluster does not answer.
    """
    name = claim_of(options)
    if not name or Order(spec, options, options.image).elastic:
        return ""
    try:
        claim = claims.look(kube, name)
    except NotAllowed:
        return ""  # then pods tell
    if claim is None:
        raise Refused(f"there is no claim '{name}', which training.store names",
                      f"an operator of the cluster makes it in the namespace '{kube.namespace}'")
    if spec.resources.instance_count > 1 and not claim.modes & claims.WRITE:
        raise Refused(f"the claim '{name}' of training.store is for {claim.reach}: "
                      f"{spec.resources.instance_count} nodes cannot write to it", "it needs ReadWriteMany")
    return f"job folders lie in claim '{name}' ({claim.about})"


def _job(names: Names, order: Order, owner: dict[str, Any], nodes: list[int]) -> dict[str, Any]:
    """The Job whose pod reads; it belongs to that of the attempt, and has what that has of Secrets and images."""
    options = order.options
    assert options.store is not None
    labels = {**names.labels(), "app.kubernetes.io/component": "reader"}
    container = {
        **podspec.container(KEEPER, order.image, options.image_pull_policy, "/tmp", KEEPER_RESOURCES),
        "env": podspec.python_env(f"{BOOT}/runtime.zip", "/tmp"),
        "command": [options.python, "-m", "jupyter_mlops.runtime.shelf", manifests.SHELF, order.shelf,
                    str(LONGEST), *map(str, nodes)],
        "volumeMounts": [mount("boot", BOOT, True), mount("tmp", "/tmp"),
                         {**mount("shelf", manifests.SHELF), "subPath": names.workspace}],
    }
    pod = {
        **podspec.pod(options.run_as_user, GRACE, options.node_selector, options.tolerations,
                      options.image_pull_secrets),
        "restartPolicy": "Never", "containers": [container],
        "volumes": [podspec.secret_volume("boot", manifests.boot_name(names)), {"name": "tmp", "emptyDir": {}},
                    {"name": "shelf", "persistentVolumeClaim": {"claimName": options.store.claim}}],
    }
    pod["securityContext"]["fsGroupChangePolicy"] = "OnRootMismatch"
    return {"apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"name": reader_name(names), "labels": labels, "ownerReferences": [owner]},
            "spec": {"backoffLimit": 3, "suspend": False, "ttlSecondsAfterFinished": 600,
                     "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {
                         "operator": "In", "values": [ABSENT]}}]},
                     "template": {"metadata": {"labels": labels}, "spec": pod}}}


def reader_name(names: Names) -> str:
    """Name of the Job that reads."""
    return f"{names.object}-read"


def _patience(options: TrainingOptions) -> float:
    return max(PATIENCE, float(options.hold))


class Reading:
    """What some nodes of an attempt had not told, being read.

    Args:
        owner: reference of the attempt's Job.
        nodes: numbers of the nodes whose pods are gone.
        changed: called when it is over.
    """

    def __init__(self, kube: Kube, names: Names, order: Order, owner: dict[str, Any], folder: Path, nodes: list[int],
                 changed: Callable[[], None], outlets: Outlets, store: ObjectStore | None) -> None:
        self.kube = kube
        self.names = names
        self.order = order
        self.owner = owner
        self.nodes = nodes
        self.folder = folder
        self.changed = changed
        self.outlets = outlets
        self.store = store
        self.over = False
        #: What it waits for, or why it could not be done, in one line.
        self.reason = "the cluster starts a pod that reads it"

    async def run(self) -> None:
        """Until all is here, or cannot be had."""
        try:
            await self._run()
        except MlopsError as error:
            self.reason = error.message
        except Exception:
            log.exception("reading what job %s left in a claim", self.names.job)
            self.reason = "it could not be read"
        # Not when it is cancelled: then the next control plane reads.
        self.over = True
        self.changed()

    async def _run(self) -> None:
        manifest = _job(self.names, self.order, self.owner, self.nodes)
        patience = _patience(self.order.options)
        begun = time.monotonic()
        made = False
        while True:
            try:
                if not made:
                    await asyncio.to_thread(self.kube.apply, manifest, self.names.ours())
                    made = True
                pod = await self._pod()
            except Refused:
                raise
            except MlopsError as error:
                pod, self.reason = None, error.message
                begun = time.monotonic()  # the cluster is away, which says nothing of the pod
            if pod is not None and (pod.get("status") or {}).get("phase") == "Succeeded":
                # Its folders went because all was here; only the word of it was lost, with an earlier control plane.
                await self._ended(self._copies(pod))
                return
            if pod is not None and verdict.keeper_runs(pod):
                break
            if pod is not None and _exit_code(pod) == ABSENT:
                self.reason = "there is no folder of it"
                return
            if pod is not None and (trouble := words.trouble(pod)):
                self.reason = trouble.reason
            if time.monotonic() - begun > patience:
                return
            await asyncio.sleep(LOOK)
        self.reason = "it is read"
        copies = self._copies(pod)
        tasks = [asyncio.ensure_future(copy.run()) for copy in copies]
        try:
            last, since = -1, time.monotonic()
            while not all(task.done() for task in tasks):
                await asyncio.wait(tasks, timeout=LOOK)
                ended = await self._ended(copies)
                if ended:
                    return
                came = sum(copy.landing.bytes for copy in copies)
                if came > last or ended is None:
                    last, since = came, time.monotonic()
                elif time.monotonic() - since > patience:
                    self.reason = next((copy.trouble for copy in copies if copy.trouble), "nothing came")
                    return
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ended(self, copies: list[Copy]) -> bool | None:
        """Whether the pod has ended, and so nothing more comes; None while the cluster is away."""
        try:
            pod = await self._pod()
        except MlopsError:
            return None
        phase = ((pod or {}).get("status") or {}).get("phase")
        if pod is None or phase == "Failed":
            gone = pod is not None and _exit_code(pod) == ABSENT
            self.reason = "there is no folder of it" if gone else "the pod that reads it has ended"
            return True
        if phase == "Succeeded":  # the word that all has come may still be on its way
            await asyncio.sleep(LOOK)
            for copy in copies:
                await asyncio.to_thread(copy.landing.note)
            return True
        return False

    def _copies(self, pod: dict[str, Any]) -> list[Copy]:
        return [Copy(self.kube, self.order.options.python, pod["metadata"]["name"], node, self.folder,
                     self.names.attempt, lambda: None, self.outlets, pod["status"].get("podIP", ""), self.store,
                     there=f"{manifests.SHELF}/{self.order.shelf}/{node}/{FOLDER}") for node in self.nodes]

    async def _pod(self) -> dict[str, Any] | None:
        labels = {**self.names.ours(), "app.kubernetes.io/component": "reader"}
        found = await asyncio.to_thread(self.kube.list, "Pod", labels)
        alive = [pod for pod in found if (pod.get("status") or {}).get("phase") != "Failed"]
        return next(iter(alive or found), None)


def _exit_code(pod: dict[str, Any]) -> int | None:
    for found in words.containers(pod):
        code = ((found.get("state") or {}).get("terminated") or {}).get("exitCode")
        return int(code) if code is not None else None
    return None
