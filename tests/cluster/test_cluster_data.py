"""Named inputs on a real cluster: claims that pods of a restricted namespace read and write, a cache outliving them.

Volumes are folders of a node, made and removed by pods of a namespace that may. Pods must reach this machine, see
CLUSTER_HOST in test_cluster_packages.py.
"""

from __future__ import annotations

import os
import random
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))

from cluster_bench import IMAGE, cluster, fresh_namespace, make_namespace, namespace
from conftest import Plane, make_home, wait_for
from stores import Site
from test_cluster_packages import own_address

from jupyter_mlops.kube.client import Kube

pytestmark = pytest.mark.cluster
TORCH = os.environ.get("CLUSTER_TORCH_IMAGE", "")
__all__ = ["cluster", "fresh_namespace", "namespace"]

READ = """
import os
from jupyter_mlops import inputs, outputs
print("read", open(inputs["data"] + "/a.txt").read(), len(open(inputs["web"]).read()), os.environ.get("RANK", "-"))
try:
    open(inputs["data"] + "/b.txt", "w")
except OSError as error:
    print("cannot be written:", error.strerror)
"""


def on_the_node(cluster, name: str, script: str) -> None:
    """Run Python as root in a pod that sees the node's /tmp as /host."""
    kube = Kube("cluster", namespace=name)
    pod = f"root-{random.getrandbits(32):08x}"
    kube.call("POST", kube.path("Pod"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": {
        "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
        "volumes": [{"name": "host", "hostPath": {"path": "/tmp"}}],
        "containers": [{"name": "c", "image": IMAGE, "command": ["python3", "-c", script],
                        "securityContext": {"runAsUser": 0},
                        "volumeMounts": [{"name": "host", "mountPath": "/host"}]}]}})
    wait_for(lambda: kube.get("Pod", pod)["status"]["phase"] == "Succeeded", 60, 0.3)


