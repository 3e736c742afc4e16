"""What retention takes away, and what it never touches."""

from __future__ import annotations

import subprocess
import sys

import pytest

from jupyter_mlops.core.controllers.attempts import check_resumable
from jupyter_mlops.core.errors import Conflict, NotFound, ParameterError
from jupyter_mlops.core.identity import SYSTEM
from jupyter_mlops.core.resources.retention import DEFAULT, parse_retention
from jupyter_mlops.core.retention import DELETED_LIFE, Kept, RetentionSweep, choose, configured, disk_usage
from jupyter_mlops.core.store import Store
from jupyter_mlops.magics import settings

DAY = 86400.0
NOW = 1_800_000_000.0


@pytest.mark.parametrize(
    ("text", "seconds", "size"),
    [
        ("30d 20GB", 30 * DAY, 20 * 10**9), ("7d", 7 * DAY, None), ("500MB", None, 500 * 10**6),
        ("off", None, None), ("", 30 * DAY, 20 * 10**9), ("20 GB, 30 days", 30 * DAY, 20 * 10**9),
        ("0.5 d 1.5TB", DAY / 2, 1500 * 10**9), ("0d", 0.0, None),
    ],
)
def test_setting(text, seconds, size):
    found = parse_retention(text)
    assert (found.seconds, found.bytes) == (seconds, size)


@pytest.mark.parametrize("text", ["soon", "30d 20d", "-1d", "20", "1e9 GB", "30d;rm", "7d 1GB 2GB", "d"])
def test_what_is_no_setting_is_refused(text):
    with pytest.raises(ParameterError, match="neither an age nor a size"):
        parse_retention(text)


def test_the_default_is_told_as_it_is():
    assert settings.KEYS["retention"][1] == DEFAULT


def test_config_file(tmp_path):
    assert str(configured(tmp_path)) == "30 days, 20 GB"
    (tmp_path / "config.json").write_text('{"retention": "2d 1GB"}')
    assert str(configured(tmp_path)) == "2 days, 1 GB"
    for broken in ("{", "[]", '{"retention": "nonsense"}'):
        (tmp_path / "config.json").write_text(broken)
        assert str(configured(tmp_path)) == "30 days, 20 GB"


def job(name, age, size=10, deleted=None):
    return Kept(name, NOW - age * DAY, NOW - deleted * DAY if deleted is not None else 0.0, size)


def test_old_folders_go_and_young_stay():
    purged, stripped = choose([job("old", 31), job("young", 29)], parse_retention("30d 20GB"), NOW)
    assert (purged, stripped) == ([], ["old"])


def test_the_oldest_go_until_the_rest_fits():
    jobs = [job("c", 1, 40), job("a", 3, 40), job("b", 2, 40)]
    assert choose(jobs, parse_retention("1kB"), NOW) == ([], [])
    jobs = [job("c", 1, 400), job("a", 3, 400), job("b", 2, 400)]
    assert choose(jobs, parse_retention("1kB"), NOW) == ([], ["a"])


def test_deleted_jobs_go_first_and_for_good():
    jobs = [job("a", 3, 400), job("bin", 1, 400, deleted=0.5), job("b", 2, 400)]
    assert choose(jobs, parse_retention("1kB"), NOW) == (["bin"], [])
    longer = DELETED_LIFE / DAY + 1
    assert choose([job("bin", longer + 5, deleted=longer)], parse_retention("off"), NOW) == (["bin"], [])
    assert choose([job("bin", 2, deleted=1.5)], parse_retention("1d"), NOW) == (["bin"], [])
    assert choose([job("bin", 5, deleted=1)], parse_retention("off"), NOW) == ([], [])


def test_disk_usage_counts_what_is_on_the_disk(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "full").write_bytes(b"x" * 100_000)
    with open(tmp_path / "hole", "wb") as f:
        f.truncate(1 << 30)
    assert 100_000 <= disk_usage(tmp_path) < 1_000_000
    assert disk_usage(tmp_path / "none") == 0


_READ_ONLY = """
import os, sys, tempfile
from pathlib import Path
from jupyter_mlops.core.controllers.folder import remove_folder
if os.geteuid() == 0:
    os.setuid(65534)  # nothing is forbidden to root
home = Path(tempfile.mkdtemp())
job, kept = home / "job", home / "kept"
inner = job / "outputs" / "cache" / "inner"
inner.mkdir(parents=True)
(inner / "file").write_text("x")
kept.mkdir()
(kept / "file").write_text("precious")
kept.chmod(0o500)
(job / "outputs" / "link").symlink_to(kept)
for path, mode in ((inner, 0o500), (inner.parent, 0o000), (job / "outputs", 0o500), (job, 0o500)):
    path.chmod(mode)
remove_folder(job)
assert not job.exists(), sorted(job.rglob("*"))
job.symlink_to(kept)
remove_folder(job)
remove_folder(job)
assert not os.path.lexists(job) and (kept / "file").read_text() == "precious" and kept.stat().st_mode & 0o777 == 0o500
kept.chmod(0o700)
(kept / "file").unlink()
kept.rmdir()
home.rmdir()
"""


def test_folders_that_a_job_has_made_read_only_go_too():
    subprocess.run([sys.executable, "-c", _READ_ONLY], check=True, timeout=60)


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "store.db")
    opened.open()
    yield opened
    opened.close()


async def test_a_sweep_that_was_cut_short_is_finished(store, tmp_path):
    """Somebody died between the note and the removal; another job is purged by somebody else meanwhile."""
    status = {"phase": "Failed", "attempt": 1, "ended_at": "2020-01-01T00:00:00Z"}
    some_day = "2020-02-01T00:00:00Z"
    for name, more in (("noted", {"folder_removed_at": some_day}), ("gone", {"deleted_at": some_day})):
        (tmp_path / name).mkdir()
        await store.write(lambda tx, name=name, more=more: tx.put(
            "job", name, {}, identity=SYSTEM, status={**status, **more}))

    async def purge(name):
        raise NotFound(f"job {name!r} does not exist")

    sweep = RetentionSweep(tmp_path, store, lambda name: tmp_path / name, purge)
    noted = await store.read(lambda tx: tx.get("job", "noted"))
    with pytest.raises(Conflict, match="is gone"):
        check_resumable(noted, tmp_path / "noted")
    assert await sweep.sweep() == {"purged": ["gone"], "stripped": ["noted"]}
    assert not (tmp_path / "noted").exists()
    assert (await sweep.sweep())["stripped"] == []
    after = await store.read(lambda tx: tx.get("job", "noted"))
    assert after.status["folder_removed_at"] == noted.status["folder_removed_at"]
