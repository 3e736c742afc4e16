"""Packages on top of an image on a real cluster: from an index on this machine, in the pod or in a folder of the node.

Pods must reach this machine: CLUSTER_HOST is its address for them, by default the one from which the API is reached.
"""

from __future__ import annotations

import functools
import http.server
import os
import random
import socket
import sys
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))

from cluster_bench import IMAGE, cluster, fresh_namespace, make_namespace, namespace
from cluster_volumes import made_volumes
from conftest import Plane, make_home, wait_for
from wheels import wheel

from jupyter_mlops.kube.client import Kube

pytestmark = pytest.mark.cluster
TORCH = os.environ.get("CLUSTER_TORCH_IMAGE", "")
__all__ = ["cluster", "fresh_namespace", "namespace"]

LOOK = "import mlops_tiny, os, sys\nprint(mlops_tiny.VERSION, os.getuid(), sys.prefix != sys.base_prefix)"


def own_address(cluster) -> str:
    """At which address pods reach this machine."""
    if os.environ.get("CLUSTER_HOST"):
        return os.environ["CLUSTER_HOST"]
    api = urlsplit(cluster.client().configuration.host)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.connect((api.hostname, api.port or 443))
        return str(s.getsockname()[0])


class Files(http.server.SimpleHTTPRequestHandler):
    """A folder over HTTP, some files of which take their time."""

    def do_GET(self) -> None:
        if self.path.endswith(".whl") and "slow" in self.path:
            time.sleep(5)
        super().do_GET()

    def log_message(self, *args) -> None:
        return


