"""Jobs on a real cluster, as a control plane runs them: metrics, artifacts, results, stop, loss of a pod, restarts."""

from __future__ import annotations

import json
import os

import pytest
from cluster_bench import IMAGE, cluster, namespace
from conftest import Plane, make_home, wait_for

from jupyter_mlops.kube.client import Kube

pytestmark = pytest.mark.cluster
TORCH = os.environ.get("CLUSTER_TORCH_IMAGE", "")
__all__ = ["cluster", "namespace"]


@pytest.fixture(scope="module")
def plane(namespace):
    p = Plane(make_home()).start().mlflow_ready()
    p.put("computes/gpu", {"type": "kubernetes", "namespace": namespace, "training": {"image": IMAGE, "hold": 30}})
    yield p
    p.stop()


@pytest.fixture(scope="module")
def kube(namespace):
    return Kube("cluster", namespace=namespace)


def ended(plane, name: str, timeout: float = 90) -> dict:
    def look():
        status = plane.get(f"jobs/{name}")["status"]
        return status["phase"] in ("Completed", "Failed", "Canceled") and status

    return wait_for(look, timeout, 0.2)


def objects(kube, name: str) -> list[str]:
    """What of a job is left on the cluster."""
    found = []
    for kind in ("Job", "Pod", "Secret", "Service"):
        found += [f"{kind} {o['metadata']['name']}" for o in kube.list(kind, {"jupyter-mlops.io/job": name})]
    return found


def test_a_cell_runs_there_and_leaves_nothing(plane, kube):
    plane.put("jobs/first", {"compute": "gpu", "cell": {"source": """
import os, socket
from jupyter_mlops import log
for step in range(50):
    log({"loss": 1 / (step + 1)}, step=step)
print("on", socket.gethostname(), "as", os.getuid())
open("model.bin", "wb").write(b"x" * 3_000_000)
"""}})
    status = ended(plane, "first")
    assert status["phase"] == "Completed", (status, plane.get("jobs/first/logs/0") if status["attempt"] else "")
    text = plane.call("GET", "jobs/first/logs/0")[1]
    assert "on first-1-" in str(text) and "as 1000" in str(text)
    values = plane.get(f"runs/{status['run_id']}/metrics")["metrics"]["loss"]["values"]
    assert len(values) == 50 and values[0] == 1.0
    assert (plane.home / "jobs" / "first" / "outputs" / "model.bin").stat().st_size == 3_000_000
    wait_for(lambda: not objects(kube, "first"), 60)


def test_the_control_plane_is_killed_meanwhile(plane, kube):
    plane.put("jobs/long", {"compute": "gpu", "cell": {"source": """
import time
from jupyter_mlops import log
for step in range(100):
    log({"x": float(step)}, step=step)
    print("step", step)
    time.sleep(0.1)
"""}})
    wait_for(lambda: plane.get("jobs/long")["status"]["phase"] == "Running", 60)
    for _ in range(2):
        plane.kill()
        plane.start().mlflow_ready()
    status = ended(plane, "long")
    assert status["phase"] == "Completed"
    values = plane.get(f"runs/{status['run_id']}/metrics")["metrics"]["x"]["values"]
    assert values == [float(i) for i in range(100)]
    log = (plane.home / "jobs" / "long" / "attempts" / "1" / "rank-0.log").read_text()
    assert [line for line in log.splitlines() if line.startswith("step ")] == [f"step {i}" for i in range(100)]


def test_a_pod_is_killed_and_tried_again(plane, kube):
    plane.put("jobs/again", {"compute": "gpu", "retry_settings": {"max_retries": 1}, "cell": {"source": """
import os, time
print("attempt", os.environ["JUPYTER_MLOPS_ATTEMPT"], os.path.exists("checkpoint"), flush=True)
open("checkpoint", "w").write("1")
time.sleep(60 if os.environ["JUPYTER_MLOPS_ATTEMPT"] == "1" else 0)
"""}})
    wait_for(lambda: (plane.home / "jobs" / "again" / "outputs" / "checkpoint").exists(), 60)
    for pod in kube.list("Pod", {"jupyter-mlops.io/job": "again"}):
        kube.delete("Pod", pod["metadata"]["name"], 1)
    status = ended(plane, "again")
    assert status["phase"] == "Completed", status
    assert status["attempts"][0]["phase"] == "Failed", json.dumps(status)
    print(status["attempts"][0]["reason"])
    log = (plane.home / "jobs" / "again" / "attempts" / "2" / "rank-0.log").read_text()
    assert log == "attempt 2 True\n"


