"""A job outlives kernel, Jupyter, control plane and MLflow, each killed with -9 at a random step; nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time

import pytest
from conftest import processes_of, wait_for
from fault_bench import params
from jupyter import Jupyter, run

from jupyter_mlops.runtime import locate

STEPS = 60
CELL = """%%mlops train -n survivor --processes 2
import time
import mlflow
import torch.distributed as dist

dist.init_process_group("gloo")
mlflow.log_param("steps", 60)
for step in range(60):
    dist.barrier()
    mlflow.log_metric("value", step * 2, step=step)
    print(f"rank {dist.get_rank()} step {step}", flush=True)
    time.sleep(0.12)
dist.destroy_process_group()
"""


ALL = "kernel, jupyter, control plane, mlflow"


def killed(note) -> None:
    """Kill the process that a note tells of: it may be of one that an earlier fault took along."""
    def kill() -> bool:
        try:
            os.kill((note() or {})["pid"], signal.SIGKILL)
        except (KeyError, TypeError, ProcessLookupError):
            return False
        return True

    wait_for(kill, 60)


@pytest.mark.parametrize(
    ("fault", "number"),
    params([ALL], ["kernel", "jupyter", "kernel, supervisor", "jupyter, mlflow", "kernel, control plane"]),
)
def test_a_job_outlives_everything(rng, fault, number):
    victims = fault.split(", ")
    rng.shuffle(victims)
    plan = sorted(rng.sample(range(3, STEPS - 5), len(victims)))
    print(list(zip(plan, victims, strict=True)))
    jupyter = Jupyter().start().up()
    client = None
    try:
        _, kernel_pid, client = jupyter.kernel()
        run(client, "%load_ext jupyter_mlops")
        run(client, CELL)
        folder = jupyter.home / "jobs" / "survivor" / "attempts" / "1"
        log = folder / "rank-0.log"

        def reached() -> int:
            try:
                found = re.findall(r"rank 0 step (\d+)", log.read_text())
            except OSError:
                return -1
            return int(found[-1]) if found else -1

        for step, victim in zip(plan, victims, strict=True):
            wait_for(lambda step=step: reached() >= step, 60)
            if victim == "kernel":
                with contextlib.suppress(ProcessLookupError):  # it has gone with its Jupyter
                    os.kill(kernel_pid, signal.SIGKILL)
            elif victim == "jupyter":
                jupyter.kill()
                jupyter.start()
            elif victim == "supervisor":
                killed(lambda: json.loads((folder / "state.json").read_text()))
            elif victim == "control plane":
                killed(lambda: locate.info(jupyter.place))
            else:
                killed(lambda: json.loads((jupyter.home / "mlflow.json").read_text()))

        def ended():
            status, job = jupyter.call("GET", "jupyter-mlops/api/v1/workspaces/default/jobs/survivor")
            return status == 200 and job["status"]["phase"] in ("Completed", "Failed", "Canceled") and job

        job = wait_for(ended, 120, 0.3)
        assert job["status"]["phase"] == "Completed", (job["status"], log.read_text()[-3000:])
        assert [r["exit_code"] for r in job["status"]["ranks"]] == [0, 0]
        for rank in (0, 1):
            steps = re.findall(rf"rank {rank} step (\d+)", (folder / f"rank-{rank}.log").read_text())
            assert [int(s) for s in steps] == list(range(STEPS)), f"log of rank {rank}"
        run_id = job["status"]["run_id"]
        status, record = jupyter.call("GET", f"jupyter-mlops/api/v1/workspaces/default/runs/{run_id}")
        assert (status, record["status"], record["params"]["steps"]) == (200, "FINISHED", "60")
        _, history = jupyter.call(
            "GET", f"jupyter-mlops/mlflow/api/2.0/mlflow/metrics/get-history?run_id={run_id}&metric_key=value"
        )
        points = sorted((int(m["step"]), m["value"]) for m in history["metrics"])
        assert points == [(s, 2.0 * s) for s in range(STEPS)]
        _, runs = jupyter.call("GET", "jupyter-mlops/api/v1/workspaces/default/runs")
        assert [r["run_id"] for r in runs["items"]] == [run_id], "one run for the job, whatever died"
        # Found again from a new kernel, and nothing of the job still runs.
        _, _, again = jupyter.kernel("other.ipynb")
        run(again, "%load_ext jupyter_mlops")
        assert "survivor" in run(again, "%mlops jobs")
        again.stop_channels()
        time.sleep(0.5)
        left = [p for p in processes_of(jupyter.home) if _of_job(p)]
        assert not left
    finally:
        if client is not None:
            client.stop_channels()
        jupyter.stop()


def _of_job(pid: int) -> bool:
    try:
        return b"JUPYTER_MLOPS_JOB=" in open(f"/proc/{pid}/environ", "rb").read()
    except OSError:
        return False
