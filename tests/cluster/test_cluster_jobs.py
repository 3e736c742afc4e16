"""Jobs on a real cluster, as a control plane runs them: metrics, artifacts, results, stop, loss of a pod, restarts."""

from __future__ import annotations

import base64
import hashlib
import json
import os

import pytest
from cluster_bench import IMAGE, cluster, fresh_namespace, namespace
from conftest import Plane, make_home, wait_for

from jupyter_mlops.compute.base import JobRef
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.compute.kubernetes.survey import survey
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.kube.client import Kube

pytestmark = pytest.mark.cluster
TORCH = os.environ.get("CLUSTER_TORCH_IMAGE", "")
__all__ = ["cluster", "fresh_namespace", "namespace"]


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


def submit(plane, name: str, source: str, **more) -> None:
    plane.put(f"jobs/{name}", {"compute": "gpu", "cell": {"source": source}, **more})


def test_a_preview_is_what_the_api_says(plane, kube):
    spec = {"compute": "gpu", "cell": {"source": "1"}, "resources": {"instance_count": 2, "cpus": 0.1}}
    found = plane.post("jobs/ahead/actions/preview", spec)
    assert found["fits"] in (True, None) and found["manifest"]["kind"] == "Job" and found["instances"] == 2
    found = plane.post("jobs/ahead/actions/preview", {**spec, "resources": {"gpus": 1024}})
    assert found["fits"] is False and "no node has 1024 nvidia.com/gpu" in found["reasons"][0]
    assert not objects(kube, "ahead")


def test_an_image_that_is_not_there(plane, kube):
    submit(plane, "noimage", "1", environment={"image": "nowhere.invalid/none:1"})
    reason = wait_for(lambda: "image" in (r := plane.get("jobs/noimage")["status"]["reason"]) and r, 60)
    assert "the image 'nowhere.invalid/none:1' cannot be pulled" in reason
    plane.post("jobs/noimage/actions/stop", {})
    assert ended(plane, "noimage")["phase"] == "Canceled"


def test_time_that_is_over_and_a_stop(plane, kube):
    submit(plane, "slow", "import time\nprint('up', flush=True)\ntime.sleep(600)", limits={"timeout": 5, "grace": 1})
    status = ended(plane, "slow")
    assert (status["phase"], status["reason"]) == ("Failed", "ran longer than limits.timeout (5 s)")
    submit(plane, "halted", "import time\nprint('up', flush=True)\ntime.sleep(600)", limits={"grace": 1})
    wait_for(lambda: plane.get("jobs/halted")["status"]["phase"] == "Running", 60)
    plane.post("jobs/halted/actions/stop", {})
    status = ended(plane, "halted")
    assert (status["phase"], status["reason"]) == ("Canceled", "stopped")
    for name in ("slow", "halted"):
        wait_for(lambda n=name: not objects(kube, n), 30)


def test_a_quota_holds_it_back(plane, cluster, fresh_namespace):
    cluster.call("POST", f"/api/v1/namespaces/{fresh_namespace}/resourcequotas", {
        "apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "small"}, "spec": {"hard": {"pods": "1"}}})
    plane.put("computes/small", {"type": "kubernetes", "namespace": fresh_namespace, "training": {"image": IMAGE,
                                                                                               "hold": 10}})
    for name in ("fits", "waits"):
        plane.put(f"jobs/{name}", {"compute": "small", "cell": {"source": "import time\ntime.sleep(8)"}})
        if name == "fits":  # else which of both gets the one pod is chance
            wait_for(lambda: plane.get("jobs/fits")["status"]["phase"] == "Running", 60)
    reason = wait_for(lambda: "quota" in (r := plane.get("jobs/waits")["status"]["reason"]) and r, 30)
    assert "the quota 'small' of the namespace is used up" in reason
    assert ended(plane, "fits")["phase"] == "Completed" and ended(plane, "waits", 120)["phase"] == "Completed"


def test_twenty_at_once(plane, kube):
    names = [f"many-{i}" for i in range(20)]
    for name in names:
        submit(plane, name, "from jupyter_mlops import log\nfor i in range(100):\n    log({'x': float(i)}, step=i)",
               resources={"cpus": 0.01, "memory": "64Mi"})
    for name in names:
        status = ended(plane, name, 400)
        assert status["phase"] == "Completed", (name, status)
        values = plane.get(f"runs/{status['run_id']}/metrics")["metrics"]["x"]["values"]
        assert values == [float(i) for i in range(100)]
    for name in names:
        wait_for(lambda n=name: not objects(kube, n), 60)


def test_a_large_output_and_a_long_log(plane, kube):
    submit(plane, "large", """
import hashlib, os
data = os.urandom(1 << 20) * 200
open("big", "wb").write(data)
for number in range(300_000):
    print("line", number)
print(hashlib.sha256(data).hexdigest())
""")
    status = ended(plane, "large", 300)
    assert status["phase"] == "Completed", status
    folder = plane.home / "jobs" / "large"
    lines = (folder / "attempts" / "1" / "rank-0.log").read_text().splitlines()
    assert lines[:-1] == [f"line {n}" for n in range(300_000)]
    with open(folder / "outputs" / "big", "rb") as f:
        assert hashlib.file_digest(f, "sha256").hexdigest() == lines[-1]


def test_the_role_suffices_and_attaching_says_what_is_missing(cluster, kube, tmp_path):
    """A service account with the role alone runs a job; with less it is told what it lacks."""
    name = "mlops-jobs"
    base = f"/api/v1/namespaces/{kube.namespace}"
    rbac = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{kube.namespace}"
    cluster.call("POST", f"{base}/serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount",
                                                     "metadata": {"name": name}})
    token = cluster.call("POST", f"{base}/serviceaccounts/{name}/token", {
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 3600}})
    config = cluster.client().configuration
    kubeconfig = tmp_path / "kubeconfig"
    with open(config.ssl_ca_cert, "rb") as f:
        authority = base64.b64encode(f.read()).decode()
    kubeconfig.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": config.host, "certificate-authority-data": authority}}],
        "users": [{"name": "u", "user": {"token": token["status"]["token"]}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}))
    spec = ComputeSpec(type="kubernetes", namespace=kube.namespace, training={"image": IMAGE, "hold": 20})
    theirs = Kube("gpu", namespace=kube.namespace, kubeconfig=str(kubeconfig))
    found = survey(theirs, spec)
    assert "create jobs" in found["missing"] and found["nodes"] is None and found["problems"][0]["fatal"]
    cluster.call("POST", f"{rbac}/roles", found["role"])
    cluster.call("POST", f"{rbac}/rolebindings", {
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": kube.namespace}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "jupyter-mlops"}})
    wait_for(lambda: not survey(theirs, spec)["missing"], 20)
    driver = KubernetesCompute("least", "gpu", spec, str(kubeconfig))
    folder = tmp_path / "jobs" / "least"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(json.dumps({"cell": {"source": "print('done')"},
                                                  "resources": {"instance_count": 1}}))
    job = JobRef("least", folder)
    driver.start(job, 1, {})
    try:
        seen = wait_for(lambda: (s := driver.observe(job, 1)).terminal and s, 60)
        assert seen.phase == "completed" and driver.read_log(job, 1, 0, 0, 100).data == b"done\n"
    finally:
        driver.close()
    wait_for(lambda: not objects(kube, "least"), 30)
