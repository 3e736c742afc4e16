"""Other ways than the API on a real cluster: an object store on the way, job folders in a claim that outlive their pod.

Pods must reach this machine, see CLUSTER_HOST in test_cluster_packages.py; without that, large files come over the API,
which fails the first test.
"""

from __future__ import annotations

import base64
import hashlib
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))

from cluster_bench import IMAGE, cluster, fresh_namespace, namespace
from cluster_volumes import made_volumes
from conftest import Plane, make_home, wait_for
from stores import KEYS, s3_at
from test_cluster_packages import own_address

from jupyter_mlops.kube.client import Kube

pytestmark = pytest.mark.cluster
__all__ = ["cluster", "fresh_namespace", "namespace"]
SIZE = 200_000_000


@pytest.fixture(scope="module")
def kube(namespace):
    return Kube("cluster", namespace=namespace)


@pytest.fixture(scope="module")
def plane():
    p = Plane(make_home()).start().mlflow_ready()
    yield p
    p.stop()


@pytest.fixture(scope="module")
def bucket(cluster, kube, tmp_path_factory):
    """(address, a file system on it) of a store whose credentials only a Secret has."""
    import s3fs

    with s3_at(own_address(cluster), tmp_path_factory.mktemp("moto")) as address:
        kube.call("POST", kube.path("Secret"), {
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "transfer"},
            "data": {k: base64.b64encode(v.encode()).decode() for k, v in KEYS.items()}})
        fs = s3fs.S3FileSystem(endpoint_url=address, key=KEYS["AWS_ACCESS_KEY_ID"], anon=False,
                               secret=KEYS["AWS_SECRET_ACCESS_KEY"], use_listings_cache=False)
        fs.mkdir("data")
        yield address, fs


def ended(plane, name: str, timeout: float = 150) -> dict:
    def look():
        status = plane.get(f"jobs/{name}")["status"]
        return status["phase"] in ("Completed", "Failed", "Canceled") and status

    return wait_for(look, timeout, 0.2)


def test_large_files_go_through_an_object_store(plane, namespace, bucket):
    address, fs = bucket
    plane.put("computes/store", {"type": "kubernetes", "namespace": namespace, "training": {
        "image": IMAGE, "hold": 60, "store": {"url": "s3://data/mlops", "endpoint_url": address, "region": "us-east-1",
                                              "secret": "transfer"}}})
    found = plane.get("computes/store/survey")
    assert found["store"] == {"claim": "", "url": "s3://data/mlops", "trouble": ""} and not found["problems"], found
    plane.put("jobs/large", {"compute": "store", "cell": {"source": f"""
import hashlib, os, random
data = random.Random(1).randbytes({SIZE // 4}) * 4
open("model.bin", "wb").write(data)
print(hashlib.sha256(data).hexdigest(), [k for k in os.environ if k.startswith("AWS")])
"""}})
    began = time.monotonic()
    status = ended(plane, "large")
    print(f"200 MB: {time.monotonic() - began:.1f} s")
    assert status["phase"] == "Completed" and status["route"] == "through s3://data/mlops", status
    text = (plane.home / "jobs" / "large" / "attempts" / "1" / "rank-0.log").read_text()
    model = (plane.home / "jobs" / "large" / "outputs" / "model.bin").read_bytes()
    assert text == f"{hashlib.sha256(model).hexdigest()} []\n" and len(model) == SIZE
    assert fs.find("data") == []


def test_a_store_that_pods_do_not_reach(plane, namespace, bucket):
    plane.put("computes/away", {"type": "kubernetes", "namespace": namespace, "training": {
        "image": IMAGE, "hold": 60, "store": {
            "url": "s3://data/mlops", "endpoint_url": bucket[0], "pod_endpoint_url": "http://127.0.0.1:9",
            "region": "us-east-1", "secret": "transfer"}}})
    plane.put("jobs/away", {"compute": "away", "cell": {"source": "open('m', 'wb').write(b'm' * 30_000_000)"}})
    status = ended(plane, "away")
    assert status["phase"] == "Completed"
    assert status["route"].startswith("over the cluster's API: the store is not reached from the pod"), status["route"]
    assert (plane.home / "jobs" / "away" / "outputs" / "m").stat().st_size == 30_000_000


def test_what_a_pod_had_not_told_when_it_was_lost(plane, cluster, namespace, kube):
    """The control plane is dead meanwhile, and the pod is removed at once, with no time to say anything."""
    with made_volumes(cluster, namespace) as volumes:
        volumes.claim("folders", "ReadWriteMany")
        plane.put("computes/claim", {"type": "kubernetes", "namespace": namespace, "training": {
            "image": IMAGE, "hold": 60, "store": {"claim": "folders"}}})
        assert plane.get("computes/claim/survey")["store"]["claim"] == "folders"
        plane.put("jobs/lost", {"compute": "claim", "cell": {"source": """
import os, time
from jupyter_mlops import log
if os.path.exists("checkpoint"):
    print("goes on from", open("checkpoint").read())
else:
    for step in range(2000):
        log({"x": float(step)}, step=step)
        print("step", step, flush=True)
        open("new", "w").write(str(step))
        os.replace("new", "checkpoint")
        time.sleep(0.1)
"""}})
        first = plane.home / "jobs" / "lost" / "attempts" / "1" / "rank-0.log"
        wait_for(lambda: first.exists() and "step 5\n" in first.read_text(), 90)
        plane.kill()
        known = len(first.read_text().splitlines())
        time.sleep(10)
        (pod,) = kube.list("Pod", {"jupyter-mlops.io/job": "lost"})
        kube.delete("Pod", pod["metadata"]["name"], 0)
        time.sleep(5)
        plane.start().mlflow_ready()
        status = ended(plane, "lost")
        print(status["attempts"][0]["reason"])
        assert status["phase"] == "Completed" and not status["metrics_incomplete"], status
        steps = [line for line in first.read_text().splitlines() if line.startswith("step ")]
        assert steps == [f"step {i}" for i in range(len(steps))] and len(steps) > known + 50, (known, len(steps))
        values = plane.get(f"runs/{status['run_id']}/metrics")["metrics"]["x"]["values"]
        assert abs(len(values) - len(steps)) <= 1 and values == [float(i) for i in range(len(values))]
        second = (plane.home / "jobs" / "lost" / "attempts" / "2" / "rank-0.log").read_text()
        assert abs(int(second.split()[-1]) - (len(steps) - 1)) <= 1, second
        wait_for(lambda: not kube.list("Pod", {"jupyter-mlops.io/job": "lost"}), 90)
        # Folders of ended attempts are gone, with those of the workspace only.
        assert volumes.on_the_node("import os\nfor w in os.listdir('/host/folders'):\n"
                                   "    print(os.listdir('/host/folders/' + w))").strip() == "[]"
