"""A disk that fills up while a job runs, and has room again later: nothing is lost, and nobody is killed for it."""

from __future__ import annotations

import time

import pytest
from conftest import wait_for
from fault_bench import ALONE, Bench, tiny_disk, unmount

STEPS = 60
#: Where no disk of its own can be had: the job may not let its journal grow, from step 10 to step 30.
LIMITED = """
import os, resource, time
import mlflow

journal = os.path.join(os.environ["JUPYTER_MLOPS_JOB_DIR"], "journal", "1-0.bin")
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
mlflow.log_param("steps", 60)
for step in range(60):
    if step == 10:
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.path.getsize(journal) + 30, hard))
    if step == 30:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    mlflow.log_metric("value", 2 * step, step=step)
    time.sleep(0.05)
"""


def _fill(path) -> None:
    for size in (65536, 1):
        with open(path, "ab", buffering=0) as f:
            try:
                while True:
                    f.write(b"\0" * size)
            except OSError:
                pass


@pytest.fixture
def small():
    """(a workspace, whether its disk is small)."""
    home = tiny_disk(48)
    bench = Bench(home).start()
    yield bench, home is not None
    bench.stop()
    if home is not None:
        unmount(home)


def test_a_full_disk(small):
    bench, tiny = small
    if tiny:
        name = bench.submit("full", ALONE, STEPS, 0.1, -1, processes=1)
        bench.reach(name, 5)
        filler = bench.home / "filler"
        _fill(filler)
        time.sleep(3)
        filler.unlink()
    else:
        name = bench.submit("full", LIMITED, processes=1)
    job = bench.ended(name, 60)
    assert job["status"]["phase"] == "Completed", (job["status"], bench.log(name)[-2000:])
    values = sorted((s, v) for s, v, _ in bench.history(job["status"]["run_id"], "value"))
    assert values == [(s, 2.0 * s) for s in range(STEPS)]
    assert "the disk is full" in bench.log(name) or tiny
    wait_for(lambda: not bench.of_job(name), 15)
