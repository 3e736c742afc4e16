"""The notebook about distributed training: run from top to bottom, with the rank that it kills."""

from __future__ import annotations

import json

import pytest
from conftest import Plane, make_home

from notebooks import execute
from notebooks import text_of as _text


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(the executed notebook, the workspace's control plane)."""
    plane = Plane(make_home()).start()
    try:
        yield execute("distributed.ipynb", tmp_path_factory.mktemp("distributed"), plane), plane
    finally:
        plane.stop()


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
