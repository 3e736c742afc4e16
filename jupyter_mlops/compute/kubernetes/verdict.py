"""How an attempt on a cluster is doing, and how it ended: of what its pods' folders say, and what the cluster says."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ...kube import pods as words
from ...runtime import jobfolder
from ...runtime.jobfolder import TERMINAL, Attempt
from ...runtime.route import NOTE as CALL
from ...runtime.verdict import UNSAID, peer_went
from ..base import Observation
from ..state import line, observation, seconds
from .calls import key_of
from .landing import left_out
from .manifests import COPIED, KEEPER, MAIN, PACKAGES, ROUTE, ROUTED

if TYPE_CHECKING:
    from .copy import Copy
    from .route import Route
    from .store import ObjectStore

Pod = dict[str, Any]
#: Seconds for which the end of an elastic attempt waits for what its other nodes left.
LATE = 30.0

#: What a supervisor says that was told to end, by us or by the cluster.
BY_SIGNAL = "supervisor got signal"
#: The way of files where no other is configured, or works.
OVER_API = "over the cluster's API"


def _status(pod: Pod, container: str) -> dict[str, Any]:
    for found in words.containers(pod):
        if found.get("name") == container:
            state: dict[str, Any] = found.get("state") or {}
            return state
    return {}


def digest(pod: Pod | None) -> str:
    """The image that a pod really runs, as ``NAME@sha256:…``; empty when it does not say."""
    for found in words.containers(pod or {}):
        text = str(found.get("imageID") or "")
        if "sha256:" in text:
            return text.rpartition("//")[2]
    return ""


def keeper_runs(pod: Pod) -> bool:
    """Whether one can execute in its sidecar."""
    return bool(_status(pod, KEEPER).get("running"))


def main_runs(pod: Pod) -> bool:
    """Whether the ranks' container runs."""
    return bool(_status(pod, MAIN).get("running"))


def main_ended(pod: Pod) -> bool:
    """Whether the ranks' container has run and ended."""
    return bool(_status(pod, MAIN).get("terminated"))


def over(pod: Pod) -> bool:
    """Whether nothing of a pod runs any more, nor will."""
    if pod.get("gone"):
        return True
    if (pod.get("metadata") or {}).get("deletionTimestamp") and words.silent_since(pod):
        return True  # taken away from a node that does not answer: nobody will ever say that it has ended
    phase = (pod.get("status") or {}).get("phase")
    return phase in ("Succeeded", "Failed") and not keeper_runs(pod)


def node_state(place: Attempt, node: int) -> dict[str, Any]:
    """What the supervisor of a node wrote last, as far as it has come here."""
    state = jobfolder.read_json(os.path.join(place.path, f"node-{node}", "state.json"))
    return state if isinstance(state.get("phase"), str) else {}


def copied(place: Attempt, node: int, copy: Copy | None) -> bool:
    """Whether all that a node's pod will ever have is here; also known to the next control plane."""
    known = copy is not None and (copy.complete or copy.landed)
    return known or os.path.exists(os.path.join(place.path, f"node-{node}", COPIED))


def uncopied(place: Attempt, note: dict[str, Any]) -> bool:
    """Whether a node of an attempt whose pods are all gone has run, and its end did not come here."""
    states = [(node, node_state(place, node)) for node in range(int(note.get("nodes") or 1))]
    return any(state and state["phase"] not in TERMINAL and not copied(place, node, None) for node, state in states)


def began(state: dict[str, Any], pod: Pod) -> bool:
    """Whether ranks may have run in a pod, and so have logged something."""
    return bool(state) or main_runs(pod) or main_ended(pod)


def ended(place: Attempt, note: dict[str, Any], pods: dict[int, Pod], copies: dict[int, Copy]) -> Observation | None:
    """The end of an attempt, or None while it goes on.

    A node has ended when all that its supervisor left is here, or when its pod is gone with what it had. An elastic
    attempt has ended when its first node has: that one holds all together.
    """
    states: list[dict[str, Any]] = []
    late: list[int] = []
    short: list[int] = []
    for node in _known(note, pods):
        state = node_state(place, node)
        pod = pods.get(node)
        copy = copies.get(node)
        if state.get("phase") in TERMINAL and _all_here(pod, copy):
            states.append({**state, "node": node, "incomplete": False, "lost": False})  # told after all journals
            short += [] if copied(place, node, copy) else [node]
        elif pod is not None and (over(pod) or (copy is not None and copy.complete)):
            states.append({"phase": "failed", "reason": lost(pod), "cause": lost_cause(pod), "node": node,
                           "ended_at": time.time(), "started_at": state.get("started_at"),
                           "ranks": state.get("ranks") or [], "lost": True,
                           "incomplete": began(state, pod) and not copied(place, node, copy)})
        elif not note.get("most") or not node:
            return None
        elif state or (pod is not None and main_runs(pod)):
            late.append(node)
    if note.get("most") and late and time.time() - (seconds(states[0].get("ended_at")) or 0.0) < LATE:
        return None
    seen = _elastic(place, states, pods) if note.get("most") else _together(place, states, pods)
    remarks = [_short(short, copies), *(left_out(place, state["node"]) for state in states)]
    seen.reason = "; ".join(filter(None, [seen.reason, *remarks]))[:2000]
    return seen


