"""Named inputs as a user gives them: the same cell here and on a cluster, files of this machine, what MLflow keeps."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import Plane, make_home

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))

from pod_server import PodServer

from jupyter_mlops.core.errors import NotFound, ParameterError, Refused
from jupyter_mlops.magics import commands
from jupyter_mlops.magics.context import Context
from jupyter_mlops.magics.parser import parse, split

CELL = """
import os
from jupyter_mlops import inputs, outputs
place = inputs["data"]
for name in sorted(os.listdir(place)) if os.path.isdir(place) else [""]:
    print("read", name, open(os.path.join(place, name) if name else place).read())
if "model" in outputs:
    open(outputs["model"] + "/m.txt", "w").write("trained")
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = PodServer().start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_MLOPS_KUBECONFIG", server.kubeconfig(tmp_path_factory.mktemp("kube")))
        plane = Plane(make_home()).start().mlflow_ready()
    plane.put("computes/gpu", {"type": "kubernetes", "namespace": "team", "context": "emulated",
                               "training": {"image": "image:1", "hold": 60}})
    yield server, plane
    plane.stop()
    server.stop()


@pytest.fixture
def run(served):
    def run(line: str, cell: str | None = CELL):
        context = Context("cli", {}, cell=cell, where=served[1].place)
        return commands.run(parse(split(line), "cli"), context)

    return run


def log(plane, job) -> str:
    return (plane.home / "jobs" / job.name / "attempts" / "1" / "rank-0.log").read_text()


def test_the_same_cell_here_and_there(served, run, tmp_path, monkeypatch):
    _, plane = served
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a.txt").write_text("of this machine")
    monkeypatch.chdir(tmp_path)
    for compute in ("local", "gpu"):
        job = run(f"train -n at-{compute} --compute {compute} --input data=mine --output model --wait")
        assert job.phase == "Completed", job.reason
        assert log(plane, job) == "read a.txt of this machine\n"
        assert (plane.home / "jobs" / job.name / "outputs" / "model" / "m.txt").read_text() == "trained"
    ahead = run("train --compute gpu --input data=mine --dry-run")
    assert "input data: 1 file goes with the job, 15 B" in ahead.text()
    with pytest.raises(ParameterError, match="--input data: there is no "):
        run("train --input data=nowhere")
    with pytest.raises(Refused, match="lets jobs mount no claim 'datasets'"):
        run("train --compute gpu --input data=claim://datasets/x")
    with pytest.raises(Refused, match="claims are volumes of a cluster"):
        run("train --input data=claim://datasets/x")


def test_what_mlflow_keeps_is_copied_to_where_the_job_runs(served, run):
    _, plane = served
    first = run("train -n first --wait", """
import mlflow
mlflow.log_text("an artifact", "files/a.txt")
""")
    assert first.phase == "Completed", first.reason
    for compute in ("local", "gpu"):
        for name, path in (("folder", "files"), ("file", "files/a.txt")):
            job = run(f"train -n {name}-{compute} --compute {compute} --input data=runs:/{first.run_id}/{path} --wait")
            assert job.phase == "Completed", job.reason
            assert log(plane, job).endswith("an artifact\n"), log(plane, job)
    with pytest.raises(NotFound, match=f"there is no runs:/{first.run_id}/none"):
        run(f"train --input data=runs:/{first.run_id}/none")
    with pytest.raises(NotFound, match="model 'none' does not exist"):
        run("train --input data=models:/none/1")
    plane.put("jobs/kind", {"command": "true", "inputs": {
        "a": {"path": f"runs:/{first.run_id}/files", "type": "uri_file"}}}, expect=422)
