"""The journal gives back what was logged, in order and once, whatever happened to writers, disk or bytes."""

from __future__ import annotations

import math
import multiprocessing
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from conftest import wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jupyter_mlops.runtime import journal, records
from jupyter_mlops.runtime.jobfolder import read_json
from jupyter_mlops.tracking.batches import Journals

QUICK = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
RUN = "0123456789abcdef" * 2


def everything(path, limit=1 << 20, final=True, offset=0):
    """All records of a journal, read in chunks; checks that offsets only ever grow."""
    found, skipped = [], 0
    for _ in range(1_000_000):
        chunk, following, damage = journal.read(path, offset, limit, final)
        assert following >= offset
        ends = [end for _, end in chunk]
        assert ends == sorted(set(ends)) and all(offset < end <= following for end in ends)
        found += [record for record, _ in chunk]
        skipped += damage
        if following == offset:
            return found, following, skipped
        offset = following
    raise AssertionError("reading does not come to an end")


def plain(record):
    """A record as a value that can be compared, NaN included."""
    if isinstance(record, journal.Call):
        return record.api, record.body
    value = "nan" if math.isnan(record.value) else record.value
    return record.key, value, record.step, record.timestamp, record.run


keys = st.text(min_size=1, max_size=40)
metrics = st.builds(
    journal.Metric, keys, st.floats(), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**62),
    st.sampled_from(["", RUN, "é" * 20]),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8,
)
calls = st.builds(
    journal.Call, st.sampled_from(["SetTag", "LogBatch"]), st.dictionaries(st.text(max_size=8), json_values, max_size=4)
)


def packed(record) -> bytes:
    if isinstance(record, journal.Call):
        return journal.pack_call(record.api, record.body)
    return journal.pack_metric(record.key.encode(), record.value, record.step, record.timestamp, record.run.encode())


#: What may stand between whole records: pieces of records, zeros, noise, heads that promise too much.
torn = st.builds(lambda record, part: packed(record)[: max(1, int(len(packed(record)) * part))],
                 metrics | calls, st.floats(0, 0.99))
noise = st.binary(min_size=1, max_size=64) | st.builds(bytes, st.integers(1, 5000)) | torn | st.sampled_from([
    records.MAGIC, records.MAGIC * 7, records.HEAD.pack(records.MAGIC, 5_000_000, 1),
    records.HEAD.pack(records.MAGIC, 0xFFFFFFFF, 1), records.HEAD.pack(records.MAGIC, 0, 0),
    journal.pack(b"x unknown"), journal.pack(b"c[1]"), journal.pack(b"m short"), journal.pack(b"c" + b"[" * 3000),
])


@QUICK
@given(st.lists(metrics | calls, max_size=30), st.integers(1, 400))
def test_what_was_written_is_read(tmp_path_factory, written, limit):
    path = tmp_path_factory.mktemp("j") / "1-0.bin"
    path.write_bytes(b"".join(packed(r) for r in written))
    for final in (False, True):
        found, end, skipped = everything(path, limit, final)
        assert [plain(r) for r in found] == [plain(r) for r in written]
        assert (end, skipped) == (path.stat().st_size, 0)


@QUICK
@given(st.lists(st.tuples(noise | st.just(b""), metrics | calls), max_size=12), noise | st.just(b""),
       st.integers(1, 6000))
def test_damage_is_skipped_and_nothing_else(tmp_path_factory, pieces, tail, limit):
    path = tmp_path_factory.mktemp("j") / "1-0.bin"
    data = b"".join(damage + packed(record) for damage, record in pieces)
    path.write_bytes(data + tail)
    expected = [plain(record) for _, record in pieces]
    found, end, skipped = everything(path, limit, final=True)
    assert [plain(r) for r in found] == expected and end == path.stat().st_size
    assert skipped == sum(len(d) for d, _ in pieces) + len(tail)
    # While it may still grow, all whole records are there too, and reading goes on behind them.
    found, offset, _ = everything(path, limit, final=False)
    assert [plain(r) for r in found] == expected
    more = journal.Metric("more", 1.0, 1, 1, "")
    with open(path, "ab") as f:
        f.write(packed(more))
    found, _, _ = everything(path, limit, final=False, offset=offset)
    assert [plain(r) for r in found] == [plain(more)]


@QUICK
@given(st.lists(metrics | calls, min_size=1, max_size=6), st.data())
def test_a_record_that_is_being_written_is_waited_for(tmp_path_factory, written, data):
    path = tmp_path_factory.mktemp("j") / "1-0.bin"
    whole = b"".join(packed(r) for r in written)
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    first, offset, skipped = everything(path, 64, final=False)
    assert skipped == 0
    path.write_bytes(whole)
    rest, end, skipped = everything(path, 64, final=False, offset=offset)
    assert [plain(r) for r in first + rest] == [plain(r) for r in written] and (end, skipped) == (len(whole), 0)


