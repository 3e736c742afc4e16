"""The fault matrix: a job of two ranks runs, something dies, and afterwards all is as it must be.

The short form runs each fault once. ``make test-faults`` runs the long form: more faults, each ``FAULTS_REPEAT`` times.
What is random follows ``TEST_SEED``.
"""

from __future__ import annotations

import random
import signal
import time

import pytest
from conftest import wait_for
from fault_bench import REPEAT, STEPS, Bench, job_name, kill, params

# -- what dies; each takes the bench, the job's name and random numbers

def control_plane(b: Bench, name: str, rng: random.Random) -> None:
    """Killed and started again at random moments; also in the middle of its transactions."""
    for _ in range(1 if REPEAT == 1 else 3):
        time.sleep(rng.uniform(0, 0.4))
        kill(b.control())
        b.plane.process.wait()
        time.sleep(rng.uniform(0, 0.3))
        b.plane.start()


def control_plane_away(b: Bench, name: str, rng: random.Random) -> None:
    """Away from before the job's end until after it."""
    kill(b.control())
    b.plane.process.wait()
    wait_for(lambda: "rank 0 done" in b.log(name), 60)
    b.plane.start()


def mlflow(b: Bench, name: str, rng: random.Random) -> None:
    b.keep_mlflow_away(2.0)


def mlflow_5_s(b: Bench, name: str, rng: random.Random) -> None:
    b.keep_mlflow_away(5.0)


def mlflow_5_min(b: Bench, name: str, rng: random.Random) -> None:
    b.keep_mlflow_away(300.0)


def mlflow_frozen(b: Bench, name: str, rng: random.Random) -> None:
    pid = b.mlflow()
    kill(pid, signal.SIGSTOP)
    time.sleep(rng.uniform(2, 5))
    kill(pid, signal.SIGCONT)


def mlflow_frozen_for_good(b: Bench, name: str, rng: random.Random) -> None:
    kill(b.mlflow(), signal.SIGSTOP)


def supervisor(b: Bench, name: str, rng: random.Random) -> None:
    kill(b.supervisor(name))


def one_rank(b: Bench, name: str, rng: random.Random) -> None:
    kill(b.rank(name, rng.randrange(2)))


def all_ranks(b: Bench, name: str, rng: random.Random) -> None:
    for pid in b.of_job(name):
        kill(pid)


GOES_ON = {"control plane": control_plane, "mlflow": mlflow, "supervisor": supervisor}
LONG_GOES_ON = {"control plane away": control_plane_away, "mlflow frozen": mlflow_frozen, "mlflow 5 s": mlflow_5_s,
                "mlflow 5 min": mlflow_5_min, "mlflow frozen for good": mlflow_frozen_for_good}


@pytest.mark.parametrize(("fault", "number"), params(GOES_ON, LONG_GOES_ON))
def test_the_job_goes_on(bench, rng, fault, number):
    name = bench.train(job_name(fault, number))
    bench.reach(name, rng.randrange(2, STEPS // 3))
    {**GOES_ON, **LONG_GOES_ON}[fault](bench, name, rng)
    bench.verify(name, timeout=120)


@pytest.mark.parametrize(("fault", "number"), params(["one rank"], ["all ranks"]))
def test_the_job_fails_and_says_why(bench, rng, fault, number):
    name = bench.train(job_name(f"{fault} dies", number))
    step = rng.randrange(5, STEPS - 10)
    bench.reach(name, step)
    {"one rank": one_rank, "all ranks": all_ranks}[fault](bench, name, rng)
    job = bench.verify(name, "Failed", "FAILED", logged=step)
    assert "signal 9" in job["status"]["reason"] or "exit unknown" in job["status"]["reason"], job["status"]


@pytest.mark.parametrize(("fault", "number"), params(["one rank"], ["all ranks"]))
def test_a_retry_resumes_without_a_repeat(bench, rng, fault, number):
    hold = 10 * rng.randrange(1, STEPS // 10) + rng.randrange(1, 10)  # some steps after a checkpoint
    name = bench.train(job_name(f"{fault} retried", number), hold=hold, retry_settings={"max_retries": 1})
    bench.reach(name, hold - 1)
    {"one rank": one_rank, "all ranks": all_ranks}[fault](bench, name, rng)
    bench.go(name)
    job = bench.verify(name, attempts=2, timeout=120)
    # What the second attempt did again since the last checkpoint was dropped, and counted.
    assert job["status"]["delivery"]["duplicates"] > 0


VICTIMS = {"control plane": control_plane, "mlflow": mlflow, "supervisor": supervisor, "mlflow frozen": mlflow_frozen,
           "one rank": one_rank}


@pytest.mark.parametrize(("fault", "number"), params(["a random pair"], [f"a random pair {n}" for n in range(3)]))
def test_pairs(bench, rng, fault, number, record_property):
    first, second = rng.sample(sorted(VICTIMS), 2)
    record_property("fault", f"{first}, then {second}")
    print(f"{first}, then {second}")
    name = bench.train(job_name(fault, number), hold=STEPS - 5, retry_settings={"max_retries": 1})
    bench.reach(name, rng.randrange(2, STEPS // 3))
    VICTIMS[first](bench, name, rng)
    time.sleep(rng.uniform(0, 0.5))
    attempt = 1
    if first == "one rank":
        wait_for(lambda: bench.step(name, 2) >= 0, 60)
        attempt = 2
    if second == "one rank":
        bench.reach(name, 0, attempt)
        one_rank(bench, name, rng)
        attempt = 2
    elif second == "supervisor":
        kill(bench.supervisor(name, attempt))
    else:
        VICTIMS[second](bench, name, rng)
    bench.go(name)
    bench.verify(name, attempts=attempt, timeout=150)
