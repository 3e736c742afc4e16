"""The route from pods to a real control plane, which is killed meanwhile; what is said of it. Pods are processes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import Plane, free_port, make_home, wait_for

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))

from pod_server import PodServer

from jupyter_mlops.magics import commands
from jupyter_mlops.magics.context import Context
from jupyter_mlops.magics.parser import parse, split


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    server = PodServer().start()
    server.allowed = lambda asked: True
    server.put("namespaces", {"metadata": {"name": "team", "labels": {}}})
    server.config = server.kubeconfig(tmp_path_factory.mktemp("kube"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_MLOPS_KUBECONFIG", server.config)
        plane = Plane(make_home()).start().mlflow_ready()
    address = f"127.0.0.1:{free_port()}"
    plane.put("computes/gpu", {"type": "kubernetes", "namespace": "team", "context": "emulated", "training": {
        "image": "image:1", "hold": 60, "route": {"listen": address}}})
    yield server, plane, address
    plane.stop()
    server.stop()


@pytest.mark.faults
def test_a_control_plane_that_is_killed_and_comes_back(served, monkeypatch):
    """The pod's call is taken by the next one, and all that was logged meanwhile comes by it, once."""
    server, plane, address = served
    plane.put("jobs/long", {"compute": "gpu", "cell": {"source": """
import os, time
from jupyter_mlops import log
for step in range(60):
    log({"x": float(step)}, step=step)
    print("step", step, flush=True)
    time.sleep(0.1)
open("big", "wb").write(os.urandom(20_000_000))
"""}})
    path = plane.home / "jobs" / "long" / "attempts" / "1" / "rank-0.log"
    wait_for(lambda: path.exists() and "step 5\n" in path.read_text(), 60)
    assert plane.get("jobs/long")["status"]["route"] == f"by the route {address}"
    plane.kill()
    monkeypatch.setenv("JUPYTER_MLOPS_KUBECONFIG", server.config)
    plane.start().mlflow_ready()
    status = plane.wait_job("long", 90)["status"]
    assert status["phase"] == "Completed" and status["route"] == f"by the route {address}", status
    assert path.read_text() == "".join(f"step {i}\n" for i in range(60))
    assert (plane.home / "jobs" / "long" / "outputs" / "big").stat().st_size == 20_000_000
    found = plane.get(f"runs/{status['run_id']}/metrics")["metrics"]["x"]
    assert found["values"] == [float(step) for step in range(60)]


def test_what_is_shown_of_it(served):
    """To whoever looks at the compute and at a job; a second compute that wants the same port is told so."""
    _, plane, address = served
    plane.put("jobs/short", {"compute": "gpu", "cell": {"source": "1"}})  # with the first one the control plane listens
    plane.wait_job("short", 90)
    shown = commands.run(parse(split("compute show gpu"), "cli"), Context("cli", {}, where=plane.place))
    assert f"by the route {address}" in shown.text()
    found = plane.get("computes/gpu/survey")
    assert found["route"] == {"listen": address, "address": address, "trouble": ""} and not [
        p for p in found["problems"] if "route" in p["message"]], "it listens there itself"
    answer = plane.post("computes/other/actions/check", {"spec": {
        "type": "kubernetes", "namespace": "team", "context": "emulated",
        "training": {"image": "image:1", "route": {"listen": address}}}})
    assert "Address already in use" in str(answer)
