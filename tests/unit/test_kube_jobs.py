"""Jobs on a cluster: what is sent is valid in three Kubernetes minors and harmless; what is seen is told in words."""

from __future__ import annotations

import json

import kubernetes_validate
import pytest
from test_kube_manifests import MINORS, OWNER, violations

from jupyter_mlops.compute.base import JobRef
from jupyter_mlops.compute.kubernetes import manifests, shelf, verdict
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.compute.kubernetes.manifests import Names, Order
from jupyter_mlops.compute.kubernetes.preview import preview
from jupyter_mlops.core.errors import Refused
from jupyter_mlops.core.resources.compute import ComputeSpec, InstanceType, TrainingOptions
from jupyter_mlops.core.resources.job import JobSpec
from jupyter_mlops.kube import access
from jupyter_mlops.kube.errors import NotAllowed
from jupyter_mlops.runtime.jobfolder import TERMINAL, JobFolder, private_folder, write_file, write_json

NAMES = Names("default", "digits", 2)
OPTIONS = TrainingOptions(
    image="registry.example/torch:1", node_selector={"pool": "gpu"}, image_pull_secrets=["pull"], hold=60,
    tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}], gpu_resource="amd.com/gpu")


def order(**more) -> Order:
    spec = {"cell": {"source": "1"}, "resources": {"instance_count": 4, "gpus": 8, "cpus": 1.5, "memory": "4Gi",
                                                   "shm_size": "8Gi"}, "environment_variables": {"TOKEN": "s3cret"}}
    return Order(JobSpec.model_validate({**spec, **more}), OPTIONS, OPTIONS.image, 3600.0,
                 parts=["a-in-00", "a-in-01"])


def everything() -> dict[str, dict]:
    plain = Order(JobSpec(command="true"), TrainingOptions(image="python:3.11-slim"), "python:3.11-slim")
    kept = Order(JobSpec(command="true"), TrainingOptions(image="python:3.11-slim", store={"claim": "folders"}),
                 "python:3.11-slim", shelf="digits-2-ab")
    return {
        "kept": manifests.job(NAMES, kept, suspended=False), "reader": shelf._job(NAMES, kept, OWNER, [0, 3]),
        "job": manifests.job(NAMES, order(), suspended=True), "plain": manifests.job(NAMES, plain, suspended=False),
        "service": manifests.service(NAMES, OWNER), "secret": manifests.secret("a", NAMES, OWNER, {"part": b"\0"}),
    }


@pytest.mark.parametrize("minor", MINORS)
def test_every_object_fits_the_schema(minor):
    for what, manifest in everything().items():
        kubernetes_validate.validate(manifest, minor, strict=True)
        labels = manifest["metadata"]["labels"]
        assert labels["jupyter-mlops.io/job"] == "digits" and labels["jupyter-mlops.io/attempt"] == "2", what
        assert manifest["kind"] == "Job" or manifest["metadata"]["ownerReferences"] == [OWNER], "goes with the Job"


def test_pods_are_harmless_and_hold_no_secret():
    for what in ("job", "plain", "kept", "reader"):
        pod = everything()[what]["spec"]["template"]["spec"]
        assert violations(pod) == []
        assert pod["automountServiceAccountToken"] is False
    assert "s3cret" not in json.dumps(everything()["job"]), "the environment lies in a Secret"


def test_what_a_job_asks_for_is_what_its_pods_get():
    job = everything()["job"]["spec"]
    pod = job["template"]["spec"]
    (main,), (keeper,) = pod["containers"], pod["initContainers"]
    assert main["resources"] == {"requests": {"cpu": "1500m", "memory": "4Gi"},
                                 "limits": {"memory": "4Gi", "amd.com/gpu": "8"}}
    assert (job["completions"], job["parallelism"], job["completionMode"]) == (4, 4, "Indexed")
    assert job["suspend"] is True and job["backoffLimit"] == 0 and keeper["restartPolicy"] == "Always"
    assert pod["subdomain"] == NAMES.object
    assert next(v for v in pod["volumes"] if v["name"] == "shm")["emptyDir"] == {"medium": "Memory", "sizeLimit": "8Gi"}
    assert pod["activeDeadlineSeconds"] > 3600 and pod["terminationGracePeriodSeconds"] == 10 + 10 + 60
    assert pod["nodeSelector"] == {"pool": "gpu"} and pod["tolerations"][0]["key"] == "gpu"
    plain = everything()["plain"]["spec"]["template"]["spec"]
    assert "activeDeadlineSeconds" not in plain and "subdomain" not in plain


