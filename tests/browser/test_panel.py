"""The panel as a person uses it."""

from __future__ import annotations

import re

import pytest
from conftest import wait_for
from pages import keep_screenshot

pytestmark = pytest.mark.browser


def test_sections_show_what_is_there(open_page):
    view = open_page()
    page = view.open("lab?reset")
    panel = view.panel()
    for section, word in {
        "Runs": "logistic-1.0", "Jobs": "ended", "Models": "champion", "Endpoints": "digits", "Compute": "local",
    }.items():
        panel.get_by_text(word, exact=False).first.wait_for(timeout=20_000)
        assert panel.locator(".jp-AccordionPanel-title, .lm-AccordionPanel-title").filter(has_text=section).count()
    assert panel.get_attribute("role") == "region" or page.locator('[role=region] >> text=Runs').count()
    keep_screenshot(page, "panel-light")
    assert not view.bad


def test_dark(open_page):
    view = open_page(dark=True)
    page = view.open("lab?reset")
    view.panel().get_by_text("logistic-1.0").first.wait_for(timeout=20_000)
    background = page.evaluate(
        "getComputedStyle(document.querySelector('#jupyter-mlops-panel')).backgroundColor"
    )
    keep_screenshot(page, "panel-dark")
    numbers = [int(n) for n in re.findall(r"\d+", background)[:3]]
    assert sum(numbers) < 250, background
    (view.jupyter.folder / "settings" / "@jupyterlab" / "apputils-extension" / "themes.jupyterlab-settings").unlink()


def test_a_job_appears_live_and_is_stopped_from_the_panel(open_page, lab):
    view = open_page()
    page = view.open("lab?reset")
    panel = view.panel()
    status, job = lab.call("PUT", "jupyter-mlops/api/v1/workspaces/default/jobs/to-stop", {
        "command": "sleep 100", "limits": {"grace": 1},
    })
    assert status == 201, job
    row = panel.locator('[data-testid="mlops-row"]').filter(has_text="to-stop")
    row.wait_for(timeout=15_000)
    row.get_by_text("Running").wait_for(timeout=15_000)
    row.hover()
    row.locator('[data-testid="mlops-stop"]').click()
    page.locator(".jp-Dialog .jp-mod-accept").click()
    row.get_by_text("Canceled").wait_for(timeout=20_000)
    row.hover()
    row.locator('[data-testid="mlops-delete"]').click()
    page.locator(".jp-Dialog .jp-mod-accept").click()
    row.wait_for(state="detached", timeout=15_000)
    assert lab.call("GET", "jupyter-mlops/api/v1/workspaces/default/jobs/to-stop")[0] == 404
    assert not [b for b in view.bad if "to-stop" not in b]


def test_keyboard_reaches_the_rows(open_page):
    view = open_page()
    page = view.open("lab?reset")
    panel = view.panel()
    panel.get_by_text("logistic-1.0").first.wait_for(timeout=20_000)
    reached = set()
    panel.locator("button, input, [tabindex='0']").first.focus()
    for _ in range(40):
        reached.add(page.evaluate("document.activeElement.getAttribute('data-testid')"))
        page.keyboard.press("Tab")
    assert "mlops-row" in reached or "mlops-open" in reached, reached


def test_open_job_shows_its_live_view(open_page):
    view = open_page()
    page = view.open("lab?reset")
    row = view.panel().locator('[data-testid="mlops-row"][data-kind="job"][data-name="ended"]')
    row.wait_for(timeout=20_000)
    row.focus()
    page.keyboard.press("Enter")
    live = page.locator('[data-testid="mlops-live"]')
    live.wait_for(timeout=20_000)
    live.locator('[data-testid="mlops-live-chart"]').first.wait_for(timeout=20_000)
    live.get_by_text("Completed").first.wait_for(timeout=30_000)
    assert not view.bad


def test_mlflow_killed_is_told_and_mended(open_page, lab):
    import json
    import os
    import signal

    view = open_page()
    page = view.open("lab?reset")
    panel = view.panel()
    panel.get_by_text("logistic-1.0").first.wait_for(timeout=20_000)
    seen: list[str] = []
    killed: list[int] = []

    def told():
        # Its restart takes a moment only; the pauses before it grow when it dies again and again.
        pid = json.loads((lab.home / "mlflow.json").read_text() or "{}").get("pid")
        if pid and pid not in killed and len(killed) < 6:
            killed.append(pid)
            os.kill(pid, signal.SIGKILL)
        seen.append(panel.locator('[data-testid="mlops-state"]').inner_text())
        return re.search("restart|start", seen[-1], re.IGNORECASE)

    wait_for(told, 40, 0.1)
    wait_for(lambda: lab.call("GET", "jupyter-mlops/api/v1/workspaces/default")[1]["mlflow"]["state"] == "ready", 60)
    wait_for(lambda: not re.search("restart", panel.locator('[data-testid="mlops-state"]').inner_text()), 30)
    panel.get_by_text("logistic-1.0").first.wait_for(timeout=20_000)
    page.wait_for_timeout(100)


