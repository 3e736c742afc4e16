"""Priorities and spot capacity of a cluster: what is asked for, what is allowed, what pods get, and who was pushed."""

from __future__ import annotations

from types import SimpleNamespace

import kubernetes_validate
import pytest
from pydantic import ValidationError
from test_kube_jobs import NAMES, NOTE, place, pod, tell
from test_kube_manifests import MINORS

from jupyter_mlops.compute.kubernetes import manifests, priority, verdict
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.compute.kubernetes.manifests import Order
from jupyter_mlops.compute.local import LocalCompute
from jupyter_mlops.core.errors import BackendUnreachable, Refused
from jupyter_mlops.core.resources.compute import SPOT_TAINTS, ComputeSpec, TrainingOptions
from jupyter_mlops.core.resources.job import JobSpec
from jupyter_mlops.kube.errors import Absent, NotAllowed

__all__ = ["place"]
FULL = {"priorities": {"low": "batch-low", "high": "batch-high"}, "node_selector": {"pool": "gpu"}, "spot": {
    "priority_class": "batch-spot", "node_selector": {"tier": "spot"},
    "tolerations": [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]}}


def spec(**queue) -> JobSpec:
    return JobSpec.model_validate({"cell": {"source": "1"}, "queue_settings": queue})


def made(options: dict, **queue) -> dict:
    training = TrainingOptions.model_validate({"image": "a:1", **options})
    return manifests.job(NAMES, Order(spec(**queue), training, "a:1"), suspended=True)


def pods(options: dict, **queue) -> dict:
    return made(options, **queue)["spec"]["template"]["spec"]


def test_what_pods_get():
    assert pods(FULL, priority="high")["priorityClassName"] == "batch-high"
    assert "priorityClassName" not in pods(FULL), "the middle has none of its own"
    assert "tolerations" not in pods(FULL, priority="low")
    spot = pods(FULL, job_tier="spot", priority="high")
    assert spot["priorityClassName"] == "batch-spot" and spot["nodeSelector"] == {"pool": "gpu", "tier": "spot"}
    assert spot["tolerations"] == [{"key": "spot", "operator": "Exists", "effect": "NoSchedule"}]


def test_a_sane_default_where_nothing_is_set():
    assert "priorityClassName" not in pods({}, priority="high")
    spot = pods({}, spot=True)
    assert [t["key"] for t in spot["tolerations"]] == list(SPOT_TAINTS) and "nodeSelector" not in spot
    assert "priorityClassName" not in spot
    assert pods({"priorities": {"low": "cheap"}}, spot=True)["priorityClassName"] == "cheap"


@pytest.mark.parametrize("minor", MINORS)
def test_it_fits_the_schema(minor):
    for queue in ({"priority": "high"}, {"spot": True}):
        kubernetes_validate.validate(made(FULL, **queue), minor, strict=True)
        kubernetes_validate.validate(made({}, **queue), minor, strict=True)


def test_spot_is_said_in_two_ways():
    assert spec(spot=True).spot and spec(job_tier="spot").spot and not spec(spot=False).spot
    assert spec(spot=True).model_dump()["queue_settings"] == {"priority": "medium", "job_tier": "spot"}
    with pytest.raises(ValidationError):
        spec(job_tier="premium")
    with pytest.raises(Refused, match="this machine has no spot capacity"):
        LocalCompute().check(spec(spot=True).model_dump())
    with pytest.raises(ValidationError, match="no name of a PriorityClass"):
        TrainingOptions(priorities={"high": "Not A Name"})


class Cluster:
    """The API, as far as PriorityClasses go: ``known`` are there, the rest is not; or it answers with an error."""

    cluster = "gpu"

    def __init__(self, *known: str, error: Exception | None = None) -> None:
        self.known, self.error, self.asked = known, error, []

    def call(self, method, path, **more):
        self.asked.append(path)
        if self.error:
            raise self.error
        name = path.rsplit("/", 1)[1]
        if name not in self.known:
            raise Absent("not there")
        return {"value": 1000, "preemptionPolicy": "Never" if "low" in name else "PreemptLowerPriority"}


def refusal(cluster: Cluster, options: dict, **queue) -> str:
    try:
        priority.Classes(cluster, TrainingOptions.model_validate(options)).check(spec(**queue))
    except Refused as error:
        assert error.hint
        return error.message
    return ""