def test_names_of_attempts_and_workspaces_differ():
    names = {Names(w, j, a).object for w in ("one", "two") for j in ("a", "b") for a in (1, 2)}
    assert len(names) == 8 and all(len(n) <= 46 for n in names)
    assert len(Names("w", "x" * 40, 12).object) <= 46


@pytest.mark.parametrize(("spec", "words"), [
    ({"script": "train.py", "cwd": "/home/ann"}, "the script train.py is not on compute 'gpu'"),
    ({"command": "true", "cwd": "/home/ann"}, "the folder /home/ann is not on compute 'gpu'"),
    ({"cell": {"source": "1"}, "resources": {"gpus": 0.5}}, "whole GPUs"),
    ({"cell": {"source": "1"}, "resources": {"instance_count": 9}}, "9 nodes are more than compute 'gpu' allows (8)"),
])
def test_what_cannot_run_there_is_refused(spec, words):
    driver = KubernetesCompute("w", "gpu", ComputeSpec(
        type="kubernetes", namespace="ns", training={"image": "a:1", "max_nodes": 8}))
    with pytest.raises(Refused) as error:
        driver.check(spec)
    assert words in error.value.message
    driver.check({"cell": {"source": "1"}, "cwd": "/home/ann", "interpreter": "/usr/bin/python3"})
    bare = KubernetesCompute("w", "gpu", ComputeSpec(type="kubernetes", namespace="ns"))
    with pytest.raises(Refused, match="no image for jobs"):
        bare.check({"cell": {"source": "1"}})


# -- what is seen ---------------------------------------------------------------------------------------------------


def pod(main=None, keeper="running", phase="Running", **more) -> dict:
    def status(name, state):
        return {"name": name, "image": "a:1", "state": state}

    since = {"startedAt": "2026-01-01T00:00:01Z"} if keeper == "running" else {}
    return {"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}, "status": {
        "phase": phase, "initContainerStatuses": [status("keeper", {keeper: since})],
        "containerStatuses": [status("job", main or {"running": {}})], **more}}


@pytest.fixture
def place(tmp_path):
    attempt = JobFolder(private_folder(str(tmp_path / "job"))).attempt(1)
    private_folder(attempt.path)
    return attempt


def tell(place, node, whole=True, **state):
    """What a supervisor says; at its end ``whole``: all that its pod left is here."""
    private_folder(f"{place.path}/node-{node}")
    if whole and state["phase"] in TERMINAL:
        write_file(f"{place.path}/node-{node}/{manifests.COPIED}", b"")
    write_json(f"{place.path}/node-{node}/state.json", {"schema": 1, "ranks": [], **state})


NOTE = {"nodes": 2}


def test_an_attempt_has_ended_when_all_its_nodes_have(place):
    pods = {0: pod(keeper="terminated"), 1: pod(keeper="terminated")}
    assert verdict.ended(place, NOTE, pods, {}) is None
    tell(place, 0, phase="completed", started_at=1.0, ended_at=5.0, seconds=4.0, exit_code=0)
    assert verdict.ended(place, NOTE, pods, {}) is None
    tell(place, 1, phase="completed", started_at=2.0, ended_at=7.0, seconds=5.0, exit_code=0)
    seen = verdict.ended(place, NOTE, pods, {})
    assert (seen.phase, seen.exit_code, seen.started_at, seen.ended_at, seen.seconds) == ("completed", 0, 1.0, 7.0, 5.0)


def test_an_end_counts_when_all_that_belongs_to_it_is_here(place):
    class Copy:
        complete = landed = False
        trouble = "no room"

    tell(place, 0, whole=False, phase="completed")
    assert verdict.ended(place, {"nodes": 1}, {0: pod()}, {0: Copy}) is None
    assert verdict.ended(place, {"nodes": 1}, {0: pod()}, {}) is None, "after a restart no copy has been begun yet"
    Copy.complete = True
    assert verdict.ended(place, {"nodes": 1}, {0: pod()}, {0: Copy}).phase == "completed"
    Copy.complete = False
    gone = {**pod(), "gone": True}
    seen = verdict.ended(place, {"nodes": 1}, {0: gone}, {0: Copy})
    assert seen.phase == "completed" and not seen.incomplete, "nothing more will come, and all that was logged is here"
    assert seen.reason == "its pod ended before all outputs had been copied: no room"
    Copy.landed = True
    assert verdict.ended(place, {"nodes": 1}, {0: gone}, {0: Copy}).reason == "", "all is here; they do not know"
    write_json(f"{place.path}/node-0/left.json", {"count": 3, "paths": [["outputs/x", "File name too long"]]})
    assert verdict.ended(place, {"nodes": 1}, {0: gone}, {0: Copy}).reason == (
        "outputs/x could not be kept here: File name too long; nor could 2 other files")