def test_a_large_call_passes_small_chunks_and_too_large_ones_are_refused(tmp_path):
    writer = journal.Writer(tmp_path / "j")
    writer.metric("a", 1.0, 0)
    writer.call("LogInputs", {"profile": "x" * 3_000_000})
    writer.metric("a", 2.0, 1)
    found, _, skipped = everything(tmp_path / "j", 1000, final=False)
    assert [type(r) for r in found] == [journal.Metric, journal.Call, journal.Metric] and skipped == 0
    with pytest.raises(ValueError, match="LogInputs is larger than"):
        writer.call("LogInputs", {"profile": "x" * journal.MAX_PAYLOAD})
    for wrong in ({"step": 2**63}, {"run": "x" * 300}, {"step": 1.5}):
        with pytest.raises(struct.error):
            writer.metric("a", 1.0, **wrong)
    assert everything(tmp_path / "j")[1] == os.path.getsize(tmp_path / "j")
    writer.close()
    with pytest.raises(OSError):
        writer.metric("a", 3.0)


def test_a_missing_journal_has_no_records(tmp_path):
    assert journal.read(tmp_path / "none", 0) == ([], 0, 0)
    with pytest.raises(OSError):
        journal.Writer(tmp_path / "no folder" / "j")


def numbers(path):
    """{writer: [numbers in order]} of points made by `hammer`."""
    found: dict[str, list[int]] = {}
    for record in everything(path)[0]:
        assert record.value == record.step * 0.5
        found.setdefault(record.key, []).append(record.step)
    return found


def hammer(writer, name, count):
    for n in range(count):
        if n % 10:
            writer.metric(name, n * 0.5, n)
        else:
            writer.metrics({name: n * 0.5}, n, run=RUN)


def in_process(path, name, count):
    hammer(journal.Writer(path), name, count)


def test_threads_processes_and_forks_append_to_one_file(tmp_path):
    path = str(tmp_path / "1-0.bin")
    count = 2000
    processes = [multiprocessing.get_context("spawn").Process(target=in_process, args=(path, f"p{i}", count))
                 for i in range(2)]
    for process in processes:
        process.start()
    writer = journal.Writer(path)
    threads = [threading.Thread(target=hammer, args=(writer, f"t{i}", count)) for i in range(3)]
    for thread in threads:
        thread.start()
    children = []
    for i in range(3):  # forked while the other threads hold the lock now and then
        pid = os.fork()
        if not pid:
            try:
                hammer(writer, f"f{i}", count)
                os._exit(0 if writer.sync(10) else 1)
            finally:
                os._exit(2)
        children.append(pid)
    for thread in threads:
        thread.join()
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert numbers(path) == {name: list(range(count)) for name in ("p0", "p1", "t0", "t1", "t2", "f0", "f1", "f2")}
    assert everything(path)[2] == 0
    writer.close()


def test_kill_9_loses_nothing_that_was_logged(tmp_path):
    """What a writer has told of is in the file, whole; at most one record more is there."""
    code = """
        import os, sys
        from jupyter_mlops.runtime import journal
        writer = journal.Writer(sys.argv[1])
        told = os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
        n = 0
        while True:
            writer.metric("n", n * 0.5, n)
            n += 1
            os.pwrite(told, b"%20d" % n, 0)
    """
    rng = random.Random(7)
    for attempt in range(4):
        path, told = str(tmp_path / f"{attempt}-0.bin"), tmp_path / f"told-{attempt}"
        child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), path, str(told)])
        try:
            wait_for(lambda told=told: told.exists() and told.stat().st_size, 30, 0.005)
            time.sleep(rng.random() * 0.2)
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
        steps = [record.step for record in everything(path)[0]]
        assert steps == list(range(len(steps)))
        assert len(steps) - int(told.read_text()) in (0, 1) and len(steps) > 0
        assert everything(path)[2] == 0


