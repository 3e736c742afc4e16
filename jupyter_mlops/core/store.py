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
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from . import schema
from .errors import Conflict, NotFound, PreconditionFailed, Refused, Unavailable
from .identity import Identity
from .resources.base import Resource, utcnow

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


def _resource(row: Any) -> Resource:
    return Resource(
        kind=row.kind,
        name=row.name,
        parent=row.parent,
        revision=row.revision,
        generation=row.generation,
        created_by=row.created_by,
        created_at=row.created_at,
        updated_at=row.updated_at,
        spec=json.loads(row.spec),
        status=json.loads(row.status),
    )


class Transaction:
    """What may be done to the store inside one read or write; used on the store's threads only."""

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection
        self.changed = False

    # -- resources -------------------------------------------------------------------------------------------

    def _row(self, kind: str, name: str, parent: str = "") -> Any:
        t = schema.resource
        return self.connection.execute(
            sa.select(t).where(t.c.kind == kind, t.c.parent == parent, t.c.name == name)
        ).first()

    def find(self, kind: str, name: str, parent: str = "") -> Resource | None:
        """The resource, or None."""
        row = self._row(kind, name, parent)
        return _resource(row) if row is not None else None

    def get(self, kind: str, name: str, parent: str = "") -> Resource:
        """The resource.

        Raises:
            NotFound: there is none of that name.
        """
        found = self.find(kind, name, parent)
        if found is None:
            verb = f"endpoints {parent}" if kind == "deployment" else f"{kind}s"
            raise NotFound(f"{kind} {name!r} does not exist", f"list what is there with: %mlops {verb}")
        return found

    def private(self, kind: str, name: str, parent: str = "") -> dict[str, Any]:
        """What of a resource never leaves the control plane."""
        row = self._row(kind, name, parent)
        return json.loads(row.private) if row is not None else {}

    def deleting(self, kind: str, name: str, parent: str = "") -> bool:
        """Whether the resource is marked for deletion."""
        row = self._row(kind, name, parent)
        return bool(row is not None and row.deleting)

    def page(
        self,
        kind: str,
        *,
        parent: str | None = None,
        phases: list[str] | None = None,
        limit: int = 200,
        before: int | None = None,
    ) -> tuple[list[Resource], int | None]:
        """Newest first; ``before`` is the mark that the previous page returned. Returns (page, next mark)."""
        t = schema.resource
        query = sa.select(t).where(t.c.kind == kind)
        if parent is not None:
            query = query.where(t.c.parent == parent)
        if phases:
            query = query.where(t.c.phase.in_(phases))
        if before is not None:
            query = query.where(t.c.id < before)
        rows = self.connection.execute(query.order_by(t.c.id.desc()).limit(limit + 1)).all()
        page = rows[:limit]
        return [_resource(r) for r in page], (page[-1].id if len(rows) > limit else None)

    def deleting_keys(self, kind: str) -> list[tuple[str, str]]:
        """(parent, name) of the resources that are marked for deletion."""
        t = schema.resource
        rows = self.connection.execute(sa.select(t.c.parent, t.c.name).where(t.c.kind == kind, t.c.deleting)).all()
        return [(r.parent, r.name) for r in rows]

    def count(self, kind: str, *, without: tuple[str, ...] = ()) -> int:
        """Number of resources of a kind whose phase is not in ``without``."""
        t = schema.resource
        query = sa.select(sa.func.count()).select_from(t).where(t.c.kind == kind)
        if without:
            query = query.where(t.c.phase.not_in(without))
        return int(self.connection.execute(query).scalar_one())

    def put(
        self,
        kind: str,
        name: str,
        spec: dict[str, Any],
        *,
        identity: Identity,
        parent: str = "",
        status: dict[str, Any] | None = None,
        private: dict[str, Any] | None = None,
        if_match: int | None = None,
        if_none_match: bool = False,
        immutable: bool = False,
    ) -> tuple[Resource, bool]:
        """Create, or replace the spec of, a resource. Returns (resource, whether it was created).

        Raises:
            PreconditionFailed: ``if_match`` is not its revision, or ``if_none_match`` and it exists.
            Conflict: it is being deleted, or ``immutable`` and its spec differs.
        """
        t = schema.resource
        row = self._row(kind, name, parent)
        now = utcnow()
        if row is None:
            if if_match is not None:
                raise PreconditionFailed(f"{kind} {name!r} does not exist")
            self.connection.execute(
                t.insert().values(
                    kind=kind, parent=parent, name=name, revision=1, generation=1, created_by=identity.user,
                    created_at=now, updated_at=now, phase=(status or {}).get("phase", ""), spec=json.dumps(spec),
                    status=json.dumps(status or {}), private=json.dumps(private or {}), deleting=False,
                )
            )
            created = self.get(kind, name, parent)
            self._changed(created, "put")
            self.audit(identity, f"{kind}s/write", _path(kind, name, parent), {"op": "create"})
            return created, True
        if if_none_match:
            raise PreconditionFailed(f"{kind} {name!r} exists already", "choose another name")
        if if_match is not None and if_match != row.revision:
            raise PreconditionFailed(f"{kind} {name!r} has changed meanwhile", "read it again, then repeat the change")
        if row.deleting:
            raise Conflict(f"{kind} {name!r} is being deleted", "wait a moment, then try again")
        current = _resource(row)
        if current.spec == spec:
            return current, False
        if immutable:
            raise Conflict(f"{kind} {name!r} exists already with another spec", "choose another name")
        self.connection.execute(
            t.update()
            .where(t.c.id == row.id)
            .values(spec=json.dumps(spec), revision=row.revision + 1, generation=row.generation + 1, updated_at=now)
        )
        updated = self.get(kind, name, parent)
        self._changed(updated, "put")
        self.audit(identity, f"{kind}s/write", _path(kind, name, parent), {"op": "update"})
        return updated, False

    def set_status(self, kind: str, name: str, changes: dict[str, Any], parent: str = "") -> Resource | None:
        """Merge ``changes`` into the status; nothing is written when nothing differs. None when it is gone."""
        t = schema.resource
        row = self._row(kind, name, parent)
        if row is None:
            return None
        status = json.loads(row.status)
        merged = {**status, **changes}
        if merged != status:
            self.connection.execute(
                t.update()
                .where(t.c.id == row.id)
                .values(
                    status=json.dumps(merged), phase=merged.get("phase", ""), revision=row.revision + 1,
                    updated_at=utcnow(),
                )
            )
            self._changed(self.get(kind, name, parent), "put")
        return self.get(kind, name, parent)

    def set_private(self, kind: str, name: str, private: dict[str, Any], parent: str = "") -> None:
        """Replace what of a resource never leaves the control plane."""
        t = schema.resource
        self.connection.execute(
            t.update()
            .where(t.c.kind == kind, t.c.parent == parent, t.c.name == name)
            .values(private=json.dumps(private))
        )

    def mark_deleting(self, kind: str, name: str, *, identity: Identity, parent: str = "", audit: bool = True) -> None:
        """Ask for deletion; a controller ends what belongs to it, then calls :meth:`remove`."""
        t = schema.resource
        current = self.get(kind, name, parent)
        if self.deleting(kind, name, parent):
            return
        self.connection.execute(
            t.update().where(t.c.kind == kind, t.c.parent == parent, t.c.name == name).values(deleting=True)
        )
        self._changed(current, "put")
        if audit:
            self.audit(identity, f"{kind}s/delete", _path(kind, name, parent), {"op": "delete"})

    def remove(self, kind: str, name: str, *, parent: str = "") -> None:
        """Forget a resource whose belongings are gone."""
        t = schema.resource
        found = self.find(kind, name, parent)
        if found is None:
            return
        self.connection.execute(t.delete().where(t.c.kind == kind, t.c.parent == parent, t.c.name == name))
        self._changed(found, "delete")

    # -- change feed -------------------------------------------------------------------------------------------

    def _changed(self, r: Resource, op: str) -> None:
        self.record_change(r.kind, r.name, r.parent, op, r.revision, str(r.status.get("phase", "")))

    def record_change(
        self, kind: str, name: str = "", parent: str = "", op: str = "put", revision: int = 0, phase: str = ""
    ) -> None:
        """Append to the change feed."""
        self.connection.execute(
            schema.change.insert().values(
                kind=kind, name=name, parent=parent, op=op, revision=revision, phase=phase, at=utcnow()
            )
        )
        self.changed = True

    def changes(self, since: int, limit: int = 500) -> list[dict[str, Any]]:
        """Feed rows after ``since``, in order."""
        t = schema.change
        rows = self.connection.execute(sa.select(t).where(t.c.seq > since).order_by(t.c.seq).limit(limit)).all()
        return [
            {"seq": r.seq, "kind": r.kind, "name": r.name, "parent": r.parent, "op": r.op, "revision": r.revision,
             "phase": r.phase}
            for r in rows
        ]

    def change_bounds(self) -> tuple[int, int]:
        """(oldest kept, newest) sequence number; (0, 0) before the first change."""
        t = schema.change
        low, high = self.connection.execute(sa.select(sa.func.min(t.c.seq), sa.func.max(t.c.seq))).one()
        return int(low or 0), int(high or 0)

    def prune_changes(self, keep: int) -> None:
        """Keep only the newest ``keep`` rows of the feed."""
        _, high = self.change_bounds()
        self.connection.execute(schema.change.delete().where(schema.change.c.seq <= high - keep))

    # -- audit ---------------------------------------------------------------------------------------------------

    def audit(
        self,
        identity: Identity,
        action: str,
        resource: str,
        detail: dict[str, Any],
        outcome: str | None = "done",
        request_id: str | None = None,
    ) -> int:
        """Append an audit row; returns its id."""
        result = self.connection.execute(
            schema.audit.insert().values(
                at=utcnow(), user=identity.user, role=identity.role, action=action, resource=resource[:700],
                detail=json.dumps({**detail, "token": identity.token_id}), outcome=outcome, request_id=request_id,
            )
        )
        return int((result.inserted_primary_key or [0])[0])

    def audit_rows(self, limit: int, before: int | None = None) -> tuple[list[dict[str, Any]], int | None]:
        """Audit rows, newest first, and the mark of the next page."""
        t = schema.audit
        query = sa.select(t)
        if before is not None:
            query = query.where(t.c.id < before)
        rows = self.connection.execute(query.order_by(t.c.id.desc()).limit(limit + 1)).all()
        items = [
            {"id": r.id, "at": r.at, "user": r.user, "role": r.role, "action": r.action, "resource": r.resource,
             "outcome": r.outcome or "open", "detail": json.loads(r.detail)}
            for r in rows[:limit]
        ]
        return items, (items[-1]["id"] if len(rows) > limit else None)


def _path(kind: str, name: str, parent: str) -> str:
    return f"{kind}s/{parent}/{name}" if parent else f"{kind}s/{name}"


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
