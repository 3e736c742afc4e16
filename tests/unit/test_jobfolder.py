"""Files of the job folder: atomic, private, read by offset."""

from __future__ import annotations

import os
import stat
import threading

import pytest

from jupyter_mlops.runtime import jobfolder, processes
from jupyter_mlops.runtime.jobfolder import JobFolder, read_json, read_log, write_file, write_json


def test_paths_cannot_be_escaped(tmp_path):
    attempt = JobFolder(tmp_path).attempt(1)
    for rank in ("../x", "0/../../x", "-1", -1, 1.5, True, None, "", " 1", "²", 10**9):
        with pytest.raises(ValueError):
            attempt.log_path(rank)
    for number in ("..", 0, "0", None, "1/.."):
        with pytest.raises(ValueError):
            JobFolder(tmp_path).attempt(number)
    assert attempt.log_path("7") == str(tmp_path / "attempts" / "1" / "rank-7.log")


def test_state_is_replaced_as_a_whole(tmp_path):
    attempt = JobFolder(tmp_path).attempt(1)
    jobfolder.private_folder(attempt.path)
    stop = threading.Event()
    seen = []

    def read():
        while not stop.is_set():
            seen.append(len(attempt.state().get("reason", "")))

    reader = threading.Thread(target=read)
    attempt.write_state({"phase": "running", "reason": "x" * 100_000})
    reader.start()
    for _ in range(50):
        attempt.write_state({"phase": "running", "reason": "y" * 100_000}, durable=False)
    stop.set()
    reader.join()
    assert set(seen) == {100_000}
    assert os.listdir(attempt.path) == ["state.json"]
    assert stat.S_IMODE(os.stat(os.path.join(attempt.path, "state.json")).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(attempt.path).st_mode) == 0o700


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = str(tmp_path / "x")
    write_file(path, b"old")

    def full(fd, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError):
        write_file(path, b"new")
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["x"]
    assert (tmp_path / "x").read_bytes() == b"old"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"schema": 2, "phase": "running"}',
                                     b'{"schema": 1}', b'{"schema": 1, "phase": 3}'])
def test_a_broken_state_is_none(tmp_path, content):
    attempt = JobFolder(tmp_path).attempt(1)
    jobfolder.private_folder(attempt.path)
    (tmp_path / "attempts" / "1" / "state.json").write_bytes(content)
    assert attempt.state() == {}


def test_stop_wish(tmp_path):
    job = JobFolder(tmp_path)
    assert job.stop_wish(1) is None
    job.ask_stop(1, 2.5)
    assert job.stop_wish(1) == 2.5
    assert job.stop_wish(2) is None
    for content, grace in ((b"", 10.0), (b'{"grace": "x"}', 10.0), (b'{"grace": 1e99}', 3600.0), (b'{"grace": -1}', 0)):
        (tmp_path / "stop").write_bytes(content)
        assert job.stop_wish(1) == grace


def test_sign_in(tmp_path):
    attempt = JobFolder(tmp_path).attempt(1)
    assert not attempt.started()
    jobfolder.private_folder(attempt.path)
    assert not attempt.started() and attempt.signed_in(0) == {}
    attempt.sign_in(0)
    entry = attempt.signed_in(0)
    assert attempt.started() and entry["pid"] == os.getpid()
    assert processes.alive(entry["pid"], entry["start_time"])
    assert entry["boot_id"] == processes.boot_id()
    write_json(attempt.pid_path("agent"), {"pid": "no"})
    assert attempt.signed_in("agent") == {}


def test_started_is_known_without_pid_files(tmp_path):
    """A loss of power may take the small files, but not a state that was waited for."""
    attempt = JobFolder(tmp_path).attempt(1)
    jobfolder.private_folder(attempt.path)
    attempt.write_state({"phase": "starting", "boot_id": processes.boot_id()})
    assert not attempt.started()
    attempt.write_state({"phase": "starting", "boot_id": "another"})
    assert attempt.started()
    attempt.write_state({"phase": "running", "boot_id": processes.boot_id()})
    assert attempt.started()


def test_lock_is_seen_and_never_kept(tmp_path):
    import fcntl

    attempt = JobFolder(tmp_path).attempt(1)
    assert not attempt.locked()
    jobfolder.private_folder(attempt.path)
    with open(attempt.lock_path, "w") as lock:
        assert not attempt.locked()
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert attempt.locked()
    assert not attempt.locked()


@pytest.mark.parametrize("text", ["", "plain\n", "€€€€", "aé", "\U0001f600" * 3, "x\U0001f600"])
def test_log_in_chunks_of_any_size(tmp_path, text):
    path = tmp_path / "log"
    path.write_text(text, encoding="utf-8")
    size = len(text.encode())
    for limit in range(4, 12):
        offset, parts = 0, []
        while offset < size:
            data, start, offset, total = read_log(str(path), offset, limit)
            assert start + len(data) == offset and total == size and data
            parts.append(data.decode("utf-8"))
        assert "".join(parts) == text
    for back in range(1, size + 2):
        data, start, following, _ = read_log(str(path), -back, 1000)
        data.decode("utf-8")
        assert following == size == start + len(data)


def test_log_of_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"ab\xe2\x82")  # for ever cut
    assert read_log(str(path), 0, 100) == (b"ab", 0, 2, 4)
    assert read_log(str(path), 2, 100) == (b"\xe2\x82", 2, 4, 4)
    path.write_bytes(b"\x80" * 20)
    assert read_log(str(path), 0, 7) == (b"\x80" * 7, 0, 7, 20)


def test_log_is_no_link(tmp_path):
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "log").symlink_to(tmp_path / "secret")
    assert read_log(str(tmp_path / "log"), 0, 100) == (b"", 0, 0, 0)
    os.mkfifo(tmp_path / "pipe")
    assert read_log(str(tmp_path / "pipe"), 0, 100) == (b"", 0, 0, 0)


def test_json_reader_takes_anything(tmp_path):
    assert read_json(str(tmp_path / "no")) == {}
    assert read_json(str(tmp_path)) == {}


def test_what_the_killed_were_writing_is_swept(tmp_path):
    attempt = JobFolder(tmp_path).attempt(1)
    attempt.sweep()
    jobfolder.private_folder(attempt.path)
    attempt.write_state({"phase": "running"})
    for name in ("rank-1.exit.12.34.tmp", "usage.jsonl"):
        (tmp_path / "attempts" / "1" / name).write_text("{")
    attempt.sweep()
    assert sorted(os.listdir(attempt.path)) == ["state.json", "usage.jsonl"]
