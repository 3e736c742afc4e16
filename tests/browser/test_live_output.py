"""The live output: closing and reopening the page, kernel off, attempts, comparison, log; and the list of jobs."""

from __future__ import annotations

import json
import re
import sys
from urllib.parse import parse_qs, urlsplit

import pytest
from conftest import wait_for
from pages import keep_screenshot, notebook, run_all

pytestmark = pytest.mark.browser
MIME = "application/vnd.jupyter-mlops.job+json"


WS = "jupyter-mlops/api/v1/workspaces/default"
#: A training that goes on to the next stretch when the file of that number is there.
STEPS = """%%mlops train -n long-run
import math, os, time, mlflow
for step in range(600):
    while step in (150, 520) and not os.path.exists(f"FOLDER/go-{step}"):
        time.sleep(0.05)
    mlflow.log_metrics({"loss": math.exp(-step / 120), "accuracy": 1 - math.exp(-step / 90)}, step=step)
    print(f"step {step}", flush=True)
"""
#: Two ranks with a progress bar each; rank 1 fails in the first attempt, the second goes on where that stopped.
TWICE = """
import os, sys, time, mlflow
rank, attempt = int(os.environ["RANK"]), int(os.environ["JUPYTER_MLOPS_ATTEMPT"])
for step in range(0 if attempt == 1 else 40, 40 * attempt):
    if rank == 0:
        mlflow.log_metrics({"loss": 1 / (step + 1), "scale": float("nan") if step == 9 else step}, step=step)
    print(f"\\rrank {rank} step {step:3d} |" + "#" * (step // 4), end="", flush=True)
    time.sleep(0.05)
print(f"\\n\\x1b[32mattempt {attempt} is over\\x1b[0m", flush=True)
if attempt == 1 and rank == 1:
    raise ValueError("the second half is too hard")
"""


STEADY = "import mlflow\nfor step in range(60):\n    mlflow.log_metric('loss', 2 / (step + 1), step=step)\n"


def start(lab, name: str, source: str, **more) -> None:
    """Start a job of a script; nothing happens when it is there already."""
    script = lab.root / f"{name}.py"
    script.write_text(source)
    spec = {"script": str(script), "experiment_name": "train", "interpreter": sys.executable, **more}
    status, body = lab.call("PUT", f"{WS}/jobs/{name}", spec)
    assert status in (200, 201), body


def completed(lab, name: str):
    """The job when it has ended well."""
    def look():
        job = lab.call("GET", f"{WS}/jobs/{name}")[1]
        return job["status"]["phase"] == "Completed" and job

    return wait_for(look, 90, 0.3)


def points(page, metric: str) -> tuple[float, float]:
    """First and last place of a chart's curves; (0, 0) before there are any."""
    chart = page.locator(f'[data-testid="mlops-live-chart"][data-metric="{metric}"]')
    text = chart.first.get_attribute("data-range", timeout=1000) if chart.count() else None
    first, last = text.split() if text else ("0", "0")
    return float(first), float(last)


def test_closing_and_reopening(open_page, lab):
    path = lab.root / "train.ipynb"
    notebook(path, "%load_ext jupyter_mlops", STEPS.replace("FOLDER", str(lab.root)))
    view = open_page()
    page = view.open("lab/tree/train.ipynb?reset")
    run_all(page)
    live = page.locator('[data-testid="mlops-live"]')
    live.wait_for(timeout=60_000)
    live.get_by_text("Running").first.wait_for(timeout=30_000)
    wait_for(lambda: points(page, "loss") == (0, 149), 60, 0.2)
    view.panel()
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(300)
    keep_screenshot(page, "live-running")
    assert not view.bad
    view.close()

    # The kernel is gone too: what is shown comes from the job, not from the kernel.
    for session in lab.call("GET", "api/sessions")[1]:
        lab.call("DELETE", f"api/sessions/{session['id']}")
    (lab.root / "go-150").touch()
    run_id = lab.call("GET", WS + "/jobs/long-run")[1]["status"]["run_id"]
    wait_for(lambda: lab.call("GET", f"{WS}/runs/{run_id}")[1]["metrics"]["accuracy"] > 0.996, 60, 0.2)
    again = open_page()
    page = again.open("lab/tree/train.ipynb?reset")
    live = page.locator('[data-testid="mlops-live"]')
    live.get_by_text("Running").first.wait_for(timeout=60_000)
    wait_for(lambda: points(page, "loss") == (0, 519), 30, 0.2)
    (lab.root / "go-520").touch()
    live.get_by_text("Completed").first.wait_for(timeout=60_000)
    wait_for(lambda: points(page, "loss") == (0, 599), 30, 0.2)
    assert "step 599" in live.inner_text()

    def saved():
        page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
        outputs = [o for c in json.loads(path.read_text())["cells"] for o in c["outputs"]]
        found = [o["data"] for o in outputs if MIME in o.get("data", {})]
        return found and found[0][MIME]["snapshot"]["phase"] == "Completed" and found[0]

    data = wait_for(saved, 20, 0.5)
    assert "loss" in data[MIME]["snapshot"]["metrics"]
    assert "<svg" in "".join(data["text/html"]) and "<script" not in "".join(data["text/html"])
    assert "Completed" in "".join(data["text/plain"])
    assert path.stat().st_size < 50_000
    keep_screenshot(page, "live-reopened")
    assert not again.bad


