"""A log of a gigabyte: its end is there at once, all of it can be read, searched and followed in flat memory."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import Plane, make_home, wait_for

from jupyter_mlops.client.sync import Client
from jupyter_mlops.runtime import logfile
from jupyter_mlops.runtime.jobfolder import JobFolder

pytestmark = pytest.mark.faults

MB = 1 << 20
LINES = 13_000_000


def read_bytes(pid: int) -> int:
    fields = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(fields["rchar"])


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def plane():
    plane = Plane(make_home()).start()
    yield plane
    plane.stop()


def test_a_gigabyte(plane, tmp_path):
    (tmp_path / "job.py").write_text("print('begin')\n")
    with Client(plane.place, may_start=False) as client:
        job = client.submit_job({"script": str(tmp_path / "job.py"), "cwd": str(tmp_path),
                                 "interpreter": sys.executable, "experiment_name": "logs"}, "big").wait(60)
        log = JobFolder(plane.home / "jobs" / "big").attempt(1).log_path(0)
        with open(log, "ab") as f:
            for start in range(0, LINES, 100_000):
                f.write(b"".join(b"line %010d %s\n" % (i, b"x" * 70) for i in range(start, start + 100_000)))
        size = os.path.getsize(log)
        assert size > 1 << 30
        pid = plane.process.pid
        plane.get("jobs/big")
        before, memory = read_bytes(pid), resident(pid)
        assert job.logs(tail=3).count("\n") == 3 and f"line {LINES - 1:010d}" in job.logs(tail=1)
        assert read_bytes(pid) - before < 2 * MB, "only the end is read"
        assert len(job.logs()) < 17 * MB
        matches = job.search(f"line {LINES - 7:010d}")
        assert [m.line for m in matches] == [LINES - 5]
        matches = job.search(r"^line 0{4}\d7{5} x", regex=True)
        assert [m.line for m in matches] == [n + 2 for n in range(77_777, 1_000_000, 100_000)]
        seen = sum(len(piece.encode()) for piece in job.follow())
        assert seen == size
        assert resident(pid) - memory < 150 * MB, "memory is flat"
        assert logfile.shrink(log, 64 * MB) and os.stat(log).st_blocks * 512 <= 64 * MB
        shown = job.follow(tail=2)
        assert f"line {LINES - 1:010d}" in "".join(shown)


FOREVER = """
import time
line = "x" * 99 + "\\n"
while True:
    begun = time.monotonic()
    print(line * 10_000, end="", flush=True)
    time.sleep(max(0.0, begun + 0.1 - time.monotonic()))
"""


def test_ten_megabytes_a_second_for_long(plane, tmp_path):
    (tmp_path / "job.py").write_text(FOREVER)
    bound = 32 * MB
    with Client(plane.place, may_start=False) as client:
        job = client.submit_job({
            "script": str(tmp_path / "job.py"), "cwd": str(tmp_path), "interpreter": sys.executable,
            "experiment_name": "logs", "limits": {"log_bytes": bound},
        }, "flood")
        log = JobFolder(plane.home / "jobs" / "flood").attempt(1).log_path(0)
        wait_for(lambda: logfile.hole(log), 60)
        stop = threading.Event()
        most = []

        def watch() -> None:
            while not stop.is_set():
                most.append(os.stat(log).st_blocks * 512)
                time.sleep(0.05)

        watcher = threading.Thread(target=watch)
        watcher.start()
        wait_for(lambda: os.path.getsize(log) > 12 * bound, 180, 1.0)
        stop.set()
        watcher.join()
        # The supervisor looks twice a second; on a loaded machine somewhat later.
        assert max(most) < 2 * bound
        assert "not kept" in "".join(piece for piece, _ in zip(job.follow(), range(60), strict=False))
        job.stop(wait=True)
        assert os.stat(log).st_blocks * 512 <= bound
