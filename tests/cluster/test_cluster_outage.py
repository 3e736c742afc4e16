"""The way to a real cluster's API is away for five minutes while a job logs; and what the cluster takes from a job.

``CLUSTER_OUTAGE`` is the outage's length in seconds. ``CLUSTER_KUBELET`` is the pid of the only node's kubelet, when it
runs on this machine and may be stopped for two minutes.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cluster_bench import IMAGE, cluster, fresh_namespace, namespace
from conftest import Plane, make_home, wait_for
from tcp_proxy import TcpProxy

from jupyter_mlops.compute.base import JobRef
from jupyter_mlops.compute.kubernetes.driver import KubernetesCompute
from jupyter_mlops.core.errors import MlopsError
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.kube.client import Kube

pytestmark = pytest.mark.cluster
OUTAGE = float(os.environ.get("CLUSTER_OUTAGE", "300"))
__all__ = ["cluster", "fresh_namespace", "namespace"]

LOGS = """
import time
from jupyter_mlops import log
until = time.time() + {seconds}
step = 0
while time.time() < until:
    log({{"x": float(step)}}, step=step)
    step += 1
    time.sleep(0.05)
print(step)
"""


def through(cluster, way: TcpProxy, folder: Path) -> str:
    """A kubeconfig with the credentials of the one in use, whose way to the API is ours to take away."""
    config = cluster.client().configuration
    user = {}
    if config.cert_file:
        for field, path in (("client-certificate-data", config.cert_file), ("client-key-data", config.key_file)):
            user[field] = base64.b64encode(Path(path).read_bytes()).decode()
    elif token := config.get_api_key_with_prefix("BearerToken"):
        user["token"] = token.removeprefix("Bearer ")
    path = folder / "kubeconfig"
    path.write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        # The certificate is the API server's, not the proxy's.
        "clusters": [{"name": "c", "cluster": {"server": f"https://127.0.0.1:{way.port}",
                                               "insecure-skip-tls-verify": True}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}))
    return str(path)


@pytest.mark.timeout(OUTAGE + 600)
def test_no_point_is_lost_over_an_outage(cluster, namespace, tmp_path):
    server = urlsplit(cluster.client().configuration.host)
    way = TcpProxy(server.hostname, server.port or 443).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_MLOPS_KUBECONFIG", through(cluster, way, tmp_path))
        plane = Plane(make_home()).start().mlflow_ready()
    try:
        plane.put("computes/gpu", {"type": "kubernetes", "namespace": namespace,
                                   "training": {"image": IMAGE, "hold": 120}})
        plane.put("jobs/away", {"compute": "gpu", "cell": {"source": LOGS.format(seconds=OUTAGE + 60)}})
        journal = plane.home / "jobs" / "away" / "journal" / "1-0.bin"
        wait_for(lambda: journal.exists() and journal.stat().st_size > 1000, 120)
        way.cut()
        begun = time.monotonic()
        reason = wait_for(lambda: "the job goes on" in (r := plane.get("jobs/away")["status"]["reason"]) and r, 30)
        print(f"\ntold after {time.monotonic() - begun:.1f} s: {reason}")
        here = journal.stat().st_size
        time.sleep(max(OUTAGE - (time.monotonic() - begun), 0))
        assert plane.get("jobs/away")["status"]["phase"] == "Running" and journal.stat().st_size == here
        way.mend()
        mended = time.monotonic()
        wait_for(lambda: journal.stat().st_size > here + OUTAGE * 5 * 40, 60)
        print(f"all of it is here {time.monotonic() - mended:.1f} s after the end of the outage")
        status = plane.wait_job("away", 240)["status"]
        assert status["phase"] == "Completed", status
        count = int((plane.home / "jobs" / "away" / "attempts" / "1" / "rank-0.log").read_text())
        found = plane.get(f"/mlflow/api/2.0/mlflow/metrics/get-history?run_id={status['run_id']}&metric_key=x"
                          "&max_results=25000")["metrics"]
        assert [m["value"] for m in found] == [float(n) for n in range(count)] and count > OUTAGE * 5
        print(f"{count} points over an outage of {OUTAGE:g} s, none lost")
    finally:
        way.mend()
        plane.stop()
        way.stop()


@pytest.mark.skipif(not os.environ.get("CLUSTER_KUBELET"), reason="CLUSTER_KUBELET names no kubelet to stop")
@pytest.mark.timeout(600)
def test_a_node_that_does_not_answer_for_a_while(cluster, namespace):
    kubelet = int(os.environ["CLUSTER_KUBELET"])
    plane = Plane(make_home()).start().mlflow_ready()
    try:
        plane.put("computes/gpu", {"type": "kubernetes", "namespace": namespace,
                                   "training": {"image": IMAGE, "hold": 120}})
        plane.put("jobs/silent", {"compute": "gpu", "cell": {"source": LOGS.format(seconds=180)}})
        journal = plane.home / "jobs" / "silent" / "journal" / "1-0.bin"
        wait_for(lambda: journal.exists() and journal.stat().st_size > 1000, 120)
        os.kill(kubelet, signal.SIGSTOP)
        stopped = time.monotonic()
        try:
            reason = wait_for(
                lambda: "has not answered" in (r := plane.get("jobs/silent")["status"]["reason"]) and r, 150)
        finally:
            os.kill(kubelet, signal.SIGCONT)
        print(f"\ntold after {time.monotonic() - stopped:.0f} s: {reason}")
        wait_for(lambda: not plane.get("jobs/silent")["status"]["reason"], 60)
        status = plane.wait_job("silent", 240)["status"]
        assert status["phase"] == "Completed" and status["attempt"] == 1, status
        count = int((plane.home / "jobs" / "silent" / "attempts" / "1" / "rank-0.log").read_text())
        assert plane.get(f"runs/{status['run_id']}")["metrics"]["x"] == count - 1
    finally:
        plane.stop()


@pytest.fixture
def begin(tmp_path):
    """Start a job in a namespace, without a control plane; it runs when this returns."""
    drivers = []

    def begin(name: str, namespace: str) -> tuple[KubernetesCompute, JobRef]:
        folder = tmp_path / "jobs" / name
        folder.mkdir(parents=True)
        source = "import time\nopen('kept', 'w').write('x')\nprint('up', flush=True)\ntime.sleep(120)"
        (folder / "spec.json").write_text(json.dumps({"cell": {"source": source}, "limits": {"grace": 1}}))
        spec = ComputeSpec(type="kubernetes", namespace=namespace, training={"image": IMAGE, "hold": 20})
        driver, job = KubernetesCompute(f"w{tmp_path.name[-20:]}", "gpu", spec), JobRef(name, folder)
        drivers.append(driver)
        driver.start(job, 1, {})
        wait_for(lambda: driver.observe(job, 1) and (folder / "outputs" / "kept").exists(), 120, 0.2)
        return driver, job

    yield begin
    for driver in drivers:
        driver.close()


def test_a_pod_that_is_evicted(namespace, begin):
    kube = Kube("cluster", namespace=namespace)
    driver, job = begin("evicted", namespace)
    (pod,) = kube.list("Pod", {"jupyter-mlops.io/job": "evicted"})
    name = pod["metadata"]["name"]
    kube.call("POST", kube.path("Pod", name, "eviction"), {
        "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": namespace}})
    seen = wait_for(lambda: (s := driver.observe(job, 1)).terminal and s, 120, 0.2)
    print("\n" + seen.reason)
    assert seen.phase == "failed" and seen.cause in ("lost", "preempted"), "which is tried again"
    assert "evicted" in seen.reason
    assert (job.folder / "outputs" / "kept").read_text() == "x"
    wait_for(lambda: not kube.list("Pod", {"jupyter-mlops.io/job": "evicted"}), 60)


def test_a_namespace_that_is_deleted_ends_the_job(cluster, fresh_namespace, begin):
    driver, job = begin("homeless", fresh_namespace)
    cluster.call("DELETE", f"/api/v1/namespaces/{fresh_namespace}")
    seen = wait_for(lambda: (s := driver.observe(job, 1)).terminal and s, 120, 0.2)
    print("\n" + seen.reason)
    assert seen.phase == "failed" and "deleted" in seen.reason
    assert (job.folder / "outputs" / "kept").read_text() == "x"
    driver.delete(job)  # nothing is left to remove, and that is no failure
    assert not driver._leftovers
    late = JobRef("late", job.folder.parent / "late")
    late.folder.mkdir()
    (late.folder / "spec.json").write_text(json.dumps({"cell": {"source": "1"}}))
    with pytest.raises(MlopsError, match="namespace of compute 'gpu'") as told:
        driver.start(late, 1, {})
    print(told.value.message)
