# ruff: noqa: ASYNC110 - short waits
"""What a pod that is broken, or means ill, can say over its stream: it harms nobody else, and little of its own."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import zlib
from pathlib import Path

import pytest

from jupyter_mlops.compute.kubernetes import copy as module
from jupyter_mlops.compute.kubernetes import landing
from jupyter_mlops.compute.kubernetes.copy import Copy
from jupyter_mlops.compute.kubernetes.landing import left_out
from jupyter_mlops.compute.kubernetes.outlets import Outlets
from jupyter_mlops.runtime import mirror, parcel
from jupyter_mlops.runtime.jobfolder import JobFolder, private_folder

OTHER = "outputs/after"


def frame(header, data=b"", raw=None):
    head = json.dumps(header).encode() if raw is None else raw
    return mirror.HEAD.pack(len(head), len(data)) + head + data


def piece(path, data=b"x", at=0, size=None, mtime=1):
    return frame({"file": path, "at": at, "size": len(data) if size is None else size, "mtime": mtime,
                  "crc": zlib.crc32(data)}, data)


class Pod:
    """Says what it was told to say, each time somebody listens."""

    says: list[bytes] = []
    calls = 0

    def __init__(self, *_, **__):
        self.stderr = b""

    async def __aenter__(self):
        Pod.calls += 1
        return self

    async def __aexit__(self, *_):
        pass

    async def send(self, data):
        pass

    async def output(self):
        for data in self.says:
            yield data
            await asyncio.sleep(0)


@pytest.fixture
def hear(tmp_path, monkeypatch):
    """``await hear(frames)``: the copy of a pod that says them, when it is complete or was tried a few times."""
    monkeypatch.setattr(module, "Exec", Pod)
    monkeypatch.setattr(module, "RETRY", 0.01)
    monkeypatch.setattr(module, "RETRY_MOST", 0.01)

    async def run(*frames, node=0, after=OTHER):
        Pod.calls = 0
        Pod.says = [*frames, *([piece(after)] if after else []), frame({"even": True, "ended": True}),
                    frame({"bye": True})]
        here = private_folder(str(tmp_path / "job"))
        copy = Copy(None, "python3", "pod", node, Path(here), 1, lambda: None, Outlets(None, False), "")
        task = asyncio.ensure_future(copy.run())
        while not task.done() and Pod.calls < 4:
            await asyncio.sleep(0.01)
        if not copy.complete:
            assert not task.done(), task.exception()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        return copy

    return run


def files(copy):
    root = Path(copy.landing.job.path)
    return {os.fsencode(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()
            and path.name not in ("copied", "left.json") and path.stat().st_size < 1 << 20}


@pytest.mark.parametrize("bad", [
    frame(None, raw=b"[" * 60_000),
    frame([1]),
    frame({}),
    frame(None, raw=b'{"file": "outputs/a", "at": Infinity, "size": 1, "mtime": 1, "crc": 0}'),
    frame(None, raw=b'{"file": "outputs/a", "at": 0, "size": NaN, "mtime": 1, "crc": 0}'),
    frame({"file": "outputs/a", "at": True, "size": 1, "mtime": 1, "crc": 0}, b"x"),
    frame({"file": "outputs/a", "at": 0, "size": 1, "mtime": 1, "crc": 7}, b"x"),
    frame({"file": "outputs/a", "at": 0, "size": 1, "mtime": 1}, b"x"),
    piece("outputs/a", mtime=10**40),
    piece("outputs/a", at=-1, size=5),
    piece("journal/1-0.bin", at=2**70),
    piece("journal/1-0.bin", at=2**62),
    piece("outputs/a", at=2**40, size=2**41),
    piece("outputs/a", b"too much", size=3),
    frame({"offer": "outputs/a"}),
    frame(None, raw=b'{"offer": "outputs/a", "at": 0, "size": Infinity, "mtime": 1, "port": 1, "id": 1, "token": ""}'),
    mirror.HEAD.pack(1 << 31, 1), mirror.HEAD.pack(10, 1 << 31), b"\xff" * 3000, b"HTTP/1.1 200 OK\r\n\r\n" * 10,
], ids=range(20))
async def test_who_talks_nonsense_is_asked_again_and_makes_no_file(hear, bad):
    copy = await hear(bad)
    assert Pod.calls == 4 and copy.trouble and not copy.complete
    assert not any(files(copy).values()), "and no hole in a file is taken for its content"


@pytest.mark.parametrize("path", [
    "outputs/../../escaped", "/etc/escaped", "outputs//etc", "outputs/./a", "outputs", "outputs/", "", "spec.json",
    "run.json", "stop", "delivery.json", "code/cell.py", "inputs/payload.pkl", "outputs/a\0b",
    "attempts/1/../2/state.json", "attempts/1/copied/x", "attempts/1/left.json", "attempts/2/state.json",
    "attempts/1", "attempts/1/cluster.json", "attempts/1/call.key", "attempts/1/inputs.zip",
    "attempts/1/node-0", "attempts/1/node-7", "attempts/1/incoming/x", "attempts/01/a", "../job/outputs/a", "return/a",
    "journal/2-0.bin", "journal/1-0.bin\n", "journal/1-0.bin/a", "journal/1-00000000.bin", "journal/lock",
    "spool/refused/a/entry.json", "spool/00000000000000000001-0-1", "spool/1-0-1/entry.json",
])
async def test_what_has_no_business_here_is_not_written(hear, path):
    copy = await hear(piece(path, b"bad"), piece(path, b"ba", size=3), piece(path, b"d", at=2, size=3))
    assert copy.complete and files(copy) == {OTHER.encode(): b"x"}
    assert not list(Path(copy.landing.job.path).parent.glob("*escaped*"))


async def test_a_note_of_ours_is_not_the_pods_to_write(hear):
    names = ("node-0/copied", "node-1/copied", "node-0/left.json", "node-0/state.json")
    copy = await hear(*(piece(f"attempts/1/{name}") for name in names), node=1, after=None)
    place = Path(copy.landing.attempt.path)
    assert {path.relative_to(place / "node-1").parts[0] for path in place.rglob("*") if path.is_file()} == {
        "node-0", "node-1", "copied"}, "all of it lies in its own folder"
    assert (place / "node-1" / "copied").read_bytes() == b"", "this one is ours"


LONG = "n" * 250


@pytest.mark.parametrize("path", [f"outputs/{LONG}", "outputs/caf\udce9", "outputs/a\nb\x1b[31m",
                                  "outputs/ " + "é" * 120])
async def test_odd_names_that_can_be_kept_are(hear, path):
    copy = await hear(piece(path, b"small"))
    assert copy.complete and files(copy)[os.fsencode(path)] == b"small" and left_out(copy.landing.attempt, 0) == ""
    copy = await hear(piece(path, b"la", size=5), piece(path, b"rge", at=2, size=5))
    assert copy.complete and files(copy)[os.fsencode(path)] == b"large"


@pytest.mark.parametrize("path", ["outputs/" + "n" * 300, "outputs/" + "/".join(["d" * 100] * 50), "outputs/\ud800",
                                  "outputs/" + "/".join("d" * 1900)])
@pytest.mark.parametrize("parts", [1, 2])
async def test_what_cannot_be_kept_is_left_out_and_told_and_the_rest_comes(hear, path, parts, caplog):
    """It must not hold up what comes after it: when the pod's time is over that would be lost."""
    caplog.set_level(logging.ERROR)
    pieces = [piece(path, b"data")] if parts == 1 else [piece(path, b"da", size=4), piece(path, b"ta", at=2, size=4)]
    copy = await hear(*pieces, piece("journal/1-0.bin"))
    assert copy.complete and Pod.calls == 1
    assert files(copy) == {OTHER.encode(): b"x", b"journal/1-0.bin": b"x"}
    told = left_out(copy.landing.attempt, 0)
    assert told.startswith("outputs/") and " could not be kept here: " in told and len(told) < 400
    json.dumps(told, ensure_ascii=False).encode()