@pytest.fixture(scope="module")
def volumes(cluster, namespace):
    """Claims ``data`` (read by many) and ``work`` (written by many), and what lies in the first; removed afterwards."""
    mark = f"mlops-data-{random.getrandbits(32):08x}"
    able = make_namespace(cluster, "")
    on_the_node(cluster, able, f"""
import os
for name in ("data", "work"):
    os.makedirs("/host/{mark}/" + name + "/v1")
    os.chmod("/host/{mark}/" + name, 0o777)
open("/host/{mark}/data/v1/a.txt", "w").write("from the volume")
""")
    kube = Kube("cluster", namespace=namespace)
    for name, mode in (("data", "ReadOnlyMany"), ("work", "ReadWriteMany")):
        cluster.call("POST", "/api/v1/persistentvolumes", {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{mark}-{name}"}, "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": [mode], "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": f"/tmp/{mark}/{name}", "type": "Directory"}, "storageClassName": ""}})
        kube.call("POST", kube.path("PersistentVolumeClaim"), {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
                "accessModes": [mode], "volumeName": f"{mark}-{name}", "storageClassName": "",
                "resources": {"requests": {"storage": "1Gi"}}}})
        wait_for(lambda name=name: kube.get("PersistentVolumeClaim", name)["status"].get("phase") == "Bound", 60, 0.3)
    yield mark
    for name in ("data", "work"):
        kube.call("DELETE", kube.path("PersistentVolumeClaim", name))
        cluster.call("DELETE", f"/api/v1/persistentvolumes/{mark}-{name}")
    on_the_node(cluster, able, f"import shutil; shutil.rmtree('/host/{mark}')")
    cluster.call("DELETE", f"/api/v1/namespaces/{able}")


@pytest.fixture(scope="module")
def plane(namespace, volumes):
    p = Plane(make_home()).start().mlflow_ready()
    for name, image in (("gpu", IMAGE), ("torch", TORCH)):
        if image:
            p.put(f"computes/{name}", {"type": "kubernetes", "namespace": namespace, "training": {
                "image": image, "hold": 30, "claims": ["data", {"name": "wor*", "writable": True}],
                "cache": {"claim": "work", "size": "1Gi"}}})
    yield p
    p.stop()


@pytest.fixture(scope="module")
def web(cluster):
    """A page of 3 MB, for pods."""
    site = Site("0.0.0.0")
    site.pages["/x.txt"] = (b"x" * 3_000_000, '"1"')
    threading.Thread(target=site.serve_forever, daemon=True).start()
    yield site, f"http://{own_address(cluster)}:{site.server_port}/x.txt"
    site.shutdown()
    site.server_close()


def run(plane, name: str, **spec) -> tuple[dict, str]:
    plane.put(f"jobs/{name}", {"compute": "gpu", "cell": {"source": READ}, **spec})

    def look():
        status = plane.get(f"jobs/{name}")["status"]
        return status["phase"] in ("Completed", "Failed", "Canceled") and status

    status = wait_for(look, 120, 0.2)
    log = plane.home / "jobs" / name / "attempts" / "1" / "rank-0.log"
    return status, log.read_text() if log.exists() else ""


def test_the_second_job_reads_from_the_cache(plane, web):
    site, address = web
    given = {"data": {"path": "claim://data/v1"}, "web": {"path": address}}
    status, log = run(plane, "one", inputs=given)
    assert status["phase"] == "Completed", (status, log)
    assert "read from the volume 3000000 -" in log and "cannot be written: Read-only file system" in log
    assert "3 MB: 0 B from the cache, 3 MB downloaded" in log and len(site.gets) == 1
    status, log = run(plane, "two", inputs=given)
    assert status["phase"] == "Completed" and "3 MB: 3 MB from the cache, 0 B downloaded" in log, log
    assert len(site.gets) == 1
    metrics = plane.get(f"runs/{status['run_id']}/metrics")["metrics"]
    assert metrics["system/inputs/hit_rate"]["values"] == [1.0], metrics


def test_two_pods_read_a_claim(plane, web):
    if not TORCH:
        pytest.skip("needs CLUSTER_TORCH_IMAGE, an image with torch")
    given = {"data": {"path": "claim://data/v1"}, "web": {"path": web[1]}}
    status, log = run(plane, "wide", compute="torch", inputs=given, resources={"instance_count": 2},
                      distribution={"type": "pytorch"})
    assert status["phase"] == "Completed", (status, log)
    for rank in (0, 1):
        text = (plane.home / "jobs" / "wide" / "attempts" / "1" / f"rank-{rank}.log").read_text()
        assert f"read from the volume 3000000 {rank}" in text


def test_an_output_in_a_claim_is_the_next_jobs_input(plane):
    status, log = run(plane, "writes", cell={"source": "from jupyter_mlops import outputs\n"
                      "open(outputs['model'] + '/m.txt', 'w').write('trained')"},
                      outputs={"model": {"path": "claim://work/models/run-1"}})
    assert status["phase"] == "Completed", (status, log)
    status, log = run(plane, "reads", command="cat ${{inputs.model}}/m.txt", cell=None,
                      inputs={"model": {"path": "claim://work/models/run-1"}})
    assert status["phase"] == "Completed" and log == "trained", (status, log)


def test_what_is_wrong_with_a_claim_is_said_before(plane, cluster):
    spec = {"compute": "gpu", "command": "true"}
    found = plane.post("jobs/ahead/actions/preview", {**spec, "inputs": {"a": {"path": "claim://data/v1"}}})
    assert found["volumes"] == ["claim 'data' is mounted read-only (1 GiB; ReadOnlyMany; no storage class; bound)"]
    for path, words in (("claim://home/x", "lets jobs mount no claim 'home'"), ("claim://work2", "there is no claim")):
        found = plane.post("jobs/ahead/actions/preview", {**spec, "inputs": {"a": {"path": path}}})
        assert found["fits"] is False and words in found["reasons"][0], found
    found = plane.post("jobs/ahead/actions/preview", {**spec, "outputs": {"a": {"path": "claim://data/v2"}}})
    assert "lets jobs read the claim 'data', not write to it" in found["reasons"][0]
    status, _ = run(plane, "none", inputs={"data": {"path": "claim://data/v9"}})
    assert status["phase"] == "Failed" and status["reason"] == "claim 'data' has no v9", status
