"""A cell and a script on a cluster as a user starts them, with a real control plane and MLflow: pods are processes."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import Plane, make_home, wait_for

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))
sys.path.insert(0, str(Path(__file__).parents[1]))

from pod_server import PodServer
from wheels import wheel

from jupyter_mlops.core.errors import ParameterError, Refused
from jupyter_mlops.magics import commands
from jupyter_mlops.magics.context import Context
from jupyter_mlops.magics.parser import parse, split


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = PodServer().start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_MLOPS_KUBECONFIG", server.kubeconfig(tmp_path_factory.mktemp("kube")))
        plane = Plane(make_home()).start().mlflow_ready()
    plane.put("computes/gpu", {"type": "kubernetes", "namespace": "team", "context": "emulated",
                               "training": {"image": "image:1", "hold": 60},
                               "instance_types": {"small": {"resources": {"requests": {"cpu": "1"}}, "price": 0.5}}})
    yield server, plane
    plane.stop()
    server.stop()


@pytest.fixture
def run(served):
    def run(line: str, cell: str | None = None, **names):
        context = Context("cli", names, cell=cell, where=served[1].place)
        return commands.run(parse(split(line), "cli"), context)

    return run


def test_a_cell_with_what_it_needs_and_brings_back(served, run):
    server, plane = served
    cell = """
from jupyter_mlops import log
weights = X.mean(axis=0) * scale
for step in range(5):
    log({"loss": 1.0 / (step + 1)}, step=step)
print("shape", X.shape)
"""
    X = np.arange(12.0).reshape(4, 3)
    job = run("train -n there --compute gpu --instance small --returns weights --wait", cell, X=X, scale=2.0)
    assert job.phase == "Completed", job.reason
    assert job.result("weights").tolist() == (X.mean(axis=0) * 2).tolist()
    assert (plane.home / "jobs" / "there" / "attempts" / "1" / "rank-0.log").read_text() == "shape (4, 3)\n"
    values = plane.get(f"runs/{job.run_id}/metrics")["metrics"]["loss"]["values"]
    assert values == [1.0 / (n + 1) for n in range(5)]
    assert plane.get(f"runs/{job.run_id}")["status"] == "FINISHED"
    whole = plane.get(f"/mlflow/api/2.0/mlflow/runs/get?run_id={job.run_id}")["run"]["data"]
    assert not [tag for tag in whole["tags"] if tag["key"] == "metrics_incomplete"]
    wait_for(lambda: not server.objects, 30)


def test_a_script_with_its_folder(served, run, tmp_path, monkeypatch):
    _, plane = served
    (tmp_path / "helper.py").write_text("def rate():\n    return 0.25\n")
    (tmp_path / "train.py").write_text(
        "import sys\nfrom helper import rate\nprint(rate(), sys.argv[1:])\nopen('outputs/model.txt', 'w').write('m')\n")
    (tmp_path / ".secret").write_text("no")
    monkeypatch.chdir(tmp_path)
    job = run("train train.py -n script --compute gpu --wait -- --epochs 3")
    assert job.phase == "Completed", job.reason
    folder = plane.home / "jobs" / "script"
    assert (folder / "attempts" / "1" / "rank-0.log").read_text() == "0.25 ['--epochs', '3']\n"
    assert (folder / "outputs" / "model.txt").read_text() == "m"
    with pytest.raises(ParameterError, match="is not below"):
        run(f"train {tmp_path / 'train.py'} --compute gpu")


def test_an_artifact_and_a_model_go_to_mlflow(served, run):
    """The pod has no way to MLflow: what it logs waits in its folder and is delivered here."""
    _, plane = served
    job = run("train -n artifacts --compute gpu --wait", """
import mlflow
with open("report.txt", "w") as f:
    f.write("fine")
