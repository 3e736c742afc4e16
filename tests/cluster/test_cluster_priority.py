"""Priorities on a real cluster: a job that must make room goes on from its checkpoint, under the same run."""

from __future__ import annotations

import random

import pytest
from cluster_bench import IMAGE, cluster, namespace
from conftest import Plane, make_home, wait_for
from test_cluster_jobs import ended, objects

from jupyter_mlops.compute.kubernetes.priority import PATH
from jupyter_mlops.kube.client import Kube

pytestmark = pytest.mark.cluster
__all__ = ["cluster", "namespace"]
STEPS = """
import os, time
from jupyter_mlops import log
start = int(open("checkpoint").read()) if os.path.exists("checkpoint") else 0
print("attempt", os.environ["JUPYTER_MLOPS_ATTEMPT"], "from", start, flush=True)
for step in range(start, 60):
    log({"x": float(step)}, step=step)
    with open("checkpoint.new", "w") as f:
        f.write(str(step + 1))
    os.replace("checkpoint.new", "checkpoint")
    time.sleep(0.5)
print("done", flush=True)
"""


@pytest.fixture(scope="module")
def classes(cluster):
    """Two PriorityClasses of our own."""
    stem = f"mlops-test-{random.getrandbits(32):08x}"
    made = {"low": f"{stem}-low", "high": f"{stem}-high"}
    for number, name in enumerate(made.values()):
        cluster.call("POST", PATH, {"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass",
                                    "metadata": {"name": name}, "value": 100 + 1000 * number})
    yield made
    for name in made.values():
        cluster.call("DELETE", f"{PATH}/{name}")


@pytest.fixture(scope="module")
def plane(namespace, classes):
    p = Plane(make_home()).start().mlflow_ready()
    p.put("computes/gpu", {"type": "kubernetes", "namespace": namespace, "training": {
        "image": IMAGE, "hold": 20, "priorities": {**classes, "medium": f"{classes['low']}-none"}}})
    yield p
    p.stop()


@pytest.fixture
def devices(cluster):
    """All that there is of a device which the node of the cluster says that it has; skipped where there is none."""
    node = cluster.call("GET", "/api/v1/nodes")["items"][0]["status"]["allocatable"]
    used = 0
    for pod in cluster.call("GET", "/api/v1/pods")["items"]:
        if pod["status"].get("phase") in ("Pending", "Running"):
            used += sum(int(c.get("resources", {}).get("limits", {}).get("nvidia.com/gpu", 0))
                        for c in pod["spec"]["containers"])
    free = int(node.get("nvidia.com/gpu", 0)) - used
    if free < 1:
        pytest.skip("no free nvidia.com/gpu on the cluster")
    return free


def test_a_job_makes_room_and_goes_on(plane, namespace, cluster, devices):
    """A spot job that has all free devices is pushed aside by one of high priority, really, by the scheduler."""
    kube = Kube("cluster", namespace=namespace)
    plane.put("jobs/cheap", {"compute": "gpu", "queue_settings": {"spot": True}, "resources": {"gpus": devices},
                             "limits": {"grace": 2}, "cell": {"source": STEPS}})
    run_id = wait_for(lambda: plane.get("jobs/cheap")["status"]["run_id"], 60)
    wait_for(lambda: "x" in plane.get(f"runs/{run_id}/metrics")["metrics"], 60)
    plane.put("jobs/urgent", {"compute": "gpu", "queue_settings": {"priority": "high"}, "resources": {"gpus": devices},
                              "cell": {"source": "import time\ntime.sleep(3)\nprint('urgent')"}})
    first = wait_for(lambda: plane.get("jobs/cheap")["status"]["attempts"], 60)[0]
    assert (first["phase"], first["cause"]) == ("Failed", "preempted"), first
    assert first["reason"] == "preempted by a job of higher priority"
    assert ended(plane, "urgent", 120)["phase"] == "Completed"
    status = ended(plane, "cheap", 180)
    assert status["phase"] == "Completed" and status["run_id"] == run_id and status["attempt"] == 2, status
    log = (plane.home / "jobs" / "cheap" / "attempts" / "2" / "rank-0.log").read_text().splitlines()
    assert log[0].startswith("attempt 2 from ") and int(log[0].split()[-1]) > 0 and log[-1] == "done", log
    values = plane.get(f"runs/{run_id}/metrics")["metrics"]["x"]["values"]
    assert values == [float(n) for n in range(60)], "no point is missing, none is there twice"
    for name in ("cheap", "urgent"):
        wait_for(lambda n=name: not objects(kube, n), 60)


def test_an_error_of_the_users_is_not_tried_again(plane):
    plane.put("jobs/wrong", {"compute": "gpu", "queue_settings": {"spot": True}, "cell": {"source": "1 / 0"}})
    status = ended(plane, "wrong")
    assert (status["phase"], status["attempt"], status["attempts"]) == ("Failed", 1, []), status
    assert "ZeroDivisionError" in status["reason"] and status["outcome"]["cause"] == ""


def test_a_class_that_is_not_there(plane, classes):
    answer = plane.put("jobs/nowhere", {"compute": "gpu", "cell": {"source": "1"}}, expect=422)
    assert answer["message"].startswith(f"compute 'gpu' has no PriorityClass '{classes['low']}-none'")
    plane.get("jobs/nowhere", expect=404)
    found = plane.get("computes/gpu/survey")
    shown = {p["name"]: p["value"] for p in found["priorities"]}
    assert shown == {"low": 100, "high": 1100, "medium": None}
    assert any(p["fatal"] and f"no PriorityClass '{classes['low']}-none'" in p["message"] for p in found["problems"])
