"""From logging 2,000 metrics in a job until the last is visible in MLflow; beside MLflow's asynchronous logging."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request

from common import REPO, in_turn, report
from lean import lean_mlflow

COUNT = 2000
OURS = f"""
import os, time
import jupyter_mlops
jupyter_mlops.log(warm=1.0, step=0)
while not os.path.exists("go"):
    time.sleep(0.01)
begin = time.time()
for step in range({COUNT}):
    jupyter_mlops.log(loss=1 / (step + 1), step=step)
with open("begin.tmp", "w") as f:
    f.write(repr(begin))
os.rename("begin.tmp", "begin")
time.sleep(600)
"""
PEER = f"""
import sys, time
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
with mlflow.start_run() as run:
    mlflow.log_metric("warm", 1.0)
    print(run.info.run_id, flush=True)
    sys.stdin.readline()
    print(time.time(), flush=True)
    for step in range({COUNT}):
        mlflow.log_metric("loss", 1 / (step + 1), step=step, synchronous=False)
    sys.stdin.readline()
"""


def wait_visible(get) -> float:
    """The time at which the last point is seen; all before it are there by then, since both keep the order."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        metrics = get()["run"]["data"].get("metrics", [])
        if any(m["key"] == "loss" and int(m.get("step", 0)) == COUNT - 1 for m in metrics):
            return time.time()
        time.sleep(0.02)
    raise AssertionError("not visible after 120 s")


def main() -> None:
    """Print the figure."""
    from conftest import Plane, make_home, wait_for

    plane = Plane(make_home()).start().mlflow_ready()
    number = 0
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    env.update(MLFLOW_DISABLE_TELEMETRY="true", PYTHONPATH=str(REPO))

    def ours() -> float:
        nonlocal number
        number += 1
        name = f"visible-{number}"
        plane.put(f"jobs/{name}", {"cell": {"source": OURS}, "interpreter": sys.executable, "limits": {"grace": 0}})
        plane.wait_job(name, 60, phases=("Running",))
        run = plane.get(f"jobs/{name}")["status"]["run_id"]
        path = f"/mlflow/api/2.0/mlflow/runs/get?run_id={run}"
        wait_for(lambda: plane.get(path)["run"]["data"].get("metrics"), 60)
        outputs = plane.home / "jobs" / name / "outputs"
        (outputs / "go").touch()
        end = wait_visible(lambda: plane.get(path))
        begin = float(wait_for(lambda: (outputs / "begin").exists() and (outputs / "begin").read_text(), 10))
        plane.post(f"jobs/{name}/actions/stop")
        plane.wait_job(name)
        return end - begin

    with lean_mlflow() as url:

        def peer() -> float:
            process = subprocess.Popen(
                [sys.executable, "-c", PEER, url], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
            )
            try:
                run = process.stdout.readline().strip()
                process.stdin.write("\n")
                process.stdin.flush()
                begin = float(process.stdout.readline())

                def get() -> dict:
                    address = f"{url}/api/2.0/mlflow/runs/get?run_id={run}"
                    return json.load(urllib.request.urlopen(address, timeout=60))

                return wait_visible(get) - begin
            finally:
                process.kill()
                process.wait()

        try:
            a, b = in_turn(3, ours, peer)
        finally:
            plane.stop()
    report(f"{COUNT:,} metrics logged in a job until visible / asynchronous", "s", a, b, 1.0)


if __name__ == "__main__":
    main()
