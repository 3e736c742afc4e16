"""Samples of what ranks use: true, small, and read whatever the file holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from jupyter_mlops.client.usage import JobUsage
from jupyter_mlops.control.routes import logs
from jupyter_mlops.runtime import gpus, usage
from jupyter_mlops.runtime.jobfolder import JobFolder

BUSY = """
import subprocess, sys, threading, time
keep = bytearray(60_000_000)
code = "keep = bytearray(40_000_000)\\nprint(1, flush=True)\\nwhile True: pass"
child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
child.stdout.readline()
for _ in range(3):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.fixture
def busy():
    process = subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True)
    child = int(process.stdout.readline())
    yield process.pid, child
    process.kill()
    process.wait()
    os.kill(child, 9)
    process.stdout.close()


def test_a_rank_is_counted_with_its_descendants(tmp_path, busy):
    pid, child = busy
    assert set(usage.family(pid)) == {pid, child}
    path = tmp_path / "usage.jsonl"
    meter = usage.Usage(str(path))
    before = time.process_time()
    meter.sample({0: pid}, now=True)
    assert time.process_time() - before < 1
    time.sleep(0.6)
    meter.sample({0: pid}, now=True)
    meter.sample({0: pid})  # not time yet
    rows, every = usage.read(str(path))
    assert every == usage.PERIOD and len(rows) == 2
    (first,), (second,) = rows[0]["ranks"], rows[1]["ranks"]
    assert first[:2] == [0, None] and 0 < second[1] <= 1.5, "cores: only the child is busy, and the machine shared"
    assert 100e6 < second[2] < 400e6 and second[3] >= 5
    assert meter.peak(0) >= second[2] and meter.peak(1) == 0
    assert usage.Usage(str(path)).peak(0) >= second[2], "one that adopts knows it too"