@pytest.fixture(scope="module")
def index(cluster, tmp_path_factory):
    """A package index over HTTP: (folder, what a compute says of it)."""
    folder = tmp_path_factory.mktemp("simple")
    wheel(folder, "mlops-tiny")
    wheel(folder, "mlops-tiny", "2.0")
    wheel(folder, "mlops-slow")
    wheel(folder, "mlops-above", requires=("mlops-tiny<2", "torch>=2"))
    host = own_address(cluster)
    handler = functools.partial(Files, directory=str(folder))
    server = http.server.ThreadingHTTPServer((host, 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"index_url": f"http://{host}:{server.server_port}", "trusted_hosts": [host], "timeout": 120}
    server.shutdown()


@pytest.fixture(scope="module")
def plane(namespace, index):
    p = Plane(make_home()).start().mlflow_ready()
    p.put("computes/gpu", {"type": "kubernetes", "namespace": namespace,
                           "training": {"image": IMAGE, "hold": 30, "pip": index}})
    yield p
    p.stop()


def submit(plane, name: str, source: str, *pip: str, compute: str = "gpu", **spec) -> None:
    plane.put(f"jobs/{name}", {"compute": compute, "cell": {"source": source},
                               "environment": {"pip": list(pip), **spec.pop("environment", {})}, **spec})


def ended(plane, name: str, timeout: float = 150) -> dict:
    def look():
        status = plane.get(f"jobs/{name}")["status"]
        return status["phase"] in ("Completed", "Failed", "Canceled") and status

    return wait_for(look, timeout, 0.2)


def log(plane, name: str, rank: int = 0) -> str:
    return (plane.home / "jobs" / name / "attempts" / "1" / f"rank-{rank}.log").read_text()


def test_a_package_in_a_restricted_namespace(plane, namespace):
    submit(plane, "tiny", LOOK, "mlops-tiny==1.*", "mlops-slow")
    said = set()

    def look():
        status = plane.get("jobs/tiny")["status"]
        said.add(status["reason"])
        return status["phase"] in ("Completed", "Failed") and status

    status = wait_for(look, 120, 0.05)
    print(said)
    assert status["phase"] == "Completed", (status, said)
    assert "1.0 1000 True\n" in log(plane, "tiny") and "installed 2 packages in" in log(plane, "tiny")
    assert any("installing 2 packages" in r for r in said), said
    kube = Kube("cluster", namespace=namespace)
    wait_for(lambda: not kube.list("Pod", {"jupyter-mlops.io/job": "tiny"}), 60)


def test_a_package_that_is_not_there_ends_the_job(plane):
    submit(plane, "wrong", "print(1)", "mlops-tiny==9", retry_settings={"max_retries": 3})
    status = ended(plane, "wrong")
    assert (status["phase"], status["attempt"]) == ("Failed", 1)
    assert "the package index has no mlops-tiny==9" in status["reason"] and "there is 1.0, 2.0" in status["reason"]
    assert any("No matching distribution found" in line for line in status["log_tail"]), status["log_tail"]


def test_an_index_that_does_not_answer_ends_the_job(plane, namespace):
    plane.put("computes/away", {"type": "kubernetes", "namespace": namespace, "training": {
        "image": IMAGE, "hold": 30,
        "pip": {"index_url": "http://127.0.0.1:9/simple", "options": ["--retries=1", "--timeout=2"]}}})
    submit(plane, "away", "print(1)", "mlops-tiny", compute="away")
    status = ended(plane, "away")
    assert status["phase"] == "Failed" and "the package index does not answer" in status["reason"], status["reason"]


@pytest.fixture
def node_folder(cluster):
    """A namespace that allows hostPath, and a folder of the node that all can write to."""
    name = make_namespace(cluster, "")
    kube = Kube("cluster", namespace=name)
    path = f"/var/lib/mlops-test-{random.getrandbits(32):08x}"

    def on_node(what: str, command: str) -> None:
        kube.call("POST", kube.path("Pod"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": what}, "spec": {
            "restartPolicy": "Never", "securityContext": {"runAsUser": 0},
            "volumes": [{"name": "v", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}],
            "containers": [{"name": "c", "image": IMAGE, "imagePullPolicy": "IfNotPresent",
                            "command": ["sh", "-c", command], "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}})
        wait_for(lambda: (kube.get("Pod", what) or {}).get("status", {}).get("phase") == "Succeeded", 60)

    try:
        on_node("make", "chmod 0777 /v")
        yield name, path
        on_node("clear", "rm -rf /v/*")
    finally:
        cluster.call("DELETE", f"/api/v1/namespaces/{name}")


def test_a_folder_of_the_node_keeps_them_for_the_next_job(plane, node_folder, index):
    name, path = node_folder
    plane.put("computes/node", {"type": "kubernetes", "namespace": name, "training": {
        "image": IMAGE, "hold": 30, "pip": index, "package_cache": {"host_path": path}}})
    for job, installs in (("once", True), ("twice", False)):
        submit(plane, job, LOOK, "mlops-tiny", compute="node")
        assert ended(plane, job)["phase"] == "Completed", log(plane, job)
        assert "2.0 1000 True\n" in log(plane, job) and ("installed 1 package" in log(plane, job)) is installs
    source = "import sys\ntry:\n    open(sys.prefix + '/x', 'w')\nexcept OSError as e:\n    print(e.strerror)"
    submit(plane, "write", source, "mlops-tiny", compute="node")
    assert ended(plane, "write")["phase"] == "Completed" and log(plane, "write") == "Read-only file system\n"


def test_a_claim_keeps_them_for_the_next_job(plane, cluster, namespace, index):
    with made_volumes(cluster, namespace) as volumes:
        volumes.claim("packages", "ReadWriteMany")
        plane.put("computes/claim", {"type": "kubernetes", "namespace": namespace, "training": {
            "image": IMAGE, "hold": 30, "pip": index, "package_cache": {"claim": "packages"}}})
        found = plane.get("computes/claim/survey")
        assert found["package_cache"] == {"kind": "claim", "name": "packages", "size": "20Gi",
                                          "access_modes": ["ReadWriteMany"]} and not found["problems"], found
        for job, installs in (("first", True), ("second", False)):
            submit(plane, job, LOOK, "mlops-tiny", compute="claim")
            assert ended(plane, job)["phase"] == "Completed", log(plane, job)
            assert "2.0 1000 True\n" in log(plane, job) and ("installed 1 package" in log(plane, job)) is installs


def test_torch_of_the_image_stays(plane):
    if not TORCH:
        pytest.skip("CLUSTER_TORCH_IMAGE is not given")
    source = "import torch, mlops_above, mlops_tiny\nprint(torch.__file__.startswith('/usr'), mlops_tiny.VERSION)"
    submit(plane, "torch", source, "mlops-above", environment={"image": TORCH})
    status = ended(plane, "torch", 240)
    assert status["phase"] == "Completed", (status, log(plane, "torch"))
    assert "True 1.0\n" in log(plane, "torch") and "Collecting torch" not in log(plane, "torch")