def test_the_node_that_failed_first_speaks_for_all(place):
    tell(place, 0, phase="canceled", reason="stopped: the supervisor got signal 15", ended_at=9.0)
    tell(place, 1, phase="failed", reason="rank 1 ended with exit code 1: ValueError: x", exit_code=1, failed_rank=1,
         traceback=["ValueError: x"], ended_at=8.0)
    seen = verdict.ended(place, NOTE, {}, {})
    assert (seen.phase, seen.failed_rank, seen.reason) == ("failed", 1, "rank 1 ended with exit code 1: ValueError: x")
    assert seen.traceback == ["ValueError: x"] and seen.cause == ""


def test_a_pod_that_the_cluster_ended_is_no_wish_of_the_user(place):
    tell(place, 0, phase="canceled", reason="stopped: the supervisor got signal 15", ended_at=9.0)
    seen = verdict.ended(place, {"nodes": 1}, {}, {})
    assert (seen.phase, seen.cause) == ("failed", "lost") and "evicted or preempted" in seen.reason
    place.job.ask_stop(1, 5.0)
    tell(place, 0, phase="canceled", reason="stopped", ended_at=9.0)
    assert verdict.ended(place, {"nodes": 1}, {}, {}).phase == "canceled"


def test_while_a_pod_is_taken_away_it_is_told(place):
    tell(place, 0, phase="stopping", reason="stopped: the supervisor got signal 15")
    seen = verdict.running(place, {"nodes": 1}, {0: pod()}, {}, "")
    assert (seen.phase, seen.reason) == (
        "stopping", "the cluster takes its pod away; it has a moment for a last checkpoint")
    place.job.ask_stop(1, 5.0)
    assert "supervisor" in verdict.running(place, {"nodes": 1}, {0: pod()}, {}, "").reason


@pytest.mark.parametrize(("seen", "words", "cause"), [
    ({"gone": True}, "its pod was deleted on the cluster", "lost"),
    (pod({"terminated": {"reason": "OOMKilled", "exitCode": 137}}, "terminated", "Failed"), "lack of memory", "memory"),
    (pod({"terminated": {"exitCode": 1, "message": "the inputs could not be unpacked: x"}}, "terminated", "Failed"),
     "the inputs could not be unpacked: x", "lost"),
    (pod(None, "terminated", "Failed", reason="DeadlineExceeded"), "ran longer than limits.timeout", "timeout"),
    (pod(None, "terminated", "Failed", reason="Evicted", message="The node was low on resource: memory."),
     "the node evicted it: The node was low on resource: memory.", "lost"),
    (pod(None, "terminated", "Failed", conditions=[
        {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "m"}]),
     "preempted by a job of higher priority", "preempted"),
    (pod(None, "terminated", "Failed", conditions=[
        {"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager", "message": "m"}]),
     "its node is lost", "lost"),
])
def test_a_pod_that_ended_without_a_word_of_its_supervisor(place, seen, words, cause):
    seen = {"metadata": {"name": "p"}, **seen}
    tell(place, 0, phase="running", started_at=1.0, ranks=[{"rank": 0, "pid": 7, "exit_code": None}])
    found = verdict.ended(place, {"nodes": 1}, {0: seen}, {})
    assert found.phase == "failed" and words in found.reason and found.cause == cause
    assert [(r.rank, r.running) for r in found.ranks] == [(0, False)]


