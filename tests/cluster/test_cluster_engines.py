"""What other engines of a cluster are told: Kubeflow Trainer and Kueue. Their definitions have to be there, their
controllers need not; each test is skipped where they are not."""

from __future__ import annotations

import json
import time

import pytest
from cluster_bench import IMAGE, cluster, namespace
from conftest import wait_for
from test_cluster_elastic import ClusterBench

from jupyter_mlops.compute.kubernetes import queue, trainjob
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.compute.kubernetes.survey import survey
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.kube.client import Kube

pytestmark = pytest.mark.cluster
__all__ = ["cluster", "namespace"]
TWO = {"distribution": {"type": "pytorch"}, "resources": {"instance_count": 2, "cpus": 0.1}}


@pytest.fixture
def kube(namespace):
    return Kube("cluster", namespace=namespace)


def bench_of(namespace, tmp_path, **training):
    spec = ComputeSpec(type="kubernetes", namespace=namespace, training={"image": IMAGE, "hold": 30, **training})
    return ClusterBench(lambda: KubernetesCompute(f"w{tmp_path.name[-20:]}", "cluster", spec), tmp_path / "home")


def test_a_trainjob(namespace, kube, tmp_path):
    if not kube.has_group(trainjob.GROUP):
        pytest.skip("no Kubeflow Trainer")
    bench = bench_of(namespace, tmp_path, flavour="trainjob")
    assert not [p for p in survey(bench.driver.kube, bench.driver.spec)["problems"] if p["fatal"]]
    seen = bench.driver.preview("train", {"cell": {"source": "pass"}, **TWO})
    assert seen["reasons"] == [] and [o["kind"] for o in seen["manifest"]["items"]] == ["TrainingRuntime", "TrainJob"]
    job = bench.job("train", cell={"source": "import time\ntime.sleep(600)"}, **TWO)
    bench.driver.start(job, 1, {})
    note = json.loads((job.folder / "attempts" / "1" / "cluster.json").read_text())
    made = kube.get("TrainJob", note["job"])
    assert made["spec"]["suspend"] is False and made["spec"]["runtimeRef"]["name"] == note["job"]
    runtime = kube.get("TrainingRuntime", note["job"])
    (inner,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = inner["template"]["spec"]["template"]["spec"]
    assert pod["initContainers"][0]["restartPolicy"] == "Always", "the API has kept the sidecar what it is"
    assert inner["template"]["spec"]["podFailurePolicy"] and inner["template"]["spec"]["completions"] == 2
    assert runtime["metadata"]["ownerReferences"][0]["uid"] == made["metadata"]["uid"]
    wait_for(lambda: bench.observe(job).phase in ("starting", "running"))
    bench.driver.stop(job, 1, 1.0)
    assert bench.ended(job, 120).phase == "canceled"
    wait_for(lambda: not any(kube.get(kind, note["job"]) for kind in ("TrainJob", "TrainingRuntime")), 60)
    bench.driver.close()


def test_a_job_in_a_queue_of_kueue(namespace, kube, tmp_path):
    if not kube.has_group(queue.GROUP):
        pytest.skip("no Kueue")
    version = f"{queue.GROUP}/{kube.group_version(queue.GROUP)}"
    bench = bench_of(namespace, tmp_path, queue="team")

    def problems():
        return [p["message"] for p in survey(bench.driver.kube, bench.driver.spec)["problems"] if p["fatal"]]

    assert problems() == [f"there is no LocalQueue 'team' in namespace '{namespace}'"]
    kube.call("POST", queue.path(kube, queue.GROUP, "localqueues"), {
        "apiVersion": version, "kind": "LocalQueue", "metadata": {"name": "team"}, "spec": {"clusterQueue": "none"}})
    assert problems() == []
    seen = bench.driver.preview("queued", {"cell": {"source": "pass"}, **TWO})
    assert seen["reasons"] == [] and seen["manifest"]["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    job = bench.job("queued", cell={"source": "pass"}, **TWO)
    bench.driver.start(job, 1, {})
    note = json.loads((job.folder / "attempts" / "1" / "cluster.json").read_text())
    assert kube.get("Job", note["job"])["spec"]["suspend"] is True
    wait_for(lambda: "Kueue" in bench.observe(job).reason)
    workloads = queue.path(kube, queue.GROUP, "workloads")
    time.sleep(3)
    if not kube.call("GET", workloads)["items"]:  # Kueue itself is not there: what it would write is written here
        pod = {"spec": {"restartPolicy": "Never", "containers": [{"name": "job", "image": IMAGE}]}}
        made = kube.call("POST", workloads, {
            "apiVersion": version, "kind": "Workload",
            "metadata": {"name": "job-queued", "labels": {queue.JOB_UID: note["uid"]}},
            "spec": {"queueName": "team", "podSets": [{"name": "main", "count": 2, "template": pod}]}})
        made["status"] = {"conditions": [{
            "type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "ClusterQueue none is missing",
            "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        kube.call("PUT", f"{workloads}/job-queued/status", made)
    wait_for(lambda: bench.observe(job).reason.startswith("it waits in Kueue's queue 'team'")
             and "none" in bench.observe(job).reason, 30)
    bench.driver.stop(job, 1, 1.0)
    assert bench.ended(job, 60).phase == "canceled"
    bench.driver.close()
