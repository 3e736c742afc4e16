"""Claims of a real cluster that needs no storage class: static volumes, each a folder of a node.

Whoever runs them must be allowed to make PersistentVolumes, and pods that see a folder of the node; else those tests
are skipped that need a claim. All of it is removed afterwards.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from cluster_bench import IMAGE, make_namespace
from conftest import wait_for

from jupyter_mlops.kube.client import Kube
from jupyter_mlops.kube.errors import NotAllowed

PARENT = "/tmp"


class Volumes:
    """Claims in one namespace; ``able``: a namespace whose pods may be root and see the node."""

    def __init__(self, cluster: Kube, namespace: str, able: str) -> None:
        self.cluster = cluster
        self.kube = Kube("cluster", namespace=namespace)
        self.mark = f"mlops-data-{random.getrandbits(32):08x}"
        self._able = Kube("cluster", namespace=able)
        self._names: list[str] = []

    def on_the_node(self, script: str, path: str = "") -> str:
        """Run Python as root in a pod that sees a folder of the node (by default that of these claims) as ``/host``.

        Returns:
            what it printed
        """
        kube, pod = self._able, f"root-{random.getrandbits(32):08x}"
        kube.call("POST", kube.path("Pod"), {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod}, "spec": {
            "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "host", "hostPath": {
                "path": path or f"{PARENT}/{self.mark}", "type": "DirectoryOrCreate"}}],
            "containers": [{"name": "c", "image": IMAGE, "command": ["python3", "-c", script],
                            "securityContext": {"runAsUser": 0},
                            "volumeMounts": [{"name": "host", "mountPath": "/host"}]}]}})
        done = wait_for(lambda: kube.get("Pod", pod)["status"]["phase"] in ("Succeeded", "Failed"), 60, 0.3)
        assert done and kube.get("Pod", pod)["status"]["phase"] == "Succeeded", kube.get("Pod", pod)
        _, _, said = kube.request("GET", kube.path("Pod", pod, "log"))
        return said.decode() if isinstance(said, bytes) else str(said)

    def claim(self, name: str, mode: str, files: dict[str, str] | None = None) -> None:
        """Make a claim that is bound to a folder that all may write to, with these files in it."""
        self.on_the_node(f"""
import os
os.makedirs("/host/{name}")
for path, text in {files or {}!r}.items():
    os.makedirs(os.path.dirname("/host/{name}/" + path), exist_ok=True)
    open("/host/{name}/" + path, "w").write(text)
os.chmod("/host/{name}", 0o777)
""")
        self.cluster.call("POST", "/api/v1/persistentvolumes", {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{self.mark}-{name}"}, "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": [mode], "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": f"{PARENT}/{self.mark}/{name}", "type": "Directory"}, "storageClassName": ""}})
        self._names.append(name)
        self.kube.call("POST", self.kube.path("PersistentVolumeClaim"), {
            "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": {
                "accessModes": [mode], "volumeName": f"{self.mark}-{name}", "storageClassName": "",
                "resources": {"requests": {"storage": "1Gi"}}}})
        wait_for(lambda: self.kube.get("PersistentVolumeClaim", name)["status"].get("phase") == "Bound", 60, 0.3)

    def remove(self) -> None:
        for name in self._names:
            self.kube.delete("PersistentVolumeClaim", name)
            self.cluster.call("DELETE", f"/api/v1/persistentvolumes/{self.mark}-{name}")
        self.on_the_node(f"import shutil\nshutil.rmtree('/host/{self.mark}', ignore_errors=True)", PARENT)


@contextmanager
def made_volumes(cluster: Kube, namespace: str) -> Iterator[Volumes]:
    """A place for claims in a namespace; skips the test where they may not be made."""
    try:
        able = make_namespace(cluster, "")
        cluster.call("POST", "/api/v1/persistentvolumes?dryRun=All", {
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "mlops-may-i"}, "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "",
                "hostPath": {"path": PARENT}}})
    except NotAllowed:
        pytest.skip("these credentials may not make volumes and namespaces that are not restricted")
    volumes = Volumes(cluster, namespace, able)
    try:
        yield volumes
    finally:
        volumes.remove()
        cluster.call("DELETE", f"/api/v1/namespaces/{able}")
