"""The store: one SQLite database, one writer thread, a small pool of readers.

Every change of a resource writes its row, its change-feed row and its audit row in one transaction, so that none of
them can be had without the others. Sequence numbers of the feed come from the single writer in commit order.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from . import schema
from .errors import Conflict, Refused, Unavailable
from .identity import Identity
from .transaction import Transaction

T = TypeVar("T")
log = logging.getLogger(__name__)

NETWORK_FILE_SYSTEMS = {"nfs", "nfs4", "cifs", "smb3", "fuse.sshfs", "lustre", "gpfs", "beegfs", "ceph", "9p"}


def file_system(path: Path) -> str:
    """Type of the file system that holds ``path``, as ``/proc/mounts`` names it; ``""`` when unknown."""
    best, kind = "", ""
    real = os.path.realpath(path)
    try:
        with open("/proc/mounts", encoding="utf-8", errors="replace") as f:
            for line in f:
                fields = line.split()
                point = fields[1].replace("\\040", " ")
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best):
                    best, kind = point, fields[2]
    except OSError:
        return ""
    return kind


@dataclass
class Intent:
    """An audited change that passes to MLflow; ``outcome`` is None while it is not known."""

    id: int
    action: str
    resource: str
    detail: dict[str, Any]
    request_id: str | None = None
    outcome: str | None = None
    response: tuple[int, bytes] | None = None
    fresh: bool = True


class Store:
    """The database file ``path``; :meth:`open` migrates it, :meth:`read` and :meth:`write` run functions on it.

    ``on_commit`` is called on the event loop after each transaction that appended to the change feed.
    """

    def __init__(self, path: Path, on_commit: Callable[[], None] | None = None) -> None:
        self.path = path
        self.on_commit = on_commit
        self.network = file_system(path.parent) in NETWORK_FILE_SYSTEMS
        self._writer = ThreadPoolExecutor(1, "store-writer")
        self._readers = ThreadPoolExecutor(2, "store-reader")
        self._engine = sa.create_engine(
            # Not as text: a "%" or "?" in the folder's name would be read as part of an address.
            sa.URL.create("sqlite", database=str(path)), poolclass=sa.pool.SingletonThreadPool, pool_size=8,
            connect_args={"timeout": 30, "check_same_thread": False},
        )
        sa.event.listen(self._engine, "connect", self._on_connect)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._lock = threading.Lock()
        self._revision = 0

    def _on_connect(self, connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        cursor = connection.cursor()
        # WAL needs shared memory between processes, which network file systems do not give.
        cursor.execute("PRAGMA journal_mode=" + ("DELETE" if self.network else "WAL"))
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    def open(self) -> None:
        """Create or migrate the database (blocking).

        Raises:
            Refused: it was written by a newer version than this code.
            Unavailable: the disk is full, the path too long, the file no database …
        """
        try:
            self._open()
        except sa.exc.DatabaseError as error:
            raise self._unavailable(error) from error

    def _open(self) -> None:
        existed = self.path.exists() and self.path.stat().st_size > 0
        with self._engine.connect() as connection:
            revision = None
            if existed and sa.inspect(connection).has_table("alembic_version"):
                revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
            if revision == schema.HEAD:
                return
            if revision is not None and revision > schema.HEAD:
                raise Refused(
                    f"{self.path} was written by a newer version (schema {revision}, this code knows {schema.HEAD})",
                    "upgrade jupyter-mlops in this environment",
                )
        if existed:
            self._engine.dispose()
            shutil.copy2(self.path, self.path.with_name(f"store.db.before-{schema.HEAD}"))
        self._migrate()

    def _migrate(self) -> None:
        # Imported only when there is something to do: it costs a third of a second.
        from alembic import command
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
        with self._engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                connection.exec_driver_sql("COMMIT")
            except BaseException:
                connection.exec_driver_sql("ROLLBACK")
                raise
        os.chmod(self.path, 0o600)

    @contextmanager
    def _transaction(self, begin: str):  # type: ignore[no-untyped-def]
        try:
            with self._engine.connect() as connection:
                connection.exec_driver_sql(begin)
                tx = Transaction(connection)
                try:
                    yield tx
                    connection.exec_driver_sql("COMMIT")
                except BaseException:
                    with suppress(sa.exc.OperationalError):  # a full disk has rolled back already
                        connection.exec_driver_sql("ROLLBACK")
                    raise
        except sa.exc.OperationalError as error:
            raise self._unavailable(error) from error
        if tx.resources:
            self._revision += 1  # by the one writer thread
        if tx.changed and self.on_commit is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self.on_commit)

    def _unavailable(self, error: sa.exc.DatabaseError) -> Unavailable:
        """What a full or failing disk means to a caller; nothing of the transaction is there."""
        return Unavailable(f"{self.path.name} of the workspace cannot be used: {error.orig}",
                           f"nothing was changed; look at the disk of {self.path.parent}")

    def _run(self, begin: str, function: Callable[[Transaction], T]) -> T:
        with self._transaction(begin) as tx:
            return function(tx)

    async def write(self, function: Callable[[Transaction], T]) -> T:
        """Run ``function`` in a write transaction on the writer thread; it commits before this returns."""
        self._loop = asyncio.get_running_loop()
        return await self._loop.run_in_executor(self._writer, self._run, "BEGIN IMMEDIATE", function)

    async def read(self, function: Callable[[Transaction], T]) -> T:
        """Run ``function`` on a consistent snapshot, on a reader thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._run, "BEGIN", function)

    def glance(self, function: Callable[[Transaction], T]) -> Callable[[], Awaitable[T]]:
        """A read for whoever asks again and again: it runs only when a resource has changed since the last time.

        ``function`` may depend on resources only, and nobody may change what it returned.
        """
        seen: list[tuple[int, T]] = []

        async def look() -> T:
            at = self._revision  # before the read: what is committed during it is read once more
            if not seen or seen[0][0] != at:
                seen[:] = [(at, await self.read(function))]
            return seen[0][1]

        return look

    # -- changes that pass to MLflow ---------------------------------------------------------------------------

    async def intent(
        self, request_id: str | None, identity: Identity, action: str, resource: str, detail: dict[str, Any]
    ) -> Intent:
        """Write the intent of a change before it goes to MLflow.

        A request id that was seen before gives the earlier intent back (``fresh`` is False), with its stored
        response when the outcome is known.
        """

        def work(tx: Transaction) -> Intent:
            t = schema.audit
            if request_id:
                row = tx.connection.execute(sa.select(t).where(t.c.request_id == request_id)).first()
                if row is not None:
                    if row.user != identity.user or row.action != action:
                        raise Conflict("this request id was used for another change", "use a new X-Mlops-Request-Id")
                    response = None
                    if row.response_status is not None:
                        response = (row.response_status, (row.response_body or "").encode())
                    return Intent(
                        row.id, row.action, row.resource, json.loads(row.detail), request_id, row.outcome, response,
                        fresh=False,
                    )
            new = tx.audit(identity, action, resource, detail, outcome=None, request_id=request_id)
            return Intent(new, action, resource, detail, request_id)

        return await self.write(work)

    async def outcome(self, intent_id: int, outcome: str, status: int | None = None, body: bytes | None = None) -> None:
        """Close an intent: ``done``, ``failed`` or ``unknown``, with the response for repeats of it."""
        text = body.decode("utf-8", "replace") if body is not None else None

        def work(tx: Transaction) -> None:
            t = schema.audit
            tx.connection.execute(
                t.update()
                .where(t.c.id == intent_id)
                .values(outcome=outcome, response_status=status, response_body=text)
            )

        await self.write(work)

    async def open_intents(self) -> list[Intent]:
        """Intents whose outcome is not known: the control plane or MLflow died between."""

        def work(tx: Transaction) -> list[Intent]:
            t = schema.audit
            rows = tx.connection.execute(sa.select(t).where(t.c.outcome.is_(None)).order_by(t.c.id)).all()
            return [
                Intent(r.id, r.action, r.resource, json.loads(r.detail), r.request_id, fresh=False) for r in rows
            ]

        return await self.read(work)

    def close(self) -> None:
        """Finish what is under way and close the file."""
        self._readers.shutdown(wait=True)
        self._writer.shutdown(wait=True)
        self._engine.dispose()
