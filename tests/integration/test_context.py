"""What ran can be found again: a real kernel, plain runs and a job, with secrets planted everywhere."""

from __future__ import annotations

import os
import subprocess

import pytest
from conftest import wait_for
from jupyter import run
from jupyter_client.manager import start_new_kernel

pytestmark = pytest.mark.story

_WHERE = ("cell", "marked", "remote", "diff", "module", "argument", "environment", "job")
PLANTED = [f"planted-{where}-4f7x" for where in _WHERE]
CELL, MARKED, REMOTE, DIFF, MODULE, ARGUMENT, ENVIRONMENT, JOB = PLANTED


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    (folder / "edited.py").write_text("y = 1\n")
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "one"],
                  ["remote", "add", "origin", f"https://ann:{REMOTE}@example.org/a.git"]):
        subprocess.run(["git", "-c", "user.name=n", "-c", "user.email=a@example.org", *words], cwd=folder, check=True)
    (folder / "edited.py").write_text(f"y = 2\nAPI_KEY = '{DIFF}'\n")
    (folder / "helper.py").write_text(f"import edited\nPASSWORD = '{MODULE}'\n")
    (folder / "script.py").write_text("import helper, mlflow\nmlflow.log_metric('loss', 1.0)\n")
    return folder


@pytest.fixture(scope="module")
def kernel(shared_plane, folder):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER_MLOPS_", "MLFLOW_", "JPY_"))}
    env |= {"JUPYTER_MLOPS_HOME": str(shared_plane.home), "JPY_SESSION_NAME": str(folder / "work.ipynb"),
            "MLFLOW_DISABLE_TELEMETRY": "true", "SOME_TOKEN": ENVIRONMENT, "IPYTHONDIR": str(folder / ".ipython")}
    manager, client = start_new_kernel(kernel_name="python3", env=env, cwd=str(folder))
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


def artifacts(plane, run_id, path="context"):
    """{path: text} of a run's artifacts."""
    found = {}
    listed = plane.get(f"/mlflow/api/2.0/mlflow/artifacts/list?run_id={run_id}&path={path}").get("files", [])
    for row in listed:
        if row.get("is_dir"):
            found |= artifacts(plane, run_id, row["path"])
        else:
            uri = plane.get(f"/mlflow/api/2.0/mlflow/runs/get?run_id={run_id}")["run"]["info"]["artifact_uri"]
            root = uri.removeprefix("mlflow-artifacts:/")
            status, body, _ = plane.call("GET", f"/mlflow/api/2.0/mlflow-artifacts/artifacts/{root}/{row['path']}")
            assert status == 200
            found[row["path"]] = body if isinstance(body, bytes) else str(body).encode()
    return found


def check_no_secret(plane, run_id):
    everything = repr(artifacts(plane, run_id)) + repr(plane.get(f"runs/{run_id}"))
    everything += repr(plane.get("changes?since=0")) + repr(plane.get("audit?limit=200"))
    for value in PLANTED:
        assert value not in everything, value
    assert "redacted" in everything


def test_a_plain_run(shared_plane, kernel, folder):
    run(kernel, "early = 1")
    run(kernel, "%load_ext jupyter_mlops")
    run(kernel, "import helper, mlflow, random\nfrom jupyter_mlops.capture import secret\nrandom.seed(11)")
    run(kernel, f"token = '{CELL}'\nx = secret('{MARKED}')\nprint('{ENVIRONMENT}')")
    run(kernel, f"print('again {MARKED} {CELL}')")
    run_id = run(
        kernel, "with mlflow.start_run() as r:\n    mlflow.log_metric('loss', 1.0)\nprint(r.info.run_id)"
    ).strip()
    assert len(run_id) == 32
    # The cell ended after its run: the last word on it is there soon after.
    text = wait_for(lambda: (t := artifacts(shared_plane, run_id).get("context/cells.py", b"").decode()) and
                    "# %% [6] ok" in t and t, 20)
    assert text.index("early = 1") < text.index("random.seed(11)") < text.index("mlflow.start_run")
    files = artifacts(shared_plane, run_id)
    assert {f"context/{n}" for n in ("cells.json", "git.json", "changes.diff", "requirements.txt", "environment.json",
                                     "context.json", "modules/helper.py", "modules/edited.py")} <= set(files)
    tags = shared_plane.get(f"runs/{run_id}")["tags"]
    assert tags["mlflow.source.name"] == str(folder / "work.ipynb") and tags["mlops.dirty"] == "true"
    assert len(tags["mlflow.source.git.commit"]) == 40
    check_no_secret(shared_plane, run_id)
    shown = run(kernel, f"from jupyter_mlops.client.sync import Client\nr = Client().run('{run_id}')\n"
                        "print(r.code()); print(r.context().seeds, r.context().git['dirty'], r.context())")
    assert "early = 1" in shown and "'call': 'random.seed', 'value': 11" in shown and "True" in shown


def test_runs_that_a_failed_cell_leaves_open(shared_plane, kernel):
    before = run(kernel, "mlflow.start_run(run_name='wanted').info.run_id").strip().strip("'")
    with pytest.raises(AssertionError, match="ZeroDivisionError"):
        run(kernel, "left = mlflow.start_run(run_name='left', nested=True)\n1 / 0")
    left = run(kernel, "print(left.info.run_id)").strip()
    assert run(kernel, "print(mlflow.active_run().info.run_id)").strip() == before
    row = shared_plane.get(f"runs/{left}")
    assert row["status"] == "FAILED" and "failed with ZeroDivisionError" in row["tags"]["mlops.reason"]
    assert shared_plane.get(f"runs/{before}")["status"] == "RUNNING"
    run(kernel, "mlflow.end_run()")
    assert shared_plane.get(f"runs/{before}")["status"] == "FINISHED"


def test_a_job(shared_plane, kernel):
    run(kernel, f"%mlops train script.py -n context-job --wait --env DB_PASSWORD={JOB} -- --api-key {ARGUMENT}")
    job = shared_plane.wait_job("context-job")
    assert job["status"]["phase"] == "Completed" and job["spec"]["context"]
    run_id = job["status"]["run_id"]
    tags = shared_plane.get(f"runs/{run_id}")["tags"]
    assert tags["mlflow.source.name"] == "script.py" and len(tags["mlflow.source.git.commit"]) == 40
    files = artifacts(shared_plane, run_id)
    assert {"context/modules/script.py", "context/modules/helper.py", "context/cells.py"} <= set(files)
    assert b"random.seed(11)" in files["context/cells.py"]
    check_no_secret(shared_plane, run_id)
