"""Elastic jobs and TensorFlow's workers on a real cluster: nodes that join, one that is evicted, and one that never
comes; the driver alone, as a control plane uses it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from cluster_bench import IMAGE, cluster, fresh_namespace, namespace
from conftest import Plane, make_home, wait_for

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))

from conformance import Bench
from test_elastic import TALK, TRAIN, points

from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.core.resources.job import JobSpec
from jupyter_mlops.kube.client import Kube

pytestmark = pytest.mark.cluster
TORCH = os.environ.get("CLUSTER_TORCH_IMAGE", "")
__all__ = ["cluster", "fresh_namespace", "namespace"]


class ClusterBench(Bench):
    def submit(self, name: str, source: str, kind: str, resources: dict, **more):
        if kind == "pytorch" and not TORCH:
            pytest.skip("needs CLUSTER_TORCH_IMAGE, an image with torch")
        spec = JobSpec.model_validate({"cell": {"source": source}, "distribution": {"type": kind, **more.pop("of", {})},
                                       "resources": {"cpus": 0.1, **resources}, **more})
        job = self.job(name, **spec.model_dump(mode="json"))
        self.driver.start(job, 1, {"JUPYTER_MLOPS_JOB": name, "JUPYTER_MLOPS_RUN_ID": "0" * 32})
        return job


@pytest.fixture
def bench(namespace, tmp_path):
    spec = ComputeSpec(type="kubernetes", namespace=namespace, training={"image": TORCH or IMAGE, "hold": 30})
    drivers = []

    def make():
        drivers.append(KubernetesCompute(f"w{tmp_path.name[-20:]}", "cluster", spec))
        return drivers[-1]

    yield ClusterBench(make, tmp_path / "home")
    for driver in drivers:
        driver.close()


@pytest.fixture
def kube(namespace):
    return Kube("cluster", namespace=namespace)


def pod_of(kube, job: str, index: int) -> str:
    pods = kube.list("Pod", {"jupyter-mlops.io/job": job})
    return next(p["metadata"]["name"] for p in pods
                if p["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == str(index))


def test_only_the_least_fit(bench, kube, cluster):
    """Of two pods one never gets its devices: the job begins and ends with the other."""
    node = cluster.call("GET", "/api/v1/nodes")["items"][0]["status"]["allocatable"]
    have = int(node.get("nvidia.com/gpu", 0))
    if have < 1:
        pytest.skip("no nvidia.com/gpu on the cluster")
    job = bench.submit("least", TRAIN.format(steps=20, fail="False"), "pytorch",
                       {"instance_count": 1, "max_instance_count": 2, "gpus": have})
    seen = bench.ended(job, 300)
    assert seen.phase == "completed", (seen, bench.log(job))
    assert bench.log(job).splitlines()[-2:] == ["begin 0 world 1", "done 1"]
    assert points(job, "world") == [(n, 1.0) for n in range(20)]
    wait_for(lambda: not kube.list("Pod", {"jupyter-mlops.io/job": "least"}), 60)


def test_a_quota_lets_only_the_least_in(cluster, fresh_namespace):
    """As a control plane runs it: the job is Completed, and all of its metrics are in MLflow."""
    if not TORCH:
        pytest.skip("needs CLUSTER_TORCH_IMAGE, an image with torch")
    cluster.call("POST", f"/api/v1/namespaces/{fresh_namespace}/resourcequotas", {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": {"pods": "1"}}})
    plane = Plane(make_home()).start().mlflow_ready()
    try:
        plane.put("computes/gpu", {"type": "kubernetes", "namespace": fresh_namespace,
                                   "training": {"image": TORCH, "hold": 30}})
        plane.put("jobs/least", {"compute": "gpu", "cell": {"source": TRAIN.format(steps=50, fail="False")},
                                 "distribution": {"type": "pytorch"},
                                 "resources": {"instance_count": 1, "max_instance_count": 3, "cpus": 0.1}})

        def ended():
            status = plane.get("jobs/least")["status"]
            return status["phase"] in ("Completed", "Failed", "Canceled") and status

        status = wait_for(ended, 240)
        assert status["phase"] == "Completed", status
        metrics = plane.get(f"runs/{status['run_id']}/metrics")["metrics"]
        assert metrics["x"]["values"] == [float(n) for n in range(50)]
        assert set(metrics["world"]["values"]) == {1.0} and not status["metrics_incomplete"]
    finally:
        plane.stop()


@pytest.mark.timeout(900)
def test_a_node_is_evicted_and_the_other_goes_on(bench, kube):
    job = bench.submit("elastic", TRAIN.format(steps=400, fail="False"), "pytorch",
                       {"instance_count": 1, "max_instance_count": 2})
    wait_for(lambda: bench.observe(job) and "world 2" in bench.log(job), 240)
    assert bench.observe(job).reason == "on 2 of 1 to 2 nodes"
    before = bench.log(job).count("begin")
    name = pod_of(kube, "elastic", 1)
    kube.call("POST", f"{kube.path('Pod', name)}/eviction", {
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": kube.namespace}})
    wait_for(lambda: bench.observe(job) and bench.log(job).count("begin") > before, 240)
    seen = bench.ended(job, 300)
    assert seen.phase == "completed", (seen, bench.log(job))
    assert [step for step, _ in points(job, "x")] == list(range(400)), "none is missing, none is there twice"
    wait_for(lambda: not kube.list("Pod", {"jupyter-mlops.io/job": "elastic"}), 60)


def test_tensorflow_workers_hear_each_other(bench):
    job = bench.submit("flow", TALK, "tensorflow", {"instance_count": 2}, of={"worker_count": 4})
    seen = bench.ended(job, 180)
    assert seen.phase == "completed", (seen, bench.log(job))
    for rank in range(4):
        assert bench.log(job, rank) == f"worker {rank} of 4 heard [0, 1, 2, 3]\n"


def test_ranks_use_the_interface_of_their_pod(bench):
    source = ("import json, os, socket\n"
              "names = {k: os.environ.get(k) for k in ('NCCL_SOCKET_IFNAME', 'GLOO_SOCKET_IFNAME')}\n"
              "names['all'] = [name for _, name in socket.if_nameindex()]\nprint(json.dumps(names))\n")
    for name, chosen in (("faces", {}), ("chosen", {"GLOO_SOCKET_IFNAME": "lo"})):
        job = bench.submit(name, source, "tensorflow", {"instance_count": 2}, environment_variables=chosen)
        assert bench.ended(job, 180).phase == "completed"
        for rank in (0, 1):
            found = json.loads(bench.log(job, rank))
            (other,) = [n for n in found["all"] if n != "lo" and n == found["NCCL_SOCKET_IFNAME"].lstrip("=")]
            assert found["GLOO_SOCKET_IFNAME"] == ("lo" if chosen else other)
