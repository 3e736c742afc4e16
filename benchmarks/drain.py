"""Delivery of a journal of 1,000,000 metrics to MLflow; beside ``MlflowClient.log_batch`` of 1,000 at a time.

``python benchmarks/drain.py [COUNT]``: another number of metrics.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time

from common import REPO, pss, report
from lean import lean_mlflow

PEER = """
import sys, time
from mlflow import MlflowClient
from mlflow.entities import Metric
url, count = sys.argv[1], int(sys.argv[2])
client = MlflowClient(url)
run = client.create_run("0").info.run_id
client.log_batch(run, [Metric("warm", 1.0, 1, 0)])
begin = time.perf_counter()
for first in range(0, count, 1000):
    now = int(time.time() * 1000)
    client.log_batch(run, [Metric("loss", 1 / (s + 1), now, s) for s in range(first, min(first + 1000, count))])
print(count / (time.perf_counter() - begin))
"""


def ours(count: int) -> tuple[float, float]:
    """(metrics/s, growth of the control plane's memory in MB)."""
    from conftest import Plane, make_home, wait_for

    from jupyter_mlops.runtime import journal

    plane = Plane(make_home()).start().mlflow_ready()
    try:
        plane.put("jobs/drain", {"command": "sleep 100000", "limits": {"grace": 0}})
        plane.wait_job("drain", 60, phases=("Running",))
        plane.kill()  # so that the whole journal is there when the delivery begins
        folder = plane.home / "jobs" / "drain"
        (folder / "journal").mkdir(mode=0o700, exist_ok=True)
        writer = journal.Writer(str(folder / "journal" / "1-0.bin"))
        for step in range(count):
            writer.metric("loss", 1 / (step + 1), step)
        writer.close()
        plane.start()
        before = most = pss(plane.process.pid)

        def delivered() -> int:
            try:
                return json.loads((folder / "delivery.json").read_text())["delivered"]
            except (OSError, ValueError, KeyError):
                return 0

        first = wait_for(delivered, 60, 0.01)
        begin = time.perf_counter()
        before = pss(plane.process.pid)  # after the first batches: imports are no growth
        while (done := delivered()) < count:
            time.sleep(0.1)
            most = max(most, pss(plane.process.pid))
            assert plane.process.poll() is None and time.perf_counter() - begin < 3600, plane.log()
        rate = (done - first) / (time.perf_counter() - begin)
        run = plane.get("jobs/drain")["status"]["run_id"]
        assert plane.get(f"runs/{run}/metrics?max_points=10")["metrics"]["loss"]["steps"][-1] == count - 1
        return rate, (most - before) / 1e6
    finally:
        plane.stop()


def peer(count: int) -> float:
    """Metrics/s."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    with lean_mlflow() as url, tempfile.TemporaryDirectory() as folder:
        out = subprocess.run(
            [sys.executable, "-c", PEER, url, str(count)], capture_output=True, text=True, check=True,
            env={**env, "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": str(REPO)}, cwd=folder,
        )
    return float(out.stdout.split()[-1])


def main() -> None:
    """Print both figures."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    theirs = peer(count)
    rate, growth = ours(count)
    report(f"drain of {count:,} metrics / log_batch", "metrics/s", [rate], [theirs], theirs, lower_is_better=False)
    report(f"memory growth of the control plane, {count:,} metrics", "MB", [growth], None, 20)


if __name__ == "__main__":
    main()
