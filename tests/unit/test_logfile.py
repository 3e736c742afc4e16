"""Logs that are bounded by a hole: what is kept is read as it was written, what is not kept is never shown."""

from __future__ import annotations

import errno
import json
import os
import random
import stat
import threading
from pathlib import Path

import pytest

from jupyter_mlops.runtime import logfile

MB = 1 << 20


def fill(path, lines: int, start: int = 0) -> None:
    with open(path, "ab") as f:
        f.write(b"".join(b"line %08d %s\n" % (i, b"\xe2\x82\xac" * (i % 17)) for i in range(start, start + lines)))


def blocks(path) -> int:
    return os.stat(path).st_blocks * 512


def whole(path, limit: int = 65536) -> tuple[list[str], list[tuple[int, int]]]:
    """All lines that a reader from the start sees, and the jumps that it made."""
    offset, parts, jumps = 0, [], []
    while True:
        data, begin, following, size = logfile.read(str(path), offset, limit)
        if begin != offset:
            jumps.append((offset, begin))
        parts.append(data.decode("utf-8"))  # strict: no character is torn, at no border
        if following >= size:
            return "".join(parts).split("\n"), jumps
        assert following > offset
        offset = following


def test_a_log_keeps_its_begin_and_its_end(tmp_path):
    log = tmp_path / "rank-0.log"
    fill(log, 300_000)
    size = os.path.getsize(log)
    assert not logfile.shrink(str(log), size) and logfile.hole(str(log)) is None
    assert logfile.shrink(str(log), 4 * MB)
    assert os.path.getsize(log) == size, "offsets stay true"
    assert blocks(log) <= 4 * MB
    entry = json.loads((tmp_path / "rank-0.hole").read_text())
    assert stat.S_IMODE(os.stat(tmp_path / "rank-0.hole").st_mode) == 0o600
    assert entry["begin"] <= entry["from"] < entry["to"] <= entry["end"]
    assert MB - 65536 <= entry["begin"] <= MB and size - entry["end"] >= 2 * MB
    lines, jumps = whole(log)
    assert jumps == [(entry["begin"], entry["end"])]
    assert not any("\0" in line for line in lines)
    numbers = [int(line.split()[1]) for line in lines if line]
    assert numbers[0] == 0 and numbers[-1] == 299_999 and numbers == sorted(numbers) and len(numbers) < 300_000
    assert all(line == f"line {n:08d} {'€' * (n % 17)}" for line, n in zip(lines, numbers, strict=False)), "whole lines"


def test_a_hole_only_grows(tmp_path):
    log = tmp_path / "rank-0.log"
    begins, ends = set(), []
    for turn in range(8):
        fill(log, 60_000, turn * 60_000)
        logfile.shrink(str(log), 2 * MB)
        begin, end = logfile.hole(str(log))
        begins.add(begin)
        ends.append(end)
        assert blocks(log) <= 2 * MB
        assert not logfile.shrink(str(log), 2 * MB), "once is enough"
    assert len(begins) == 1 and ends == sorted(ends) and ends[0] < ends[-1]
    lines, jumps = whole(log)
    assert len(jumps) == 1 and lines[-2].startswith("line 00479999")


def test_reads_around_the_hole(tmp_path):
    log = tmp_path / "rank-0.log"
    fill(log, 200_000)
    size = os.path.getsize(log)
    before = log.read_bytes()
    logfile.shrink(str(log), 2 * MB)
    begin, end = logfile.hole(str(log))
    rng = random.Random(3)
    for _ in range(300):
        offset = rng.choice([begin, end, begin - 1, end - 1, begin + 1, rng.randrange(size), rng.randrange(-size, 0)])
        limit = rng.choice([1, 10, 1000, MB, end - begin])
        data, at, following, told = logfile.read(str(log), offset, limit)
        assert told == size and following == at + len(data)
        assert data == before[at:following] and len(data) <= limit
        assert following <= begin or at >= end, "nothing of the hole"
        wanted = size + offset if offset < 0 else offset
        if not begin <= wanted < end:
            assert wanted <= at < wanted + 4
        else:
            assert end <= at < end + 4
    # Reading backwards: a window that ends behind the hole ends there, though it begins in it.
    data, at, following, _ = logfile.read(str(log), end - 500, 700)
    assert (at, following) == (end, end + 200)