mlflow.log_artifact("report.txt", "reports")
mlflow.log_param("depth", 3)
mlflow.set_tag("who", "pod")
""")
    assert job.phase == "Completed", (job.reason, job.details)
    found = plane.get(f"/mlflow/api/2.0/mlflow/artifacts/list?run_id={job.run_id}&path=reports")
    assert [f["path"] for f in found["files"]] == ["reports/report.txt"]
    seen = plane.get(f"/mlflow/api/2.0/mlflow/runs/get?run_id={job.run_id}")["run"]["data"]
    assert {"key": "depth", "value": "3"} in seen["params"] and {"key": "who", "value": "pod"} in seen["tags"]


def test_a_cell_with_packages_and_what_is_then_known_of_the_image(served, run, tmp_path, monkeypatch):
    _, plane = served
    wheel(tmp_path / "simple", "mlops-tiny")
    wheel(tmp_path / "simple", "mlops-other")
    plane.put("computes/more", {"type": "kubernetes", "namespace": "team", "context": "emulated", "training": {
        "image": "image:2", "hold": 60, "pip": {"index_url": (tmp_path / "simple").as_uri()}}})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "requirements.txt").write_text("mlops-other  # by a file\n")

    def scale(x):
        return x * 2

    scale.__module__ = "__main__"
    line = "-n packages --compute more --pip mlops-tiny==1.* -r requirements.txt --returns a --wait"
    job = run(f"train {line}", "import mlops_other, mlops_tiny\na = scale(mlops_tiny.VERSION)", scale=scale)
    assert job.phase == "Completed", job.reason
    assert job.result("a") == "1.01.0"
    spec = plane.get("jobs/packages")["spec"]
    assert spec["environment"]["pip"] == ["mlops-tiny==1.*", "mlops-other"]
    assert spec["cell"]["packed"]["by_value"] and spec["cell"]["packed"]["python"] == platform.python_version()
    (image,) = plane.get("computes/more/survey")["images"]
    assert image["image"] == "image:2" and image["packages"]["cloudpickle"]
    assert "image:2" in run("compute show more").text()
    other = {**spec["cell"], "payload": "", "packed": {"python": "3.8.1", "by_value": True}}
    answer = plane.put("jobs/skewed", {"compute": "more", "cell": other}, expect=422)
    assert "do not run under Python" in answer["message"]
    with pytest.raises(Refused, match="take what is there"):
        run("train -n here --pip mlops-tiny", "print(1)")
    with pytest.raises(ParameterError, match="is no requirement"):
        run("train -n wrong --compute more --pip 'a b'", "print(1)")
    plane.get("jobs/wrong", expect=404)


def test_looking_ahead_starts_nothing(served, run, capsys):
    server, plane = served
    before = len(server.objects)
    ahead = run("train -n ahead --compute gpu --instance small --dry-run", "print(1)")
    assert "compute gpu accepts it; 0.5 an hour for 1 instance" in ahead.text() and ahead.preview["manifest"]
    document = run("train -n ahead --compute gpu --yaml", "print(1)")
    assert document.text().startswith("apiVersion: batch/v1\nkind: Job\n") and "<pre" in document.html()
    refused = run("train -n ahead --compute gpu --instance large --dry-run", "print(1)")
    assert "it would not start now on compute gpu: compute 'gpu' has no instance type 'large'" in refused.text()
    with pytest.raises(Refused, match="no instance type 'large'"):
        run("train -n ahead --compute gpu --instance large", "print(1)")
    plane.get("jobs/ahead", expect=404)
    assert len(server.objects) == before
    for flag in ("--instance small", "--image a:1", "--nodes 2"):
        with pytest.raises(Refused):
            run(f"train -n here {flag}", "print(1)")


def test_a_node_that_is_lost_with_what_it_had_logged(served, run):
    """The job is tried again and completes; that metrics are missing is said in its status, its text and its run."""
    server, plane = served
    job = run("train -n lossy --compute gpu", """
import os, time
from jupyter_mlops import log
log({"x": 1.0}, step=int(os.environ["JUPYTER_MLOPS_ATTEMPT"]))
print("up", flush=True)
time.sleep(60 if os.environ["JUPYTER_MLOPS_ATTEMPT"] == "1" else 0)
""")
    log = plane.home / "jobs" / "lossy" / "attempts" / "1" / "rank-0.log"
    wait_for(lambda: log.exists() and log.read_text() == "up\n", 30)
    server.lose_node(next(p["metadata"]["name"] for p in server.pods()
                          if p["metadata"]["labels"]["jupyter-mlops.io/job"] == "lossy"))
    assert job.wait(60).phase == "Completed"
    status = plane.get("jobs/lossy")["status"]
    assert status["metrics_incomplete"] and status["attempts"][0]["metrics_incomplete"], status
    assert not status["outcome"]["metrics_incomplete"]
    assert "incomplete: a node of attempt 1 was lost" in job.text()
    seen = plane.get(f"/mlflow/api/2.0/mlflow/runs/get?run_id={job.run_id}")["run"]["data"]
    assert {"key": "metrics_incomplete", "value": "true"} in seen["tags"]


def test_a_pod_that_is_taken_away_has_a_moment_and_the_job_goes_on(served, run):
    """Its supervisor says that it is stopping, which nobody asked for: the job is tried again, from its checkpoint."""
    server, plane = served
    job = run("train -n moved --compute gpu --grace 20", """
import os, signal, sys, time
def last(*_):
    open("checkpoint", "w").close()
    time.sleep(4)
    sys.exit(1)
if os.path.exists("checkpoint"):
    print("goes on")
else:
    signal.signal(signal.SIGTERM, last)
    print("up", flush=True)
    time.sleep(120)
""")
    log = plane.home / "jobs" / "moved" / "attempts" / "1" / "rank-0.log"
    wait_for(lambda: log.exists() and log.read_text() == "up\n", 30)
    pod = next(p["metadata"]["name"] for p in server.pods()
               if p["metadata"]["labels"]["jupyter-mlops.io/job"] == "moved")
    server._loop.call_soon_threadsafe(server._terminate, pod, 20)
    assert plane.wait_job("moved", 30, ("Stopping",))["status"]["reason"].startswith("the cluster takes its pod away")
    assert job.wait(60).phase == "Completed" and job.logs(0) == "goes on\n"
    first = plane.get("jobs/moved")["status"]["attempts"][0]
    assert (first["phase"], first["cause"]) == ("Failed", "lost") and "the cluster ended the pod" in first["reason"]
