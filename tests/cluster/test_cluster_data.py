"""Named inputs on a real cluster: claims that pods of a restricted namespace read and write, a cache outliving them.

Pods must reach this machine, see CLUSTER_HOST in test_cluster_packages.py.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))

from cluster_bench import IMAGE, cluster, fresh_namespace, namespace
from cluster_volumes import made_volumes
from conftest import Plane, make_home, wait_for
from stores import Site
from test_cluster_packages import own_address

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


@pytest.fixture(scope="module")
def volumes(cluster, namespace):
    """Claims ``data`` (read by many), ``work`` (written by many) and ``once`` (for one node)."""
    with made_volumes(cluster, namespace) as volumes:
        volumes.claim("data", "ReadOnlyMany", {"v1/a.txt": "from the volume"})
        volumes.claim("work", "ReadWriteMany")
        volumes.claim("once", "ReadWriteOnce", {"a.txt": "for one"})
        yield volumes


@pytest.fixture(scope="module")
def plane(namespace, volumes):
    p = Plane(make_home()).start().mlflow_ready()
    for name, image in (("gpu", IMAGE), ("torch", TORCH)):
        if image:
            p.put(f"computes/{name}", {"type": "kubernetes", "namespace": namespace, "training": {
                "image": image, "hold": 30, "claims": ["data", "once", {"name": "wor*", "writable": True}],
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


def test_a_claim_for_one_node(plane, namespace):
    status, log = run(plane, "once", command="cat ${{inputs.a}}", cell=None,
                      inputs={"a": {"path": "claim://once/a.txt"}})
    assert status["phase"] == "Completed" and log == "for one", (status, log)
    plane.put("computes/narrow", {"type": "kubernetes", "namespace": namespace, "training": {
        "image": IMAGE, "cache": {"claim": "once"}, "package_cache": {"claim": "once"}}})
    told = {p["message"]: p["fatal"] for p in plane.get("computes/narrow/survey")["problems"]}
    for field in ("training.cache", "training.package_cache"):
        assert told[f"the claim 'once' of {field} is for one node (ReadWriteOnce)"] is False, told


def test_an_output_in_a_claim_is_the_next_jobs_input(plane):
    status, log = run(plane, "writes", cell={"source": "from jupyter_mlops import outputs\n"
                      "open(outputs['model'] + '/m.txt', 'w').write('trained')"},
                      outputs={"model": {"path": "claim://work/models/run-1"}})
    assert status["phase"] == "Completed", (status, log)
    status, log = run(plane, "reads", command="cat ${{inputs.model}}/m.txt", cell=None,
                      inputs={"model": {"path": "claim://work/models/run-1"}})
    assert status["phase"] == "Completed" and log == "trained", (status, log)


def test_what_mlflow_keeps_goes_along(plane):
    made, log = run(plane, "made", compute="local", cell={
        "source": "import mlflow\nopen('a.txt', 'w').write('an artifact')\nmlflow.log_artifact('a.txt', 'files')"})
    assert made["phase"] == "Completed", (made, log)
    status, log = run(plane, "used", command="cat ${{inputs.a}} ${{inputs.b}}/a.txt", cell=None, inputs={
        "a": {"path": f"runs:/{made['run_id']}/files/a.txt"}, "b": {"path": f"runs:/{made['run_id']}/files"}})
    assert status["phase"] == "Completed" and log == "an artifact" * 2, (status, log)


def test_what_is_wrong_with_a_claim_is_said_before(plane, cluster):
    spec = {"compute": "gpu", "command": "true"}
    found = plane.post("jobs/ahead/actions/preview", {**spec, "inputs": {"a": {"path": "claim://data/v1"}}})
    assert found["volumes"] == ["claim 'data' is mounted read-only (1 GiB; ReadOnlyMany; no storage class; bound)"]
    for path, words in (("claim://home/x", "lets jobs mount no claim 'home'"), ("claim://work2", "there is no claim")):
        found = plane.post("jobs/ahead/actions/preview", {**spec, "inputs": {"a": {"path": path}}})
        assert found["fits"] is False and words in found["reasons"][0], found
    found = plane.post("jobs/ahead/actions/preview", {**spec, "outputs": {"a": {"path": "claim://data/v2"}}})
    assert "lets jobs read the claim 'data', not write to it" in found["reasons"][0]
    wide = {**spec, "command": None, "cell": {"source": "1"}, "resources": {"instance_count": 2},
            "distribution": {"type": "pytorch"}, "inputs": {"a": {"path": "claim://once"}}}
    found = plane.post("jobs/ahead/actions/preview", wide)
    assert found["fits"] is False, found
    assert found["reasons"] == ["the claim 'once' is for one node: 2 nodes cannot read it"], found
    status, _ = run(plane, "none", inputs={"data": {"path": "claim://data/v9"}})
    assert status["phase"] == "Failed" and status["reason"] == "claim 'data' has no v9", status
