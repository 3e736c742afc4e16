"""The spool keeps artifacts in the order of calls, whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time

import pytest

from jupyter_mlops.runtime import spool
from jupyter_mlops.tracking import spooler


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "weights ü.bin"
    path.write_bytes(b"w" * 10_000)
    return str(path)


def test_entries_keep_the_order_of_calls_also_when_the_clock_is_set_back(tmp_path, file, monkeypatch):
    folder = str(tmp_path / "job" / "spool")
    assert spool.names(folder) == [] and not spool.pending(folder, 0)
    made = [spool.put(folder, 0, {"kind": "artifact", "run_id": "r", "path": str(n)}, file) for n in range(3)]
    monkeypatch.setattr(time, "time_ns", lambda: 5)
    made.append(spool.put(folder, 0, {"kind": "artifact", "run_id": "r", "path": "3"}, file))
    # Another process of the same rank comes after it as well.
    code = "import sys; from jupyter_mlops.runtime import spool; print(spool.put(sys.argv[1], 0, {'path': '4'}))"
    made.append(subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True,
                               timeout=30).stdout.strip())
    assert spool.names(folder) == made and [spool.entry(folder, n)["path"] for n in made] == list("01234")
    first = spool.entry(folder, made[0])
    assert first == {"kind": "artifact", "run_id": "r", "path": "0", "file": "data/weights ü.bin"}
    copy = os.path.join(folder, made[0], first["file"])
    with open(copy, "rb") as f:
        assert f.read() == b"w" * 10_000
    assert os.stat(copy).st_mode & 0o777 == 0o600 and os.stat(os.path.join(folder, made[0])).st_mode & 0o777 == 0o700
    assert spool.pending(folder, 0) and not spool.pending(folder, 1)
    for name in made:
        spool.remove(folder, name)
    assert os.listdir(folder) == [] and not spool.pending(folder, 0)


def test_half_an_entry_is_none(tmp_path):
    folder = tmp_path / "spool"
    name = f"{7:020d}-0-1"
    (folder / name / "data").mkdir(parents=True)
    (folder / "junk").mkdir()
    assert spool.names(str(folder)) == [name]
    assert spool.entry(str(folder), name) == {} and not spool.pending(str(folder), 0)


def test_a_disk_without_room_leaves_nothing_and_says_so(tmp_path, file):
    folder = str(tmp_path / "spool")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    try:
        with pytest.raises(OSError, match=r"no room to keep .*weights ü.bin until MLflow answers again") as caught:
            spool.put(folder, 0, {"kind": "artifact"}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG and "\n" not in str(caught.value)
    assert os.listdir(folder) == []
    with pytest.raises(FileNotFoundError):
        spool.put(folder, 0, {"kind": "artifact"}, file + ".gone")
    assert os.listdir(folder) == []


def test_local_ids_are_told_from_those_of_mlflow():
    made = {spool.local_id() for _ in range(100)}
    assert len(made) == 100
    assert all(spool.is_local(i) and len(i) == len("m-") + 32 for i in made)
    assert not any(spool.is_local(i) for i in ("m-0b4a3f0d2f2c4c8f9f0c6d0d7f3a9b21", "", None))


def test_names_and_files_that_are_none_of_ours(tmp_path):
    for name in ("²" * 20 + "-0-1", "٣" * 20 + "-0-1", "1-2-3", "refused"):
        (tmp_path / name).mkdir()
    assert spool.names(str(tmp_path)) == []
    name = spool.put(str(tmp_path), 0, {"kind": "strange"})
    (tmp_path / "refused").rmdir()
    (tmp_path / "refused").write_text("in the way")
    spooler._refuse(tmp_path, name)
    assert spool.names(str(tmp_path)) == []
