# ruff: noqa: ASYNC110, ASYNC230 - short waits and small files
"""The copy of a job folder, over a pipe in the place of a cluster's exec stream: nothing lost, doubled or misplaced."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys

import pytest
from conftest import wait_for

from jupyter_mlops.compute.kubernetes import copy as module
from jupyter_mlops.compute.kubernetes.copy import Copy
from jupyter_mlops.compute.kubernetes.manifests import COPIED
from jupyter_mlops.compute.kubernetes.outlets import Outlets
from jupyter_mlops.core.errors import BackendUnreachable
from jupyter_mlops.runtime import logfile, mirror
from jupyter_mlops.runtime.jobfolder import JobFolder, private_folder


class Pipe:
    """What :class:`jupyter_mlops.kube.exec.Exec` is to a pod, for a process here."""

    made: list[Pipe] = []

    def __init__(self, kube, pod, container, command, heartbeat=None):
        self.command = [sys.executable, "-m", "jupyter_mlops.runtime.mirror", pod, command[-1]]
        self.stderr = b""
        self.exit = {}
        self.made.append(self)
        #: Bytes after which the connection breaks.
        self.left = kube.pop() if kube else None

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            *self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return self

    async def __aexit__(self, *_):
        if self.process.returncode is None:
            self.process.kill()
        self.process._transport.close()  # else what was not read keeps it waiting
        await self.process.wait()

    async def send(self, data):
        if self.process.stdin.is_closing():
            raise BackendUnreachable("gone")
        self.process.stdin.write(data)
        await self.process.stdin.drain()

    async def output(self):
        while data := await self.process.stdout.read(32768):
            if self.left is not None:
                self.left -= len(data)
                if self.left < 0:
                    raise BackendUnreachable("cut")
            yield data
        self.stderr = await self.process.stderr.read()


@pytest.fixture
def pair(tmp_path, monkeypatch):
    """The folder in the pod, and the one here."""
    monkeypatch.setattr(module, "Exec", Pipe)
    monkeypatch.setattr(module, "RETRY", 0.01)
    monkeypatch.setattr(mirror, "SETTLED", 0.2)
    Pipe.made.clear()
    there, here = JobFolder(private_folder(str(tmp_path / "there"))), JobFolder(private_folder(str(tmp_path / "here")))
    for folder in (there.attempt(1).path, there.journal, there.outputs):
        private_folder(folder)
    return there, here


def copier(there, here, node=0, cuts=()):
    return Copy(list(cuts), "python3", there.path, node, here.path, 1, lambda: None, Outlets(list(cuts), False), "")


def end(there):
    there.attempt(1).write_state({"phase": "completed", "ranks": []})


def files(folder):
    found = {}
    for place, _, names in os.walk(folder.path):
        for name in names:
            path = os.path.join(place, name)
            if os.path.isfile(path) and "incoming" not in path and name != COPIED:
                with open(path, "rb") as f:
                    found[os.path.relpath(path, folder.path)] = f.read()
    return found


async def run(copy):
    """As a driver does it."""
    async def ask():
        while True:
            await copy.ask()
            await asyncio.sleep(0.05)

    asking = asyncio.ensure_future(ask())
    try:
        await copy.run()
    finally:
        asking.cancel()


async def finish(copy, timeout=60):
    async with asyncio.timeout(timeout):
        await run(copy)


async def test_everything_comes_and_then_the_pod_may_go(pair):
    there, here = pair
    attempt = there.attempt(1)
    with open(attempt.log_path(0), "w") as f:
        f.write("one\n")
    with open(there.journal_path(1, 0), "wb") as f:
        f.write(b"\0" * 1000)
    entry = private_folder(os.path.join(there.spool, f"{5:020d}-0-7", "data"))
    for name in ("data/weights", "entry.json"):
        with open(os.path.join(os.path.dirname(entry), name), "w") as f:
            f.write("{}")
    half = private_folder(os.path.join(there.spool, f"{6:020d}-0-7", "data"))
    with open(os.path.join(half, "weights"), "w") as f:
        f.write("half")  # without entry.json it is none
    os.symlink("/etc/passwd", os.path.join(there.outputs, "link"))
    with open(os.path.join(there.outputs, "model"), "wb") as f:
        f.write(b"m" * 1_000_000)
    copy = copier(there, here)
    task = asyncio.ensure_future(finish(copy))

    async def until(what):
        async with asyncio.timeout(30):
            while not what():
                await asyncio.sleep(0.02)

    await until(lambda: files(here).get("outputs/model") == b"m" * 1_000_000)
    assert not copy.complete
    for line in ("two\n", "three\n"):
        with open(attempt.log_path(0), "a") as f:
            f.write(line)
        await until(lambda text=line: files(here)["attempts/1/rank-0.log"].endswith(text.encode()))
    # Delivered here, it need not be kept there.
    import shutil

    shutil.rmtree(os.path.join(here.spool, f"{5:020d}-0-7"))
    await until(lambda: not os.path.exists(os.path.join(there.spool, f"{5:020d}-0-7")))
    # A wish to stop goes the other way.
    here.ask_stop(1, 3.0)
    await until(lambda: there.stop_wish(1) == 3.0)
    end(there)
    await task
    assert copy.complete
    await asyncio.to_thread(wait_for, lambda: os.path.exists(os.path.join(there.path, mirror.DRAINED)))
    got = files(here)
    assert got.pop("attempts/1/node-0/state.json") and got.pop("stop")
    assert got == {"attempts/1/rank-0.log": b"one\ntwo\nthree\n", "journal/1-0.bin": b"\0" * 1000,
                   "outputs/model": b"m" * 1_000_000}


async def test_a_connection_that_breaks_goes_on_where_it_was(pair):
    there, here = pair
    data = random.Random(1).randbytes(6_000_000)
    for path in (os.path.join(there.outputs, "big"), there.journal_path(1, 0)):
        with open(path, "wb") as f:
            f.write(data)
    end(there)
    copy = copier(there, here, cuts=[None, 3_000_000, 2_500_000, 1_500_000, 700_000, 10])
    await finish(copy)
    got = files(here)
    assert got["outputs/big"] == data and got["journal/1-0.bin"] == data
    assert len(Pipe.made) == 6
    assert copy.landing.bytes < len(data) * 2 + 5 * 1_000_000, "nearly nothing came twice"
    assert not os.listdir(os.path.join(here.attempt(1).path, "node-0", "incoming"))


async def test_what_was_there_is_not_asked_for_again(pair):
    there, here = pair
    with open(os.path.join(there.outputs, "big"), "wb") as f:
        f.write(b"x" * 500_000)
    with open(there.attempt(1).log_path(0), "wb") as f:
        f.write(b"log\n" * 1000)
    end(there)
    await finish(copier(there, here))
    again = copier(there, here)  # a control plane that was started again
    await finish(again)
    assert again.complete and again.landing.bytes == 0


async def until(condition, timeout=20):
    async with asyncio.timeout(timeout):
        while not condition():
            await asyncio.sleep(0.02)


async def test_samples_that_were_thinned_are_told_anew(pair):
    """By the same stream, and by a further one."""
    there, here = pair
    private_folder(there.attempt(1).path)
    path, copied = there.attempt(1).usage_path, here.attempt(1).usage_path

    def write(text):
        with open(path, "w") as f:
            f.write(text)

    write("long line\n" * 100)
    copy = copier(there, here)
    task = asyncio.ensure_future(copy.run())
    await until(lambda: os.path.exists(copied) and os.path.getsize(copied) == 1000)
    write("short\n" * 3)
    await until(lambda: os.path.getsize(copied) == 18)
    write("short\n" * 4)
    await until(lambda: os.path.getsize(copied) == 24)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    write("tiny\n")
    end(there)
    await finish(copier(there, here))
    assert files(here)["attempts/1/usage.jsonl"] == b"tiny\n"


async def test_nodes_do_not_overwrite_each_other(pair, tmp_path):
    there, here = pair
    other = JobFolder(private_folder(str(tmp_path / "other")))
    for number, folder in enumerate((there, other)):
        private_folder(folder.attempt(1).path)
        private_folder(folder.outputs)
        with open(folder.attempt(1).log_path(number), "w") as f:
            f.write(f"rank {number}\n")
        with open(os.path.join(folder.outputs, "model"), "w") as f:
            f.write(f"of {number}")
        with open(folder.attempt(1).usage_path, "w") as f:
            f.write(f"{number}\n")
        end(folder)
    await asyncio.gather(finish(copier(there, here)), finish(copier(other, here, 1)))
    got = files(here)
    assert (got["outputs/model"], got["outputs/node-1/model"]) == (b"of 0", b"of 1")
    assert (got["attempts/1/rank-0.log"], got["attempts/1/rank-1.log"]) == (b"rank 0\n", b"rank 1\n")
    assert (got["attempts/1/usage.jsonl"], got["attempts/1/node-1/usage.jsonl"]) == (b"0\n", b"1\n")
    for node in (0, 1):
        assert json.loads(got[f"attempts/1/node-{node}/state.json"])["phase"] == "completed"
        again = copier((there, other)[node], here, node)
        await finish(again)
        assert again.landing.bytes == 0


async def test_a_long_log_has_its_hole_here_too(pair):
    there, here = pair
    log = there.attempt(1).log_path(0)
    with open(log, "wb") as f:
        for number in range(600_000):
            f.write(b"line %09d\n" % number)
    size = os.path.getsize(log)
    assert logfile.shrink(log, 4 << 20)
    end(there)
    copy = copier(there, here)
    await finish(copy)
    mine = here.attempt(1).log_path(0)
    assert os.path.getsize(mine) == size and copy.landing.bytes < 5 << 20
    assert logfile.hole(mine) == logfile.hole(log)
    assert logfile.read(mine, 0, 100) == logfile.read(log, 0, 100)
    assert logfile.read(mine, -100, 100) == logfile.read(log, -100, 100)


@pytest.mark.parametrize("path", [
    "../x", "/etc/passwd", "outputs/../../x", "outputs", "spec.json", "run.json", "delivery.json",
    "attempts/2/rank-0.log", "attempts/1", "inputs/payload.pkl",
    "outputs//x", "outputs/./x", "outputs/a\0b", "", "code/cell.py", "stop",
])
async def test_a_hostile_pod_reaches_nothing_else(pair, path):
    there, here = pair
    copy = copier(there, here)
    assert copy.landing.place(path) is None
    await copy.landing.take({"file": path, "at": 0, "size": 1, "mtime": 0, "crc": 0x8CDC1683}, b"x")
    assert not files(here)


async def test_a_damaged_piece_is_refused(pair):
    there, here = pair
    with pytest.raises(ValueError, match="damaged"):
        await copier(there, here).landing.take({"file": "outputs/x", "at": 0, "size": 1, "mtime": 0, "crc": 1}, b"x")


async def test_a_pod_that_ends_without_a_word(pair):
    there, here = pair
    with open(there.attempt(1).log_path(0), "w") as f:
        f.write("last\n")
    open(os.path.join(there.path, mirror.ENDING), "w").close()
    copy = copier(there, here)
    await finish(copy)
    assert copy.complete and files(here) == {"attempts/1/rank-0.log": b"last\n"}


async def test_a_heartbeat_alone_is_not_worth_a_frame(pair):
    there, here = pair
    state = {"phase": "running", "ranks": []}
    there.attempt(1).write_state(dict(state, heartbeat=1.0))
    copy = copier(there, here)
    task = asyncio.ensure_future(copy.run())
    place = os.path.join(here.attempt(1).path, "node-0", "state.json")
    await asyncio.to_thread(wait_for, lambda: os.path.exists(place))
    before = copy.landing.bytes
    for beat in range(3):
        await asyncio.sleep(0.4)
        there.attempt(1).write_state(dict(state, heartbeat=2.0 + beat))
    assert copy.landing.bytes == before
    there.attempt(1).write_state({"phase": "failed", "ranks": []})
    async with asyncio.timeout(20):
        await task
    with open(place) as f:
        assert json.load(f)["phase"] == "failed"


async def test_what_grows_slowly_is_told_together_and_what_matters_at_once(pair, monkeypatch):
    """Steps of the mirror by hand: what is told at which time, by a clock of the test's."""
    there, _ = pair
    frames = []
    clock = [100.0]
    monkeypatch.setattr(mirror.time, "monotonic", lambda: clock[0])

    class Out:
        def write(self, data):
            frames.append(data)

        def flush(self):
            pass

    told = mirror.Mirror(there.path, 1, Out())
    attempt = there.attempt(1)

    def step(seconds=0.1):
        """Paths that one look tells."""
        clock[0] += seconds
        told.got = told.sent
        before = len(frames)
        told.look()
        return [json.loads(f[8:])["file"] for f in frames[before:] if f[8:9] == b"{" and b'"file"' in f]

    def grow(path, data=b"x" * 40):
        with open(path, "ab") as f:
            f.write(data)

    journal, log = there.journal_path(1, 0), attempt.log_path(0)
    assert step() == []
    grow(journal)
    assert step() == ["journal/1-0.bin"], "the first for a while"
    for _ in range(3):
        grow(journal)
        assert step() == [], "what follows is gathered"
    grow(attempt.usage_path)
    assert step(mirror.PACE) == ["attempts/1/usage.jsonl", "journal/1-0.bin"]
    grow(attempt.usage_path)
    grow(journal)
    assert step(mirror.PACE) == ["journal/1-0.bin"], "samples do not matter much"
    grow(log)
    assert step() == ["attempts/1/rank-0.log"], "a first line"
    grow(journal)
    attempt.write_state({"phase": "running", "ranks": []})
    assert step() == ["journal/1-0.bin", "attempts/1/state.json"], "a change of state takes along what there is"
    grow(journal, b"x" * mirror.BURST)
    assert step() == ["journal/1-0.bin"], "much waits for nothing"
    assert step(mirror.PACE_USAGE) == ["attempts/1/usage.jsonl"]
    grow(attempt.usage_path)
    assert step(mirror.PACE_USAGE / 2) == []
    grow(journal)
    step(mirror.PACE)
    grow(journal)
    end(there)
    found = step()
    assert sorted(found) == ["attempts/1/state.json", "attempts/1/usage.jsonl", "journal/1-0.bin"], "nothing waits now"
    assert found[-1] == "attempts/1/state.json"


async def test_samples_that_were_thinned_out_are_the_same_here(pair):
    there, here = pair
    path, mine = there.attempt(1).usage_path, here.attempt(1).usage_path
    with open(path, "w") as f:
        f.write("a" * 1000)
    copy = copier(there, here)
    task = asyncio.ensure_future(finish(copy))
    await until(lambda: os.path.exists(mine) and os.path.getsize(mine) == 1000)
    with open(path, "w") as f:
        f.write("b" * 10)
    end(there)
    await task
    with open(mine) as f:
        assert f.read() == "b" * 10


async def test_data_alone_moves_no_attempt_on(pair):
    there, here = pair
    told = []
    copy = Copy([], "python3", there.path, 0, here.path, 1, lambda: told.append(1), Outlets([], False), "")
    task = asyncio.ensure_future(finish(copy))
    with open(there.journal_path(1, 0), "wb") as f:
        f.write(b"x" * 100)
    await until(lambda: os.path.exists(here.journal_path(1, 0)))
    assert not told
    there.attempt(1).write_state({"phase": "running", "ranks": []})
    await until(lambda: told)
    end(there)
    await task
    assert copy.complete
