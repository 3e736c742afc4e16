"""Job folders in a claim: what a lost node has not told is read by another pod; pods are processes here."""

from __future__ import annotations

import os
import shutil
import sys
import time
from pathlib import Path

import pytest
from conformance import STEPS, steps, wait_for

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))

from kube_server import status
from pod_server import PodServer
from test_pods import PodBench, objects

from jupyter_mlops.compute.kubernetes import shelf, watch
from jupyter_mlops.compute.kubernetes.manifests import Names
from jupyter_mlops.compute.kubernetes.survey import survey
from jupyter_mlops.core.errors import Refused
from jupyter_mlops.runtime import shelf as there

#: Writes a checkpoint and goes on saying steps until it is ended.
WORKS = "open('model.txt', 'w').write('a checkpoint')\n" + STEPS.format(n=2000, pause=0.05)


@pytest.fixture
def server():
    server = PodServer().start()
    server.claim("folders", accessModes=["ReadWriteMany"])
    yield server
    server.stop()


@pytest.fixture
def bench(server, tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "RETRY", 0.1)
    bench = PodBench(server, tmp_path, store={"claim": "folders"})
    yield bench
    bench.close()


def left(server) -> list[str]:
    """Folders of attempts that lie in the claim."""
    place = server.claim("folders") / "w"
    return sorted(os.listdir(place)) if place.is_dir() else []


def no_copies(server) -> None:
    """From now on nobody can execute anything in a pod."""
    server.fault = lambda request: status(503, "away", "ServiceUnavailable") if request.path.endswith("/exec") else None
    server.cut_connections()


def lose(bench, server, job, seconds: float = 3.0) -> str:
    """Have a job work for a while without anybody who copies, and lose its node; the log that it had written."""
    bench.says(job, "step 2")
    no_copies(server)
    time.sleep(seconds)
    (pod,) = [p["metadata"]["name"] for p in server.pods()]
    server.lose_node(pod)
    wait_for(lambda: not server.pods())
    (log,) = (server.claim("folders") / "w").rglob("rank-0.log")
    return log.read_text()


def test_a_job_that_ends_well_leaves_nothing_there(bench, server):
    job = bench.cell("a", "open('model.txt', 'w').write('x' * 100)\nprint(1)")
    wait_for(lambda: left(server))
    assert bench.ended(job).phase == "completed"
    assert (job.folder / "outputs" / "model.txt").read_text() == "x" * 100
    wait_for(lambda: not server.pods())
    assert left(server) == []


def test_what_a_lost_node_had_not_told_is_read(bench, server):
    job = bench.cell("a", WORKS)
    written = lose(bench, server, job)
    known = steps(bench.log(job))
    assert len(steps(written)) > len(known) + 20, "this is what would be lost"
    seen = wait_for(lambda: (s := bench.observe(job)).phase == "running" and "what it left" in s.reason and s)
    assert "its node is lost; what it left in claim 'folders' is copied" in seen.reason
    server.fault = None
    seen = bench.ended(job)
    assert (seen.phase, seen.cause, seen.reason, seen.incomplete) == ("failed", "lost", "its node is lost", False)
    assert bench.log(job) == written, "nothing is missing, nothing doubled"
    assert (job.folder / "outputs" / "model.txt").read_text() == "a checkpoint"
    wait_for(lambda: not [o for o in objects(server) if not o.startswith("persistentvolumeclaims")], 20)
    assert left(server) == []
    bench.driver.start(job, 2, {})
    bench.driver.stop(job, 2, 1)
    assert bench.ended(job, attempt=2).phase == "canceled"


def test_a_control_plane_that_comes_after_the_pod_has_gone(bench, server):
    """The pod waited for ``hold`` seconds and gave up; with a claim that costs nothing."""
    bench.driver = bench.make(hold=1)
    job = bench.cell("a", "import time\nprint('begun')\ntime.sleep(2)\n"
                     "open('model.txt', 'w').write('done')\nprint('over')")
    bench.says(job, "begun")
    no_copies(server)
    bench.driver.close()
    wait_for(lambda: all(p["status"]["phase"] == "Succeeded" for p in server.pods()), 40)
    server.fault = None
    bench.driver = bench.make(hold=1)
    seen = bench.ended(job)
    assert (seen.phase, seen.incomplete) == ("completed", False), seen
    assert bench.log(job) == "begun\nover\n" and (job.folder / "outputs" / "model.txt").read_text() == "done"
    wait_for(lambda: left(server) == [])


