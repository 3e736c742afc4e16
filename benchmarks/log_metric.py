"""What one logged metric costs a training loop in a real job; beside MLflow over HTTP, waiting and asynchronous."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys

from common import REPO, report
from lean import lean_mlflow

REPETITIONS = 5
#: Each step multiplies two small matrices, then logs once; only the logging is timed.
LOOP = """
import json, time
import numpy

def loop(log, steps):
    weights = numpy.ones((64, 64))
    took = []
    for step in range(steps):
        loss = float((weights @ weights).sum()) / (step + 1)
        begin = time.perf_counter()
        log(loss, step)
        took.append(time.perf_counter() - begin)
    took.sort()
    return [took[steps // 2] * 1e6, took[int(steps * 0.99)] * 1e6]
"""
OURS = LOOP + """
import os
import jupyter_mlops, mlflow
mlflow.start_run()
client, own = mlflow.MlflowClient(), os.environ["JUPYTER_MLOPS_RUN_ID"]
found = {
    "mlflow.log_metric": loop(lambda loss, step: mlflow.log_metric("a", loss, step=step), 3000),
    "MlflowClient.log_metric": loop(lambda loss, step: client.log_metric(own, "b", loss, step=step), 3000),
    "jupyter_mlops.log": loop(lambda loss, step: jupyter_mlops.log(c=loss, step=step), 3000),
}
print(json.dumps(found))
"""
PEER = LOOP + """
import sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
mlflow.start_run()
found = {"sync": loop(lambda loss, step: mlflow.log_metric("a", loss, step=step), 150)}
found["async"] = loop(lambda loss, step: mlflow.log_metric("b", loss, step=step, synchronous=False), 2000)
print(json.dumps(found), flush=True)
"""


def main() -> None:
    """Print medians and 99th percentiles of ours and of the peers, in microseconds."""
    from conftest import Plane, make_home

    plane = Plane(make_home()).start().mlflow_ready()
    ours: dict[str, list[list[float]]] = {}
    peers: dict[str, list[list[float]]] = {}
    env = {k: v for k, v in os.environ.items() if not k.startswith("MLFLOW")}
    env.update(MLFLOW_DISABLE_TELEMETRY="true", PYTHONPATH=str(REPO))
    variables = {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONWARNINGS": "ignore"}

    def keep(kept: dict[str, list[list[float]]], text: str) -> None:
        line = next(line for line in text.splitlines() if line.startswith("{"))
        for name, values in json.loads(line).items():
            kept.setdefault(name, []).append(values)

    try:
        with lean_mlflow() as url:
            for number in range(REPETITIONS):
                name = f"log-{number}"
                plane.put(f"jobs/{name}", {
                    "cell": {"source": OURS}, "interpreter": sys.executable, "environment_variables": variables,
                })
                plane.wait_job(name, 120)
                keep(ours, plane.get(f"jobs/{name}/logs/0")["text"])
                done = subprocess.run([sys.executable, "-c", PEER, url], env=env, capture_output=True, text=True,
                                      check=True, timeout=300)
                keep(peers, done.stdout)
    finally:
        plane.stop()

    def column(values: list[list[float]], index: int) -> list[float]:
        return [v[index] for v in values]

    def figure(name: str, index: int, peer: str, target: float, note: str) -> None:
        report(f"{name}{note}", "us", column(ours[name], index), column(peers[peer], index), target)

    figure("mlflow.log_metric", 0, "sync", 35, " in a job, median / over HTTP")
    figure("mlflow.log_metric", 0, "async", 35, " in a job, median / MLflow async")
    figure("mlflow.log_metric", 1, "async", 150, " in a job, p99 / MLflow async")
    figure("MlflowClient.log_metric", 0, "async", 12, " in a job, median / MLflow async")
    figure("jupyter_mlops.log", 0, "async", 5, " in a job, median / MLflow async")
    for name, values in {**ours, **{f"MLflow {k}": v for k, v in peers.items()}}.items():
        spread = [f"{statistics.median(column(values, i)):.1f} ({min(column(values, i)):.1f}-"
                  f"{max(column(values, i)):.1f})" for i in (0, 1)]
        print(f"# {name}: median {spread[0]} us, p99 {spread[1]} us", flush=True)


if __name__ == "__main__":
    main()