def test_a_full_disk_delays_and_loses_nothing(tmp_path, capsys):
    path = tmp_path / "1-0.bin"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = journal.Writer(path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        hammer(writer, "full", 500)
        assert path.stat().st_size <= 5000 and writer.held() > 0
        assert not writer.sync(0.1)
        # What is there can be read meanwhile, and no further than that.
        assert numbers(path)["full"] == list(range(len(numbers(path)["full"])))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    writer.metric("full", 250.0, 500)  # the next call finds room
    assert writer.held() == 0 and writer.sync(5)
    assert numbers(path) == {"full": list(range(501))}
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2 and "the disk is full" in told[0] and "there is room on the disk again" in told[1]
    writer.close()


def test_a_full_disk_is_retried_without_a_further_call_and_memory_is_bounded(tmp_path, monkeypatch):
    path = tmp_path / "1-0.bin"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(journal, "MAX_HELD", 3000)
    monkeypatch.setattr(journal, "SYNC_PERIOD", 0.05)
    writer = journal.Writer(path)
    writer.metric("first", 0.0, 0)
    thread = threading.Thread(target=hammer, args=(writer, "full", 500), daemon=True)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
        thread.start()
        wait_for(lambda: writer.held() > 3000, 10)
        time.sleep(0.3)
        assert thread.is_alive() and writer.held() < 3200
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    thread.join(20)
    wait_for(lambda: writer.held() == 0, 10)
    assert numbers(path)["full"] == list(range(500))
    writer.close()


def test_logging_waits_for_a_delivery_that_lags_far_behind(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(journal, "_CHECK_BACKLOG", 1000)
    lag = [journal.MAX_BACKLOG + 1]
    writer = journal.Writer(tmp_path / "j", lambda: lag[0])
    thread = threading.Thread(target=hammer, args=(writer, "n", 100), daemon=True)
    thread.start()
    wait_for(lambda: "logging waits" in capsys.readouterr().err, 10)
    assert thread.is_alive() and not writer.sync(0.1)
    lag[0] = 0
    thread.join(20)
    assert numbers(tmp_path / "j") == {"n": list(range(100))}
    writer.close()


def stamps(path, key="m"):
    return [r.timestamp for r in everything(path)[0] if r.key == key]


def test_equal_points_are_kept_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000 * 10**6)
    writer = journal.Writer(tmp_path / "j")
    for value in (1.0, 1.0, 2.0, 2.0, 1.0):
        writer.metric("m", value, 5)
    writer.metric("other", 1.0, 5)
    writer.metric("m", 1.0, 5, run=RUN)
    nan = float("nan")
    for value in (nan, -nan, 0.0):
        writer.metric("nan", value)
    points = {(r.key, r.run, r.step, "nan" if r.value != r.value else r.value, r.timestamp)
              for r in everything(tmp_path / "j")[0]}
    assert len(points) == 10
    assert stamps(tmp_path / "j")[:5] == [10**6, 10**6 + 1, 10**6 + 1, 10**6 + 2, 10**6 + 2]
    assert stamps(tmp_path / "j", "other") == [10**6]
    writer.close()


def test_a_clock_that_is_set_back_keeps_the_order(tmp_path, monkeypatch):
    now = [10**9]
    monkeypatch.setattr(time, "time_ns", lambda: now[0] * 10**6)
    writer = journal.Writer(tmp_path / "j")
    for step, moment in enumerate((10**9, 10**9 + 5, 10**9 - 3_600_000, 10**9 - 3_599_000, 10**9 + 10)):
        now[0] = moment
        writer.metric("m", float(step), step, moment if step % 2 else None)
    found = stamps(tmp_path / "j")
    assert found == sorted(found) and found[-1] == 10**9 + 10
    # Stamps of the user's own, far from now, are left alone: he logs what was measured elsewhere.
    writer.metric("past", 1.0, 0, 5000)
    writer.metric("past", 2.0, 1, 4000)
    assert stamps(tmp_path / "j", "past") == [5000, 4000]
    writer.close()


def test_memory_of_stamps_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "_MAX_SERIES", 10)
    writer = journal.Writer(tmp_path / "j")
    for n in range(5000):
        writer.metric("m", float(n), n, 7)
        writer.metric(f"k{n}", 0.0)
    assert len(writer._stamps) <= 11 and all(len(s[1]) <= journal._MAX_POINTS for s in writer._stamps.values())
    assert set(stamps(tmp_path / "j")) == {7}
    writer.close()


def test_descriptors_that_are_closed_under_it_are_opened_again(tmp_path):
    writer = journal.Writer(tmp_path / "j")
    writer.metric("m", 0.0, 0)
    os.close(writer._fd)
    writer.metric("m", 0.5, 1)
    assert numbers(tmp_path / "j") == {"m": [0, 1]}
    writer.close()


def test_it_is_readable_by_its_user_alone(tmp_path):
    writer = journal.Writer(tmp_path / "j")
    assert Path(tmp_path / "j").stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(writer._fd)
    writer.close()


@pytest.mark.parametrize("kind", ["pipe", "link", "folder"])
def test_what_is_no_file_holds_up_nobody(tmp_path, kind):
    path = tmp_path / "1-0.bin"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    assert journal.read(path, 0, final=True) == ([], 0, 0)
    assert Journals(tmp_path, RUN, {}, {}).next(True) is None
    if kind != "link":
        assert read_json(path) == {}


_INTERRUPTED = """
import signal, sys
from jupyter_mlops.runtime.journal import Writer
writer = Writer(sys.argv[1])
count = 0

def handler(*_):
    global count
    count += 1
    writer.metric("signal", 1.0, count)

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
for step in range(20000):
    writer.metric("loss", 1.0, step)
while count < 20:
    signal.pause()
signal.setitimer(signal.ITIMER_REAL, 0)
print(count)
"""


def test_a_signal_handler_may_log_in_the_middle_of_a_call(tmp_path):
    path = str(tmp_path / "1-0.bin")
    done = subprocess.run([sys.executable, "-c", _INTERRUPTED, path], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    points, offset = [], 0
    while True:
        records, following, skipped = journal.read(path, offset)
        assert not skipped
        if following == offset:
            break
        points, offset = points + [(r.key, r.step) for r, _ in records], following
    assert [s for k, s in points if k == "loss"] == list(range(20000))
    # A handler may itself be interrupted by the next signal, whose point then comes first.
    assert sorted(s for k, s in points if k == "signal") == list(range(1, int(done.stdout) + 1))
