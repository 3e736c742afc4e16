"""The compute driver of one cluster.

An attempt is an Indexed Job, a pod for each node; in each pod the same supervisor as on this machine runs the ranks
over a job folder of its own, of which :mod:`.copy` keeps a copy here. What is known of an attempt is that copy and the
pods' status; nothing that matters is kept in this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.errors import Conflict, MlopsError, Refused
from ...core.resources.compute import ComputeSpec
from ...core.resources.job import JobSpec, parse_bytes
from ...kube.client import KINDS, Kube
from ...kube.exec import Exec
from ...kube.names import owner
from ...runtime import jobfolder, logfile
from ...runtime.berth import FOLDER, PARCEL
from ...runtime.jobfolder import TERMINAL, Attempt, JobFolder
from ..base import NOTHING, Grant, JobRef, LogChunk, Observation
from ..state import observation, text
from . import making, parcels, shelf, trainjob, verdict
from .admission import Admission
from .calls import key_of
from .events import Events
from .follower import Follower
from .images import Images
from .leftovers import Leftovers
from .manifests import MAIN, NOTE, WORK, Names
from .preview import preview
from .queue import KueueWords
from .route import Route
from .store import ObjectStore, place_of
from .watch import Pod

log = logging.getLogger(__name__)

#: Seconds after which an attempt whose Job was made has pods, or somebody took them away.
APPEAR = 30.0


class KubernetesCompute:
    """Jobs of one workspace on one compute.

    Args:
        workspace: what tells this workspace from others that use the namespace.
        compute: the compute's name.
        spec: of type ``kubernetes``.
        kubeconfig: path; empty: see :class:`Kube`.
        images: what is known of images there.
        leftovers: where to note what could not be removed; None: nowhere.
        certificate: where that of the route is kept, if there is one; None: there is none.
    """

    #: Seconds between looks at a job that simply runs: whatever moves it on is told.
    calm = 60.0

    def __init__(self, workspace: str, compute: str, spec: ComputeSpec, kubeconfig: str = "",
                 images: Images | None = None, leftovers: Path | None = None,
                 certificate: Path | None = None) -> None:
        self.workspace = workspace
        self.spec = spec
        self.kube = Kube(compute, spec.context, spec.namespace, kubeconfig)
        self.images = images or Images()
        store = spec.training.store
        self.store = ObjectStore(self.kube, store, workspace) if store is not None and store.url else None
        asked = spec.training.route
        self.by = Route(asked, certificate) if asked is not None and certificate is not None else None
        self._readings: dict[tuple[str, int], shelf.Reading] = {}
        self._told: set[str] = set()
        self._admission = Admission(self.kube, spec, self.images)
        self._kueue = KueueWords(self.kube)
        self._leftovers = Leftovers(self.kube, leftovers)
        self.follower = Follower(self.kube, workspace, spec.training, self.store, self.by, self._leftovers.run)
        self._events = Events(self.kube)
        self._parcels = parcels.Parcels(self.kube, spec.training.python, self.follower.watch, self.store)

    # -- before ----------------------------------------------------------------------------------------------------

    def check(self, spec: dict[str, Any]) -> None:
        """Refuse what cannot run there.

        Raises:
            Refused: see its message.
        """
        self._admission.check(JobSpec.model_validate(spec))

    def preview(self, name: str, spec: dict[str, Any], timeout: float | None = None) -> dict[str, Any]:
        """Whether a job would run there, see :func:`.preview.preview`; makes nothing."""
        order = self._admission.order(spec, timeout)
        return {**preview(self.kube, Names(self.workspace, name, 1), order),
                "warnings": self._admission.warnings(order), "route": self.route()}

    def route(self) -> str:
        """Which way large files go to pods of the next job and come from them, in words."""
        off = (self.by.trouble or self.by.pods) if self.by is not None else ""
        trouble = (self.store.trouble or self.store.pods) if self.store is not None else ""
        return verdict.way(self.by, off, self.store, trouble)

    def facts(self) -> dict[str, Any]:
        """What jobs may have of the cluster: as its spec says; the cluster itself decides what fits."""
        return {"cpus": int(self.spec.cpus) or 4096, "memory_bytes": parse_bytes(self.spec.memory) or 1 << 50,
                "gpus": []}

    def subscribe(self, changed: Callable[[str], None]) -> None:
        """Have ``changed(job name)`` called when a pod changed, or something came out of one."""
        self.follower.changed.append(changed)

    def tidy(self) -> None:
        """Go on removing what an earlier control plane could not."""
        if self._leftovers:
            self.follower.loop()

    def close(self) -> None:
        """End watch and copies; what runs on the cluster goes on."""
        self.follower.close()

    # -- life ------------------------------------------------------------------------------------------------------

    def _names(self, job: JobRef, attempt: int) -> Names:
        return Names(self.workspace, job.name, attempt)

    def start(self, job: JobRef, attempt: int, env: dict[str, str], grant: Grant = NOTHING) -> None:
        """Make the attempt's Job and what it needs, or do nothing when that is done.

        Raises:
            Refused: the cluster does not take it; nothing of it is left there.
            BackendUnreachable, BackendTimeout: it does not answer; call it again.
        """
        folder = JobFolder(job.folder)
        place = folder.attempt(attempt)
        if place.state().get("phase") in TERMINAL or _note(place).get("started"):
            return
        values = folder.spec()
        if not values:
            raise Refused(f"job {job.name} has no spec.json: {jobfolder.DELETED}", "submit it again")
        jobfolder.private_folder(place.path)
        if folder.stop_wish(attempt) is not None:
            self._end(place, Observation("canceled", "stopped before it started", attempt))
            return
        names = self._names(job, attempt)
        order = self._admission.order(values, grant.timeout)
        try:
            by = self.by.order(key_of(place, make=True)) if self.by is not None else None
            note = making.make(self.kube, names, order, folder, place, env, self.images.recent(order.image) is None, by)
        except Refused:
            with contextlib.suppress(MlopsError):
                if order.options.flavour == "trainjob":
                    self.kube.delete(trainjob.KIND, names.object)
                    self.kube.delete(trainjob.RUNTIME, names.object)
                else:
                    self.kube.delete("Job", names.object)
            raise
        jobfolder.write_json(os.path.join(place.path, NOTE), note)
        self.follower.follow(job, attempt, _pods(note))

    def observe(self, job: JobRef, attempt: int) -> Observation:
        """What is so now: as the copies of the pods' folders say, and where they say nothing, the pods' status."""
        seen = self._observe(job, attempt)
        seen.reason = text(seen.reason, 2000)  # a container's last words are in it, too
        if seen.phase != "absent":
            place = JobFolder(job.folder).attempt(attempt)
            seen.route = verdict.route(place, int(_note(place).get("nodes") or 1), self.store, self.by)
        return seen

    def _observe(self, job: JobRef, attempt: int) -> Observation:
        folder = JobFolder(job.folder)
        place = folder.attempt(attempt)
        state = place.state()
        note = _note(place)
        if state.get("phase") in TERMINAL:
            self._collect(job, attempt, note)
            return observation(attempt, state)
        if not note.get("started"):
            return Observation("absent", attempt=attempt)
        if note.get("lost"):
            return self._read(job, place, note)
        self.follower.follow(job, attempt, _pods(note))
        watch = self.follower.watch
        if not watch.seen:
            return verdict.running(place, note, {}, {}, watch.trouble)
        pods = self.follower.pods(job.name, attempt)
        last = {**self.follower.last(job.name, attempt), **pods}
        copies = self.follower.copies(job.name, attempt)
        if note.get("bring"):
            self._parcels.bring(place, pods, self.follower.loop())
        self._learn(place, note, last)
        seen = verdict.ended(place, note, last, copies)
        if seen is None and not last and time.time() - float(note.get("time") or 0) > APPEAR:
            seen = self._vanished(place, note)
        if seen is None and folder.stop_wish(attempt) is not None:
            seen = self._press(place, note, pods)
        if seen is not None:
            if seen.cause == "lost" and (gone := self._vanished(place, note)) and gone.cause != "lost":
                seen.cause, seen.reason = gone.cause, gone.reason
            kept = note.get("shelf") and shelf.claim_of(self.spec.training) and seen.cause != "deleted"
            here = all(verdict.copied(place, node, copies.get(node)) for node in range(int(note.get("nodes") or 1)))
            if kept and (seen.incomplete or (last and not here)):
                note = {**note, "lost": verdict.state(seen)}
                jobfolder.write_json(os.path.join(place.path, NOTE), note)
                return self._read(job, place, note)
            self._end(place, seen)
            self._collect(job, attempt, note)
            return seen
        trouble = watch.trouble and f"{watch.trouble}; the job goes on"
        seen = verdict.running(place, note, pods, copies, trouble, self._events.of)
        if note.get("queue") and not pods and not trouble and seen.phase == "starting":
            seen.reason = self._kueue.told(str(note["queue"]), str(note.get("uid"))) or seen.reason
        return seen

    def _read(self, job: JobRef, place: Attempt, note: dict[str, Any]) -> Observation:
        """An attempt has ended, and not all that it left in a claim is here: what a pod that reads it has come to."""
        at = (job.name, place.number)
        claim = shelf.claim_of(self.spec.training)
        reading = self._readings.get(at)
        if reading is None:
            self._forget(job, place.number)
            order = self._admission.order(place.job.spec(), shelf=str(note["shelf"]))
            nodes = [n for n in range(int(note.get("nodes") or 1)) if not verdict.copied(place, n, None)]
            mine = owner({"apiVersion": KINDS[_kind(note)][0], "kind": _kind(note),
                          "metadata": {"name": note["job"], "uid": note["uid"]}})
            reading = shelf.Reading(self.kube, self._names(job, place.number), order, mine, job.folder, nodes,
                                    lambda: self.follower.tell(job.name), self.follower.outlets, self.store)
            self._readings[at] = reading
            asyncio.run_coroutine_threadsafe(reading.run(), self.follower.loop())
        if not reading.over:
            return Observation("running", f"{note['lost'].get('reason')}; what it left in claim '{claim}' is copied: "
                                          f"{reading.reason}", place.number)
        self._readings.pop(at, None)
        seen = observation(place.number, note["lost"])
        if all(verdict.copied(place, node, None) for node in reading.nodes):
            seen = verdict.ended(place, note, {}, {}) or seen
            seen.incomplete = False
        else:
            seen.reason += f"; what it left in claim '{claim}' is not here: {reading.reason}"
        self._end(place, seen)
        self._collect(job, place.number, note)
        return seen

    def _learn(self, place: Attempt, note: dict[str, Any], pods: dict[int, Pod]) -> None:
        """Keep what the first pod of an attempt tells of its own image; once."""
        path = os.path.join(place.path, "node-0", "image.json")
        if path in self._told or not (facts := jobfolder.read_json(path)):
            return
        self._told.add(path)
        if facts.get("image") == note.get("image"):  # other jobs rely on what is known of others
            self.images.learn(facts, verdict.digest(pods.get(0)))

    def _vanished(self, place: Attempt, note: dict[str, Any]) -> Observation | None:
        """The end of an attempt whose Job was deleted on the cluster, which is a wish and is not tried again; or whose
        pods went while nobody looked."""
        found = self.kube.get(_kind(note), note["job"])
        if found is None or found["metadata"]["uid"] != note["uid"]:
            return Observation("failed", "its Job was deleted on the cluster", place.number, cause="deleted",
                               ended_at=time.time(), incomplete=verdict.uncopied(place, note))
        began = any(verdict.node_state(place, node) for node in range(int(note.get("nodes") or 1)))
        if note.get("queue") and found["spec"].get("suspend") and began:
            # Whose turn it is Kueue decides; an attempt that it sends back is over, the next one waits in its queue.
            return Observation("failed", f"preempted in Kueue's queue '{note['queue']}'", place.number,
                               cause="preempted", ended_at=time.time(), incomplete=verdict.uncopied(place, note))
        conditions = (found.get("status") or {}).get("conditions") or []
        over = [c for c in conditions if c.get("type") in ("Failed", "Complete") and c.get("status") == "True"]
        if over and not self.follower.watch.of(place.job.name, place.number):
            why = " ".join(str(over[0].get("message") or over[0].get("reason") or "").split())[:200]
            return Observation("failed", f"its pods are gone, and what was not copied with them: {why}", place.number,
                               cause="lost", ended_at=time.time(), incomplete=verdict.uncopied(place, note))
        return None

    def _press(self, place: Attempt, note: dict[str, Any], pods: dict[int, Pod]) -> Observation | None:
        """A stop was asked for: pods with ranks hear of it over their copy; others are taken away."""
        if any(verdict.main_runs(p) for p in pods.values()):
            return None
        if any(verdict.main_ended(p) for p in pods.values()):
            return None
        self.kube.delete(_kind(note), note["job"])
        return Observation("canceled", "stopped before it started", place.number, ended_at=time.time())

    def _end(self, place: Attempt, seen: Observation) -> None:
        """Note how it ended, where everybody looks for it."""
        jobfolder.private_folder(place.path)
        place.write_state(verdict.state(seen))

    def _forget(self, job: JobRef, attempt: int) -> None:
        """Follow the pods of an attempt no more."""
        self.follower.forget(job, attempt)
        self._told.discard(os.path.join(JobFolder(job.folder).attempt(attempt).path, "node-0", "image.json"))
        self._parcels.forget(JobFolder(job.folder).path, attempt)

    def _collect(self, job: JobRef, attempt: int, note: dict[str, Any]) -> None:
        """Take away what an attempt that has ended left on the cluster; what fails is tried until it succeeds."""
        self._forget(job, attempt)
        place = JobFolder(job.folder).attempt(attempt)
        if not note.get("job") or note.get("collected"):
            return
        try:
            self.kube.delete(_kind(note), note["job"])
        except MlopsError as error:
            log.warning("job %s: its objects on '%s' are not removed yet: %s", job.name, self.kube.cluster,
                        error.message)
            self._leftovers.add(note["job"], str(note.get("uid") or ""), _kind(note))
            self.follower.loop()
            return
        if self.store is not None and self.store.usable:
            try:
                self.store.clear(place_of(job.name, attempt))
            except MlopsError as error:
                self.store.failed(error)  # what is left goes with a later attempt
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(place.path, PARCEL))
        with contextlib.suppress(OSError):
            jobfolder.write_json(os.path.join(place.path, NOTE), {**note, "collected": True}, durable=False)

    def stop(self, job: JobRef, attempt: int, grace: float) -> None:
        """Leave the wish; it goes to the pods over their copies. Returns at once."""
        folder = JobFolder(job.folder)
        place = folder.attempt(attempt)
        if place.state().get("phase") in TERMINAL or not os.path.isdir(folder.path):
            return
        if folder.stop_wish(attempt) is None:
            folder.ask_stop(attempt, grace)
        self.follower.tell(job.name)
        self.follower.ask(job.name, attempt)

    # -- a look inside ---------------------------------------------------------------------------------------------

    def shell(self, job: JobRef, attempt: int, rank: int) -> Exec:
        """A shell in the container of a rank, to be entered.

        Raises:
            Conflict: there is no such container now.
        """
        pod, folder = self._pod_of(job, attempt, rank), f"{WORK}/{FOLDER}"
        command = [self.spec.training.python, "-m", "jupyter_mlops.runtime.shell", folder, str(attempt), str(rank)]
        return Exec(self.kube, pod, MAIN, command, heartbeat=20.0, tty=True)

    def forward(self, job: JobRef, attempt: int, rank: int, port: int) -> Exec:
        """One connection to a port of the pod of a rank, to be entered.

        Raises:
            Conflict: there is no such pod now.
        """
        command = [self.spec.training.python, "-m", "jupyter_mlops.runtime.forward", str(port)]
        return Exec(self.kube, self._pod_of(job, attempt, rank), MAIN, command, heartbeat=20.0)

    def _pod_of(self, job: JobRef, attempt: int, rank: int) -> str:
        spec = JobSpec.model_validate({**JobFolder(job.folder).spec(), "cwd": "", "interpreter": ""})
        node = rank // spec.processes
        if JobFolder(job.folder).attempt(attempt).state().get("phase") in TERMINAL:
            raise Conflict(f"rank {rank} of job {job.name} has ended", "its log: %mlops logs " + job.name)
        pod = self.follower.pods(job.name, attempt).get(node)
        if pod is None:
            raise Conflict(f"rank {rank} of job {job.name} has no pod now", "see why: %mlops jobs " + job.name)
        if not verdict.main_runs(pod):
            raise Conflict(f"rank {rank} of job {job.name} does not run: its container has not begun, or has ended",
                           "see why: %mlops jobs " + job.name)
        return str(pod["metadata"]["name"])

    def read_log(self, job: JobRef, attempt: int, rank: int, offset: int, limit: int) -> LogChunk:
        """Bytes of a rank's log, as far as they have come."""
        path = JobFolder(job.folder).attempt(attempt).log_path(rank)
        data, begin, following, size = logfile.read(path, offset, limit)
        return LogChunk(data, begin, following, size, logfile.hole(path))

    def delete(self, job: JobRef) -> None:
        """Remove what is left on the cluster of a job that has ended.

        Raises:
            Conflict: an attempt of it still runs.
        """
        folder = JobFolder(job.folder)
        with contextlib.suppress(FileNotFoundError):
            for path in (Path(folder.path) / "attempts").iterdir():
                if path.name.isascii() and path.name.isdigit():
                    place = folder.attempt(path.name)
                    note = _note(place)
                    if note.get("started") and place.state().get("phase") not in TERMINAL:
                        raise Conflict(f"job {job.name} still runs", "stop it first")
                    self._collect(job, place.number, note)


def _kind(note: dict[str, Any]) -> str:
    return str(note.get("kind") or "Job")


def _pods(note: dict[str, Any]) -> int:
    """How many pods an attempt has at once, at most."""
    return int(note.get("most") or note.get("nodes") or 1)


def _note(place: Attempt) -> dict[str, Any]:
    note = jobfolder.read_json(os.path.join(place.path, NOTE))
    return note if isinstance(note.get("job"), str) else {}
