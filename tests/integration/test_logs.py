"""Logs of real jobs: bounded on disk, followed with no gap and no repeat over crashes and attempts, searched; usage."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import Plane, make_home, wait_for

from jupyter_mlops.client.sync import Client
from jupyter_mlops.core.errors import NotFound, ParameterError
from jupyter_mlops.runtime import logfile
from jupyter_mlops.runtime.jobfolder import JobFolder

MB = 1 << 20


@pytest.fixture(scope="module")
def home():
    plane = Plane(make_home()).start()
    yield plane
    plane.stop()


@pytest.fixture(scope="module")
def client(home):
    with Client(home.place, may_start=False) as client:
        yield client


def submit(client, folder, code: str, name: str, **spec):
    (folder / "job.py").write_text(code)
    return client.submit_job(
        {"script": str(folder / "job.py"), "cwd": str(folder), "interpreter": sys.executable, "experiment_name": "logs",
         **spec}, name,
    )


def path_of(home, name: str, attempt: int = 1) -> str:
    return JobFolder(home.home / "jobs" / name).attempt(attempt).log_path(0)


FLOOD = """
import time
from pathlib import Path
begun = time.monotonic()
number = 0
while time.monotonic() < begun + 3:
    print("".join(f"line {number + i:09d} {'x' * 80}\\n" for i in range(10_000)), end="", flush=True)
    number += 10_000
    time.sleep(0.1)
print("the last line", flush=True)
time.sleep(0.8)
"""


def test_a_flood_stays_within_its_bound(home, client, tmp_path):
    """About 10 MB a second against a bound of 2 MB, while somebody reads."""
    job = submit(client, tmp_path, FLOOD, "flood", limits={"log_bytes": 2 * MB})
    log = path_of(home, "flood")
    wait_for(lambda: logfile.hole(log), 30)
    most = 0

    def watch() -> bool:
        nonlocal most
        most = max(most, os.stat(log).st_blocks * 512)
        return job.status in ("Completed", "Failed")

    followed = []
    reader = threading.Thread(target=lambda: followed.extend(job.follow()))
    reader.start()
    wait_for(watch, 60, 0.1)
    reader.join(30)
    assert job.phase == "Completed"
    size = os.path.getsize(log)
    assert size > 10 * MB and most < size, "it was never all there"
    assert os.stat(log).st_blocks * 512 <= 2 * MB
    text = "".join(followed)
    assert "\0" not in text and text.startswith("line 000000000 ") and text.endswith("the last line\n")
    assert re.search(r"^… [0-9.]+ [MK]B not kept …$", text, re.M)
    numbers = [int(n) for n in re.findall(r"^line (\d{9}) x{80}$", text, re.M)]
    assert numbers == sorted(set(numbers)), "nothing twice, nothing torn"
    assert job.logs(tail=1) == "the last line\n"
    shown = job.logs()
    assert shown.startswith("line 000000000") and " not kept …\nline " in shown and shown.endswith("the last line\n")
    begin, end = logfile.hole(log)
    part = home.get(f"jobs/flood/logs/0?offset={begin + 10}&limit=100")
    assert (part["offset"], part["skipped"], part["hole"]) == (end, end - begin - 10, [begin, end])
    assert part["text"].startswith("line ")
    (match,) = job.search("THE LAST line")
    assert match.content == "the last line" and match.line is None and match.offset == size - len("the last line\n")
    usage = job.usage()
    frame = usage.df()
    assert set(frame["rank"]) == {0} and frame["rss"].max() > 5e6 and "MB" in usage.text()


COUNT = """
import sys, time
for i in range(60):
    print(f"line {i} ü{'€' * (i % 5)}", flush=True)
    time.sleep(0.05)
if "fail" in sys.argv:
    import os
    if os.environ["JUPYTER_MLOPS_ATTEMPT"] == "1":
        sys.exit("not this time")
