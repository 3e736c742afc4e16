"""MLflow's database is whole at every moment: its making and its upgrade are done, or never were."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from conftest import REPO, wait_for

from jupyter_mlops.tracking import database

SEED = int(os.environ.get("TEST_SEED", "0")) or random.SystemRandom().randrange(1 << 30)
HERE = {"env": {**os.environ, "PYTHONPATH": str(REPO)}}
PREPARE = [sys.executable, "-m", "jupyter_mlops.tracking.database", "mlflow.db", sys.executable, "-c", "pass"]


def tables(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as db:
        return {row[0] for row in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def prepared(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(PREPARE, cwd=folder, capture_output=True, text=True, timeout=200, **HERE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    done = prepared(folder)
    assert done.returncode == 0, done.stderr
    return folder / "mlflow.db"


def test_killed_at_any_moment_of_its_making_it_is_made_by_the_next(tmp_path, whole):
    rng = random.Random(SEED)
    new = tmp_path / "mlflow.db.new"
    for _ in range(3):
        process = subprocess.Popen(PREPARE, cwd=tmp_path, stderr=subprocess.DEVNULL, **HERE)
        try:
            wait_for(lambda: new.exists() or process.poll() is not None, 120, 0.001)  # noqa: B023
            time.sleep(rng.random() * 0.6)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert not (tmp_path / "mlflow.db").exists() or tables(tmp_path / "mlflow.db") == tables(whole), SEED
    assert prepared(tmp_path).returncode == 0
    assert tables(tmp_path / "mlflow.db") == tables(whole)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mlflow.db"]
    assert (tmp_path / "mlflow.db").stat().st_mode & 0o777 == 0o600


def test_one_that_is_whole_is_left_alone(tmp_path, whole):
    (tmp_path / "mlflow.db").write_bytes(whole.read_bytes())
    before = (tmp_path / "mlflow.db").stat()
    assert prepared(tmp_path).returncode == 0
    after = (tmp_path / "mlflow.db").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def _half_made(path: Path, whole: Path) -> None:
    path.write_bytes(whole.read_bytes())
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE _alembic_tmp_experiments (experiment_id INTEGER NOT NULL)")
        db.execute("UPDATE alembic_version SET version_num = '451aebb31d03'")


def test_one_that_mlflow_left_half_made_gives_way_when_nothing_is_in_it(tmp_path, whole):
    _half_made(tmp_path / "mlflow.db", whole)
    assert prepared(tmp_path).returncode == 0
    assert tables(tmp_path / "mlflow.db") == tables(whole)
    assert [p.name.startswith("mlflow.db.half-made-") for p in sorted(tmp_path.iterdir())] == [False, True]


def test_one_with_runs_is_never_moved(tmp_path, whole):
    path = tmp_path / "mlflow.db"
    _half_made(path, whole)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO runs (run_uuid, name, status, lifecycle_stage) VALUES ('a', 'n', 'RUNNING', 'active')")
    before = path.read_bytes()
    done = prepared(tmp_path)
    assert done.returncode == 1 and "was broken off" in done.stderr and "backups/" in done.stderr
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_an_older_schema_is_upgraded_with_all_that_is_in_it(tmp_path, whole):
    """The oldest of MLflow's schemas, as it makes it itself, with a run."""
    path = tmp_path / "mlflow.db"
    done = subprocess.run([sys.executable, "-c", """
import sqlalchemy
from mlflow.store.db.base_sql_model import Base
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase
InitialBase.metadata.create_all(sqlalchemy.create_engine("sqlite:///mlflow.db"))
"""], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO experiments (experiment_id, name, lifecycle_stage) VALUES (0, 'Default', 'active')")
        db.execute("INSERT INTO runs (run_uuid, name, status, experiment_id, lifecycle_stage, start_time) "
                   "VALUES ('abc', 'old', 'FINISHED', 0, 'active', 1)")
    done = prepared(tmp_path)
    assert done.returncode == 0, done.stderr
    assert tables(path) == tables(whole)
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT run_uuid, status FROM runs").fetchall() == [("abc", "FINISHED")]


def test_what_a_newer_mlflow_made_is_not_touched(tmp_path, whole):
    path = tmp_path / "mlflow.db"
    path.write_bytes(whole.read_bytes())
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
    before = path.read_bytes()
    assert prepared(tmp_path).returncode == 0
    assert path.read_bytes() == before


def test_what_is_no_database_is_told(tmp_path):
    (tmp_path / "mlflow.db").write_bytes(b"this is no database" * 100)
    done = prepared(tmp_path)
    assert done.returncode == 1 and "not a database" in done.stderr
    with pytest.raises(sqlite3.DatabaseError):
        database.prepare(str(tmp_path / "mlflow.db"))
