"""What every compute driver must do; a driver's own test module subclasses :class:`Conformance` and gives ``bench``.

All runs are real: real processes, real signals, real files. Times are never asserted, all waits are bounded. A driver
for another machine overrides what of :class:`Bench` looks at processes (:meth:`Bench.lives`, :meth:`Bench.kill`,
:meth:`Bench.family`) and leaves the tests as they are.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import wait_for

from jupyter_mlops.compute.base import NOTHING, ComputeDriver, Grant, JobRef, Observation
from jupyter_mlops.runtime import processes
from jupyter_mlops.runtime.jobfolder import JobFolder

#: A body of code whose end can be watched: steps 0 … n-1, one line each.
STEPS = """
import time
for step in range({n}):
    print("step", step)
    time.sleep({pause})
"""


class Bench:
    """A driver, a home for its jobs, and what a control plane would do with them."""

    def __init__(self, make: Callable[[], ComputeDriver], home: Path) -> None:
        self.make = make
        self.driver = make()
        self.home = home
        self.jobs: list[JobRef] = []

    def job(self, name: str, **spec: Any) -> JobRef:
        """A job whose folder and spec are there, as the control plane leaves them before ``start``."""
        folder = self.home / "jobs" / name
        folder.mkdir(parents=True, mode=0o700)
        spec.setdefault("interpreter", sys.executable)
        (folder / "spec.json").write_text(json.dumps(spec))
        (folder / "run.json").write_text(json.dumps({"run_id": name * 32, "experiment_id": "1"}))
        job = JobRef(name, folder)
        self.jobs.append(job)
        return job

    def cell(self, name: str, source: str, processes: int = 1, grant: Grant = NOTHING, **spec: Any) -> JobRef:
        """A started job that runs ``source``."""
        if processes > 1:
            spec["distribution"] = {"type": "pytorch", "process_count_per_instance": processes}
        job = self.job(name, cell={"source": source}, **spec)
        self.driver.start(job, 1, {}, grant)
        return job

    def observe(self, job: JobRef, attempt: int = 1) -> Observation:
        return self.driver.observe(job, attempt)

    def ended(self, job: JobRef, timeout: float = 40.0, attempt: int = 1) -> Observation:
        """The observation of the attempt's end."""

        def look() -> Observation | None:
            seen = self.observe(job, attempt)
            return seen if seen.terminal else None

        return wait_for(look, timeout)

    def log(self, job: JobRef, rank: int = 0, attempt: int = 1) -> str:
        return self.driver.read_log(job, attempt, rank, 0, 1_000_000).data.decode()

    def lives(self, pid: int) -> str:
        """Something that tells this process from a later one of the same pid; empty when there is none."""
        return processes.start_time(pid)

    def kill(self, pid: int) -> None:
        """SIGKILL to one process of a job, from outside."""
        os.kill(pid, signal.SIGKILL)

    def says(self, job: JobRef, text: str, rank: int = 0) -> str:
        """Wait until a rank's log holds ``text``."""

        def look() -> str | None:
            log = self.log(job, rank)
            seen = self.observe(job)
            assert text in log or not seen.terminal or text in self.log(job, rank), (seen, log)
            return log if text in log else None

        return wait_for(look)

    def family(self, job: JobRef) -> list[int]:
        """Pids of all processes that carry the job's marker."""
        return list(processes.family([], set(), JobFolder(job.folder).marker))

    def close(self) -> None:
        """End whatever a test left running."""
        for job in self.jobs:
            for attempt in (1, 2):
                state = JobFolder(job.folder).attempt(attempt).state()
                if processes.alive(state.get("pid"), state.get("start_time")):
                    os.kill(state["pid"], signal.SIGKILL)
            for pid in self.family(job):
                os.kill(pid, signal.SIGKILL)


def steps(log: str) -> list[int]:
    """The step numbers that a log of :data:`STEPS` holds, in order."""
    return [int(line.split()[1]) for line in log.splitlines() if line.startswith("step ")]


