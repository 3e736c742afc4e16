"""What Kueue says of a Job that waits in one of its queues: its place, and why it does not begin."""

from __future__ import annotations

import time
from typing import Any

from ...core.errors import MlopsError
from ...kube.client import Kube

GROUP, VISIBILITY = "kueue.x-k8s.io", "visibility.kueue.x-k8s.io"
#: Label by which the Workload of a Job is found.
JOB_UID = "kueue.x-k8s.io/job-uid"
#: Seconds between two questions about the same Job.
AGAIN = 3.0


class KueueWords:
    """Asks about Jobs that wait, every few seconds at most; where the role may not read it, the answer is empty."""

    def __init__(self, kube: Kube) -> None:
        self.kube = kube
        self._said: dict[str, tuple[float, str]] = {}

    def told(self, queue: str, uid: str) -> str:
        """One line on what a Job waits for; empty when Kueue says nothing to us."""
        at, said = self._said.get(uid, (-AGAIN, ""))
        if time.monotonic() - at >= AGAIN:
            try:
                said = self._ask(queue, uid)
            except MlopsError:
                said = ""
            while len(self._said) > 500:
                self._said.pop(next(iter(self._said)))
            self._said[uid] = (time.monotonic(), said)
        return said

    def _ask(self, queue: str, uid: str) -> str:
        root = path(self.kube, GROUP, "workloads")
        found = self.kube.call("GET", root, query={"labelSelector": f"{JOB_UID}={uid}"}, what="reading workloads")
        workloads = found.get("items") or []
        if not workloads:
            return f"Kueue has not taken it into its queue '{queue}' yet"
        return words(workloads[0], queue, self._place(queue, workloads[0]["metadata"]["name"]))

    def _place(self, queue: str, workload: str) -> int | None:
        """How many are before it; None where the cluster does not say."""
        if not self.kube.has_group(VISIBILITY):
            return None
        where = path(self.kube, VISIBILITY, f"localqueues/{queue}/pendingworkloads")
        try:
            pending = self.kube.call("GET", where, query={"limit": 1000}, what="reading the queue")
        except MlopsError:
            return None
        for item in pending.get("items") or []:
            if item["metadata"]["name"] == workload:
                return int(item.get("positionInLocalQueue") or 0)
        return None


def path(kube: Kube, group: str, rest: str) -> str:
    """The path of something of Kueue's in the namespace, in the version that the cluster prefers."""
    return f"/apis/{group}/{kube.group_version(group)}/namespaces/{kube.namespace}/{rest}"


def words(workload: dict[str, Any], queue: str, place: int | None) -> str:
    """The state of a Workload in one line.

    >>> words({"status": {"conditions": [{"type": "QuotaReserved", "status": "False", "message": "no cpu"}]}}, "q", 2)
    "it waits in Kueue's queue 'q', 2 before it: no cpu"
    """
    status = workload.get("status") or {}
    conditions = {c.get("type"): c for c in status.get("conditions") or []}
    if not (workload.get("spec") or {}).get("active", True):
        return f"Kueue holds it back in queue '{queue}': somebody has set its workload inactive"
    if (conditions.get("Admitted") or {}).get("status") == "True":
        return f"Kueue's queue '{queue}' lets it begin"
    before = "" if place is None else ", it is the next" if place == 0 else f", {place} before it"
    for kind in ("Evicted", "QuotaReserved"):
        condition = conditions.get(kind) or {}
        wanted = "True" if kind == "Evicted" else "False"
        message = " ".join(str(condition.get("message") or "").split())[:300]
        if condition.get("status") == wanted and message:
            return f"it waits in Kueue's queue '{queue}'{before}: {message}"
    waits = [c["name"] for c in status.get("admissionChecks") or [] if c.get("state") in ("Pending", "Retry")]
    why = f": the check '{waits[0]}' is not done" if waits else ""
    return f"it waits in Kueue's queue '{queue}'{before}{why}"
