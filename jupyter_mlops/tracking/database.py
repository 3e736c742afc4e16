"""The file of MLflow's database: made, and brought to the schema of the installed MLflow, as a whole or not at all.

MLflow's migrations are no transaction on SQLite. A process that is killed in one leaves tables behind with which MLflow
never starts again, so they run on a file beside the database, which takes its place when all is done.

    python -m jupyter_mlops.tracking.database DATABASE COMMAND...    prepare the database, then become the command
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from contextlib import closing

#: Beside the database: the one that is being made; and one whose making was broken off before this module was there.
NEW, HALF = ".new", ".half-made"
#: What alembic leaves of a table that it was changing.
_LEFT = "_alembic_tmp_"
#: Tables of which a row is somebody's work.
_WORK = ("runs", "registered_models", "trace_info")


class DatabaseError(Exception):
    """The database can be neither used nor upgraded. Its message says what to do."""


def prepare(path: str) -> None:
    """Have a database with the schema of the installed MLflow at ``path``.

    Args:
        path: relative to the working folder; it need not be there.

    Raises:
        DatabaseError: an upgrade by MLflow itself was broken off in it.
        sqlite3.DatabaseError: it is no database.
    """
    new = path + NEW
    _remove(new)
    if not os.path.exists(path) or not os.path.getsize(path):
        _remove(path)
        _make(new)
    else:
        tables, revision = _look(path)
        if any(t.startswith(_LEFT) for t in tables):
            _set_aside(path, tables)
            _make(new)
        elif revision == _head():
            return
        elif revision and not _known(revision):
            return  # a newer MLflow made it: MLflow says so better than we could
        else:
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(new)) as copy:
                source.backup(copy)
            _upgrade(new)
    _put(new, path)


def _look(path: str) -> tuple[set[str], str]:
    """Names of tables, and the revision of the schema; what a crash left unfinished is rolled back."""
    with closing(sqlite3.connect(path)) as database:
        tables = {str(row[0]) for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        noted = "alembic_version" in tables
        row = database.execute("SELECT version_num FROM alembic_version").fetchone() if noted else None
    return tables, str(row[0]) if row else ""


def _set_aside(path: str, tables: set[str]) -> None:
    """Move a database away in which a migration was broken off; one with anybody's work in it stays."""
    with closing(sqlite3.connect(path)) as database:
        kept = [t for t in _WORK if t in tables and database.execute(f"SELECT 1 FROM {t} LIMIT 1").fetchone()]  # noqa: S608
    gone = [t for t in ("experiments", "runs") if t not in tables]
    if kept or gone:
        raise DatabaseError(
            f"an upgrade of {os.path.abspath(path)} by MLflow was broken off: put the newest copy of folder backups/, "
            "beside it, in its place"
        )
    os.replace(path, f"{path}{HALF}-{time.strftime('%Y%m%dT%H%M%S')}")


def _engine(path: str):  # type: ignore[no-untyped-def]
    from mlflow.store.db.utils import create_sqlalchemy_engine

    return create_sqlalchemy_engine("sqlite:///" + path)


def _make(path: str) -> None:
    from mlflow.store.db.utils import _initialize_tables

    engine = _engine(path)
    try:
        _initialize_tables(engine)
    finally:
        engine.dispose()


def _upgrade(path: str) -> None:
    from mlflow.store.db.utils import _upgrade_db

    engine = _engine(path)
    try:
        _upgrade_db(engine)
    finally:
        engine.dispose()


def _head() -> str:
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())


def _known(revision: str) -> bool:
    from alembic.script import ScriptDirectory
    from alembic.util import CommandError
    from mlflow.store.db.utils import _get_alembic_config

    try:
        return ScriptDirectory.from_config(_get_alembic_config(db_url="")).get_revision(revision) is not None
    except CommandError:
        return False


def _put(new: str, path: str) -> None:
    os.chmod(new, 0o600)
    for name in (new, os.path.dirname(os.path.abspath(path))):
        fd = os.open(name, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        if name == new:
            os.replace(new, path)


def _remove(path: str) -> None:
    for name in (path, path + "-journal", path + "-wal", path + "-shm"):
        try:
            os.unlink(name)
        except FileNotFoundError:
            pass


def main(arguments: list[str]) -> int:
    """See the module."""
    try:
        prepare(arguments[0])
    except (DatabaseError, sqlite3.Error) as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    os.execv(arguments[1], arguments[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
