"""A disk that fills up while a job runs, and has room again later: nothing is lost, and nobody is killed for it."""

from __future__ import annotations

import os
import time

import pytest
from conftest import wait_for
from fault_bench import ALONE, Bench, tiny_disk, unmount


@pytest.fixture
def small():
    home = tiny_disk(48)
    if home is None:
        if os.environ.get("TEST_NO_SKIPS"):
            pytest.fail("a disk of its own cannot be mounted")
        pytest.skip("a disk of its own cannot be mounted")
    bench = Bench(home).start()
    yield bench
    bench.stop()
    unmount(home)


def test_a_full_disk(small):
    steps = 60
    name = small.submit("full", ALONE, steps, 0.1, -1, processes=1)
    small.reach(name, 5)
    filler = small.home / "filler"
    with open(filler, "wb", buffering=0) as f:
        try:
            while True:
                f.write(b"\0" * 65536)
        except OSError:
            pass
        try:
            while True:
                f.write(b"\0")
        except OSError:
            pass
    time.sleep(3)
    filler.unlink()
    job = small.ended(name, 60)
    assert job["status"]["phase"] == "Completed", (job["status"], small.log(name)[-2000:])
    values = sorted((s, v) for s, v, _ in small.history(job["status"]["run_id"], "value"))
    assert values == [(s, 2.0 * s) for s in range(steps)]
    wait_for(lambda: not small.of_job(name), 15)
