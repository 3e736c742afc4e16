"""The notebook about clusters on the cluster that KUBECONFIG names, in a namespace of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from cluster_bench import cluster, fresh_namespace
from conftest import Plane, make_home

sys.path.insert(0, str(Path(__file__).parents[1]))

from notebooks import execute, text_of

pytestmark = pytest.mark.cluster
__all__ = ["cluster", "fresh_namespace"]


def test_operator_and_scientist(fresh_namespace, tmp_path, monkeypatch):
    if not os.environ.get("CLUSTER_TORCH_IMAGE"):
        pytest.skip("needs CLUSTER_TORCH_IMAGE, an image with torch")
    monkeypatch.setenv("CLUSTER_NAMESPACE", fresh_namespace)
    plane = Plane(make_home()).start().mlflow_ready()
    try:
        text = text_of(execute("cluster.ipynb", tmp_path, plane))
        job = plane.get("jobs/two-nodes")
        assert (job["status"]["phase"], job["status"]["attempt"]) == ("Completed", 2), job["status"]
        assert "epochs, none twice, in 2 attempts of one run" in text and "['checkpoint.pt']" in text
        assert "[1.0, -2.0, 3.0, 0.5]" in text
        usage = plane.get("jobs/two-nodes/usage")["attempts"][-1]["samples"]["ranks"]
        assert {(rank["rank"], rank["node"]) for rank in usage} == {(0, 0), (1, 1)}
        assert [c["name"] for c in plane.get("computes")["items"]] == ["local"]
    finally:
        plane.stop()
