"""The live output of a training cell: closing and reopening the page, kernel off, saved notebook."""

from __future__ import annotations

import json

import pytest
from conftest import wait_for
from pages import LIVE, keep_screenshot, notebook, run_all

pytestmark = pytest.mark.browser
MIME = "application/vnd.jupyter-mlops.job+json"


def test_closing_and_reopening(open_page, lab):
    path = lab.root / "train.ipynb"
    notebook(path, "%load_ext jupyter_mlops", LIVE.replace("PAUSE", "0.5"))
    view = open_page()
    page = view.open("lab/tree/train.ipynb?reset")
    run_all(page)
    live = page.locator('[data-testid="mlops-live"]')
    live.wait_for(timeout=60_000)
    live.get_by_text("Running").first.wait_for(timeout=30_000)
    live.locator('[data-testid="mlops-live-chart"]').first.wait_for(timeout=30_000)
    live.get_by_text("epoch 3/40").first.wait_for(timeout=30_000)
    view.panel()
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(300)
    keep_screenshot(page, "live-running")
    assert not view.bad
    view.close()

    # The kernel is gone too: what is shown comes from the job, not from the kernel.
    for session in lab.call("GET", "api/sessions")[1]:
        lab.call("DELETE", f"api/sessions/{session['id']}")
    again = open_page()
    page = again.open("lab/tree/train.ipynb?reset")
    live = page.locator('[data-testid="mlops-live"]')
    live.wait_for(timeout=60_000)
    live.get_by_text("Completed").first.wait_for(timeout=60_000)
    text = live.inner_text()
    assert "epoch 40/40" in text

    def saved():
        page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
        outputs = [o for c in json.loads(path.read_text())["cells"] for o in c["outputs"]]
        found = [o["data"] for o in outputs if MIME in o.get("data", {})]
        return found and found[0][MIME]["snapshot"]["phase"] == "Completed" and found[0]

    data = wait_for(saved, 20, 0.5)
    assert "loss" in data[MIME]["snapshot"]["metrics"]
    assert "<svg" in "".join(data["text/html"]) and "<script" not in "".join(data["text/html"])
    assert "Completed" in "".join(data["text/plain"])
    assert len(json.dumps(data)) < 50_000
    keep_screenshot(page, "live-reopened")
    assert not again.bad


def test_stop_button(open_page, lab):
    notebook(lab.root / "stop.ipynb", "%load_ext jupyter_mlops",
             "%%mlops train -n stop-me\nimport time\nprint('on', flush=True)\ntime.sleep(200)")
    view = open_page()
    page = view.open("lab/tree/stop.ipynb?reset")
    run_all(page)
    live = page.locator('[data-testid="mlops-live"]')
    live.get_by_text("Running").first.wait_for(timeout=60_000)
    live.locator('[data-testid="mlops-live-stop"]').click()
    dialog = page.locator(".jp-Dialog .jp-mod-accept")
    dialog.click()
    live.get_by_text("Canceled").first.wait_for(timeout=30_000)
    status, job = lab.call("GET", "jupyter-mlops/api/v1/workspaces/default/jobs/stop-me")
    assert (status, job["status"]["phase"]) == (200, "Canceled")
    _, run_row = lab.call("GET", f"jupyter-mlops/api/v1/workspaces/default/runs/{job['status']['run_id']}")
    assert run_row["status"] == "KILLED"
