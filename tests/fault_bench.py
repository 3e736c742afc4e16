"""A workspace in which a job runs while something dies, and the check of all that must be so afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import Plane, make_home, wait_for

from jupyter_mlops.runtime import locate, processes

STEPS = 40
#: How often each fault is tried; what is random follows the seed.
REPEAT = int(os.environ.get("FAULTS_REPEAT") or 1)
SEED = int(os.environ.get("TEST_SEED") or random.randrange(10**6))
#: Two ranks that wait for each other at every step; rank 0 logs, and leaves a checkpoint every ten steps. At step
#: ``hold`` they wait until the test says go.
TRAIN = """
import os, sys, time
import mlflow
import torch.distributed as dist

steps, pause, hold = int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
dist.init_process_group("gloo")
rank = dist.get_rank()
first = int(open("checkpoint").read()) if os.path.exists("checkpoint") else 0
mlflow.log_param("steps", steps)
for step in range(first, steps):
    while step == hold and not os.path.exists("go"):
        time.sleep(0.02)
    dist.barrier()
    mlflow.log_metric("value", 2 * step, step=step)
    mlflow.log_metrics({"even": float(step % 2), "same": 1.0}, step=step)
    print(f"rank {rank} step {step}", flush=True)
    if rank == 0 and step % 10 == 9:
        with open("checkpoint.new", "w") as f:
            f.write(str(step + 1))
        os.replace("checkpoint.new", "checkpoint")
    time.sleep(pause)