"""


def test_following_survives_the_control_plane_and_goes_on_with_the_next_attempt(home, client, tmp_path):
    job = submit(client, tmp_path, COUNT, "count", args=["fail"], retry_settings={"max_retries": 1})
    pieces: list[str] = []
    failed: list[BaseException] = []

    def follow() -> None:
        try:
            for piece in job.follow():
                pieces.append(piece)
        except BaseException as error:
            failed.append(error)

    reader = threading.Thread(target=follow)
    reader.start()
    wait_for(lambda: "line 10 " in "".join(pieces), 60)
    home.kill()
    time.sleep(0.5)
    home.start()
    reader.join(90)
    assert not reader.is_alive() and not failed
    logs = [Path(path_of(home, "count", attempt)).read_text(encoding="utf-8") for attempt in (1, 2)]
    assert "".join(pieces) == logs[0] + "— attempt 2 —\n" + logs[1]
    assert logs[0].count("\n") == 61 and logs[1].count("\n") == 60
    assert job.status == "Completed"
    assert job.logs() == logs[1] and job.logs(attempt=1) == logs[0] and job.logs(attempt=1, tail=1) == "not this time\n"
    assert "".join(job.follow(tail=2, attempt=1)) == "line 59 ü€€€€\nnot this time\n— attempt 2 —\n" + logs[1]
    with pytest.raises(NotFound, match="no attempt 3"):
        job.logs(attempt=3)
    attempts = home.get("jobs/count/usage?max_points=2")["attempts"]
    assert [a["attempt"] for a in attempts] == [1, 2] and all(len(a["samples"]["times"]) <= 2 for a in attempts)
    assert attempts[0]["started_at"] < attempts[1]["started_at"]


BARS = """
import sys
print("begin")
for i in range(2001):
    sys.stdout.write(f"\\r{i // 20:3d}%|{'#' * (i // 100):<20}| {i}/2000")
print("\\n\\x1b[32mepoch 1 loss 0.25\\x1b[0m")
print("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!")
"""


def test_bars_and_search(home, client, tmp_path):
    job = submit(client, tmp_path, BARS, "bars").wait(60)
    lines = ["begin", f"100%|{'#' * 20}| 2000/2000", "epoch 1 loss 0.25", "a" * 56 + "!"]
    assert job.logs() == "\n".join(lines) + "\n" and job.logs(tail=2) == "\n".join(lines[2:]) + "\n"
    assert "\x1b[32mepoch" in job.logs(colours=True) and len(job.logs(raw=True)) > 60_000
    assert [(m.line, m.content) for m in job.search("LOSS")] == [(3, "epoch 1 loss 0.25")]
    assert len(job.search("LOSS", case=True)) == 0 and "nothing found" in job.search("nope").text()
    assert [m.line for m in job.search(r"loss 0\.\d+", regex=True)] == [3]
    assert len(job.search("/2000", limit=5)) == 5 and "first 5" in job.search("/2000", limit=5).text()
    assert len(job.search("/2000", limit=5000)) == 2001
    with pytest.raises(ParameterError, match="no regular expression"):
        job.search("(", regex=True)

    async def both():
        """The control plane answers others while an expression takes for ever."""
        hard = asyncio.create_task(client.aio.search_job_log("bars", 0, "(a+)+$", regex=True))
        times = []
        while not hard.done():
            begun = time.monotonic()
            await client.aio.get_job("bars")
            times.append(time.monotonic() - begun)
            await asyncio.sleep(0.05)
        with pytest.raises(ParameterError, match="takes too much"):
            await hard
        return times

    assert len(client.call(both())) >= 5
    for bad in ("q=", "q=x&limit=0", "q=x&offset=-1", "q=x&regex=maybe", "", "q=x&attempt=0"):
        assert home.call("GET", f"jobs/bars/logs/0/search?{bad}")[0] in (400, 422)
    assert home.call("GET", "jobs/bars/logs/7/search?q=x")[0] == 404
    assert home.call("GET", "jobs/none/usage")[0] == 404