def test_what_is_refused_before_anything_is_made():
    there = Cluster("batch-low", "batch-spot")
    assert refusal(there, FULL) == refusal(there, FULL, priority="low") == refusal(there, FULL, spot=True) == ""
    assert refusal(there, FULL, priority="high") == (
        "compute 'gpu' has no PriorityClass 'batch-high', which priority 'high' is to have")
    assert refusal(there, {"priorities": {"low": "batch-low"}}, priority="high") == (
        "compute 'gpu' does not offer priority 'high'")
    assert refusal(there, {"spot": {"allowed": False}}, spot=True) == "compute 'gpu' takes no spot jobs"
    asked = len(there.asked)
    assert refusal(there, {}, priority="high") == refusal(there, {}, spot=True) == "" and len(there.asked) == asked


@pytest.mark.parametrize("error", [NotAllowed("no permission"), BackendUnreachable("away")])
def test_what_may_not_be_asked_is_told_later(error, place):
    assert refusal(Cluster(error=error), FULL, priority="high") == ""
    message = 'pods "a-1-0-x" is forbidden: no PriorityClass with name batch-high was found'

    def events(kind, name):
        return [{"reason": "FailedCreate", "message": message}]

    seen = verdict.running(place, {"nodes": 1, "job": "a-1"}, {}, {}, "", events)
    assert seen.reason.startswith("the cluster has no PriorityClass 'batch-high'")


def test_a_class_is_asked_for_once_a_minute():
    there = Cluster("batch-high")
    classes = priority.Classes(there, TrainingOptions.model_validate(FULL))
    for _ in range(5):
        classes.check(spec(priority="high"))
    assert len(there.asked) == 1
    driver = KubernetesCompute("w", "gpu", ComputeSpec.model_validate(
        {"type": "kubernetes", "namespace": "ns", "training": {"image": "a:1", "spot": {"allowed": False}}}))
    with pytest.raises(Refused, match="takes no spot jobs"):
        driver.check(spec(spot=True).model_dump())


# -- who was pushed aside -------------------------------------------------------------------------------------------


def taken(reason: str, at: str = "2026-01-01T00:00:05Z") -> dict:
    return pod({"terminated": {"exitCode": 1}}, "terminated", "Failed", conditions=[
        {"type": "DisruptionTarget", "status": "True", "reason": reason, "lastTransitionTime": at}])


BY_SIGNAL = {"phase": "canceled", "reason": "stopped: the supervisor got signal 15"}
AT = 1767225605.0  # 2026-01-01T00:00:05Z


@pytest.mark.parametrize(("reason", "words", "cause"), [
    ("PreemptionByScheduler", "preempted by a job of higher priority", "preempted"),
    ("EvictionByEvictionAPI", "evicted: its node is being emptied", "preempted"),
    ("TerminationByKubelet", "evicted by its node", "lost"),
])
def test_a_supervisor_that_was_told_to_go_knows_from_its_pod_why(place, reason, words, cause):
    tell(place, 0, **BY_SIGNAL, ended_at=AT + 3)
    seen = verdict.ended(place, {"nodes": 1}, {0: taken(reason)}, {})
    assert (seen.phase, seen.reason, seen.cause) == ("failed", words, cause)
    place.job.ask_stop(1, 5.0)
    assert verdict.ended(place, {"nodes": 1}, {0: taken(reason)}, {}).phase == "canceled", "that was wished for"


#: The copy of a pod that has told all.
WHOLE = SimpleNamespace(complete=True)


def test_ranks_that_only_felt_it_are_not_to_blame(place):
    peer = {"phase": "failed", "exit_code": 1, "failed_rank": 0, "reason":
            "rank 0 ended with exit code 1: RuntimeError: [gloo/pair.cc:1] Connection closed by peer [10.0.0.2]:1"}
    tell(place, 0, **peer, ended_at=AT - 1)  # its clock is a little late
    tell(place, 1, **BY_SIGNAL, ended_at=AT + 3)
    seen = verdict.ended(place, NOTE, {0: pod(), 1: taken("PreemptionByScheduler")}, {0: WHOLE})
    assert (seen.reason, seen.cause) == ("preempted by a job of higher priority", "preempted")


def test_a_failure_of_its_own_is_not_excused_by_what_came_after(place):
    own = {"phase": "failed", "exit_code": 1, "reason": "rank 0 ended with exit code 1: ValueError: x"}
    tell(place, 0, **own, ended_at=AT - 1)
    tell(place, 1, **BY_SIGNAL, ended_at=AT + 3)
    seen = verdict.ended(place, NOTE, {0: pod(), 1: taken("PreemptionByScheduler")}, {0: WHOLE})
    assert (seen.reason, seen.cause) == (own["reason"], "")
    tell(place, 0, **own, ended_at=AT + 2)
    seen = verdict.ended(place, NOTE, {0: pod(), 1: taken("PreemptionByScheduler")}, {0: WHOLE})
    assert seen.cause == "preempted", "the other one went first"
