"""The notebook about distributed training: run from top to bottom, with the rank that it kills."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import nbformat
import pytest
from conftest import REPO, Plane, make_home

NOTEBOOK = REPO / "notebooks" / "distributed.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(the executed notebook, the workspace's control plane)."""
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("distributed")
    plane = Plane(make_home()).start()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("JUPYTER", "MLFLOW", "JPY_"))}
    env = {**clean, "JUPYTER_MLOPS_HOME": str(plane.home), "PYTHONPATH": str(REPO),
           "PATH": os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]}
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}})

    async def run() -> None:
        async with client.async_setup_kernel(env=env):
            for index, cell in enumerate(notebook.cells):
                if cell.cell_type == "code":
                    await client.async_execute_cell(cell, index)

    try:
        asyncio.run(run())
        yield notebook, plane
    finally:
        plane.stop()


def _text(notebook) -> str:
    return "\n".join(
        o.get("text", "") or str(o.get("data", {}).get("text/plain", ""))
        for c in notebook.cells if c.cell_type == "code" for o in c.outputs
    )


def test_killed_resumed_and_whole(executed):
    notebook, plane = executed
    text = _text(notebook)
    assert "30 epochs, each once, in 2 attempts of one run" in text
    assert "rank 1 was killed by signal 9" in text
    job = plane.get("jobs/digits-ddp")
    assert (job["status"]["phase"], job["status"]["attempt"]) == ("Completed", 2)
    first = job["status"]["attempts"][0]
    assert (first["phase"], first["failed_rank"]) == ("Failed", 1)
    run = plane.get(f"runs/{job['status']['run_id']}")
    assert (run["status"], run["params"]["epochs"]) == ("FINISHED", "30")
    assert len([r for r in plane.get("runs")["items"] if r["job"]]) == 1
    for key in ("loss", "test_accuracy"):
        assert plane.get(f"runs/{run['run_id']}/metrics")["metrics"][key]["steps"] == list(range(30))
    assert run["metrics"]["test_accuracy"] > 0.95


def test_what_it_needs_was_told_and_came_back(executed):
    notebook, plane = executed
    job = plane.get("jobs/digits-ddp")
    shipped = {v["name"]: v for v in job["spec"]["cell"]["variables"]}
    assert {"x_train", "y_train", "Net", "accuracy", "EPOCHS", "torch"} <= set(shipped)
    assert "images" not in shipped, "only what the cell needs"
    assert {v["name"] for v in job["status"]["returned"]} == {"net", "history"}
    assert "<class '__main__.Net'>" in _text(notebook), "the class of this notebook"


def test_the_notebook_stays_small(executed):
    notebook, _ = executed
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "application/vnd.jupyter-mlops.job+json" in data:
                assert len(json.dumps(data)) < 50_000
