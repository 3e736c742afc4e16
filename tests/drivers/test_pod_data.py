"""Named inputs and outputs of jobs on a cluster: claims, the operator's cache and credentials; pods are processes."""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from stores import KEYS, s3, s3_server, site
from test_local_data import READ
from test_pods import PodBench, server

from jupyter_mlops.client.inputs import Packed
from jupyter_mlops.compute.kubernetes import watch
from jupyter_mlops.compute.kubernetes.survey import survey
from jupyter_mlops.core.errors import Refused
from jupyter_mlops.core.resources.compute import ComputeSpec
from jupyter_mlops.runtime import parcel

__all__ = ["s3", "s3_server", "server", "site"]
RULES = ["datasets", {"name": "results-*", "writable": True}]


@pytest.fixture
def bench(server, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "RETRY", 0.1)
    (tmp_path / "node").mkdir()
    server.put("secrets", {"metadata": {"name": "store"}, "data": {}})
    bench = PodBench(server, tmp_path, claims=RULES, secrets=["store"],
                     cache={"host_path": str(tmp_path / "node"), "size": "1Gi"})
    yield bench
    bench.close()


def run(bench, name, source=READ, phase="completed", **spec):
    job = bench.job(name, cell={"source": source}, **spec)
    bench.driver.check({"cell": {"source": source}, **spec})
    bench.driver.start(job, 1, {"JUPYTER_MLOPS_JOB": name, "JUPYTER_MLOPS_RUN_ID": "1" * 32})
    seen = bench.ended(job, 60)
    assert seen.phase == phase, (seen.reason, bench.log(job))
    return bench.log(job) if phase == "completed" else seen.reason


def test_a_claim_is_read_and_another_is_written_to(bench, server):
    data = server.claim("datasets", accessModes=["ReadOnlyMany"])
    (data / "v1").mkdir()
    (data / "v1" / "a.txt").write_text("from the claim")
    results = server.claim("results-ann", accessModes=["ReadWriteMany"])
    log = run(bench, "a", READ + "\nopen(outputs['model'] + '/m', 'w').write('mine')\nprint(place)",
              inputs={"data": {"path": "claim://datasets/v1"}}, outputs={"model": {"path": "claim://results-ann/run-1"}})
    assert "read a.txt from the claim" in log and "/claims/datasets/v1" in log
    assert (results / "run-1" / "m").read_text() == "mine"
    reason = run(bench, "b", phase="failed", inputs={"data": {"path": "claim://datasets/v2"}})
    assert reason == "claim 'datasets' has no v2"


def test_the_second_job_of_a_node_reads_from_its_disk(bench, server, s3, s3_server, monkeypatch, tmp_path):
    """Credentials come from a Secret that the operator named; they are in no manifest, no log and no folder."""
    s3.pipe("data/train/a.txt", b"a" * 5000)
    for name in (*KEYS, "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    given = {"data": {"path": "s3://data/train"}}
    assert "access is denied" in run(bench, "zero", phase="failed", inputs=given)
    keys = {**KEYS, "AWS_ENDPOINT_URL": s3_server}
    server.objects["secrets", "store"]["data"] = {k: base64.b64encode(v.encode()).decode() for k, v in keys.items()}
    log = run(bench, "one", inputs=given)
    assert "read a.txt aaa" in log and "0 B from the cache, 5 kB downloaded" in log
    assert "5 kB from the cache, 0 B downloaded" in run(bench, "two", inputs=given)
    told = run(bench, "three", "import os\nfrom jupyter_mlops import inputs\n"
               "print(inputs['data'], 'AWS_ACCESS_KEY_ID' in os.environ)",
               inputs={"data": {"path": "s3://data/train", "mode": "direct"}})
    assert told == "s3://data/train True\n"
    (workspace,) = (tmp_path / "node").iterdir()
    assert workspace.name == "w", "a workspace has its own part of the cache"
    bench.driver = bench.make("another")
    assert "0 B from the cache, 5 kB downloaded" in run(bench, "four", inputs=given)
    secret = KEYS["AWS_SECRET_ACCESS_KEY"]
    for job in bench.jobs:
        for folder, _, names in os.walk(job.folder):
            assert not any(secret.encode() in Path(folder, n).read_bytes() for n in names)


def test_a_claim_is_copied_to_the_node_when_that_is_asked_for(bench, server, tmp_path):
    data = server.claim("datasets", accessModes=["ReadOnlyMany"])
    (data / "a.txt").write_text("slow")
    given = {"data": {"path": "claim://datasets/a.txt", "mode": "download"}}
    assert "4 B downloaded" in run(bench, "one", inputs=given)
    log = run(bench, "two", inputs=given)
    assert "4 B from the cache" in log and "read a.txt slow" in log
    (data / "a.txt").write_text("other")
    assert "read a.txt other" in run(bench, "three", inputs=given)


@pytest.mark.faults
def test_nodes_of_a_job_share_what_their_machine_has(bench, site):
    pytest.importorskip("torch")
    site.pages["/x.txt"] = (b"hello", '"1"')
    job = bench.job("wide", cell={"source": READ}, resources={"instance_count": 2},
                    distribution={"type": "pytorch", "process_count_per_instance": 1},
                    inputs={"data": {"path": site.address + "/x.txt"}})
    bench.driver.start(job, 1, {})
    assert bench.ended(job, 90).phase == "completed", bench.log(job)
    assert all("read x.txt hello" in bench.log(job, rank) for rank in (0, 1))
    assert len(site.gets) == 1, "both are on one node"


def test_files_of_this_machine_go_along(bench, tmp_path):
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "sub" / "a.txt").write_text("mine")
    (tmp_path / "one.txt").write_text("single")
    inputs = {"data": {"path": str(tmp_path / "mine")}, "one": {"path": f"file://{tmp_path}/one.txt"}, "n": 3}
    with pytest.raises(Refused, match=r"input data: .*/mine is not on compute 'gpu'"):
        bench.driver.check({"command": "true", "inputs": inputs})
    packed = Packed(inputs)
    assert packed.remarks == ["input data: 1 file goes with the job, 4 B", "input one: 1 file goes with the job, 6 B"]
    job = bench.job("a", cell={"source": READ + "\nprint(open(inputs['one']).read(), inputs['n'])"}, inputs=inputs)
    for name in ("data", "one"):  # as the control plane places its blobs
        target = job.folder / "inputs" / "data" / f"{name}.zip"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(packed._zips[inputs[name]["blob"]], target)
        assert parcel.sha256(str(target)) == inputs[name]["blob"]
    packed.close()
    bench.driver.check({"command": "true", "inputs": inputs})
    bench.driver.start(job, 1, {})
    assert bench.ended(job).phase == "completed", bench.log(job)
    assert "read a.txt mine\nsingle 3\n" in bench.log(job)
    assert (job.folder / "inputs" / "data" / "one.zip").exists(), "a further attempt needs it again"