def test_attempts_comparison_and_log(open_page, lab):
    """One job of two attempts: its curves beside another run's, zoomed and smoothed; its log searched."""
    start(lab, "steady", STEADY)
    start(lab, "twice", TWICE, retry_settings={"max_retries": 1},
          distribution={"type": "pytorch", "process_count_per_instance": 2})
    completed(lab, "steady")
    job = completed(lab, "twice")
    assert job["status"]["attempt"] == 2
    view = open_page()
    page = view.open("lab?reset")
    view.panel()
    page.evaluate("window.jupyterapp.commands.execute('jupyter-mlops:open-job', {name: 'twice'})")
    live = page.locator('[data-testid="mlops-live"]')
    chart = live.locator('[data-testid="mlops-live-chart"][data-metric="loss"]')
    wait_for(lambda: points(page, "loss") == (0, 79), 30, 0.2)
    assert chart.get_attribute("data-marks") == "attempt 2@40"
    live.locator('[data-testid="mlops-live-attempts"] summary').click()
    live.get_by_text("the second half is too hard").first.wait_for(timeout=10_000)
    live.locator('[data-testid="mlops-usage-chart"][data-metric="cpu"]').wait_for(timeout=10_000)

    # Another run of the experiment over it.
    live.locator('[data-testid="mlops-live-compare"]').click()
    page.locator('[data-testid="mlops-picker-search"]').fill("steady")
    page.locator('[data-testid="mlops-picker"] input[type=checkbox]').check()
    wait_for(lambda: chart.get_attribute("data-lines") == "2", 15, 0.2)
    keep_screenshot(page, "live-compared")

    # Zoomed by the mouse in all charts, shown whole again by the keyboard.
    box = chart.locator(".u-over").bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 30, steps=4)
    page.mouse.up()
    zoomed = live.locator('[data-testid="mlops-live-chart"][data-zoom]')
    assert zoomed.count() == live.locator('[data-testid="mlops-live-chart"]').count() >= 2
    live.locator('[data-testid="mlops-live-smoothing"]').fill("0.6")
    live.locator('[data-testid="mlops-live-reset-zoom"]').focus()
    page.keyboard.press("Enter")
    wait_for(lambda: zoomed.count() == 0, 5, 0.1)

    # Bars are one line each; every rank and attempt has its log, and it can be searched.
    log = live.locator('[data-testid="mlops-live-log"]')
    assert log.inner_text().splitlines()[0].startswith("rank 0 step  79 |###")
    live.get_by_role("tab", name="rank 1").click()
    live.locator('[data-testid="mlops-live-attempt"]').select_option("1")
    log.get_by_text("ValueError: the second half").wait_for(timeout=10_000)
    assert log.locator(".jp-Mlops-ansi-green").inner_text() == "attempt 1 is over"
    live.locator('[data-testid="mlops-log-search"]').fill("OVER")
    page.keyboard.press("Enter")
    live.locator('[data-testid="mlops-log-mark"]', has_text="attempt 1 is over").wait_for(timeout=10_000)
    assert live.locator('[data-testid="mlops-live-smoothing"]').input_value() == "0.6"
    keep_screenshot(page, "live-log")
    assert not view.bad

    # The same two in a tab, by boxes of the panel's rows.
    for name in ("twice", "steady"):
        row = page.locator('[data-testid="mlops-row"][data-kind="run"]').filter(has_text=name).first
        row.hover()
        row.locator('[data-testid="mlops-select"]').check()
    page.locator('[data-testid="mlops-compare"]').click()
    comparison = page.locator('[data-testid="mlops-comparison"]')
    comparison.locator('[data-metric="loss"][data-lines="2"]').wait_for(timeout=20_000)
    assert "loss" in comparison.locator('[data-testid="mlops-comparison-table"]').inner_text()
    keep_screenshot(page, "comparison")
    assert not view.bad


