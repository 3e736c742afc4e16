"""A cluster in the panel of JupyterLab: what it says of itself, and which way the data of its jobs take."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from aiohttp import web
from conftest import free_port, wait_for
from jupyter import Jupyter
from pages import keep_screenshot

for _folder in ("drivers", "integration"):
    sys.path.insert(0, str(Path(__file__).parents[1] / _folder))

from pod_server import PodServer  # noqa: E402

pytestmark = pytest.mark.browser
WS = "jupyter-mlops/api/v1/workspaces/default"
NODE = {"metadata": {"name": "gpu-1"}, "spec": {}, "status": {
    "allocatable": {"cpu": "16", "memory": "62Gi", "nvidia.com/gpu": "4", "pods": "110"},
    "conditions": [{"type": "Ready", "status": "True"}]}}
BUSY = {"metadata": {"name": "other"}, "spec": {"nodeName": "gpu-1", "containers": [
    {"resources": {"requests": {"cpu": "4", "memory": "20Gi", "nvidia.com/gpu": "3"}}}]}}
SOURCE = """
import time
from jupyter_mlops import log
for step in range(600):
    log({"loss": 1 / (step + 1)}, step=step)
    time.sleep(0.1)
"""


def whole(request: web.Request) -> web.Response | None:
    """What is said of the whole cluster."""
    if request.path == "/api/v1/nodes":
        return web.json_response({"items": [NODE]})
    if request.path == "/api/v1/pods":
        return web.json_response({"items": [BUSY], "metadata": {}})
    if request.path == "/api/v1/namespaces/team":
        return web.json_response({"metadata": {"name": "team", "labels": {}}})
    return None


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    server = PodServer().start()
    server.allowed = lambda asked: True
    server.fault = whole
    yield server.kubeconfig(tmp_path_factory.mktemp("kube"))
    server.stop()


@pytest.fixture(scope="module")
def lab(cluster):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KUBECONFIG", cluster)
        jupyter = Jupyter(lab=True).start().up()
    yield jupyter
    jupyter.stop()


@pytest.fixture(scope="module")
def address(lab):
    """That of the route of a compute ``gpu``; a second one, ``plain``, has none."""
    found = f"127.0.0.1:{free_port()}"
    for name, training in (("gpu", {"route": {"listen": found}}), ("plain", {"transfer": "exec"})):
        status, body = lab.call("PUT", f"{WS}/computes/{name}", {
            "type": "kubernetes", "namespace": "team", "context": "emulated",
            "training": {"image": "image:1", "hold": 60, **training}})
        assert status == 201, body
    return found


def test_the_way_of_a_job(lab, open_page, address):
    status, body = lab.call("PUT", f"{WS}/jobs/routed", {"compute": "gpu", "cell": {"source": SOURCE}})
    assert status == 201, body
    wait_for(lambda: lab.call("GET", f"{WS}/jobs/routed")[1]["status"].get("route"), 60, 0.2)
    view = open_page()
    page = view.open("lab?reset")
    row = view.panel().locator('[data-testid="mlops-row"][data-kind="job"][data-name="routed"]')
    row.wait_for(timeout=20_000)
    row.press("Enter")  # one call: the list may be drawn anew between two
    live = page.locator('[data-testid="mlops-live"]')
    live.get_by_text(f"Large files: by the route {address}").wait_for(timeout=30_000)
    live.locator('[data-testid="mlops-live-chart"]').first.wait_for(timeout=30_000)
    keep_screenshot(page, "job-route")
    assert not view.bad
    lab.call("POST", f"{WS}/jobs/routed/actions/stop", {})
    wait_for(lambda: lab.call("GET", f"{WS}/jobs/routed")[1]["status"]["phase"] == "Canceled", 60, 0.2)


@pytest.mark.parametrize("dark", [False, True])
def test_the_ways_of_a_cluster(open_page, address, dark):
    view = open_page(dark=dark)
    page = view.open("lab?reset")
    view.panel()
    told = {}
    for name in ("gpu", "plain"):
        row = page.locator(f'[data-testid="mlops-row"][data-kind="compute"][data-name="{name}"]')
        row.wait_for(timeout=20_000)
        row.press("Enter")  # one call: the list may be drawn anew between two
        ways = row.locator('[data-testid="mlops-ways"]')
        ways.wait_for(timeout=20_000)
        told[name] = dict(zip(ways.locator("dt").all_inner_texts(), ways.locator("dd").all_inner_texts(), strict=True))
        row.scroll_into_view_if_needed()
        keep_screenshot(page, f"compute-{name}-{'dark' if dark else 'light'}")
    assert told["gpu"].pop("Packages of jobs") == told["plain"].pop("Packages of jobs")
    assert told["gpu"] == {"Jobs' data": f"by the route {address}"}
    assert told["plain"] == {
        "Jobs' data": "over the API",
        "Large files": "over execution streams, which is slower (the operator wants it so)",
    }
    assert not view.bad
