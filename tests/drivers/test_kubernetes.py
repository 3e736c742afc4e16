"""The driver of a cluster, against the one that KUBECONFIG names: the conformance suite."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random

import pytest
from conformance import Bench, Conformance

from jupyter_mlops.compute.base import JobRef
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.compute.kubernetes.manifests import MAIN
from jupyter_mlops.compute.kubernetes.verdict import main_runs
from jupyter_mlops.core.errors import MlopsError
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.kube.client import Kube
from jupyter_mlops.kube.exec import Exec

pytestmark = pytest.mark.cluster
TORCH = os.environ.get("CLUSTER_TORCH_IMAGE", "")
IMAGE = TORCH or os.environ.get("CLUSTER_IMAGE", "docker.io/library/python:3.11-slim")


@pytest.fixture(scope="module")
def namespace():
    kube = Kube("cluster")
    name = f"mlops-test-{random.getrandbits(32):08x}"
    kube.call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": name, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}}})
    yield name
    kube.call("DELETE", f"/api/v1/namespaces/{name}")


class ClusterBench(Bench):
    """Looks at processes from within their pod."""

    def inside(self, code: str, *arguments: str) -> str:
        driver = self.driver

        async def ask() -> str:
            said = b""
            command = ["python3", "-c", code, *arguments]
            for pod in [p for p in driver.follower.watch.pods.values() if main_runs(p)]:
                with contextlib.suppress(MlopsError):
                    async with Exec(driver.kube, pod["metadata"]["name"], MAIN, command) as channel:
                        async for data in channel.output():
                            said += data
            return said.decode()

        return asyncio.run(ask())

    def lives(self, pid: int) -> str:
        return self.inside("""
import os, sys
try:
    print(open(f"/proc/{sys.argv[1]}/stat").read().rpartition(")")[2].split()[19])
except OSError:
    pass
""", str(pid))

    def kill(self, pid: int) -> None:
        self.inside("import os, sys; os.kill(int(sys.argv[1]), 9)", str(pid))

    def family(self, job: JobRef) -> list[int]:
        return []  # they end with their pod


@pytest.fixture
def bench(tmp_path, namespace):
    spec = ComputeSpec(type="kubernetes", namespace=namespace, training={"image": IMAGE, "hold": 20})
    workspace = f"w{random.getrandbits(32):08x}"
    drivers = []

    def make():
        drivers.append(KubernetesCompute(workspace, "cluster", spec))
        return drivers[-1]

    bench = ClusterBench(make, tmp_path / "home")
    yield bench
    for job in bench.jobs:
        drivers[0].kube.delete("Job", drivers[0]._names(job, 1).object, 0)
    for driver in drivers:
        driver.close()


class TestCluster(Conformance):
    if not TORCH:  # several ranks need torch in the image
        test_two_ranks = test_the_failing_rank_is_named = test_a_killed_rank_of_two_is_named = None