def test_ranks_that_have_gone_leave_no_row(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    meter = usage.Usage(str(tmp_path / "usage.jsonl"))
    meter.sample({0: process.pid}, now=True)
    meter.sample({}, now=True)
    assert not (tmp_path / "usage.jsonl").exists()


def test_the_file_stays_small(tmp_path, monkeypatch):
    """A job of a week with eight ranks."""
    path = tmp_path / "usage.jsonl"
    meter = usage.Usage(str(path))
    clock = [1_770_000_000.0]
    monkeypatch.setattr(usage.time, "time", lambda: clock[0])
    for turn in range(20_000):
        clock[0] += 2
        meter._note([[r, 1.5, 534_773_760 + turn, 34] for r in range(8)])
    assert path.stat().st_size <= usage.MAX_BYTES + 1000
    rows, every = usage.read(str(path))
    assert 300 < len(rows) < usage.MAX_ROWS and every > 2
    gaps = {round(b["t"] - a["t"]) for a, b in pairwise(rows)}
    assert gaps <= {round(every), round(every / 2), round(every * 2)}, "evenly spaced"
    assert rows[0]["t"] - 1_770_000_000 <= every and clock[0] - rows[-1]["t"] <= every
    assert rows[-1]["ranks"][7][2] > rows[0]["ranks"][7][2] and rows[0]["ranks"][0][1] == 1.5
    assert os.listdir(tmp_path) == ["usage.jsonl"]
    again = usage.Usage(str(path))
    again._note([[0, 1.0, 1, 1]])
    assert usage.read(str(path))[1] == every, "who adopts goes on at the same pace"


def test_merging_keeps_what_matters():
    rows = [{"t": t, "ranks": [[0, t / 10, t * 100, t], [1, None, 5, 1, 50, 7]][: 1 + (t < 3)]} for t in (1, 2, 3, 4)]
    (row,) = usage.thin(rows, 1)
    assert row == {"t": 4, "ranks": [[0, 0.25, 400, 4], [1, None, 5, 1, 50.0, 7]]}
    assert [r["t"] for r in usage.thin(rows, 3)] == [1, 2, 4] and usage.thin(rows, 9) is rows
    columns = usage.series(rows)
    assert columns["times"] == [1000, 2000, 3000, 4000]
    assert columns["ranks"][1] == {
        "rank": 1, "cpu": [None] * 4, "rss": [5, 5, None, None], "threads": [1, 1, None, None],
        "gpu": [50, 50, None, None], "gpu_memory": [7, 7, None, None], "peak_rss": 5,
    }


def test_machines_are_told_together():
    """Each at its own pace and with its own clock; before and after the longest one too."""
    first = [{"t": 10.0 + 2 * n, "ranks": [[0, 1.0, 5, 1]]} for n in range(5)]
    other = [{"t": 8.7 + 2 * n, "ranks": [[1, float(n), 6, 1]]} for n in range(7)]
    rows = usage.together([first, other, []])
    assert [row["t"] for row in rows] == [8.7 + 2 * n for n in range(7)]
    assert [[entry[0] for entry in row["ranks"]] for row in rows] == [*[[1, 0]] * 6, [1]]
    assert [row["ranks"][0][1] for row in rows] == [float(n) for n in range(7)]
    late = [{"t": 100.0, "ranks": [[2, 0.5, 7, 1]]}]
    assert usage.together([first, late])[-1] == late[0] and usage.together([first]) is first and not usage.together([])


def test_all_machines_of_an_attempt_are_read(tmp_path):
    attempt = JobFolder(tmp_path).attempt(1)
    for node, rank in ((0, 0), (1, 1), (10, 2)):
        path = Path(attempt.path, *(() if not node else (f"node-{node}",)), "usage.jsonl")
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [{"t": 100.0 + 2 * n + node / 10, "ranks": [[rank, 0.5, node, 1]]} for n in range(50)]
        path.write_text("".join(json.dumps(line) + "\n" for line in [{"every": 2.0}, *rows]))
    Path(attempt.path, "node-x").mkdir()
    Path(attempt.path, "node-3").mkdir()
    assert list(attempt.usage_paths()) == [0, 1, 10]
    for most in (300, 10):
        found = logs._samples(attempt.usage_paths(), most)
        assert [(r.rank, r.node, r.peak_rss) for r in found.ranks] == [(0, 0, 0), (1, 1, 1), (2, 10, 10)]
        assert len(found.times) == min(most, 50) and all(None not in r.cpu for r in found.ranks)
    shown = JobUsage(None, {"name": "a", "attempts": [{"attempt": 1, "samples": found.model_dump()}]}).text()
    assert [line.split() for line in shown.splitlines()[-3:]][2][:4] == ["1", "10", "2", "0.5"], shown


def test_nonsense_is_left_out(tmp_path):
    path = tmp_path / "usage.jsonl"
    assert usage.read(str(path)) == ([], usage.PERIOD)
    good = {"t": 1.0, "ranks": [[0, 1.0, 2, 3], ["x"], [True, 1], [-1, 1], [1, "a", None, [], 1e400, 2]]}
    lines = [json.dumps(good), "{", "[]", "3", '{"every": "x"}', '{"every": -2}', '{"t": "x", "ranks": []}',
             '{"t": 2, "ranks": {}}', "[" * 5000, '{"t": 5, "ran']
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n")
    rows, every = usage.read(str(path))
    assert every == usage.PERIOD
    assert rows == [{"t": 1.0, "ranks": [[0, 1.0, 2, 3, None, None], [1, None, None, None, None, 2]]}]
    usage.series(usage.thin(rows, 2))
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert usage.read(str(path)) == ([], usage.PERIOD)
    path.unlink()
    os.mkfifo(path)
    assert usage.read(str(path)) == ([], usage.PERIOD)


def test_a_full_disk_disturbs_nobody(tmp_path, monkeypatch):
    meter = usage.Usage(str(tmp_path / "no folder" / "usage.jsonl"))
    meter.sample({0: os.getpid()}, now=True)
    assert meter.peak(0) > 0


# -- GPUs: what the driver tells, without one


class Driver:
    def __init__(self, devices):
        self.devices = devices

    def newest(self):
        return self.devices


def device(index, percent, memory, **pids):
    return {"index": index, "uuid": f"GPU-{index}{index}{index}", "gpu": percent, "memory": memory,
            "pids": {int(pid[1:]): size for pid, size in pids.items()}}


@pytest.mark.parametrize(
    ("size", "visible", "pids", "expected"),
    [
        (1, None, {"p%d": 500}, [40, 500]),  # the driver knows the process
        (1, "1", {}, [80, 2000]),  # a container: it does not, the environment tells
        (2, "1,0", {}, [80, 2000]),  # rank 0 of 2 takes the first
        (1, "GPU-000", {}, [40, 1000]),
        (1, None, {}, [60, 3000]),  # all
        (1, "", {}, [None, None]),  # none
    ],
)
def test_gpus_of_a_rank(tmp_path, size, visible, pids, expected):
    meter = usage.Usage(str(tmp_path / "usage.jsonl"), size, visible)
    known = {key % os.getpid(): value for key, value in pids.items()}
    meter._gpus = Driver([device(0, 40, 1000, **known), device(1, 80, 2000)])
    meter.sample({0: os.getpid()}, now=True)
    rows, _ = usage.read(str(tmp_path / "usage.jsonl"))
    assert rows[0]["ranks"][0][4:] == expected


def test_a_machine_without_gpus_starts_no_thread(monkeypatch):
    assert gpus.Gpus().newest() == []
    monkeypatch.setattr(gpus.glob, "glob", lambda pattern: [])
    monkeypatch.setattr(gpus.os.path, "exists", lambda path: False)
    assert not gpus.present()


def test_the_client_shows_it():
    samples = usage.series([{"t": t, "ranks": [[0, 1.0, 10**8, 3], [1, 0.5, 2 * 10**8, 3]]} for t in (1, 3)])
    shown = JobUsage(None, {"name": "digits", "cpus": 2, "memory_bytes": 1, "attempts": [
        {"attempt": 1, "started_at": "", "ended_at": "", "samples": samples}]})
    frame = shown.df()
    assert list(frame["rank"]) == [0, 1, 0, 1] and frame["rss"].max() == 2 * 10**8 and str(frame["time"].dt.tz) == "UTC"
    assert "200 MB" in shown.text() and "GPU" not in shown.text() and "<svg" in shown.html() and "\n" not in repr(shown)
    assert "no samples" in JobUsage(None, {"name": "x", "attempts": []}).text()
