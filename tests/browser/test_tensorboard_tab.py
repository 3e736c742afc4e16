"""TensorBoard in a tab of JupyterLab, while the job runs that writes what it shows."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import wait_for

pytestmark = pytest.mark.browser
pytest.importorskip("tensorboard")

WRITER = """
import os, time
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

writer = EventFileWriter("runs")
for step in range(600):
    value = Summary.Value(tag="loss_of_mine", simple_value=1 / (step + 1))
    writer.add_event(Event(step=step, wall_time=time.time(), summary=Summary(value=[value])))
    writer.flush()
    time.sleep(0.1)
"""


@pytest.mark.parametrize("dark", [False, True])
def test_from_the_row_of_a_job(lab, open_page, dark):
    name = "dark" if dark else "light"
    (lab.root / "writer.py").write_text(WRITER)
    status, body = lab.call("PUT", f"jupyter-mlops/api/v1/workspaces/default/jobs/{name}", {
        "command": f"{sys.executable} {lab.root}/writer.py", "limits": {"grace": 0.5}})
    assert status == 201, body
    wait_for(lambda: list((lab.home / "jobs" / name / "outputs").glob("runs/*")), 60)
    view = open_page(dark=dark)
    page = view.open("lab?reset")
    view.panel()
    row = page.locator(f'[data-testid="mlops-row"][data-kind="job"][data-name="{name}"]')
    row.hover()
    row.locator('[data-testid="mlops-tensorboard-open"]').click()
    board = page.frame_locator('[data-testid="mlops-tensorboard"] iframe')
    board.get_by_text("loss_of_mine").first.wait_for(timeout=60_000)
    assert board.locator("body").evaluate("e => e.classList.contains('dark-mode')") == dark
    assert page.locator(".lm-TabBar-tabLabel", has_text=f"TensorBoard: {name}").count() == 1
    assert lab.call("GET", f"jupyter-mlops/tensorboard/{name}/", token=False)[0] == 403
    said = subprocess.run([sys.executable, "-m", "jupyter_mlops.cli", "tensorboard", name], env=lab.env,
                          capture_output=True, text=True)
    assert f"{lab.url}jupyter-mlops/tensorboard/{name}/" in said.stdout, said
    assert not view.bad
    lab.call("POST", f"jupyter-mlops/api/v1/workspaces/default/jobs/{name}/actions/stop", {})
