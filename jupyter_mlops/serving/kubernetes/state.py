"""What is so of a deployment on a cluster, from its objects as the API gives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ...kube import pods as reading
from ..observation import LOAD_LIMIT
from .objects import digest_of


@dataclass
class Seen:
    """Phase and reason as in :class:`~jupyter_mlops.serving.observation.ScorerObservation`, and what they rest on."""

    phase: str
    reason: str = ""
    ready: int = 0
    wanted: int = 0
    restarts: int = 0
    crash_loop: bool = False
    #: All pods run what was asked for last.
    settled: bool = False
    #: The pod that the reason is about, and one that is ready.
    about: str = ""
    ready_pod: str = ""
    #: Pods that run and may wait for their model.
    waiting: list[str] = field(default_factory=list)


def look(deployment: dict[str, Any] | None, pods: list[dict[str, Any]], events: list[dict[str, Any]],
         load_limit: float = LOAD_LIMIT) -> Seen:
    """Phase and reason of a deployment.

    Args:
        deployment: its Deployment; None: there is none.
        pods: its pods.
        events: those of the namespace that are about its pods; may be empty.
        load_limit: seconds that a container may run before it must be ready.
    """
    if deployment is None:
        return Seen("absent", "not started")
    spec, status = deployment.get("spec") or {}, deployment.get("status") or {}
    digest = digest_of(spec.get("template") or {})
    seen = Seen("starting", wanted=int(spec.get("replicas") or 0))
    live = [p for p in pods if not p["metadata"].get("deletionTimestamp")]
    current = [p for p in live if digest_of(p) == digest]
    ready = [p for p in live if reading.ready(p)]
    seen.ready = len(ready)
    seen.ready_pod = next((p["metadata"]["name"] for p in ready if digest_of(p) == digest), "")
    seen.restarts = sum(int(c.get("restartCount") or 0) for p in live for c in reading.containers(p))
    seen.settled = bool(ready) and len(live) == len(current) == len(ready) == seen.wanted and _followed(deployment)
    seen.waiting = [p["metadata"]["name"] for p in current if _started(p) is not None and not reading.ready(p)]
    found = _trouble(status, current, events, load_limit, seen)
    if found is not None:
        seen.reason, seen.crash_loop = found.reason, found.crash_loop
    if ready:
        # Whatever is wrong with others: it serves.
        seen.phase = "ready"
        if found is None and len(ready) < seen.wanted:
            seen.reason = f"{len(ready)} of {seen.wanted} instances are ready"
    elif found is not None and found.final:
        seen.phase = "failed"
    elif found is None:
        seen.reason = _waits(current)
    return seen


def _trouble(status: dict[str, Any], pods: list[dict[str, Any]], events: list[dict[str, Any]], load_limit: float,
             seen: Seen) -> reading.Trouble | None:
    first: reading.Trouble | None = None
    for pod in pods:
        name = pod["metadata"]["name"]
        mine = [e for e in events if (e.get("involvedObject") or {}).get("name") == name]
        found = None if reading.ready(pod) else reading.trouble(pod, mine)
        started = _started(pod)
        if found is None and started is not None and not reading.ready(pod) and started > load_limit:
            found = reading.Trouble(f"the model was not loaded within {load_limit:g} s", final=True)
        if found is not None and (first is None or (found.final and not first.final)):
            first, seen.about = found, name
    if first is not None:
        return first
    for condition in status.get("conditions") or []:
        if condition.get("type") == "ReplicaFailure" and condition.get("status") == "True":
            return reading.creation(condition.get("message") or condition.get("reason") or "")
    return None


def _waits(pods: list[dict[str, Any]]) -> str:
    """What a deployment waits for that nothing is wrong with."""
    if not pods:
        return "the cluster creates its pods"
    for pod in pods:
        if _started(pod) is not None:
            return "loading the model"
    if any((pod.get("spec") or {}).get("nodeName") for pod in pods):
        return "its node pulls the image and prepares the container"
    return "it waits for a node"


def _started(pod: dict[str, Any]) -> float | None:
    """Seconds for which its container has been running; None when it does not."""
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        running = (container.get("state") or {}).get("running")
        if running and running.get("startedAt"):
            at = datetime.fromisoformat(running["startedAt"].replace("Z", "+00:00"))
            return max(0.0, (datetime.now(UTC) - at).total_seconds())
    return None


def _followed(deployment: dict[str, Any]) -> bool:
    """Whether the cluster has taken up the last change of the Deployment, and is done with it."""
    status = deployment.get("status") or {}
    generation = deployment["metadata"].get("generation", 0)
    wanted = int((deployment.get("spec") or {}).get("replicas") or 0)
    return (int(status.get("observedGeneration") or 0) >= generation and int(status.get("replicas") or 0) == wanted
            and int(status.get("updatedReplicas") or 0) == wanted)


def merged(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """The stats of several gateways as those of one: counts add up, percentiles are the worst.

    >>> merged([{"requests": 2, "latency_ms": {"p95": 3.0}}, {"requests": 1, "latency_ms": {"p95": 5.0}}])
    {'requests': 3, 'latency_ms': {'p95': 5.0}}
    """
    if len(answers) == 1:
        return answers[0]
    result: dict[str, Any] = {}
    for key in dict.fromkeys(key for answer in answers for key in answer):
        values = [answer[key] for answer in answers if answer.get(key) is not None]
        if values and all(isinstance(v, dict) for v in values):
            result[key] = merged(values)
        elif key == "buckets" and values:
            result[key] = [[row[0][0], sum(r[1] for r in row)] for row in zip(*values, strict=False)]
        elif key == "started_at" and values:
            result[key] = max(values)
        elif values and all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            result[key] = max(values) if key.startswith("p") and key[1:].isdigit() else sum(values)
        else:
            result[key] = values[0] if values else None
    return result
