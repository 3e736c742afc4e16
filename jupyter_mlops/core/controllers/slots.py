"""The queues of all computes: which job waits where, which has its slots. Rebuilt from the store at each start."""

from __future__ import annotations

from typing import Any

from ..queue import PRIORITIES, Capacity, Holder, Queue, Request, Waiting
from ..resources.base import Resource
from ..resources.job import parse_bytes

#: CPUs that a compute has at least for jobs: two processes are how distributed training is tried out.
LEAST_CPUS = 2
#: CPUs of a cluster for which nobody has set a limit: the cluster itself decides what fits.
UNLIMITED = 1e9


def request_of(spec: dict[str, Any], cluster: bool = False) -> Request:
    """What a job asks for; without a wish one CPU for each process. A ``cluster`` counts its GPUs itself."""
    resources = spec.get("resources") or {}
    processes = int((spec.get("distribution") or {}).get("process_count_per_instance") or 1)
    count = int(resources.get("instance_count") or 1)
    return Request(
        float(resources.get("cpus") or processes) * count, parse_bytes(resources.get("memory") or "") * count,
        0.0 if cluster else float(resources.get("gpus") or 0),
    )


def capacity_of(compute: Resource) -> Capacity:
    """What a compute has for jobs: as its spec says, else as its machine is; a cluster has what it has."""
    spec, status = compute.spec, compute.status
    if spec.get("type") == "kubernetes":
        return Capacity(float(spec.get("cpus") or UNLIMITED), parse_bytes(spec.get("memory") or ""), 0)
    return Capacity(
        float(spec.get("cpus") or max(int(status.get("cpus") or 1), LEAST_CPUS)),
        parse_bytes(spec.get("memory") or "") or int(status.get("memory_bytes") or 0),
        len(status.get("gpus") or ()),
    )


class Slots:
    """One :class:`Queue` for each compute, and what was granted but not launched yet."""

    def __init__(self) -> None:
        self._queues: dict[str, Queue] = {}
        self._clusters: set[str] = set()
        self._compute_of: dict[str, str] = {}
        #: job → the GPUs that it was given, until it is launched
        self.granted: dict[str, tuple[int, ...]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._compute_of

    def names(self) -> list[str]:
        """All jobs that wait or have slots."""
        return list(self._compute_of)

    def resize(self, computes: list[Resource]) -> None:
        """What computes there are, and what they have."""
        self._clusters = {c.name for c in computes if c.spec.get("type") == "kubernetes"}
        for compute in computes:
            capacity = capacity_of(compute)
            if compute.name in self._queues:
                self._queues[compute.name].resize(capacity)
            else:
                self._queues[compute.name] = Queue(capacity)

    def lacks(self, compute: str, spec: dict[str, Any]) -> str:
        """Why a compute can never meet what a job asks for; empty when it can."""
        queue = self._queues.get(compute)
        return queue.capacity.lacks(request_of(spec, compute in self._clusters)) if queue is not None else ""

    def wait(self, job: Resource) -> None:
        """A job waits for its turn; nothing happens when it is known already."""
        if job.name in self._compute_of:
            return
        priority = (job.spec.get("queue_settings") or {}).get("priority") or "medium"
        compute = job.spec.get("compute") or "local"
        self._compute_of[job.name] = compute
        self._queue(compute).add(Waiting(
            job.name, job.created_by, request_of(job.spec, compute in self._clusters),
            (str(job.status.get("queued_at") or ""), job.name),
            PRIORITIES[priority],
        ))

    def hold(self, job: Resource) -> None:
        """A job runs already."""
        compute = job.spec.get("compute") or "local"
        self._compute_of[job.name] = compute
        gpu_ids = tuple(job.status.get("gpu_ids") or ())
        request = request_of(job.spec, compute in self._clusters)
        self._queue(compute).hold(Holder(job.name, job.created_by, request, gpu_ids))

    def _queue(self, compute: str) -> Queue:
        return self._queues.setdefault(compute, Queue(Capacity(LEAST_CPUS, 0, 0)))

    def release(self, name: str) -> bool:
        """A job neither waits nor runs any more; returns whether it did."""
        compute = self._compute_of.pop(name, None)
        self.granted.pop(name, None)
        if compute is None:
            return False
        self._queues[compute].remove(name)
        return True

    def grant(self) -> list[str]:
        """Names of the jobs that start now."""
        names = []
        for queue in self._queues.values():
            for start in queue.grant():
                self.granted[start.name] = start.gpu_ids
                names.append(start.name)
        return names

    def place(self, name: str) -> dict[str, Any] | None:
        """The ``queue`` of a waiting job's status."""
        compute = self._compute_of.get(name)
        place = self._queues[compute].place(name) if compute is not None else None
        return {"place": place.place, "length": place.length, "reason": place.reason} if place is not None else None

    def usage(self, compute: str) -> dict[str, Any]:
        """What of a compute's status changes with its jobs."""
        queue = self._queues.get(compute)
        if queue is None:
            return {}
        used = queue.used()
        cpus = 0.0 if queue.capacity.cpus == UNLIMITED else queue.capacity.cpus
        return {
            "running_jobs": len(queue.holders), "queued_jobs": len(queue.waiting) + len(queue.impossible),
            "slots": {"cpus": cpus, "memory_bytes": queue.capacity.memory, "gpus": queue.capacity.gpus},
            "used": {"cpus": used.cpus, "memory_bytes": used.memory, "gpus": used.gpus},
        }