class Conformance:
    """The suite. ``bench`` is a fixture that gives a :class:`Bench` and closes it afterwards."""

    def test_never_started_is_absent(self, bench: Bench) -> None:
        job = bench.job("a", cell={"source": ""})
        assert bench.observe(job).phase == "absent"
        chunk = bench.driver.read_log(job, 1, 0, 0, 100)
        assert (chunk.data, chunk.offset, chunk.next_offset, chunk.size) == (b"", 0, 0, 0)

    def test_runs_to_its_end(self, bench: Bench) -> None:
        job = bench.job("a", cell={"source": "import os\nprint(os.environ['GIVEN'], os.environ['ASKED'])"},
                        environment_variables={"ASKED": "one", "GIVEN": "loses"})
        bench.driver.check(json.loads((job.folder / "spec.json").read_text()))
        bench.driver.start(job, 1, {"GIVEN": "two"})
        seen = bench.ended(job)
        assert (seen.phase, seen.exit_code, seen.failed_rank, seen.reason) == ("completed", 0, None, ""), seen
        assert seen.started_at is not None and seen.ended_at is not None and seen.started_at <= seen.ended_at
        assert [(rank.rank, rank.running, rank.exit_code) for rank in seen.ranks] == [(0, False, 0)]
        assert bench.log(job) == "two one\n"

    def test_is_seen_running(self, bench: Bench) -> None:
        job = bench.cell("a", "import time\nprint('up')\ntime.sleep(60)")
        bench.says(job, "up")
        seen = wait_for(lambda: bench.observe(job).phase == "running" and bench.observe(job))
        assert not seen.terminal and seen.started_at and seen.ended_at is None
        (rank,) = seen.ranks
        assert rank.running and rank.exit_code is None and rank.pid

    def test_failure_has_a_traceback_and_a_reason(self, bench: Bench) -> None:
        job = bench.cell("a", "def f():\n    raise ValueError('boom')\nf()\n")
        seen = bench.ended(job)
        assert (seen.phase, seen.exit_code, seen.failed_rank) == ("failed", 1, 0)
        assert seen.reason == "ended with exit code 1: ValueError: boom"
        log = bench.log(job)
        assert "    raise ValueError('boom')" in log and "line 3, in <module>" in log
        assert "launch" not in log
        assert seen.traceback[0].startswith("Traceback") and seen.traceback[-1] == "ValueError: boom"
        assert seen.seconds >= 0 and seen.cause == ""

    def test_exit_code_of_the_user(self, bench: Bench) -> None:
        job = bench.cell("a", "raise SystemExit(7)")
        seen = bench.ended(job)
        assert (seen.phase, seen.exit_code, seen.reason) == ("failed", 7, "ended with exit code 7")

    def test_killed_rank(self, bench: Bench) -> None:
        job = bench.cell("a", "import os\nprint(os.getpid())\nimport time\ntime.sleep(60)")
        bench.kill(int(bench.says(job, "\n")))
        seen = bench.ended(job)
        assert (seen.phase, seen.exit_code) == ("failed", -9)
        assert "killed by signal 9 (SIGKILL)" in seen.reason and seen.cause == "", "and nothing of lack of memory"

    def test_what_a_killed_rank_was_writing_is_swept(self, bench: Bench) -> None:
        job = bench.cell("a", """
import os, signal
attempt = os.path.join(os.environ["JUPYTER_MLOPS_JOB_DIR"], "attempts", "1")
open(os.path.join(attempt, "rank-0.exit.1.1.tmp"), "w").close()
os.kill(os.getpid(), signal.SIGKILL)
""")
        assert bench.ended(job).phase == "failed" and bench.log(job) == ""
        assert not list((job.folder / "attempts" / "1").glob("*.tmp"))

    def test_starting_again_runs_once(self, bench: Bench) -> None:
        job = bench.cell("a", "open('count', 'a').write('x')\nimport time\ntime.sleep(0.5)")
        for _ in range(5):
            bench.driver.start(job, 1, {})
            bench.make().start(job, 1, {})  # another control plane
        assert bench.ended(job).phase == "completed"
        bench.driver.start(job, 1, {})
        bench.make().start(job, 1, {})
        assert bench.make().observe(job, 1).phase == "completed"
        assert (job.folder / "outputs" / "count").read_text() == "x"

    def test_stop_ends_all_that_belongs_to_the_job(self, bench: Bench) -> None:
        # A rank that ignores SIGTERM, a child in a session of its own whose parents are gone, and one that in addition
        # was started without the job's environment.
        job = bench.cell("a", """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
sleep = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
pids = []
for env in (None, {}):
    read, write = os.pipe()
    if os.fork() == 0:
        os.setsid()
        child = subprocess.Popen(sleep, env=env, start_new_session=True)
        os.write(write, b"%d" % child.pid)
        os._exit(0)
    os.wait()
    pids.append(os.read(read, 20).decode())
print("pids", *pids, os.getpid(), flush=True)
time.sleep(60)
""")
        pids = [int(pid) for pid in bench.says(job, "pids").split()[1:]]
        started = {pid: bench.lives(pid) for pid in pids}
        assert all(started.values())
        wait_for(lambda: bench.observe(job).phase == "running")
        bench.driver.stop(job, 1, 0.5)
        bench.driver.stop(job, 1, 0.5)
        seen = bench.ended(job)
        assert (seen.phase, seen.reason) == ("canceled", "stopped")
        assert not [pid for pid in pids if bench.lives(pid) == started[pid]]
        assert not bench.family(job)

    def test_attempts_share_the_folder(self, bench: Bench) -> None:
        job = bench.cell("a", """
import os
attempt = os.environ["JUPYTER_MLOPS_ATTEMPT"]
print("attempt", attempt, os.path.exists("checkpoint"))
open("checkpoint", "a").write(attempt)
if attempt == "1":
    raise SystemExit(3)
""")
        assert bench.ended(job).exit_code == 3
        kept = {"run.json": (job.folder / "run.json").read_bytes()}
        for name in ("journal/1-0.bin", "spool/1/entry.json", "inputs/payload.pkl", "delivery.json"):
            path = job.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"kept")
            kept[name] = b"kept"
        assert bench.observe(job, 2).phase == "absent"
        bench.driver.start(job, 2, {})
        seen = bench.ended(job, attempt=2)
        assert (seen.phase, seen.attempt, seen.exit_code) == ("completed", 2, 0)
        assert bench.observe(job).phase == "failed", "the first one stays as it ended"
        assert (bench.log(job), bench.log(job, attempt=2)) == ("attempt 1 False\n", "attempt 2 True\n")
        assert (job.folder / "outputs" / "checkpoint").read_text() == "12"
        assert {name: (job.folder / name).read_bytes() for name in kept} == kept

    def test_a_stop_is_for_one_attempt(self, bench: Bench) -> None:
        job = bench.cell("a", """
import os, time
print("up")
if os.environ["JUPYTER_MLOPS_ATTEMPT"] == "1":
    time.sleep(60)
""")
        bench.says(job, "up")
        bench.driver.stop(job, 1, 5.0)
        assert bench.ended(job).phase == "canceled"
        bench.driver.start(job, 2, {})
        assert bench.ended(job, attempt=2).phase == "completed"

    def test_time_that_is_over(self, bench: Bench) -> None:
        job = bench.cell("a", """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True)
print("up", child.pid)
time.sleep(60)
""", limits={"timeout": 60, "grace": 0.2}, grant=Grant(timeout=1.0))
        child = int(bench.says(job, "up").split()[1])
        seen = bench.ended(job)
        assert (seen.phase, seen.cause, seen.failed_rank) == ("failed", "timeout", None)
        assert seen.reason == "ran longer than limits.timeout (60 s)" and seen.seconds >= 1
        assert not bench.lives(child) and not bench.family(job)

    def test_time_that_suffices(self, bench: Bench) -> None:
        job = bench.cell("a", "print(1)", limits={"timeout": 60}, grant=Grant(timeout=60.0))
        seen = bench.ended(job)
        assert (seen.phase, seen.cause) == ("completed", "") and 0 < seen.seconds < 60

    def test_another_control_plane_goes_on(self, bench: Bench) -> None:
        job = bench.cell("a", "import time\nprint('up')\ntime.sleep(60)")
        bench.says(job, "up")
        other = bench.make()
        other.subscribe(lambda name: None)
        seen = wait_for(lambda: other.observe(job, 1).phase == "running" and other.observe(job, 1))
        assert seen.ranks[0].running
        assert other.read_log(job, 1, 0, 0, 100).data == b"up\n"
        other.stop(job, 1, 5.0)
        assert bench.ended(job).phase == "canceled"
        assert other.observe(job, 1).phase == "canceled"

    def test_environment_and_working_folder(self, bench: Bench) -> None:
        job = bench.job("a", cell={"source": "import json, os\nprint(json.dumps([dict(os.environ), os.getcwd()]))"},
                        environment_variables={"ASKED": "one two"})
        bench.driver.start(job, 1, {"JUPYTER_MLOPS_JOB": "a"})
        assert bench.ended(job).phase == "completed"
        env, cwd = json.loads(bench.log(job))
        assert (env["ASKED"], env["JUPYTER_MLOPS_JOB"], env["JUPYTER_MLOPS_ATTEMPT"]) == ("one two", "a", "1")
        assert cwd == os.path.join(env["JUPYTER_MLOPS_JOB_DIR"], "outputs")
        assert "RANK" not in env and "MLFLOW_TRACKING_TOKEN" not in env and "JUPYTER_MLOPS_TOKEN" not in env

    def test_stop_lets_a_rank_end_by_itself(self, bench: Bench) -> None:
        job = bench.cell("a", """
import signal, sys, time
def leave(*_):
    print("saved")
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("up")
time.sleep(60)
""")
        bench.says(job, "up")
        bench.driver.stop(job, 1, 30.0)
        seen = bench.ended(job)
        assert (seen.phase, seen.exit_code) == ("canceled", 0)
        assert bench.log(job) == "up\nsaved\n"

    def test_stop_before_start(self, bench: Bench) -> None:
        job = bench.job("a", cell={"source": "open('ran', 'w')"})
        bench.driver.stop(job, 1, 1.0)
        bench.driver.start(job, 1, {})
        assert bench.ended(job).phase == "canceled"
        assert not (job.folder / "outputs" / "ran").exists()

    def test_nothing_outlives_a_job(self, bench: Bench) -> None:
        job = bench.cell("a", """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"], start_new_session=True)
print(child.pid)
""")
        seen = bench.ended(job)
        assert seen.phase == "completed"
        assert not bench.lives(int(bench.log(job)))

    def test_log_by_offsets(self, bench: Bench) -> None:
        job = bench.cell("a", "print('añb€c')")
        bench.ended(job)
        whole = "añb€c\n".encode()
        chunk = bench.driver.read_log(job, 1, 0, 0, 1000)
        assert (chunk.data, chunk.offset, chunk.next_offset, chunk.size) == (whole, 0, len(whole), len(whole))
        offset, parts = 0, []
        while offset < chunk.size:
            part = bench.driver.read_log(job, 1, 0, offset, 4)
            assert part.offset == offset and part.next_offset == offset + len(part.data) > offset
            parts.append(part.data.decode())  # no character is cut
            offset = part.next_offset
        assert "".join(parts) == "añb€c\n"
        tail = bench.driver.read_log(job, 1, 0, -4, 100)  # begins inside the euro sign
        assert (tail.data, tail.next_offset) == (b"c\n", len(whole))
        beyond = bench.driver.read_log(job, 1, 0, 10_000, 10)
        assert (beyond.data, beyond.offset, beyond.next_offset) == (b"", len(whole), len(whole))
        assert bench.driver.read_log(job, 1, 5, 0, 10).size == 0

    def test_delete(self, bench: Bench) -> None:
        job = bench.cell("a", "print(1)")
        bench.ended(job)
        bench.driver.delete(job)
        bench.driver.delete(job)

    def test_facts(self, bench: Bench) -> None:
        facts = bench.driver.facts()
        assert facts["cpus"] >= 1 and facts["memory_bytes"] > 0 and isinstance(facts["gpus"], list)

    def test_two_ranks(self, bench: Bench) -> None:
        pytest.importorskip("torch")
        job = bench.cell("a", """
import os
print("rank", os.environ["RANK"], os.environ["LOCAL_RANK"], "of", os.environ["WORLD_SIZE"])
import torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor(float(dist.get_rank() + 1))
dist.all_reduce(total)
print("sum", total.item())
dist.destroy_process_group()
""", processes=2)
        seen = bench.ended(job)
        assert (seen.phase, seen.exit_code) == ("completed", 0), (seen, bench.log(job))
        assert [(rank.rank, rank.exit_code) for rank in seen.ranks] == [(0, 0), (1, 0)]
        for rank in (0, 1):
            assert bench.log(job, rank).splitlines()[0] == f"rank {rank} {rank} of 2"
            assert "sum 3.0" in bench.log(job, rank)

    def test_the_failing_rank_is_named(self, bench: Bench) -> None:
        pytest.importorskip("torch")
        job = bench.cell("a", """
import os, time
if os.environ["RANK"] == "1":
    raise RuntimeError("only here")
time.sleep(60)
""", processes=2, limits={"grace": 1})
        seen = bench.ended(job)
        assert (seen.phase, seen.failed_rank, seen.exit_code) == ("failed", 1, 1)
        assert seen.reason == "rank 1 ended with exit code 1: RuntimeError: only here"
        assert [rank.exit_code for rank in seen.ranks] == [-15, 1]

    def test_a_killed_rank_of_two_is_named(self, bench: Bench) -> None:
        pytest.importorskip("torch")
        job = bench.cell("a", """
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", os.getpid())
time.sleep(60)
""", processes=2, limits={"grace": 0.5})
        bench.says(job, "up", 0)
        bench.kill(int(bench.says(job, "up", 1).split()[1]))
        seen = bench.ended(job)
        assert (seen.phase, seen.failed_rank, seen.exit_code) == ("failed", 1, -9)
        assert "rank 1 was killed by signal 9" in seen.reason
        assert not bench.family(job)
