"""The notebook about serving: run from top to bottom, with the canary that goes wrong."""

from __future__ import annotations

import nbformat
import pytest
from conftest import Plane, make_home

from notebooks import execute
from notebooks import text_of as _text


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """(the executed notebook, the workspace's control plane)."""
    plane = Plane(make_home()).start()
    try:
        yield execute("serving.ipynb", tmp_path_factory.mktemp("serving"), plane), plane
    finally:
        for endpoint in plane.get("endpoints")["items"]:
            plane.call("DELETE", f"/api/v1/workspaces/default/endpoints/{endpoint['name']}")
        plane.stop()


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
