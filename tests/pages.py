"""JupyterLab in Chromium with a token, below a prefix."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from conftest import wait_for
from jupyter import Jupyter

LIVE = """%%mlops train -n live-demo
import math, time, mlflow
mlflow.log_param("epochs", 40)
for step in range(40):
    mlflow.log_metrics({"loss": math.exp(-step / 12), "accuracy": 1 - math.exp(-step / 9)}, step=step)
    mlflow.set_tag("mlops.progress", f"{step + 1}/40")
    print(f"epoch {step + 1}/40 loss {math.exp(-step / 12):.3f}", flush=True)
    time.sleep(PAUSE)
"""


@pytest.fixture(scope="module")
def lab():
    """A running JupyterLab with an empty workspace."""
    jupyter = Jupyter(lab=True).start().up()
    yield jupyter
    jupyter.stop()


@pytest.fixture(scope="module")
def browser(chromium):
    """One Chromium for a module: while it is there, its event loop runs in this thread."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    with playwright.sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-quic"])
        yield b
        b.close()


class Page:
    """A page on JupyterLab that remembers what went wrong."""

    def __init__(self, browser, jupyter: Jupyter, *, dark: bool = False) -> None:
        self.jupyter = jupyter
        self.bad: list[str] = []
        self.context = browser.new_context(viewport={"width": 1440, "height": 900}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda e: self.bad.append(f"page error: {e}"))
        self.page.on("response", self._response)
        if dark:
            folder = jupyter.folder / "settings" / "@jupyterlab" / "apputils-extension"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "themes.jupyterlab-settings").write_text('{"theme": "JupyterLab Dark"}')

    def _response(self, response) -> None:
        # MLflow's assistant is not an allowed family: its page asks for it all the same.
        refused = response.status == 403 and "/mlflow/ajax-api/3.0/mlflow/assistant/" in response.url
        if response.status >= 400 and "jupyter-mlops" in response.url and not refused:
            self.bad.append(f"{response.status} {response.request.method} {response.url}")

    def open(self, path: str = "lab"):
        """Load JupyterLab and wait until it is there."""
        separator = "&" if "?" in path else "?"
        self.page.goto(f"{self.jupyter.url}{path}{separator}token={self.jupyter.token}")
        self.page.wait_for_selector("#jupyterlab-splash", state="detached", timeout=60_000)
        return self.page

    def panel(self):
        """Open our panel."""
        tab = self.page.locator('.jp-SideBar [data-id="jupyter-mlops-panel"]')
        tab.wait_for(timeout=30_000)
        if not self.page.locator("#jupyter-mlops-panel").is_visible():
            tab.click()
        self.page.locator("#jupyter-mlops-panel").wait_for()
        return self.page.locator("#jupyter-mlops-panel")

    def close(self) -> None:
        self.context.close()


@pytest.fixture
def open_page(browser, lab):
    """Makes pages; all are closed at the end."""
    pages: list[Page] = []

    def make(**options) -> Page:
        pages.append(Page(browser, lab, **options))
        return pages[-1]

    yield make
    for page in pages:
        page.close()


def notebook(path: Path, *cells: str) -> None:
    """Write a notebook of code cells."""
    path.write_text(json.dumps({
        "cells": [
            {"cell_type": "code", "execution_count": None, "id": f"c{i}", "metadata": {}, "outputs": [], "source": c}
            for i, c in enumerate(cells)
        ],
        "metadata": {"kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}},
        "nbformat": 4, "nbformat_minor": 5,
    }))


def run_all(page) -> None:
    """Run all cells of the notebook that is open, when its kernel is ready."""
    page.wait_for_function(
        """() => { const w = window.jupyterapp?.shell.currentWidget; const s = w && w.sessionContext;
        return s && s.session && s.session.kernel && s.session.kernel.status === 'idle'; }""", timeout=60_000)
    page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")


def keep_screenshot(page, name: str) -> None:
    """Save a picture where TEST_SCREENSHOTS names a folder (docs/ is made from it)."""
    folder = os.environ.get("TEST_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=str(Path(folder) / f"{name}.png"))


__all__ = ["LIVE", "Page", "keep_screenshot", "notebook", "run_all", "wait_for"]
