"""What is said of the ways that the data of jobs take."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jupyter_mlops.client.compute import Survey

#: Those of the panel, too: it says what ``%mlops compute show`` says.
CASES = json.loads((Path(__file__).parents[2] / "labextension" / "test" / "ways.json").read_text())
NAMES = ("packages of jobs", "jobs' data", "large files", "folders of jobs")


@pytest.mark.parametrize("case", CASES, ids=lambda case: " ".join(case["survey"]))
def test_the_ways_are_shown_as_in_the_panel(case):
    data = {"version": "v1.36.2", "namespace": {"name": "team", "exists": True, "level": ""}, "missing": []}
    lines = Survey("gpu", data | case["survey"]).text().splitlines()
    shown = {name: " ".join(line.split()).removeprefix(f"{name} ") for line in lines for name in NAMES
             if line.strip().startswith(name)}
    assert shown == {name.lower(): text for name, text in case["ways"].items()}