def test_a_reader_never_sees_zeros(tmp_path):
    log = tmp_path / "rank-0.log"
    fill(log, 50_000)
    stop = threading.Event()

    def write():
        for turn in range(1, 40):
            fill(log, 10_000, turn * 10_000)
            logfile.shrink(str(log), MB)
        stop.set()

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    rng = random.Random(5)
    while not stop.is_set():
        size = os.path.getsize(log)
        data = logfile.read(str(log), rng.randrange(size), 200_000)[0]
        assert b"\0" not in data
        reads += 1
    writer.join()
    assert reads > 10 and logfile.hole(str(log))


@pytest.mark.parametrize("byte", [b"x", b"\r"])
def test_a_log_without_lines(tmp_path, byte):
    log = tmp_path / "rank-0.log"
    log.write_bytes(byte * (5 * MB))
    assert logfile.shrink(str(log), 2 * MB)
    assert blocks(log) <= 2 * MB
    lines, jumps = whole(log)
    assert len(jumps) == 1 and set("".join(lines)) == {byte.decode()}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"begin": 5}', '{"begin": 9, "end": 4}', '{"begin": -1, "end": 4}',
                                  '{"begin": "1", "end": 4}'])
def test_a_broken_note_is_none(tmp_path, text):
    (tmp_path / "rank-0.log").write_bytes(b"abcdef")
    (tmp_path / "rank-0.hole").write_text(text)
    assert logfile.read(str(tmp_path / "rank-0.log"), 0, 100) == (b"abcdef", 0, 6, 6)


def test_a_log_that_was_cut_under_its_hole(tmp_path):
    (tmp_path / "rank-0.log").write_bytes(b"abcdef")
    (tmp_path / "rank-0.hole").write_text('{"begin": 4, "end": 100}')
    assert logfile.read(str(tmp_path / "rank-0.log"), 0, 100) == (b"abcd", 0, 4, 6)
    assert logfile.read(str(tmp_path / "rank-0.log"), 4, 100) == (b"", 6, 6, 6)


def test_bound_looks_now_and_then_and_complains_once(tmp_path, monkeypatch):
    logs = [str(tmp_path / f"rank-{r}.log") for r in range(3)]
    fill(logs[1], 200_000)
    fill(logs[2], 10)
    said = []
    bound = logfile.Bound(logs, MB, said.append)
    bound.look()
    assert blocks(logs[1]) <= MB and logfile.hole(logs[2]) is None and said == []
    fill(logs[1], 200_000)
    bound.look()
    assert blocks(logs[1]) > MB, "not again at once"
    bound.look(now=True)
    assert blocks(logs[1]) <= MB

    def refuse(fd, offset, length):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(logfile, "punch", refuse)
    fill(logs[0], 100_000)
    bound.look(now=True)
    bound.look(now=True)
    assert len(said) == 1 and "rank-0.log" in said[0] and "file system" in said[0]
    assert logfile.hole(logs[0]) is None, "nothing is told to be gone that is there"
    assert b"\0" not in Path(logs[0]).read_bytes()


def test_a_link_is_left_alone(tmp_path):
    fill(tmp_path / "other", 200_000)
    (tmp_path / "rank-0.log").symlink_to(tmp_path / "other")
    said = []
    bound = logfile.Bound([str(tmp_path / "rank-0.log")], MB, said.append)
    bound.look(now=True)
    bound.look(now=True)
    assert blocks(tmp_path / "other") > MB and len(said) == 1