async def test_a_file_takes_the_place_of_a_folder_and_the_other_way_round(hear):
    copy = await hear(piece("outputs/a"), piece("outputs/a/b/c", b"1"),
                      piece("outputs/d/e/f"), piece("outputs/d", b"2"), piece("outputs/g/h"),
                      piece("outputs/g", b"3", size=2), piece("outputs/g", b"4", at=1, size=2))
    assert copy.complete and Pod.calls == 1
    assert files(copy) == {b"outputs/a/b/c": b"1", b"outputs/d": b"2", b"outputs/g": b"34", OTHER.encode(): b"x"}


async def test_nobody_takes_away_what_another_node_left(hear):
    one = await hear(piece("outputs/model"), node=1)
    copy = await hear(piece("outputs/node-1", b"mine"))
    assert copy.complete and files(one)[b"outputs/node-1/model"] == b"x"
    assert left_out(copy.landing.attempt, 0) == "outputs/node-1 could not be kept here: Is a directory"


async def test_only_a_log_is_given_back_in_part(hear):
    hole = json.dumps({"begin": 0, "end": 8192, "from": 0, "to": 8192}).encode()
    copy = await hear(piece("outputs/x.log", b"D" * 10_000), piece("outputs/x.hole", hole),
                      piece("attempts/1/rank-0.log", b"L" * 10_000), piece("attempts/1/rank-0.hole", hole))
    found = files(copy)
    assert found[b"outputs/x.log"] == b"D" * 10_000 and len(found[b"attempts/1/rank-0.log"]) == 10_000