def test_a_thousand_jobs(open_page, lab):
    """The panel draws what is in sight of a long list, and reaches its end. The list itself is made up."""
    start(lab, "steady", STEADY)
    template = completed(lab, "steady")
    status = {**template["status"], "phase": "Queued", "started_at": "", "ended_at": "", "attempts": []}
    items = [
        {**template, "name": f"waiting-{n}",
         "status": {**status, "queue": {"place": n + 1, "length": 1000, "reason": "waits for 1 of 2 CPUs"}}}
        for n in range(1000)
    ]

    def answer(route):
        query = {k: int(v[0]) for k, v in parse_qs(urlsplit(route.request.url).query).items()}
        first = query.get("page_token", 0)
        end = first + query["limit"]
        token = str(end) if end < len(items) else None
        route.fulfill(json={"items": items[first:end], "next_token": token})

    view = open_page()
    view.page.route(re.compile(r"/workspaces/default/jobs\?"), answer)
    page = view.open("lab?reset")
    panel = view.panel()
    rows = panel.locator('[data-testid="mlops-row"][data-kind="job"]')
    jobs = panel.locator('[data-testid="mlops-section-jobs"]')
    rows.first.wait_for(timeout=30_000)
    while jobs.locator('[data-testid="mlops-more"]').count():
        # It is gone when the last page has come: perhaps between two calls.
        jobs.locator('[data-testid="mlops-more"]').evaluate_all("buttons => buttons.forEach(b => b.click())")
        page.wait_for_timeout(50)
    assert jobs.locator("[role=list]").get_attribute("data-total") == "1000"
    assert rows.count() < 150
    assert "1 of 1000" in rows.first.inner_text()
    rows.first.focus()
    page.keyboard.press("End")
    page.wait_for_function("document.activeElement.dataset.name === 'waiting-999'")
    page.keyboard.press("ArrowUp")
    page.wait_for_function("document.activeElement.dataset.name === 'waiting-998'")
    assert rows.count() < 150
    keep_screenshot(page, "panel-thousand")
    assert not view.bad


def test_stop_delete_restore_and_purge(open_page, lab):
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
    status, job = lab.call("GET", WS + "/jobs/stop-me")
    assert (status, job["status"]["phase"]) == (200, "Canceled")
    _, run_row = lab.call("GET", f"{WS}/runs/{job['status']['run_id']}")
    assert run_row["status"] == "KILLED"

    # Deleted it can be had back; purged it cannot, and that is asked by name.
    row = view.panel().locator('[data-testid="mlops-row"][data-kind="job"][data-name="stop-me"]')
    states = page.locator('[data-testid="mlops-job-filter"]')

    def press(button: str) -> None:
        row.hover()
        row.locator(f'[data-testid="{button}"]').click()

    press("mlops-delete")
    dialog.click()
    row.wait_for(state="detached", timeout=15_000)
    states.select_option("Deleted")
    press("mlops-restore")
    row.wait_for(state="detached", timeout=15_000)
    states.select_option("")
    press("mlops-delete")
    dialog.click()
    row.wait_for(state="detached", timeout=15_000)
    states.select_option("Deleted")
    press("mlops-delete")
    assert "stop-me" in page.locator(".jp-Dialog").inner_text()
    keep_screenshot(page, "panel-purge")
    dialog.click()
    row.wait_for(state="detached", timeout=15_000)
    wait_for(lambda: lab.call("GET", WS + "/jobs/stop-me")[0] == 404, 20, 0.3)
