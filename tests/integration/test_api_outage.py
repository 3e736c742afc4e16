"""The API server is away while jobs log: their points wait in the pods, and all are in MLflow afterwards.

The form for a real cluster, of five minutes, is ``tests/cluster/test_cluster_outage.py``.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from conftest import Plane, make_home, wait_for
from tcp_proxy import TcpProxy

sys.path.insert(0, str(Path(__file__).parents[1] / "drivers"))

from pod_server import PodServer

SOURCE = """
import os, time
from jupyter_mlops import log
step = 0
while not os.path.exists({stop!r}):
    log({{"x": float(step)}}, step=step)
    print("step", step, flush=True)
    step += 1
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """An API server, the way to it, and a control plane."""
    server = PodServer().start()
    way = TcpProxy("127.0.0.1", server.port).start()
    config = Path(server.kubeconfig(tmp_path_factory.mktemp("kube")))
    config.write_text(config.read_text().replace(f":{server.port}", f":{way.port}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_MLOPS_KUBECONFIG", str(config))
        plane = Plane(make_home()).start().mlflow_ready()
    plane.put("computes/gpu", {"type": "kubernetes", "namespace": "team", "context": "emulated",
                               "training": {"image": "image:1", "hold": 60}})
    yield way, plane
    way.mend()
    plane.stop()
    way.stop()
    server.stop()


@pytest.mark.parametrize("how", ["cut", "hang"])
@pytest.mark.parametrize("ends", ["after", "meanwhile"])
def test_no_point_is_lost(served, tmp_path, how, ends):
    way, plane = served
    stop, name = tmp_path / "stop", f"{how}-{ends}"
    plane.put(f"jobs/{name}", {"compute": "gpu", "cell": {"source": SOURCE.format(stop=str(stop))}})
    journal = plane.home / "jobs" / name / "journal" / "1-0.bin"
    wait_for(lambda: journal.exists() and journal.stat().st_size > 1000, 60)
    getattr(way, how)()
    here = journal.stat().st_size
    if how == "cut":  # it is told soon, though a job that simply runs is seldom looked at
        wait_for(lambda: "the job goes on" in plane.get(f"jobs/{name}")["status"]["reason"], 15)
    else:
        time.sleep(3)
    if ends == "meanwhile":
        time.sleep(2)  # what it logs now is only in the pod
        stop.touch()
        time.sleep(2)
    assert plane.get(f"jobs/{name}")["status"]["phase"] == "Running"
    assert journal.stat().st_size < here + 3000, "something comes though the way is away"
    way.mend()
    wait_for(lambda: journal.stat().st_size > here + 500, 60)
    stop.touch()
    status = plane.wait_job(name)["status"]
    assert status["phase"] == "Completed", status
    log = (plane.home / "jobs" / name / "attempts" / "1" / "rank-0.log").read_text().splitlines()
    assert log == [f"step {n}" for n in range(len(log))] and len(log) > 50
    found = plane.get(f"/mlflow/api/2.0/mlflow/metrics/get-history?run_id={status['run_id']}&metric_key=x"
                      "&max_results=25000")["metrics"]
    assert [m["value"] for m in found] == [float(n) for n in range(len(log))]
