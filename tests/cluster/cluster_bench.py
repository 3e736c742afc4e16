"""One endpoint on the cluster that KUBECONFIG names, a caller, and namespaces of which nothing is left behind."""

from __future__ import annotations

import io
import json
import os
import random
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest

from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.kube.client import Kube
from jupyter_mlops.serving import keys
from jupyter_mlops.serving.kubernetes.driver import KubernetesServing
from jupyter_mlops.serving.local import LocalServing

IMAGE = os.environ.get("CLUSTER_IMAGE", "docker.io/library/python:3.11-slim")
#: Works on any Python: a scoring script that needs the standard library only.
SCRIPT = """\
import json, os, socket, time

def init():
    global begun
    begun = time.time()
    time.sleep(float(os.environ.get("SLOW_START", "0")))
    if os.environ.get("BROKEN"):
        raise ImportError("No module named 'nowhere'")

def run(body):
    asked = json.loads(body)
    time.sleep(asked.get("sleep", 0))
    if asked.get("die"):
        os._exit(7)
    return {"pod": socket.gethostname(), "colour": os.environ.get("COLOUR", ""), "sum": sum(asked.get("numbers", []))}
"""


def zipped(script: str, extra: bytes = b"") -> bytes:
    """A zip with a scoring script, and with weights that nobody reads."""
    result = io.BytesIO()
    with zipfile.ZipFile(result, "w") as code:
        code.writestr("score.py", script)
        if extra:
            code.writestr("weights.bin", extra)
    return result.getvalue()


def make_namespace(kube: Kube, level: str = "restricted") -> str:
    """A new namespace with a Pod Security level, usable at once."""
    name = f"mlops-test-{random.getrandbits(32):08x}"
    kube.call("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {
        "name": name, "labels": {"pod-security.kubernetes.io/enforce": level} if level else {}}})
    return name


class Bench:
    """One endpoint on the cluster, as a control plane would have it, and a caller."""

    def __init__(self, home: Path, namespace: str, endpoint: str = "digits", **serving) -> None:
        self.home = home
        options = {"image": IMAGE, "service_type": "NodePort", **serving}
        self.spec = ComputeSpec(type="kubernetes", namespace=namespace, serving=options)
        local = LocalServing(home / "ws", home / "run")
        self.driver = KubernetesServing(local, f"w{home.name[-20:]}", "cluster", self.spec)
        self.endpoint = endpoint
        self.key = keys.new_key()
        self.config = {"name": endpoint, "auth_mode": "key", "public": True, "token_secret": "ab" * 16, "traffic": {},
                       "keys": {"primary": keys.hash_key(self.key)}, "mirror_traffic": {}, "sticky_header": "",
                       "deployments": {}}

    def prepare(self, deployment: str, extra: bytes = b"") -> None:
        archive = self.home / "code.zip"
        archive.write_bytes(zipped(SCRIPT, extra))
        self.driver.prepare(self.endpoint, deployment, None, code_zip=archive, script="score.py")

    def deploy(self, deployment: str = "blue", count: int = 1, extra: bytes = b"", wait: float = 90.0, **more) -> None:
        """Prepared, started, ready and published, without traffic when others have it."""
        self.prepare(deployment, extra)
        env = {"COLOUR": deployment, **more.pop("env", {})}
        self.driver.start(self.endpoint, deployment, "", env, count=count, **more)
        self.publish()
        self.until_ready(deployment, wait, count)
        self.config["deployments"][deployment] = {
            "instance_count": count, "request_settings": {"request_timeout_ms": 20000}}
        self.config["traffic"] = self.config["traffic"] or {deployment: 100}
        self.publish()

    def publish(self, **traffic: int) -> None:
        if traffic:
            self.config["traffic"] = traffic
        self.driver.publish(self.endpoint, self.config)

    def until_ready(self, deployment: str, wait: float = 90.0, count: int = 1):
        return self.until(deployment, lambda seen: seen.phase == "ready" and seen.instances["ready"] >= count, wait)

    def until(self, deployment: str, what, wait: float = 60.0):
        deadline = time.monotonic() + wait
        while True:
            seen = self.driver.observe(self.endpoint, deployment)
            if what(seen):
                return seen
            if time.monotonic() > deadline:
                log = self.driver.read_log(self.endpoint, deployment).data.decode()
                raise AssertionError(f"{seen}\n{log}")
            time.sleep(0.3)

    def url(self, wait: float = 60.0) -> str:
        """Of the gateway, once it is ready."""
        deadline = time.monotonic() + wait
        while True:
            info = self.driver.ensure_gateway(self.endpoint)
            if info["phase"] == "ready" and info["url"]:
                return str(info["url"])
            assert time.monotonic() < deadline, info
            time.sleep(0.3)

    def call(self, body: dict, url: str = "", headers: dict | None = None, key: str = "", context=None, timeout=20.0):
        """(status, answer, headers) of one call from outside."""
        request = urllib.request.Request(
            f"{url or self.url()}/endpoints/{self.endpoint}/invocations", json.dumps(body).encode(),
            {"Authorization": f"Bearer {key or self.key}", "Content-Type": "application/json", **(headers or {})})
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}),
                                             urllib.request.HTTPSHandler(context=context))
        try:
            with opener.open(request, timeout=timeout) as response:
                return response.status, json.load(response), response.headers
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"{}"), error.headers


@pytest.fixture(scope="session")
def cluster():
    """The API, in the namespace ``default``; used to make namespaces only."""
    if not os.environ.get("KUBECONFIG"):
        pytest.fail("make test-cluster needs KUBECONFIG")
    kube = Kube("cluster", namespace="default")
    print(f"\nKubernetes {kube.version()}, image {IMAGE}")
    return kube


@pytest.fixture(scope="session")
def namespace(cluster):
    name = make_namespace(cluster)
    yield name
    cluster.call("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def fresh_namespace(cluster):
    name = make_namespace(cluster)
    yield name
    cluster.call("DELETE", f"/api/v1/namespaces/{name}")


@pytest.fixture
def bench(tmp_path, namespace):
    bench = Bench(tmp_path, namespace)
    yield bench
    bench.driver.remove(bench.endpoint)


@pytest.fixture
def models_image():
    image = os.environ.get("CLUSTER_MODELS_IMAGE", "")
    if not image:
        pytest.skip("CLUSTER_MODELS_IMAGE is not given")
    return image