@pytest.mark.parametrize(("claim", "spec", "words"), [
    (None, {}, "there is no claim 'datasets' in the namespace 'team'"),
    ({"accessModes": ["ReadWriteOnce"]}, {"resources": {"instance_count": 2}},
     "the claim 'datasets' is for one node: 2 nodes cannot read it"),
    ({"accessModes": ["ReadOnlyMany"]}, {"outputs": {"m": {"path": "claim://datasets/m"}}},
     "compute 'gpu' lets jobs read the claim 'datasets', not write to it"),
    ({"accessModes": ["ReadOnlyMany"]}, {"outputs": {"m": {"path": "claim://results-b/m"}}}, "no claim 'results-b' in"),
    ({"accessModes": ["ReadOnlyMany"]}, {"inputs": {"data": {"path": "claim://home-bob/x"}}},
     "compute 'gpu' lets jobs mount no claim 'home-bob'"),
    ({"accessModes": ["ReadWriteOncePod"]}, {}, "is for one pod at a time, and pod other has it"),
    ({"accessModes": ["ReadOnlyMany"]}, {"outputs": {"m": {"path": "/home/ann/m"}}}, "/home/ann/m is not on compute"),
])
def test_claims_are_checked_before_a_job_is_taken(bench, server, claim, spec, words):
    if claim:
        server.claim("datasets", **claim)
    server.put("pods", {"metadata": {"name": "other"}, "status": {"phase": "Running"}, "spec": {
        "volumes": [{"name": "d", "persistentVolumeClaim": {"claimName": "datasets"}}]}})
    whole = {"cell": {"source": "1"}, "inputs": {"data": {"path": "claim://datasets/x"}}, **spec}
    with pytest.raises(Refused) as error:
        bench.driver.check(whole)
    assert words in error.value.message
    if "outputs" not in spec or "claim" in json.dumps(spec):
        seen = bench.driver.preview("a", whole)
        assert seen["fits"] is False and words in seen["reasons"][0]
    assert not [p for m, p in server.calls if m == "POST" and "access" not in p]


def test_a_claim_without_a_volume(bench, server):
    server.claim("datasets", accessModes=["ReadWriteMany"])
    found = server.objects["persistentvolumeclaims", "datasets"]
    spec = {"command": "true", "inputs": {"data": {"path": "claim://datasets"}}}
    told = bench.driver.preview("a", spec)["volumes"]
    assert told == ["claim 'datasets' is mounted read-only (10 GiB; ReadWriteMany; storage class 'fast'; bound)"]
    for binding, fine in (("WaitForFirstConsumer", True), ("Immediate", False)):
        found["status"] = {"phase": "Pending"}
        found["spec"]["storageClassName"] = binding.lower()
        server.classes[binding.lower()] = binding
        if fine:
            bench.driver.check(spec)
        else:
            with pytest.raises(Refused, match="has no volume yet"):
                bench.driver.check(spec)
    found["status"] = {"phase": "Lost"}
    with pytest.raises(Refused, match="has lost its volume"):
        bench.driver.check(spec)


def test_attaching_looks_at_the_volumes(bench, server):
    server.claim("once", accessModes=["ReadWriteOnce"])
    server.put("namespaces", {"metadata": {"name": "team", "labels": {}}})

    def problems(**training):
        spec = ComputeSpec(type="kubernetes", namespace="team", training={"image": "a:1", **training})
        return {p["message"]: p["fatal"] for p in survey(bench.driver.kube, spec)["problems"]}

    assert problems(cache={"claim": "none"})["there is no claim 'none', which training.cache names"] is True
    assert problems(claims=["none", "any-*"])["there is no claim 'none', which training.claims names"] is False
    assert "the claim 'once' of training.cache is for one node (ReadWriteOnce)" in problems(cache={"claim": "once"})
    assert problems(secrets=["absent"])["there is no Secret 'absent', which training.secrets names"] is False
    server.allowed = lambda asked: asked["resource"] != "persistentvolumeclaims"
    assert any("get persistentvolumeclaims" in m and fatal for m, fatal in problems().items())
