"""Large files of jobs on a cluster go through an object store where there is one: a real S3 server, pods that are
processes, and everything that can go wrong on the way."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import sys
import threading
from pathlib import Path

import pytest
from conformance import wait_for

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from stores import KEYS, s3, s3_server
from test_pods import PodBench, server

from jupyter_mlops.compute.kubernetes import copy, store, watch
from jupyter_mlops.compute.kubernetes.survey import survey
from jupyter_mlops.core.errors import BackendUnreachable
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.runtime import jobfolder
from jupyter_mlops.runtime.jobfolder import JobFolder

__all__ = ["s3", "s3_server", "server"]
SIZE = 30_000_000
#: Bytes that no compression makes small, and whose hash the job tells.
WRITES = f"""
import hashlib, os, random
data = random.Random(1).randbytes({SIZE})
open("model.bin", "wb").write(data)
open("small.txt", "w").write("small")
print(hashlib.sha256(data).hexdigest())
"""


@pytest.fixture
def bench(server, tmp_path, monkeypatch, s3, s3_server):
    """Credentials are in a Secret alone; ``bench.store``: what the compute says of its store."""
    monkeypatch.setattr(watch, "RETRY", 0.1)
    for name in (*KEYS, "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server.put("secrets", {"metadata": {"name": "store"},
                           "data": {k: base64.b64encode(v.encode()).decode() for k, v in KEYS.items()}})
    store = {"url": "s3://data/mlops", "endpoint_url": s3_server, "region": "us-east-1", "secret": "store"}
    bench = PodBench(server, tmp_path, store=store)
    bench.store = store
    yield bench
    bench.close()


def came(bench, job) -> None:
    """The output is here, as it was written."""
    found = (job.folder / "outputs" / "model.bin").read_bytes()
    assert len(found) == SIZE and hashlib.sha256(found).hexdigest() in bench.log(job)
    assert (job.folder / "outputs" / "small.txt").read_text() == "small"


def route(job) -> dict:
    return jobfolder.read_json(os.path.join(JobFolder(job.folder).attempt(1).path, "node-0", "route.json"))


def test_large_outputs_come_through_the_store(bench, server, s3):
    job = bench.cell("a", WRITES)
    seen = bench.ended(job, 60)
    assert seen.phase == "completed" and seen.route == "through s3://data/mlops"
    came(bench, job)
    assert route(job) == {"store": "s3://data/mlops", "trouble": "", "bytes": SIZE}
    assert s3.find("data") == [], "nothing stays there"
    assert bench.driver.preview("b", {"command": "true"})["route"] == "through s3://data/mlops"
    everywhere = [*job.folder.rglob("*"), *server.folder.rglob("*")]
    secret = KEYS["AWS_SECRET_ACCESS_KEY"].encode()
    assert not any(secret in path.read_bytes() for path in everywhere if path.is_file()), "the pod has no credentials"


def test_inputs_go_through_it_into_every_pod(bench, server, s3, monkeypatch):
    pytest.importorskip("torch")
    job = bench.job("a", cell={"source": "import os\nplace = os.environ['JUPYTER_MLOPS_JOB_DIR']\n"
                               "print(len(open(place + '/inputs/x.bin', 'rb').read()))"},
                    resources={"instance_count": 2}, distribution={"type": "pytorch"})
    (job.folder / "inputs").mkdir()
    (job.folder / "inputs" / "x.bin").write_bytes(os.urandom(20_000_000))
    sent = []
    monkeypatch.setattr("jupyter_mlops.compute.kubernetes.parcels.send_parcel", lambda *a: sent.append(a))
    bench.driver.start(job, 1, {})
    assert bench.ended(job, 90).phase == "completed", bench.log(job)
    assert all(bench.log(job, rank) == "20000000\n" for rank in (0, 1)) and not sent
    assert s3.find("data") == []


@pytest.mark.parametrize("inputs", [True, False])
def test_pods_that_do_not_reach_it_use_the_clusters_api(bench, s3, inputs):
    bench.store["pod_endpoint_url"] = "http://127.0.0.1:9"
    bench.driver = bench.make()
    job = bench.job("a", cell={"source": WRITES})
    if inputs:
        (job.folder / "inputs").mkdir()
        (job.folder / "inputs" / "x.bin").write_bytes(os.urandom(20_000_000))
    bench.driver.start(job, 1, {})
    seen = bench.ended(job, 60)
    words = "over the cluster's API: the store is not reached from the pod: [Errno 111] Connection refused"
    assert seen.phase == "completed" and seen.route == words
    came(bench, job)
    assert bench.driver.preview("b", {"command": "true"})["route"] == words
    assert route(job)["bytes"] == 0 and s3.find("data") == []


def test_a_store_that_is_lost_in_the_middle(bench, monkeypatch, s3):
    """From here: what has come stays, the rest comes over the cluster's API; what is left there goes later."""
    takes, take = [], store.ObjectStore.take

    def once(self, key, size):
        takes.append(key)
        if len(takes) == 2:
            raise BackendUnreachable("the store does not answer")
        return take(self, key, size)

    monkeypatch.setattr(store.ObjectStore, "take", once)
    job = bench.cell("a", WRITES)
    assert bench.ended(job, 60).phase == "completed"
    came(bench, job)
    assert len(takes) == 2 and route(job)["bytes"] == store.PIECE
    assert "the store does not answer" in bench.driver.preview("b", {"command": "true"})["route"]
    assert s3.find("data"), "nobody could be asked to remove them"
    monkeypatch.setattr(store, "OLD", -1)
    bench.driver.store._rests = 0.0
    assert bench.ended(bench.cell("b", "print(1)")).phase == "completed"
    assert s3.find("data") == []