async def test_what_lies_about_in_the_folder_of_pieces_stops_no_copy(hear):
    place = private_folder(str((await hear(after=None)).landing._incoming))
    for name in ("junk", "1-2-p-zz", "1-2-p-ff", "a-b-c-d", "5--3-p-6f7574707574732f61"):
        Path(place, name).write_bytes(b"ab")
    copy = await hear(piece("outputs/a", b"cde", at=2, size=5, mtime=-3))
    assert copy.complete and files(copy)[b"outputs/a"] == b"abcde", "a piece of before 1970 is gone on with"


async def test_a_folder_that_was_taken_away_here_comes_again(hear):
    events = "outputs/runs/events.out.tfevents.1"
    copy = await hear(piece(events, b"1"))
    copy.complete = False
    os.remove(os.path.join(copy.landing.job.path, events))
    os.rmdir(os.path.join(copy.landing.job.path, "outputs", "runs"))
    Pod.says = [piece(events, b"12"), frame({"bye": True})]
    async with asyncio.timeout(10):
        await copy.run()
    assert files(copy)[events.encode()] == b"12"


async def test_outputs_leave_room_on_the_disk_for_all_else(hear, monkeypatch):
    monkeypatch.setattr(landing, "ROOM", 1 << 60)
    real = os.statvfs

    def small(path):
        info = list(real(path))
        info[4] = info[2] // 100  # of the blocks, those that are free for us
        return os.statvfs_result(info)

    monkeypatch.setattr(landing.os, "statvfs", small)
    copy = await hear(piece("journal/1-0.bin"), piece("attempts/1/state.json", b"{}"), piece("outputs/a", b"large"))
    assert not copy.complete and copy.trouble == "the disk here is nearly full: outputs wait until there is room"
    assert files(copy) == {b"journal/1-0.bin": b"x", b"attempts/1/node-0/state.json": b"{}"}
    monkeypatch.undo()


def test_a_parcel_says_which_name_it_cannot_have(tmp_path):
    (tmp_path / "outputs").mkdir()
    try:
        (tmp_path / "outputs" / "caf\udce9").write_text("x")
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(parcel.ParcelError, match=r"'caf\\udce9' is not UTF-8"):
        parcel.pack(str(tmp_path / "p.zip"), [("outputs", str(tmp_path / "outputs"))])
    assert JobFolder(tmp_path).name


async def test_many_small_files_at_once_leave_others_their_turn(hear, monkeypatch):
    """All copies of a cluster share one thread."""
    monkeypatch.setattr(module, "SLICE", 0.0)
    turns = []

    async def other():
        while True:
            turns.append(os.path.isdir(there))
            await asyncio.sleep(0)

    there = (await hear(after=None)).landing.job.outputs
    task = asyncio.ensure_future(other())
    copy = await hear(b"".join(piece(f"outputs/{number}") for number in range(500)))
    task.cancel()
    assert copy.complete and len(files(copy)) == 501 and sum(turns) > 400
