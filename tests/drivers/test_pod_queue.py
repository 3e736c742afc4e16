"""A job in a queue of Kueue, against an emulated API: what it waits for, and that it begins when Kueue lets it."""

from __future__ import annotations

import pytest
from conformance import wait_for
from test_pods import bench as pod_bench
from test_pods import server

from jupyter_mlops.compute.kubernetes import queue

__all__ = ["pod_bench", "server"]
FULL = "couldn't assign flavors to pod set main: insufficient unused quota for cpu in flavor default, 1 more needed"


@pytest.fixture
def bench(pod_bench, server, monkeypatch):
    monkeypatch.setattr(queue, "AGAIN", 0.1)
    server.groups.add(queue.GROUP)
    pod_bench.driver = pod_bench.another(queue="team-queue")
    return pod_bench


def workload(uid: str, kind: str, status: str, message: str = "") -> dict:
    return {"apiVersion": "kueue.x-k8s.io/v1beta1", "kind": "Workload", "spec": {},
            "metadata": {"name": "job-a", "labels": {queue.JOB_UID: uid}},
            "status": {"conditions": [{"type": kind, "status": status, "message": message}]}}


def test_it_waits_until_kueue_lets_it_begin(bench, server):
    job = bench.cell("queued", "print('ran')")
    (made,) = server.of("jobs")
    assert made["spec"]["suspend"] is True and made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"

    def says(words):
        return wait_for(lambda: words in bench.observe(job).reason and bench.observe(job))

    assert says("Kueue has not taken it into its queue 'team-queue' yet").phase == "starting"
    server.put("workloads", workload(made["metadata"]["uid"], "QuotaReserved", "False", FULL))
    assert says(FULL).reason == f"it waits in Kueue's queue 'team-queue': {FULL}"
    server.put("workloads", workload(made["metadata"]["uid"], "Admitted", "True"))
    says("lets it begin")
    bench.driver.kube.merge("Job", made["metadata"]["name"], {"spec": {"suspend": False}})
    assert bench.ended(job).phase == "completed" and bench.log(job) == "ran\n"


def test_a_queue_is_looked_at_when_it_is_named(bench, server):
    from jupyter_mlops.compute.kubernetes.survey import survey

    found = survey(bench.driver.kube, bench.driver.spec)
    assert found["engines"]["kueue"] is True
    assert any("no LocalQueue 'team-queue'" in p["message"] and p["fatal"] for p in found["problems"])
    server.put("localqueues", {"kind": "LocalQueue", "metadata": {"name": "team-queue"}})
    assert not any("LocalQueue" in p["message"] for p in survey(bench.driver.kube, bench.driver.spec)["problems"])