def test_what_an_attempt_waits_for(place):
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    waiting = pod({"waiting": {}}, "waiting", "Pending", conditions=[
        {"type": "PodScheduled", "status": "False", "message": message}])
    assert verdict.running(place, {"nodes": 1}, {}, {}, "").reason == "waiting for the cluster to make its pods"
    assert verdict.running(place, {"nodes": 1}, {0: waiting}, {}, "").reason == (
        "no node has room: not enough nvidia.com/gpu on 3 of 3 nodes; it waits")
    assert verdict.running(place, NOTE, {0: pod(), 1: waiting}, {}, "").reason.startswith("pod 1: no node has room")
    done = pod({"terminated": {"exitCode": 0}})
    assert verdict.running(place, {"nodes": 1}, {0: done}, {}, "").reason == "its outputs are being copied"
    image = pod({"waiting": {"reason": "ErrImagePull", "message": "not found"}}, "waiting", "Pending")
    assert "the image 'a:1' cannot be pulled" in verdict.running(place, {"nodes": 1}, {0: image}, {}, "").reason
    message = 'pods "x" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1'

    def events(kind, name):
        return [{"reason": "FailedCreate", "message": message}] if (kind, name) == ("Job", "a-1") else []

    seen = verdict.running(place, {"nodes": 1, "job": "a-1"}, {}, {}, "", events)
    assert seen.reason.startswith("the quota 'small' of the namespace is used up")
    queued = verdict.running(place, {"nodes": 1, "job": "b-1", "queue": "team"}, {}, {}, "", events)
    assert queued.reason == "it waits in Kueue's queue 'team'"
    tell(place, 0, phase="running", started_at=1.0, ranks=[{"rank": 0, "pid": 7, "exit_code": None}])
    seen = verdict.running(place, {"nodes": 1}, {0: pod()}, {}, "")
    assert (seen.phase, seen.reason, seen.ranks[0].running) == ("running", "", True)
    assert verdict.running(place, {"nodes": 1}, {0: pod()}, {}, "away").reason == "away", "and it is running still"
    tell(place, 0, phase="stopping", reason="stopped", ranks=[{"rank": 0, "pid": 7, "exit_code": None}])
    assert verdict.running(place, {"nodes": 1}, {0: pod()}, {}, "").phase == "stopping"


def test_nothing_is_started_that_shall_end(tmp_path):
    driver = KubernetesCompute("w", "gpu", ComputeSpec(type="kubernetes", namespace="ns", training={"image": "a:1"}))
    folder = tmp_path / "jobs" / "a"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"cell": {"source": "1"}}))
    job = JobRef("a", folder)
    assert driver.observe(job, 1).phase == "absent"
    driver.stop(job, 1, 1.0)
    driver.start(job, 1, {})  # no cluster is asked
    seen = driver.observe(job, 1)
    assert (seen.phase, seen.reason) == ("canceled", "stopped before it started")
    driver.delete(job)


def test_the_role_has_both_parts():
    both = access.role("mlops", "ns")["rules"]
    assert {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "create", "patch", "delete"]} in both
    pods = next(r for r in both if r["resources"] == ["pods"])
    assert pods["verbs"] == ["get", "list", "patch", "watch"]
    training = access.role("mlops", "ns", serving=False)["rules"]
    assert not any(r["resources"] == ["deployments"] for r in training)


# -- instance types and previews ------------------------------------------------------------------------------------