def test_the_next_control_plane_reads_on(bench, server):
    job = bench.cell("a", WORKS)
    written = lose(bench, server, job, 1.0)
    wait_for(lambda: "what it left in claim" in bench.observe(job).reason)
    bench.driver.close()
    bench.driver = bench.make()
    server.fault = None
    seen = bench.ended(job)
    assert (seen.cause, seen.incomplete) == ("lost", False) and bench.log(job) == written
    assert sum(1 for method, path in server.calls if method == "PATCH" and path.endswith("-read")) <= 2


def test_a_claim_that_cannot_be_read_is_told(bench, server, monkeypatch):
    monkeypatch.setattr(shelf, "PATIENCE", 1.0)
    bench.driver = bench.make(hold=1)
    job = bench.cell("a", WORKS)
    lose(bench, server, job, 1.0)
    server.hold_pods = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                         "message": "0/1 nodes are available: 1 node(s) had volume node affinity conflict."}]
    server.fault = None
    seen = bench.ended(job)
    assert (seen.phase, seen.cause, seen.incomplete) == ("failed", "lost", True)
    assert "its node is lost; what it left in claim 'folders' is not here: " in seen.reason
    assert len(left(server)) == 1, "somebody may still look at it"
    # A week later the next one that ends takes it away.
    (old,) = (server.claim("folders") / "w").iterdir()
    server.hold_pods = None
    for path in [old, *old.rglob("*")]:
        os.utime(path, (time.time() - there.FORGOTTEN - 60,) * 2)
    assert bench.ended(bench.cell("b", "print(1)")).phase == "completed"
    wait_for(lambda: left(server) == [])


def test_a_claim_whose_folder_is_gone(bench, server):
    job = bench.cell("a", WORKS)
    lose(bench, server, job, 0.5)
    (place,) = (server.claim("folders") / "w").iterdir()
    shutil.rmtree(place)
    server.fault = None
    seen = bench.ended(job)
    assert (seen.cause, seen.incomplete) == ("lost", True)
    assert seen.reason == "its node is lost; what it left in claim 'folders' is not here: there is no folder of it"


def test_what_is_written_to_is_not_swept_away(tmp_path):
    for name in ("lives", "old"):
        place = tmp_path / name / "0" / "job" / "attempts" / "1"
        place.mkdir(parents=True)
        (place / "state.json").write_text("{}")
    long_ago = (time.time() - there.FORGOTTEN - 60,) * 2
    for path in [*tmp_path.rglob("*")]:
        os.utime(path, long_ago)
    os.utime(tmp_path / "lives" / "0" / "job" / "attempts" / "1" / "state.json")
    there.sweep(str(tmp_path))
    assert os.listdir(tmp_path) == ["lives"]
    there.clear(str(tmp_path / "lives" / "0"))
    assert os.listdir(tmp_path) == []


def test_a_claim_is_checked_before_a_job_is_taken(bench, server):
    wide = {"command": None, "cell": {"source": "1"}, "resources": {"instance_count": 2},
            "distribution": {"type": "pytorch"}}
    told = bench.driver.preview("a", {"command": "true"})["volumes"]
    assert told == ["job folders lie in claim 'folders' (10 GiB; ReadWriteMany; storage class 'fast'; bound)"]
    bench.driver.check(wide)
    server.claim("folders", accessModes=["ReadWriteOnce"])
    words = "the claim 'folders' of training.store is for one node: 2 nodes cannot write to it"
    with pytest.raises(Refused, match=words):
        bench.driver.check(wide)
    assert bench.driver.preview("a", wide)["reasons"] == [words]
    bench.driver.check({"command": "true"})
    server.put("namespaces", {"metadata": {"name": "team", "labels": {}}})
    found = survey(bench.driver.kube, bench.driver.spec)
    assert found["store"] == {"claim": "folders", "url": "", "trouble": ""}
    assert "the claim 'folders' of training.store is for one node (ReadWriteOnce)" in [
        p["message"] for p in found["problems"]]
    del server.objects["persistentvolumeclaims", "folders"]
    with pytest.raises(Refused, match="there is no claim 'folders', which"):
        bench.driver.check({"command": "true"})


def test_a_later_job_of_the_same_name_has_another_folder():
    names = Names("w", "a", 1)
    assert shelf.name_of(names, {"run_id": "1" * 32}) != shelf.name_of(names, {"run_id": "2" * 32})
    assert shelf.name_of(names, {"run_id": "1" * 32}) == shelf.name_of(names, {"run_id": "1" * 32})