dist.destroy_process_group()
print(f"rank {rank} done", flush=True)
"""
#: The same for one process, without torch.
ALONE = "\n".join(
    line for line in TRAIN.replace("rank = dist.get_rank()", "rank = 0").split("\n") if "dist" not in line
)

ENDED = ("Completed", "Failed", "Canceled")


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a process that may have gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


class Bench:
    """One workspace with its control plane; :meth:`submit` a job, break something, :meth:`verify`."""

    def __init__(self, home: Path | None = None) -> None:
        self.plane = Plane(home or make_home())
        self.work = Path(tempfile.mkdtemp(prefix="mlops-faults-"))

    @property
    def home(self) -> Path:
        return self.plane.home

    def start(self) -> Bench:
        self.plane.start().mlflow_ready()
        return self

    def stop(self) -> None:
        self.plane.stop()
        shutil.rmtree(self.work, ignore_errors=True)

    # -- the job

    def train(self, name: str, source: str = TRAIN, pause: float = 0.05, hold: int = -1, **spec: object) -> str:
        """Start :data:`TRAIN` or :data:`ALONE` for :data:`STEPS` steps, ``pause`` seconds each."""
        return self.submit(name, source, STEPS, pause, hold, **spec)

    def go(self, name: str) -> None:
        """Let a job that was started with ``hold`` go beyond that step."""
        (self.work / name / "go").touch()

    def submit(self, name: str, source: str, *arguments: object, processes: int = 2, **spec: object) -> str:
        """Start a job with ``source`` as its script; its working folder is its own."""
        folder = self.work / name
        folder.mkdir()
        temporary = self.work / f"{name}.tmp"
        temporary.mkdir()
        (folder / "script.py").write_text(source)
        body: dict[str, object] = {
            "experiment_name": "faults", "script": "script.py", "args": [str(a) for a in arguments],
            "cwd": str(folder), "interpreter": sys.executable, "environment_variables": {"TMPDIR": str(temporary)},
            **spec,
        }
        if processes > 1:
            body["distribution"] = {"type": "pytorch", "process_count_per_instance": processes}
        self.plane.put(f"jobs/{name}", body, 201)
        return name

    def folder(self, name: str) -> Path:
        return self.home / "jobs" / name

    def log(self, name: str, rank: int = 0, attempt: int = 1) -> str:
        try:
            return (self.folder(name) / "attempts" / str(attempt) / f"rank-{rank}.log").read_text(errors="replace")
        except OSError:
            return ""

    def step(self, name: str, attempt: int = 1) -> int:
        """The last step that rank 0 has printed, -1 before the first."""
        found = re.findall(r"^rank 0 step (\d+)$", self.log(name, 0, attempt), re.MULTILINE)
        return int(found[-1]) if found else -1

    def reach(self, name: str, step: int, attempt: int = 1) -> None:
        """Wait until rank 0 has printed that step."""
        wait_for(lambda: self.step(name, attempt) >= step or self._over(name), 90)
        assert self.step(name, attempt) >= step, (self.plane.get(f"jobs/{name}")["status"], self.log(name)[-2000:])

    def _over(self, name: str) -> bool:
        try:
            return self.plane.get(f"jobs/{name}")["status"]["phase"] in ENDED
        except Exception:
            return False  # the control plane is away

    # -- who can be killed

    def control(self) -> int:
        return wait_for(lambda: locate.info(self.plane.place), 30)["pid"]

    def mlflow(self) -> int:
        return wait_for(lambda: json.loads((self.home / "mlflow.json").read_text()).get("pid"), 60)

    def supervisor(self, name: str, attempt: int = 1) -> int:
        path = self.folder(name) / "attempts" / str(attempt) / "state.json"
        return wait_for(lambda: json.loads(path.read_text())["pid"], 30)

    def rank(self, name: str, rank: int, attempt: int = 1) -> int:
        path = self.folder(name) / "attempts" / str(attempt) / f"rank-{rank}.pid"
        return wait_for(lambda: json.loads(path.read_text())["pid"], 30)

    def of_job(self, name: str) -> list[int]:
        """Pids of all processes of a job."""
        marker = os.fsencode(f"JUPYTER_MLOPS_JOB_DIR={self.folder(name)}")
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and processes.start_time(int(entry.name)):
                with contextlib.suppress(OSError):
                    if marker in (entry / "environ").read_bytes().split(b"\0"):
                        found.append(int(entry.name))
        return found

    def keep_mlflow_away(self, seconds: float) -> None:
        """Kill MLflow as often as it comes back."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError):
                pid = json.loads((self.home / "mlflow.json").read_text()).get("pid")
                if pid:
                    kill(pid)
            time.sleep(0.05)

    # -- afterwards

    def ended(self, name: str, timeout: float = 90.0) -> dict:
        """The job when it has ended."""
        def look() -> dict | None:
            try:
                job = self.plane.get(f"jobs/{name}")
            except AssertionError:
                raise
            except Exception:
                return None
            return job if job["status"]["phase"] in ENDED else None

        return wait_for(look, timeout, 0.1)

    def history(self, run_id: str, key: str) -> list[tuple[int, float, int]]:
        """(step, value, ms) of all points of a metric, as MLflow orders them."""
        points, token = [], ""
        while True:
            query = f"run_id={run_id}&metric_key={key}&max_results=25000" + (f"&page_token={token}" if token else "")
            answer = self.plane.get(f"/mlflow/api/2.0/mlflow/metrics/get-history?{query}")
            page = answer.get("metrics", [])
            points += [(int(m.get("step", 0)), float(m["value"]), int(m["timestamp"])) for m in page]
            token = answer.get("next_page_token", "")
            if not token:
                return points

    def verify(
        self, name: str, phase: str = "Completed", run_status: str = "FINISHED", steps: int = STEPS, attempts: int = 1,
        logged: int | None = None, ranks: int = 2, timeout: float = 90.0,
    ) -> dict:
        """Right state, every point once and in order, whole logs, nothing left. Returns the job.

        Args:
            steps: how many steps the script has; all of them must be there when the job completed.
            logged: least number of steps that must be there when it did not; they must be 0, 1, 2, … without a gap.
        """
        job = self.ended(name, timeout)
        status = job["status"]
        assert status["phase"] == phase, (status, self.log(name, 0, attempts)[-3000:])
        assert status["attempt"] == attempts, status
        run = self.plane.get(f"runs/{status['run_id']}")
        assert run["status"] == run_status, run
        values = self.history(status["run_id"], "value")
        if phase == "Completed":
            assert run["params"].get("steps") == str(steps)
            expected = steps
            assert [r["exit_code"] for r in status["ranks"]] == [0] * ranks
        else:
            expected = len(values)
            assert expected >= (logged or 0), (expected, logged)
        by_step = sorted(values)
        assert [(s, v) for s, v, _ in by_step] == [(s, 2.0 * s) for s in range(expected)], "missing or doubled points"
        stamps = [ms for _, _, ms in by_step]
        assert stamps == sorted(stamps), "points out of order"
        for key, value in (("even", lambda s: float(s % 2)), ("same", lambda s: 1.0)):
            points = sorted((s, v) for s, v, _ in self.history(status["run_id"], key))[:expected]
            assert points == [(s, value(s)) for s in range(len(points))] and len(points) >= expected - 1, key
        for attempt in range(1, attempts + 1):
            for rank in range(ranks):
                text = self.log(name, rank, attempt)
                found = [int(s) for s in re.findall(rf"^rank {rank} step (\d+)$", text, re.MULTILINE)]
                whole = list(range(found[0], found[0] + len(found))) if found else []
                assert found == whole, f"log of rank {rank} in attempt {attempt} has a gap or a repeat"
                if phase == "Completed" and attempt == attempts:
                    assert f"rank {rank} done" in text and found[-1] == steps - 1
        found_runs = self.plane.get("runs?experiment=faults&limit=200")["items"]
        assert sum(r["job"] == name for r in found_runs) == 1, "one run for the job"
        self.nothing_left(name)
        return job

    def nothing_left(self, name: str) -> None:
        """No process, no open port (ports end with their processes), no temporary file or folder."""
        wait_for(lambda: not self.of_job(name), 15)
        job = self.folder(name)
        assert not list(job.rglob("*.tmp")), "half-written files"
        spool = job / "spool"
        assert not spool.is_dir() or not [p for p in spool.iterdir() if p.name != "refused"], "undelivered spool"
        left = [p.name for p in (self.work / f"{name}.tmp").iterdir()]
        assert not left, "temporary files"


