"""MLflow's own interface in a Lab tab: a run, its chart, an artifact; and large artifacts through the browser."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import wait_for
from pages import keep_screenshot

pytestmark = pytest.mark.browser


def test_run_chart_and_artifact_preview(open_page, lab):
    view = open_page()
    page = view.open("lab?reset")
    row = view.panel().locator('[data-testid="mlops-row"]').filter(has_text="logistic-1.0").first
    row.wait_for(timeout=20_000)
    row.hover()
    row.locator('[data-testid="mlops-open"]').click()
    frame = page.frame_locator(".jp-Mlops-mlflow iframe, iframe[src*='jupyter-mlops/mlflow']").first
    frame.get_by_text("logistic-1.0").first.wait_for(timeout=60_000)
    frame.get_by_text("Model metrics").first.click()
    frame.locator(".js-plotly-plot, canvas, .recharts-surface, svg.main-svg").first.wait_for(timeout=60_000)
    keep_screenshot(page, "mlflow-chart")
    frame.get_by_text("Artifacts").first.click()
    frame.get_by_text("report.txt").first.click()
    frame.get_by_text("confusion: none").first.wait_for(timeout=30_000)
    frame.get_by_text("page.html").first.click()
    page.wait_for_timeout(1500)
    assert "owned" not in page.title()
    keep_screenshot(page, "mlflow-artifact")
    assert not view.bad


def _rss(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    return 0


def test_a_gigabyte_through_the_browser(open_page, lab):
    """Up and down in flat memory of Jupyter and the control plane."""
    size = 1 << 30
    view = open_page()
    page = view.open("lab?reset")
    run = lab.call("GET", "jupyter-mlops/api/v1/workspaces/default/runs")[1]["items"][0]
    base = f"{lab.url}jupyter-mlops/mlflow/api/2.0/mlflow-artifacts/artifacts"
    url = f"{base}/{run['experiment_id']}/{run['run_id']}/artifacts/large.bin"
    pids = [lab.process.pid, json.loads((lab.home / "control.json").read_text())["pid"]]
    before = [_rss(p) for p in pids]
    peak = list(before)
    page.evaluate(
        """([url, size]) => { window.done = null; (async () => {
          const part = new Uint8Array(1 << 20).fill(7);
          const blob = new Blob(Array.from({length: size >> 20}, () => part));
          const up = await fetch(url, {method: 'PUT', body: blob});
          if (!up.ok) { throw new Error('up ' + up.status + ' ' + await up.text()); }
          const down = await fetch(url); let n = 0; const reader = down.body.getReader();
          for (;;) { const {done, value} = await reader.read(); if (done) break; n += value.length; }
          return n; })().then(n => { window.done = n; }, e => { window.done = String(e); }); }""", [url, size])

    def finished():
        for i, pid in enumerate(pids):
            peak[i] = max(peak[i], _rss(pid))
        return page.evaluate("window.done")

    assert wait_for(finished, 180, 0.2) == size
    grown = [(p - b) / 1e6 for p, b in zip(peak, before, strict=True)]
    assert max(grown) < 50, grown
    stored = list((lab.home / "artifacts").rglob("large.bin"))
    assert [p.stat().st_size for p in stored] == [size]
    stored[0].unlink()
    assert not view.bad
