"""The route from pods of a real cluster to here. CLUSTER_HOST is the address at which pods reach this machine."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))

from cluster_bench import IMAGE, cluster, fresh_namespace, namespace
from conformance import Bench, wait_for
from ways import Way

from jupyter_mlops.compute.kubernetes import copy
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.core.resources.compute import ComputeSpec

HOST = os.environ.get("CLUSTER_HOST", "")
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(not HOST, reason="CLUSTER_HOST is not set")]
__all__ = ["cluster", "fresh_namespace", "namespace"]
SIZE = 100_000_000
WRITES = f"""
import hashlib, random, time
data = random.Random(1).randbytes({SIZE // 4}) * 4
open("model.bin", "wb").write(data)
for i in range(200):
    print("line", i, flush=True)
print(hashlib.sha256(data).hexdigest())
"""


class Pods(Bench):
    """Pods of a cluster have no processes here."""

    def family(self, job) -> list[int]:
        return []

    def close(self) -> None:
        for driver in self.drivers:
            for job in self.jobs:
                driver.delete(job)
            driver.close()


@pytest.fixture
def bench(namespace, tmp_path, monkeypatch):
    """``bench.options``: what the compute says of its route; ``bench.executed``: in which pods was executed."""
    enter = copy.Exec.__aenter__

    async def count(self):
        bench.executed.append(self.pod)
        return await enter(self)

    monkeypatch.setattr(copy.Exec, "__aenter__", count)
    with socket.socket() as s:
        s.bind((HOST, 0))
        port = s.getsockname()[1]

    def make():
        spec = ComputeSpec(type="kubernetes", namespace=namespace, training={
            "image": IMAGE, "hold": 60, "route": bench.options})
        bench.drivers.append(KubernetesCompute("routed", "cluster", spec, certificate=tmp_path / "route.pem"))
        return bench.drivers[-1]

    bench = Pods.__new__(Pods)
    bench.drivers, bench.executed, bench.options = [], [], {"listen": f"{HOST}:{port}"}
    bench.__init__(make, tmp_path / "home")
    yield bench
    bench.close()


def came(bench, job) -> None:
    found = (job.folder / "outputs" / "model.bin").read_bytes()
    *lines, digest = bench.log(job).splitlines()
    assert len(found) == SIZE and hashlib.sha256(found).hexdigest() == digest
    assert lines == [f"line {i}" for i in range(200)]


def test_all_comes_by_the_route(bench):
    job = bench.cell("a", WRITES)
    began = time.monotonic()
    seen = bench.ended(job, 150)
    print(f"100 MB: {time.monotonic() - began:.1f} s with all")
    assert seen.phase == "completed" and seen.route == f"by the route {bench.options['listen']}", seen
    came(bench, job)
    assert not bench.executed


def test_a_route_that_is_cut(bench):
    """Executions take over where it was."""
    way = Way(bench.options["listen"], HOST)
    try:
        bench.options["address"] = way.address
        bench.driver = bench.make()
        way.cut_after = 30_000_000
        job = bench.cell("b", WRITES)
        wait_for(lambda: (bench.observe(job), way.cuts)[1] == 1, 120)
        way.pause()
        seen = bench.ended(job, 150)
        assert seen.phase == "completed" and "over the cluster's API" in seen.route, seen
        came(bench, job)
        assert bench.executed
    finally:
        way.close()