def _short(nodes: list[int], copies: dict[int, Copy]) -> str:
    """Whose outputs could not all be copied, and why; empty when there are none."""
    who = f"{len(nodes)} pods" if len(nodes) > 1 else "its pod"
    why = next((f": {copies[n].trouble}" for n in nodes if n in copies and copies[n].trouble), "")
    return f"{who} ended before all outputs had been copied{why}" if nodes else ""


def _known(note: dict[str, Any], pods: dict[int, Pod]) -> list[int]:
    """The numbers of the nodes: all that there shall be; of an elastic attempt all that were ever there."""
    if note.get("most"):
        return sorted({0, *pods})
    return list(range(int(note.get("nodes") or 1)))


def _elastic(place: Attempt, states: list[dict[str, Any]], pods: dict[int, Pod]) -> Observation:
    """The end of an elastic attempt: what failed by itself speaks first, then the first node."""
    first = states[0]
    if first["phase"] == "completed" or place.job.stop_wish(place.number) is not None:
        chosen = [first]
    else:
        # The others only felt it when one went, or were ended by the cluster because of it.
        chosen = [s for s in states if s["phase"] == "failed" and not s.get("lost")
                  and "supervisor got signal" not in str(s.get("reason")) and not peer_went(str(s.get("reason")))]
        if not chosen:
            gone = [s for s in states[1:] if disruption(pods.get(int(s["node"]))) is not None]
            chosen = [*gone, first] if peer_went(str(first.get("reason"))) else [first]
    seen = _together(place, chosen, pods)
    parts = [observation(place.number, s) for s in states]
    seen.ranks = [r for p in parts for r in p.ranks]
    seen.incomplete = any(p.incomplete for p in parts)
    return seen


def _all_here(pod: Pod | None, copy: Copy | None) -> bool:
    """Whether nothing more comes of a node whose supervisor has ended: its state comes before its outputs."""
    if pod is None or over(pod):
        return True
    return copy.complete if copy is not None else not keeper_runs(pod)  # one that was not begun yet is not complete


def _together(place: Attempt, states: list[dict[str, Any]], pods: dict[int, Pod]) -> Observation:
    """One observation of several nodes: the one that ended first, other than by completing, speaks for all."""
    parts = [observation(place.number, s) for s in states]
    wished = place.job.stop_wish(place.number) is not None
    taken: dict[int, tuple[str, str]] = {}
    firsts: list[tuple[float, int]] = []
    for i, (part, state) in enumerate(zip(parts, states, strict=True)):
        at = part.ended_at or float("inf")
        told = not wished and BY_SIGNAL in part.reason
        if told or state.get("lost"):
            why = disruption(pods.get(int(state["node"])))
            if why is not None:
                at = min(at, why[2])
            taken[i] = why[:2] if why is not None else (part.reason, part.cause) if state.get("lost") else (
                "the cluster ended the pod: it was deleted, evicted or preempted", "lost")
        if part.phase == "failed" or (told and part.phase == "canceled"):
            firsts.append((at, i))
    if all(p.phase == "completed" for p in parts):
        chosen = parts[0]
    elif firsts:
        first = min(firsts)[1]
        if first not in taken and peer_went(parts[first].reason):
            # It only felt that another one went: one that was taken, or one that failed by itself.
            causes = ([pair for pair in firsts if pair[1] in taken]
                      or [pair for pair in firsts if parts[pair[1]].cause or not peer_went(parts[pair[1]].reason)]
                      or [pair for pair in firsts if not parts[pair[1]].reason.endswith(UNSAID)])
            first = min(causes)[1] if causes else first
        chosen = parts[first]
        if first in taken:
            chosen.phase, (chosen.reason, chosen.cause) = "failed", taken[first]
    else:
        chosen = next(p for p in parts if p.phase != "completed")
    chosen.ranks = [r for p in parts for r in p.ranks]
    starts = [p.started_at for p in parts if p.started_at]
    ends = [p.ended_at for p in parts if p.ended_at]
    chosen.started_at = min(starts) if starts else None
    chosen.ended_at = max(ends) if ends else time.time()
    chosen.seconds = max(p.seconds for p in parts)
    chosen.incomplete = any(p.incomplete for p in parts)
    chosen.attempt = place.number
    return chosen