def tiny_disk(megabytes: int) -> Path | None:
    """A folder on a disk of its own of that size; None where this user may not mount one. See :func:`unmount`."""
    folder = Path(tempfile.mkdtemp(prefix="mlops-test-"))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=700", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode:
        folder.rmdir()
        return None
    return folder


def unmount(folder: Path) -> None:
    """Give a disk of :func:`tiny_disk` back."""
    subprocess.run(["umount", "-l", str(folder)], capture_output=True, check=False)
    with contextlib.suppress(OSError):
        folder.rmdir()


def job_name(fault: str, number: int) -> str:
    """A valid name for a job that suffers a fault."""
    return f"{re.sub('[^a-z0-9]+', '-', fault.lower())}-{number}"


def params(names, long=()) -> list:
    """Parameters ``(fault, number)``: ``names`` :data:`REPEAT` times each; ``long`` only in the long form."""
    found = []
    for number in range(REPEAT):
        found += [pytest.param(name, number, id=f"{name} {number + 1}") for name in names]
        found += [
            pytest.param(name, number, id=f"{name} {number + 1}", marks=pytest.mark.faults)
            for name in long if name != "mlflow 5 min" or number == 0
        ]
    return found


@pytest.fixture(scope="module")
def bench():
    """One workspace for the faults of a module."""
    b = Bench().start()
    yield b
    b.stop()


@pytest.fixture
def rng(request, record_property):
    """Random numbers that are the same again for the same seed."""
    print(f"TEST_SEED={SEED}")
    record_property("seed", SEED)
    return random.Random(f"{SEED}-{request.node.name}")
