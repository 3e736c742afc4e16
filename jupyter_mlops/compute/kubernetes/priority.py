"""Who may push whom aside on a cluster: its PriorityClasses, under the names that users know."""

from __future__ import annotations

import threading
import time
from typing import Any

from ...core.errors import MlopsError, Refused
from ...core.resources.compute import TrainingOptions
from ...core.resources.job import JobSpec
from ...kube.client import Kube
from ...kube.errors import Absent

PATH = "/apis/scheduling.k8s.io/v1/priorityclasses"
#: Seconds for which it is believed that a class is there.
BELIEVED = 60.0


def chosen(spec: JobSpec, options: TrainingOptions) -> str:
    """The PriorityClass of a job's pods; empty: the cluster's default."""
    if spec.spot:
        return options.spot.priority_class or options.priorities.get("low", "")
    return options.priorities.get(spec.queue_settings.priority, "")


def offered(options: TrainingOptions) -> dict[str, str]:
    """The classes that jobs may come to have, by what users call them."""
    found = {str(name): there for name, there in options.priorities.items()}
    if options.spot.allowed and options.spot.priority_class:
        found["spot"] = options.spot.priority_class
    return found


def lookup(kube: Kube, name: str) -> dict[str, Any] | None:
    """``{"value", "preempts"}`` of a class, of which the first is empty when it is not there; None when we may not
    know."""
    try:
        found = kube.call("GET", f"{PATH}/{name}", what="reading a PriorityClass", timeout=5.0)
    except Absent:
        return {"value": None, "preempts": False}
    except MlopsError:
        return None
    return {"value": int(found.get("value") or 0), "preempts": found.get("preemptionPolicy") != "Never"}


class Classes:
    """What is asked before a job is submitted."""

    def __init__(self, kube: Kube, options: TrainingOptions) -> None:
        self.kube = kube
        self.options = options
        self._seen: dict[str, float] = {}
        self._lock = threading.Lock()

    def check(self, job: JobSpec) -> None:
        """Refuse what the operator does not allow, or the cluster does not know.

        Raises:
            Refused: see its message.
        """
        options, asked, where = self.options, job.queue_settings.priority, f"compute '{self.kube.cluster}'"
        if job.spot and not options.spot.allowed:
            raise Refused(f"{where} takes no spot jobs", "leave --spot out")
        # The middle is what everybody has who asks for nothing.
        if not job.spot and options.priorities and asked != "medium" and asked not in options.priorities:
            known = ", ".join(p for p in ("low", "medium", "high") if p in (*options.priorities, "medium"))
            raise Refused(f"{where} does not offer priority '{asked}'", f"it offers {known}")
        name = chosen(job, options)
        if not name:
            return
        with self._lock:
            if time.monotonic() - self._seen.get(name, -BELIEVED) < BELIEVED:
                return
        found = lookup(self.kube, name)
        if found is None:
            return  # not for us to see: the cluster says so when it makes the pods
        if found["value"] is None:
            who = "spot jobs" if job.spot else f"priority '{asked}'"
            raise Refused(f"{where} has no PriorityClass '{name}', which {who} is to have",
                          "an operator makes it, or corrects training.priorities and training.spot of the compute")
        with self._lock:
            self._seen[name] = time.monotonic()