def test_an_instance_type_is_a_kind_of_node_with_amounts():
    kind = InstanceType.model_validate({
        "nodeSelector": {"gpu": "a100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}], "price": 3.5,
        "resources": {"requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"nvidia.com/gpu": "1", "memory": "16Gi"}}})

    def made(**resources):
        spec = JobSpec.model_validate({"cell": {"source": "1"}, "resources": resources})
        return manifests._pod(NAMES, Order(spec, TrainingOptions(image="a:1"), "a:1", None, kind))

    pod = made()
    assert pod["nodeSelector"] == {"gpu": "a100"} and pod["tolerations"] == [{"key": "gpu", "operator": "Exists"}]
    assert pod["containers"][0]["resources"] == {
        "requests": {"cpu": "4", "memory": "16Gi"}, "limits": {"nvidia.com/gpu": "1", "memory": "16Gi"}}
    more = made(cpus=2, memory="8Gi", gpus=2)["containers"][0]["resources"]
    assert more == {"requests": {"cpu": "2000m", "memory": "8Gi"}, "limits": {"nvidia.com/gpu": "2", "memory": "8Gi"}}


def test_instance_types_are_known_by_name_and_one_is_the_default():
    spec = ComputeSpec(type="kubernetes", namespace="ns", training={"image": "a:1"}, instance_types={
        "default": {"resources": {"requests": {"cpu": "1"}}}, "gpu-a": {"nodeSelector": {"gpu": "a"}}})
    driver = KubernetesCompute("w", "gpu", spec)

    def kind(**resources):
        return driver._admission._instance(JobSpec.model_validate({"cell": {"source": "1"}, "resources": resources}))

    assert kind().resources.requests == {"cpu": "1"} and kind(instance_type="gpu-a").node_selector == {"gpu": "a"}
    with pytest.raises(Refused) as error:
        driver.check({"cell": {"source": "1"}, "resources": {"instance_type": "gpu-b"}})
    assert "no instance type 'gpu-b'" in error.value.message and error.value.hint == "it has default, gpu-a"
    with pytest.raises(ValueError, match="is no quantity"):
        ComputeSpec(type="kubernetes", namespace="ns", instance_types={"a": {"resources": {"limits": {"cpu": "much"}}}})


class Cluster:
    """An API that answers a preview."""

    cluster = "gpu"
    namespace = "ns"

    def __init__(self, machines=None, limits=(), refusal=None):
        self.machines, self.limits, self.refusal = machines, limits, refusal
        self.dry = []

    def apply(self, manifest, owned, dry_run=False):
        assert dry_run
        self.dry.append(manifest)
        if self.refusal:
            raise self.refusal
        return manifest

    def call(self, method, path, body=None, query=None, *, what=""):
        if path.endswith("/nodes"):
            if self.machines is None:
                raise NotAllowed("no")
            return {"items": self.machines}
        assert path.endswith("/resourcequotas")
        return {"items": [{"metadata": {"name": "q"}, "status": {
            "hard": {r: h for r, h, _ in self.limits}, "used": {r: u for r, _, u in self.limits}}}]}


def machine(cpu="8", memory="32Gi", taints=(), labels=None, ready="True", **devices):
    return {"metadata": {"name": "n", "labels": labels or {}}, "spec": {"taints": list(taints)}, "status": {
        "allocatable": {"cpu": cpu, "memory": memory, **{k.replace("_", "/"): v for k, v in devices.items()}},
        "conditions": [{"type": "Ready", "status": ready}]}}


def look(cluster, **more):
    return preview(cluster, NAMES, order(**{"resources": {"instance_count": 2, "cpus": 4, "memory": "8Gi"}, **more}))


TAINT = {"key": "special", "effect": "NoSchedule"}


@pytest.mark.parametrize(("machines", "fits", "words"), [
    (None, None, ""),
    ([machine(labels={"pool": "gpu"})], True, ""),
    ([machine()], False, "no node has the labels that are asked for"),
    ([machine(labels={"pool": "gpu"}, ready="False")], False, "no node of the cluster takes pods now"),
    ([machine(labels={"pool": "gpu"}, taints=[TAINT])], False,
     "the nodes with taint special:NoSchedule are not for it"),
    ([machine(labels={"pool": "gpu"}, taints=[{**TAINT, "key": "gpu"}])], True, ""),
    ([machine(labels={"pool": "gpu"}, taints=[{**TAINT, "effect": "PreferNoSchedule"}])], True, ""),
    ([machine("2", labels={"pool": "gpu"}), machine("3", labels={"pool": "gpu"})], False,
     "no node has 4 CPUs: the largest has 3 CPUs"),
    ([machine(memory="4Gi", labels={"pool": "gpu"})], False, "no node has 8.0 GiB: the largest has 4.0 GiB"),
])
def test_a_preview_says_whether_a_node_could_hold_a_pod(machines, fits, words):
    found = look(Cluster(machines))
    assert (found["fits"], " ".join(found["reasons"])) == (fits, words)
    assert found["manifest"]["kind"] == "Job" and found["instances"] == 2


def test_a_preview_counts_gpus_quotas_and_money():
    free = [machine(labels={"pool": "gpu"}, **{"amd.com_gpu": "4"})]
    resources = {"instance_count": 2, "gpus": 8}
    assert look(Cluster(free), resources=resources)["reasons"] == [
        "no node has 8 amd.com/gpu: the largest has 4 amd.com/gpu"]
    limits = [("requests.cpu", "10", "6"), ("pods", "10", "1"), ("requests.memory", "20Gi", "2Gi"),
              ("secrets", "1", "1")]
    found = look(Cluster(free, limits))
    assert found["fits"] is False and found["reasons"] == [
        "the quota 'q' leaves 4 of requests.cpu, 8 are asked for; it waits until others end"]
    assert look(Cluster(free, limits), resources={"cpus": 4})["fits"] is True
    refused = look(Cluster(free, refusal=Refused("the namespace's security level forbids it: x")))
    assert (refused["fits"], refused["reasons"]) == (False, ["the namespace's security level forbids it: x"])
    priced = Order(JobSpec(command="true"), TrainingOptions(image="a:1"), "a:1", None, InstanceType(price=2.5))
    assert preview(Cluster([machine()]), NAMES, priced)["price_per_hour"] == 2.5