#: Why the cluster disturbs a pod → (what we say, the same in one word).
_DISRUPTIONS = {
    "PreemptionByScheduler": ("preempted by a job of higher priority", "preempted"),
    "EvictionByEvictionAPI": ("evicted: its node is being emptied", "preempted"),
    "DeletionByTaintManager": ("its node is lost", "lost"),
    "DeletionByPodGC": ("its node is gone", "lost"),
    "TerminationByKubelet": ("evicted by its node", "lost"),
}


def disruption(pod: Pod | None) -> tuple[str, str, float] | None:
    """Why the cluster took a pod away: a line, a word, and when, in seconds since the epoch; None when it did not."""
    for condition in ((pod or {}).get("status") or {}).get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            reason = str(condition.get("reason") or "")
            what, cause = _DISRUPTIONS.get(reason, ("", "lost"))
            if not what:
                message = " ".join(str(condition.get("message") or "").split())[:200]
                what = f"{reason}: {message}" if message else reason
            return what, cause, words.seconds(condition.get("lastTransitionTime")) or time.time()
    return None


def lost(pod: Pod) -> str:
    """Why a pod ended before its supervisor could say so."""
    status = pod.get("status") or {}
    ended_ = _status(pod, MAIN).get("terminated") or {}
    if (why := disruption(pod)) is not None:
        return why[0]
    if status.get("reason") == "DeadlineExceeded":
        return "ran longer than limits.timeout"
    if (_status(pod, PACKAGES).get("terminated") or {}).get("reason") == "OOMKilled":
        return "installing packages ran out of memory; ask for more with resources.memory"
    if ended_.get("reason") == "OOMKilled":
        return "killed for lack of memory (out of memory); ask for more with resources.memory"
    trouble = words.trouble(pod)
    if trouble is not None:
        return trouble.reason
    if words.silent_since(pod):
        return "its node does not answer, and its pod was taken away"
    if pod.get("gone"):
        return "its pod was deleted on the cluster"
    if ended_:
        said = str(ended_.get("message") or "").strip().splitlines()
        return said[0][:500] if said else f"the pod ended with exit code {ended_.get('exitCode')}"
    return "its pod is gone"


def lost_cause(pod: Pod) -> str:
    """The same in one word."""
    status = pod.get("status") or {}
    if status.get("reason") == "DeadlineExceeded":
        return "timeout"
    if any((_status(pod, name).get("terminated") or {}).get("reason") == "OOMKilled" for name in (MAIN, PACKAGES)):
        return "memory"
    why = disruption(pod)
    return why[1] if why is not None else "lost"


Events = Callable[[str, str], list[dict[str, Any]]]


def running(place: Attempt, note: dict[str, Any], pods: dict[int, Pod], copies: dict[int, Copy], trouble: str,
            events: Events = lambda kind, name: []) -> Observation:
    """An attempt that goes on; ``events`` gives those of a Pod or Job, oldest first."""
    states = [node_state(place, node) for node in _known(note, pods)]
    parts = [observation(place.number, s) for s in states if s]
    result = Observation("starting", attempt=place.number, reason=trouble)
    result.ranks = [r for p in parts for r in p.ranks]
    starts = [p.started_at for p in parts if p.started_at]
    result.started_at = min(starts) if starts else None
    phases = {p.phase for p in parts}
    if "stopping" in phases:
        result.phase = "stopping"
        result.reason = next(p.reason for p in parts if p.phase == "stopping")
        if place.job.stop_wish(place.number) is None and BY_SIGNAL in result.reason:
            result.reason = "the cluster takes its pod away; it has a moment for a last checkpoint"
    elif phases & {"running", *TERMINAL}:
        result.phase = "running"
        for rank in result.ranks:
            rank.running = rank.running or (rank.exit_code is None and rank.pid is not None)
        if note.get("most") and not trouble:
            up = sum(1 for p in parts if p.phase == "running")
            result.reason = f"on {up} of {note['nodes']} to {note['most']} nodes"
        if not trouble:
            result.reason = _silence(pods) or result.reason
    if phases and phases <= set(TERMINAL) and not trouble:
        waits = next((f": {copy.trouble}" for copy in copies.values() if copy.trouble), "")
        result.reason = "its outputs are being copied" + waits
    elif not trouble and result.phase == "starting":
        result.reason = _prepares(states, pods) or _waits(note, pods, events)
    return result


