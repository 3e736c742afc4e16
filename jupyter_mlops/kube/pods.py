"""Why a pod does not run, in one line for people who know nothing of Kubernetes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from .errors import pod_security, quota

#: The image is not there, or not for us: nothing to wait for.
_FINAL_PULL = ("not found", "manifest unknown", "pull access denied", "unauthorized", "denied", "no such host",
               "invalid reference", "does not exist")
_PULLING = ("ErrImagePull", "ImagePullBackOff", "ImageInspectError", "RegistryUnavailable")
_NEVER = ("InvalidImageName", "ErrImageNeverPull")
_BROKEN = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
_LACKS = re.compile(r"(\d+) Insufficient ([\w./-]*\w)")
_NODES = re.compile(r"^(\d+)/(\d+) nodes are available")
_TAINT = re.compile(r"untolerated taint\(?s?\)? ?\{([^}:]+)")
_NO_CLASS = re.compile(r"no PriorityClass with name (\S+) was found")
#: Seconds for which an image that cannot be pulled may still come.
PULL_PATIENCE = 60.0


@dataclass
class Trouble:
    """What keeps a pod from running. ``final``: it does not get better by itself."""

    reason: str
    final: bool = False
    crash_loop: bool = False


def trouble(pod: dict[str, Any], events: Sequence[dict[str, Any]] = ()) -> Trouble | None:
    """What is wrong with a pod, or None while nothing is.

    Args:
        pod: as the API gives it.
        events: those of the pod; looked at for what its status does not tell (volumes).
    """
    status = pod.get("status") or {}
    if status.get("phase") == "Failed" and status.get("reason"):
        return Trouble(_evicted(status), final=False)
    for container in containers(pod):
        state = container.get("state") or {}
        waiting = state.get("waiting") or {}
        why, message = waiting.get("reason") or "", waiting.get("message") or ""
        if why in _NEVER or why in _PULLING:
            return _image(pod, container, why, message)
        if why in _BROKEN:
            return Trouble(f"the container cannot be started: {_short(message) or why}", final=True)
        ended = (container.get("lastState") or {}).get("terminated") or state.get("terminated")
        if (state.get("terminated") or {}).get("exitCode") == 0 and container in (
                status.get("initContainerStatuses") or []):
            continue  # it has done its part
        if why == "CrashLoopBackOff" or (ended and not state.get("running")):
            return _crash(pod, container, ended or {})
        if ended and int(container.get("restartCount") or 0) > 0 and not container.get("ready"):
            return _crash(pod, container, ended)
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return Trouble(unschedulable(condition.get("message") or condition.get("reason") or ""))
    for event in reversed(events):
        if event.get("type") == "Warning" and event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            return Trouble(f"a volume cannot be mounted: {_short(event.get('message') or '')}")
        if event.get("type") == "Warning" and event.get("reason") == "FailedCreatePodSandBox":
            return Trouble(f"the node cannot start it: {_short(event.get('message') or '')}")
    return None


def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    """Status of all containers, those of the start first."""
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def ready(pod: dict[str, Any]) -> bool:
    """Whether it takes requests, and is not going."""
    if (pod.get("metadata") or {}).get("deletionTimestamp"):
        return False
    conditions = (pod.get("status") or {}).get("conditions") or []
    return any(c.get("type") == "Ready" and c.get("status") == "True" for c in conditions)


def silent_since(pod: dict[str, Any]) -> float:
    """When the node of a running pod ceased to answer, in seconds since the epoch; 0 while it answers.

    Of such a pod the cluster says that it is not ready, while its containers are what they were when last heard of.
    """
    status = pod.get("status") or {}
    if status.get("phase") != "Running" or not all(c.get("ready") for c in containers(pod)):
        return 0.0
    for condition in status.get("conditions") or []:
        if condition.get("type") == "Ready" and condition.get("status") != "True":
            return seconds(condition.get("lastTransitionTime")) or datetime.now(UTC).timestamp()
    return 0.0


def age(pod: dict[str, Any]) -> float:
    """Seconds since it was made."""
    made = seconds((pod.get("metadata") or {}).get("creationTimestamp"))
    return max(0.0, datetime.now(UTC).timestamp() - made) if made else 0.0


def seconds(time: str | None) -> float:
    """A time of the API in seconds since the epoch; 0 for none."""
    try:
        return datetime.fromisoformat(time.replace("Z", "+00:00")).timestamp() if time else 0.0
    except ValueError:
        return 0.0


def unschedulable(message: str) -> str:
    """The scheduler's message in other words.

    >>> unschedulable("0/3 nodes are available: 3 Insufficient cpu. preemption: none.")
    'no node has room: not enough cpu on 3 of 3 nodes; it waits'
    """
    nodes = _NODES.match(message)
    total = f" of {nodes[2]}" if nodes else ""
    parts = [f"not enough {what} on {count}{total} nodes" for count, what in _LACKS.findall(message)]
    parts += [f"the nodes with taint '{taint}' are not for it" for taint in sorted(set(_TAINT.findall(message)))]
    if "didn't match Pod's node affinity/selector" in message or "didn't match node selector" in message:
        parts.append("no node has the labels that the compute's node_selector wants")
    if not parts:
        return f"no node takes it: {_short(message)}" if message else "it waits for a node"
    return f"no node has room: {'; '.join(parts)}; it waits"


def creation(message: str) -> Trouble:
    """Why the cluster does not create a pod at all (``FailedCreate``)."""
    over = quota(message)
    if over:
        return Trouble(over)  # another's end gives room
    if level := pod_security(message):
        return Trouble(level, final=True)
    if "is being terminated" in message:
        return Trouble("the namespace is being deleted", final=True)
    if match := _NO_CLASS.search(message):
        return Trouble(f"the cluster has no PriorityClass '{match[1]}': an operator makes it, or corrects the compute")
    return Trouble(f"the cluster does not create it: {_short(message)}", final="is invalid" in message)


def _image(pod: dict[str, Any], container: dict[str, Any], why: str, message: str) -> Trouble:
    name = container.get("image") or "?"
    if why == "InvalidImageName":
        return Trouble(f"'{name}' is no name of an image", final=True)
    if why == "ErrImageNeverPull":
        return Trouble(f"the image '{name}' is not on the node, and the compute's image_pull_policy is Never", True)
    final = any(text in message for text in _FINAL_PULL) or age(pod) > PULL_PATIENCE
    return Trouble(f"the image '{name}' cannot be pulled: {_pull_cause(message)}", final=final)


def _pull_cause(message: str) -> str:
    for text, words in (
        ("not found", "it is not there"), ("manifest unknown", "it is not there"),
        ("pull access denied", "it is not there, or wants credentials"), ("unauthorized", "it wants credentials"),
        ("no such host", "its registry has no address"), ("connection refused", "its registry does not answer"),
        ("i/o timeout", "its registry does not answer"), ("dial tcp", "its registry cannot be reached"),
    ):
        if text in message:
            return words
    return _short(message) or "the node does not say why"


def _crash(pod: dict[str, Any], container: dict[str, Any], ended: dict[str, Any]) -> Trouble:
    count = int(container.get("restartCount") or 0)
    if ended.get("reason") == "OOMKilled":
        limit = _limit(pod, container.get("name") or "", "memory")
        most = f" (its limit is {limit})" if limit else ""
        return Trouble(f"it ran out of memory{most}; raise `resources`", count > 0, count > 3)
    told = (ended.get("message") or "").strip()
    if told:
        return Trouble(told.splitlines()[0][:500], final=True, crash_loop=told.startswith("crash loop"))
    code, signal = ended.get("exitCode"), ended.get("signal")
    how = f"with signal {signal}" if signal else f"with code {code}"
    if ended.get("reason") in ("StartError", "ContainerCannotRun"):
        return Trouble(f"the container cannot be started: {_short(ended.get('message') or '')}", final=True)
    return Trouble(f"the container ended {how}" + (f", {count} times" if count > 1 else ""), count > 3, count > 3)


def _limit(pod: dict[str, Any], name: str, what: str) -> str:
    spec = pod.get("spec") or {}
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        if container.get("name") == name:
            return str(((container.get("resources") or {}).get("limits") or {}).get(what) or "")
    return ""


def _evicted(status: dict[str, Any]) -> str:
    if status.get("reason") == "Evicted":
        return f"the node evicted it: {_short(status.get('message') or '')}"
    if status.get("reason") == "NodeLost":
        return "its node is lost"
    return f"it ended: {status.get('reason')} {_short(status.get('message') or '')}".strip()


def _short(message: str) -> str:
    return " ".join(message.split())[:300]
