"""The quickstart notebook: top to bottom, and what its training cell promises."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import pytest
from conftest import REPO, Plane, make_home

from jupyter_mlops.runtime import locate

NOTEBOOK = REPO / "notebooks" / "quickstart.ipynb"

# Appended to the cell: each rank leaves its parameters and the images of one epoch behind.
PROBE = """
import numpy as np
sampler.set_epoch(0)
seen = [i for b in DataLoader(range(len(train)), batch_size=BATCH // world, sampler=sampler, drop_last=True) for i in b]
np.savez(f"probe-{world}-{rank}.npz", seen=np.array(seen), parameters=np.concatenate(
    [p.detach().numpy().ravel() for p in net.parameters()]))
"""


#: JupyterLab runs the same notebook in tests/browser/test_lab.py.
pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The demo as `make demo` runs it, in a workspace of its own: (lines printed, executed notebook, plane)."""
    home = make_home()
    folder = tmp_path_factory.mktemp("demo")
    shutil.copytree(REPO / "notebooks", folder / "notebooks")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "MLFLOW", "JPY_"))}
    out = subprocess.run(
        [sys.executable, str(folder / "notebooks" / "demo.py"), "--keep"], capture_output=True, text=True, timeout=280,
        env={**env, "JUPYTER_MLOPS_HOME": str(home), "CI": "true", "PYTHONPATH": str(REPO)},
        stdin=subprocess.DEVNULL,
    )
    plane = Plane(home)
    try:
        assert out.returncode == 0, (out.stdout, out.stderr[-3000:])
        if not locate.info(plane.place):
            plane.start()
        yield out.stdout.splitlines(), nbformat.read(folder / "demo" / "quickstart.ipynb", as_version=4), plane
    finally:
        locate.ask(plane.place, "POST", "/local/shutdown", {})
        plane.stop()


def test_every_step_prints_its_result(executed):
    lines, _, _ = executed
    steps = [line.split("s  ", 1)[1].split(":")[0] for line in lines if line.startswith("ok ")]
    assert steps == ["workspace", "data", "baselines", "distributed training", "registration", "deployment", "call"]
    assert len(lines) == len(steps)


def test_no_errors_and_readable_without_a_kernel(executed):
    _, notebook, _ = executed
    outputs = [o for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    live = [o for o in outputs if "application/vnd.jupyter-mlops.job+json" in o.get("data", {})]
    assert live, "the live output of the training cell"
    for output in live:
        data = output["data"]
        assert data["application/vnd.jupyter-mlops.job+json"]["snapshot"]["phase"] == "Completed"
        assert "Completed" in data["text/plain"] and "test_accuracy" in data["text/html"]
        assert "<script" not in data["text/html"]
        assert len(json.dumps(data)) < 50_000


def test_nothing_secret_in_the_notebook(executed):
    _, notebook, _ = executed
    text = nbformat.writes(notebook)
    assert "mlops_" not in text.replace("jupyter_mlops_", "") or "Bearer mlops_" not in text
    assert "jmk_" not in text


def test_the_endpoint_lives_on_after_the_notebook(executed):
    _, _, plane = executed
    endpoint = plane.get("endpoints/digits")
    assert endpoint["status"]["phase"] == "Ready"
    scores = plane.post("endpoints/digits/actions/invoke", {"inputs": np.zeros((2, 64)).tolist()})
    assert len(scores["predictions"]) == 2
    status, _, _ = plane.call("DELETE", "models/digits/versions/1")
    assert status == 409, "a version in use cannot be deleted"


def test_one_run_for_the_distributed_job(executed):
    _, _, plane = executed
    job = plane.get("jobs")["items"][0]
    runs = [r for r in plane.get("runs")["items"] if r["job"]]
    assert [r["run_id"] for r in runs] == [job["status"]["run_id"]]
    assert runs[0]["params"]["processes"] == "2"
    curve = plane.get(f"runs/{runs[0]['run_id']}/metrics")["metrics"]["loss"]
    assert curve["steps"] == list(range(15)) and curve["values"][-1] < curve["values"][0]


def test_ranks_share_the_data_and_match_one_process(executed, tmp_path):
    _, notebook, plane = executed
    cell = next(c.source for c in notebook.cells if c.source.startswith("%%mlops train"))
    source = cell.split("\n", 1)[1].replace("dist.destroy_process_group()", PROBE + "dist.destroy_process_group()")
    source = source.replace("EPOCHS, BATCH = 15, 64", "EPOCHS, BATCH = 4, 64")
    source = source.replace("if rank == 0:\n    mlflow.pytorch.log_model", "if False:\n    mlflow.pytorch.log_model")
    for world in (1, 2):
        spec = {
            "cell": {"source": source}, "cwd": str(tmp_path), "interpreter": sys.executable,
            "distribution": {"type": "pytorch", "process_count_per_instance": world},
        }
        if world == 1:  # init_process_group needs an address: one process gets it by hand
            spec["environment_variables"] = {
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29591", "RANK": "0", "WORLD_SIZE": "1",
            }
        plane.put(f"jobs/probe-{world}", spec)
        job = plane.wait_job(f"probe-{world}", 120)
        assert job["status"]["phase"] == "Completed", job["status"]
    one = np.load(tmp_path / "probe-1-0.npz")
    two = [np.load(tmp_path / f"probe-2-{r}.npz") for r in (0, 1)]
    assert not set(two[0]["seen"]) & set(two[1]["seen"]), "disjoint shards"
    assert set(two[0]["seen"]) | set(two[1]["seen"]) == set(one["seen"]), "together the same images"
    assert np.array_equal(two[0]["parameters"], two[1]["parameters"]), "equal parameters on both ranks"
    assert np.allclose(two[0]["parameters"], one["parameters"], atol=1e-4), "as one process with the same batch"