def test_what_can_never_run_says_why(plane, kube):
    plane.put("jobs/much", {"compute": "gpu", "resources": {"cpus": 512}, "cell": {"source": "1"}})
    reason = wait_for(lambda: "cpu" in (r := plane.get("jobs/much")["status"]["reason"]) and r, 30)
    assert reason.startswith("no node has room: not enough cpu on"), reason
    plane.post("jobs/much/actions/stop", {})
    assert ended(plane, "much")["phase"] == "Canceled"
    wait_for(lambda: not objects(kube, "much"), 30)


def test_two_nodes_train_as_one_does(plane, kube):
    """Two pods of two ranks each: DistributedDataParallel, whose losses equal those of a run on this machine."""
    source = """
import os
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from jupyter_mlops import log

dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
print("rank", rank, "of", world)
torch.manual_seed(0)
X = torch.randn(64, 5)
y = X @ torch.arange(5.0) + 1
model = DistributedDataParallel(torch.nn.Linear(5, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
for step in range(20):
    part = slice(rank * 64 // world, (rank + 1) * 64 // world)
    loss = ((model(X[part]).squeeze() - y[part]) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    total = loss.detach().clone()
    dist.all_reduce(total)
    if rank == 0:
        log({"loss": (total / world).item()}, step=step)
dist.destroy_process_group()
"""
    if not TORCH:
        pytest.skip("needs CLUSTER_TORCH_IMAGE, an image with torch")
    plane.put("computes/torch", {"type": "kubernetes", "namespace": kube.namespace,
                                 "training": {"image": TORCH, "hold": 30}})
    two = {"type": "pytorch", "process_count_per_instance": 2}
    plane.put("jobs/wide", {"compute": "torch", "distribution": two, "resources": {"instance_count": 2},
                            "cell": {"source": source}})
    status = ended(plane, "wide", 180)
    assert status["phase"] == "Completed", (status["reason"], status["log_tail"])
    assert [r["exit_code"] for r in status["ranks"]] == [0, 0, 0, 0]
    folder = plane.home / "jobs" / "wide" / "attempts" / "1"
    for rank in range(4):
        assert f"rank {rank} of 4" in (folder / f"rank-{rank}.log").read_text()
    plane.put("jobs/narrow", {"distribution": two, "cell": {"source": source}})
    local = ended(plane, "narrow", 120)
    assert local["phase"] == "Completed", local
    there, here = (plane.get(f"runs/{s['run_id']}/metrics")["metrics"]["loss"]["values"] for s in (status, local))
    assert len(there) == 20 and there == pytest.approx(here, rel=1e-4) and there[-1] < there[0] / 5
    wait_for(lambda: not objects(kube, "wide"), 60)


def test_a_node_that_fails_ends_the_others(plane, kube):
    if not TORCH:
        pytest.skip("needs CLUSTER_TORCH_IMAGE, an image with torch")
    plane.put("jobs/uneven", {"compute": "torch", "distribution": {"type": "pytorch"}, "limits": {"grace": 1},
                              "resources": {"instance_count": 2}, "cell": {"source": """
import os, time
print("rank", os.environ["RANK"])
if os.environ["RANK"] == "1":
    raise RuntimeError("only here")
time.sleep(60)
"""}})
    status = ended(plane, "uneven", 120)
    assert (status["phase"], status["failed_rank"], status["exit_code"]) == ("Failed", 1, 1), status
    assert status["reason"] == "rank 1 ended with exit code 1: RuntimeError: only here"
    assert status["traceback"][-1] == "RuntimeError: only here"