def test_what_was_damaged_on_the_way_is_not_taken(bench, monkeypatch):
    take = store.ObjectStore.take
    monkeypatch.setattr(store.ObjectStore, "take", lambda self, key, size: take(self, key, size)[:-1] + b"?")
    job = bench.cell("a", WRITES)
    assert bench.ended(job, 60).phase == "completed"
    came(bench, job)
    assert "arrived damaged" in bench.driver.store.trouble


def test_a_control_plane_that_dies_on_the_way(bench, server, monkeypatch, s3):
    """The next one goes on after the piece that came last: nothing is missing, nothing stays."""
    takes, take = [], store.ObjectStore.take
    held = threading.Event()

    def slow(self, key, size):
        takes.append(key)
        if len(takes) == 2:
            held.wait(60)
        return take(self, key, size)

    monkeypatch.setattr(store.ObjectStore, "take", slow)
    job = bench.cell("a", WRITES)
    wait_for(lambda: (bench.observe(job), len(takes) == 2)[1], 40)
    old = bench.driver
    bench.driver = bench.make()
    old.close()
    server.cut_connections()
    held.set()
    assert bench.ended(job, 60).phase == "completed"
    came(bench, job)
    pieces = -(-SIZE // store.PIECE)
    assert pieces < len(takes) <= pieces + 1, "only the piece that was on its way is put there again"
    assert s3.find("data") == []


def test_another_jobs_objects_are_not_taken(bench, server, tmp_path):
    """Whoever has a pod may say what they like; they are given what they have put there, and nothing else."""
    there = bench.driver.store
    key = there.key("other/1")
    there.put(key, b"of somebody else")
    one = copy.Copy(bench.driver.kube, "python3", "pod", 0, tmp_path / "jobs" / "a", 1, lambda: None,
                    bench.driver.follower.outlets, "", there).deposits
    header = {"file": "outputs/x", "at": 0, "size": 16, "mtime": 1, "crc": 0, "key": key, "bytes": 16}

    async def ask():
        with pytest.raises(ValueError, match="none of its own"):
            await one.take(header)

    asyncio.run(ask())
    (mine, address), = one.addresses(1)["urls"]
    assert mine.startswith("mlops/w/a/1/") and KEYS["AWS_SECRET_ACCESS_KEY"] not in address
    assert there.there(key) and not there.there(mine)
    there.clear("other/1")


def test_attaching_tries_the_store(bench, server, s3):
    def told(**changes):
        options = {**bench.store, **changes}
        spec = ComputeSpec(type="kubernetes", namespace="team", training={"image": "a:1", "store": options})
        found = survey(bench.driver.kube, spec)
        messages = [p["message"] for p in found["problems"] if "training.store" in p["message"]]
        assert not any(p["fatal"] for p in found["problems"] if "training.store" in p["message"])
        return found["store"]["trouble"], messages

    server.put("namespaces", {"metadata": {"name": "team", "labels": {}}})
    assert told() == ("", []) and s3.find("data") == []
    trouble, messages = told(url="s3://nowhere/x")
    assert trouble == "s3://nowhere/x answers 404 NoSuchBucket"
    assert messages == [f"training.store cannot be used: {trouble}"]
    assert "there is no Secret 'none'" in told(secret="none")[0]
    assert "s3://data/mlops does not answer: Could not connect" in told(endpoint_url="http://127.0.0.1:9")[0]
    server.put("secrets", {"metadata": {"name": "empty"}, "data": {}})
    assert "the Secret 'empty' lacks AWS_ACCESS_KEY_ID" in told(secret="empty")[0]


@pytest.mark.parametrize(("given", "words"), [
    ({"url": "gs://data"}, "String should match pattern"),
    ({"url": "s3://data", "endpoint_url": "http://ann:secret@store"}, "credentials belong into a Secret"),
    ({"url": "s3://data", "endpoint_url": "store:9000"}, "is no address such as https://HOST:PORT"),
])
def test_what_is_wrong_with_a_store_is_said(given, words):
    with pytest.raises(ValueError, match=words):
        ComputeSpec(type="kubernetes", namespace="team", training={"image": "a:1", "store": given})