def _silence(pods: dict[int, Pod]) -> str:
    """Which node does not answer, since when, and what becomes of the job; empty when all do."""
    for node in sorted(pods):
        if since := words.silent_since(pods[node]):
            name = (pods[node].get("spec") or {}).get("nodeName") or "its node"
            who = f"pod {node}: " if len(pods) > 1 else ""
            minutes = int((time.time() - since) / 60)
            return (f"{who}{name} has not answered for {f'{minutes} min' if minutes else 'a moment'}; the job may be "
                    "going on there: what it logs comes when the node answers; if the cluster gives it up, the attempt "
                    "is lost")
    return ""


def _prepares(states: list[dict[str, Any]], pods: dict[int, Pod]) -> str:
    """What pods do before their ranks start, as they say themselves."""
    for node, said in enumerate(states):
        if said.get("phase") == "starting" and said.get("reason") and node in pods:
            who = f"pod {node}: " if len(states) > 1 else ""
            return who + line(said["reason"], 500)
    return ""


def _waits(note: dict[str, Any], pods: dict[int, Pod], events: Events) -> str:
    """What an attempt that has not begun is waiting for."""
    if any(main_ended(p) for p in pods.values()):
        return "its outputs are being copied"
    for node in sorted(pods):
        pod = pods[node]
        who = f"pod {node}: " if len(pods) > 1 else ""
        late = events("Pod", pod["metadata"]["name"]) if words.age(pod) > 2 else []
        if not main_runs(pod) and (found := words.trouble(pod, late)):
            return who + found.reason
    if len(pods) < int(note.get("most") or note.get("nodes") or 1):
        told = events("Job", str(note.get("controller") or note.get("job") or ""))
        failed = [e for e in told if e.get("reason") == "FailedCreate"]
        if failed:
            return words.creation(str(failed[-1].get("message") or "")).reason
        if note.get("queue") and not pods:
            return f"it waits in Kueue's queue '{note['queue']}'"
        return "waiting for the cluster to make its pods"
    if any(not keeper_runs(p) for p in pods.values()):
        return "the cluster starts its pods"
    return "starting"


def route(place: Attempt, nodes: int, store: ObjectStore | None, by: Route | None = None) -> str:
    """Which way files of an attempt come, in words."""
    by = by if key_of(place) else None  # its pods were told of none
    told = [jobfolder.read_json(os.path.join(place.path, f"node-{node}", ROUTE)) for node in range(nodes)]
    trouble = next((str(found["trouble"]) for found in told if found.get("trouble")), "")
    return way(by, _off_route(place, nodes, by) if by is not None else "", store, trouble if store is not None else "")


def way(by: Route | None, off: str, store: ObjectStore | None, trouble: str) -> str:
    """The way of files in words.

    Args:
        off: why it is not by the route; empty: it is, or there is none.
        trouble: why it is not through the store.
    """
    if by is not None and not off:
        return by.way
    if store is not None and not trouble:
        return f"{store.route}; {off}"[:500] if off else store.route
    why = "; ".join(filter(None, (off, trouble)))
    return f"{OVER_API}: {why}"[:500] if why else OVER_API


def _off_route(place: Attempt, nodes: int, by: Route) -> str:
    """Why an attempt does not come by the route, as copies of its pods and the pods themselves say; empty: it does."""
    told = [(node, jobfolder.read_json(os.path.join(place.path, f"node-{node}", ROUTED))) for node in range(nodes)]
    if not any(found for _, found in told):
        return by.trouble
    for node, found in told:
        if found.get("trouble"):
            said = jobfolder.read_json(os.path.join(place.path, f"node-{node}", CALL)).get("trouble")
            return f"{found['trouble']}: {line(said, 300)}" if said else str(found["trouble"])
    return ""


def state(seen: Observation) -> dict[str, Any]:
    """What is noted of it."""
    return {
        "phase": seen.phase, "reason": seen.reason, "exit_code": seen.exit_code, "failed_rank": seen.failed_rank,
        "started_at": seen.started_at, "ended_at": seen.ended_at or time.time(), "seconds": seen.seconds,
        "cause": seen.cause, "incomplete": seen.incomplete, "traceback": seen.traceback, "world_size": len(seen.ranks),
        "ranks": [{"rank": r.rank, "pid": r.pid, "exit_code": r.exit_code} for r in seen.ranks],
    }
