"""The notebook about serving: run from top to bottom, with the canary that goes wrong."""

from __future__ import annotations

import asyncio
import os
import sys

import nbformat
import pytest
from conftest import REPO, Plane, make_home

NOTEBOOK = REPO / "notebooks" / "serving.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(the executed notebook, the workspace's control plane)."""
    from nbclient import NotebookClient

    folder = tmp_path_factory.mktemp("serving")
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
        for endpoint in plane.get("endpoints")["items"]:
            plane.call("DELETE", f"/api/v1/workspaces/default/endpoints/{endpoint['name']}")
        plane.stop()


def _text(notebook) -> str:
    return "\n".join(
        o.get("text", "") or str(o.get("data", {}).get("text/plain", ""))
        for c in notebook.cells if c.cell_type == "code" for o in c.outputs
    )


def test_proven_rolled_back_and_told(executed):
    notebook, plane = executed
    text = _text(notebook)
    assert "asked until it was taken back: True - met an error: True" in text
    assert "RolledBack" in text
    endpoint = plane.get("endpoints/digits")
    assert endpoint["status"]["canary"]["phase"] == "RolledBack"
    proofs = {d["name"]: d["status"]["proof"] for d in plane.get("endpoints/digits/deployments")["items"]}
    assert proofs["v1"]["passed"] and proofs["v1"]["kind"] == "equal" and proofs["v1"]["rows"] == 5
    actions = [row["action"] for row in plane.get("endpoints/digits/history")["items"]]
    assert len(actions) >= 4


def test_files_were_scored_and_requests_kept(executed):
    notebook, plane = executed
    text = _text(notebook)
    assert "20 answers with their truth" in text
    jobs = plane.get("jobs")["items"]
    assert [j["status"]["phase"] for j in jobs] == ["Completed"]


def test_no_key_is_in_it(executed):
    notebook, _ = executed
    assert "jmk_" not in nbformat.writes(notebook)
