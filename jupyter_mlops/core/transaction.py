"""What may be done to the store inside one transaction: resources, change feed, audit."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from pydantic import ValidationError

from . import schema
from .errors import Conflict, NotFound, PreconditionFailed
from .identity import Identity
from .resources import KINDS
from .resources.base import Resource, utcnow

#: What the column ``phase`` says of a resource that was deleted and can be restored; its status keeps the real one.
DELETED = "Deleted"


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
        #: Whether the change feed has grown, and whether a resource is not as it was.
        self.changed = False
        self.resources = False

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

    def look(self, kind: str, name: str, parent: str = "") -> tuple[Resource | None, bool]:
        """The resource, or None, and whether it is marked for deletion; read once."""
        row = self._row(kind, name, parent)
        return (_resource(row), bool(row.deleting)) if row is not None else (None, False)

    def page(
        self,
        kind: str,
        *,
        parent: str | None = None,
        phases: list[str] | None = None,
        limit: int = 200,
        before: int | None = None,
    ) -> tuple[list[Resource], int | None]:
        """Newest first; ``before`` is the mark that the previous page returned. Returns (page, next mark).

        Deleted resources that can be restored are left out, unless ``phases`` names :data:`DELETED`.
        """
        t = schema.resource
        query = sa.select(t).where(t.c.kind == kind)
        if parent is not None:
            query = query.where(t.c.parent == parent)
        query = query.where(t.c.phase.in_(phases) if phases else t.c.phase != DELETED)
        if before is not None:
            query = query.where(t.c.id < before)
        rows = self.connection.execute(query.order_by(t.c.id.desc()).limit(limit + 1)).all()
        page = rows[:limit]
        return [_resource(r) for r in page], (page[-1].id if len(rows) > limit else None)

    def names(self, kind: str, phases: list[str]) -> list[str]:
        """Names of the resources in one of these phases, oldest first; nothing else of them is read."""
        t = schema.resource
        query = sa.select(t.c.name).where(t.c.kind == kind, t.c.phase.in_(phases)).order_by(t.c.id)
        return [r.name for r in self.connection.execute(query)]

    def keys(self, kind: str) -> list[tuple[str, str, str]]:
        """(parent, name, phase) of all resources of a kind, oldest first; nothing else of them is read."""
        t = schema.resource
        query = sa.select(t.c.parent, t.c.name, t.c.phase).where(t.c.kind == kind).order_by(t.c.id)
        return [(r.parent, r.name, r.phase) for r in self.connection.execute(query)]

    def deleting_keys(self, kind: str) -> list[tuple[str, str]]:
        """(parent, name) of the resources that are marked for deletion."""
        t = schema.resource
        rows = self.connection.execute(sa.select(t.c.parent, t.c.name).where(t.c.kind == kind, t.c.deleting)).all()
        return [(r.parent, r.name) for r in rows]

    def count(self, kind: str, *, without: tuple[str, ...] = ()) -> int:
        """Number of resources of a kind whose phase is not in ``without``."""
        t = schema.resource
        query = sa.select(sa.func.count()).select_from(t).where(t.c.kind == kind, t.c.phase != DELETED)
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
        mutable: Collection[str] | None = None,
        detail: dict[str, Any] | None = None,
    ) -> tuple[Resource, bool]:
        """Create, or replace the spec of, a resource. Returns (resource, whether it was created).

        Args:
            spec: as its model dumps it, with every field.
            mutable: fields that may change; None: all of them.
            detail: what an audit row of an update says beside the names of the changed fields.

        Raises:
            PreconditionFailed: ``if_match`` is not its revision, or ``if_none_match`` and it exists.
            Conflict: it is being deleted, or a field that never changes differs.
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
        changed = sorted(changed_fields(kind, current.spec, spec))
        if not changed:
            return current, False
        fixed = [] if mutable is None else [field for field in changed if field not in mutable]
        if fixed:
            differ = "differs" if len(fixed) == 1 else "differ"
            raise Conflict(
                f"{kind} {name!r} exists already with another spec: {', '.join(fixed)} {differ}", "choose another name"
            )
        self.connection.execute(
            t.update()
            .where(t.c.id == row.id)
            .values(spec=json.dumps(spec), revision=row.revision + 1, generation=row.generation + 1, updated_at=now)
        )
        updated = self.get(kind, name, parent)
        self._changed(updated, "put")
        told = {"op": "update", "changed": changed, **(detail or {})}
        self.audit(identity, f"{kind}s/write", _path(kind, name, parent), told)
        return updated, False

    def set_status(self, kind: str, name: str, changes: dict[str, Any], parent: str = "") -> Resource | None:
        """Merge ``changes`` into the status; nothing is written when nothing differs. None when it is gone."""
        t = schema.resource
        row = self._row(kind, name, parent)
        if row is None:
            return None
        status = json.loads(row.status)
        merged = {**status, **changes}
        if merged == status:
            return _resource(row)
        self.connection.execute(
            t.update()
            .where(t.c.id == row.id)
            .values(
                status=_plain(merged), revision=row.revision + 1,
                phase=DELETED if merged.get("deleted_at") else merged.get("phase", ""), updated_at=utcnow(),
            )
        )
        updated = self.get(kind, name, parent)
        self._changed(updated, "put")
        return updated

    def set_private(self, kind: str, name: str, private: dict[str, Any], parent: str = "") -> None:
        """Replace what of a resource never leaves the control plane."""
        t = schema.resource
        self.connection.execute(
            t.update()
            .where(t.c.kind == kind, t.c.parent == parent, t.c.name == name)
            .values(private=json.dumps(private))
        )
        self.resources = True

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
        self.resources = True
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
        items = [_audit_row(r) for r in rows[:limit]]
        return items, (items[-1]["id"] if len(rows) > limit else None)

    def history(self, resources: Collection[str], limit: int) -> list[dict[str, Any]]:
        """Audit rows of these resources, newest first; one that ends with a slash stands for all below it."""
        t = schema.audit
        wanted = [t.c.resource.startswith(r, autoescape=True) if r.endswith("/") else t.c.resource == r
                  for r in resources]
        query = sa.select(t).where(sa.or_(*wanted)).order_by(t.c.id.desc()).limit(limit)
        return [_audit_row(r) for r in self.connection.execute(query)]


def _plain(status: dict[str, Any]) -> str:
    """A status as JSON that can be stored and sent: it may tell names of files that are no UTF-8."""
    text = json.dumps(status)
    if "\\ud" in text:  # halves of characters, or whole ones that JSON writes as two
        text = json.dumps(status, ensure_ascii=False).encode("utf-8", "replace").decode()
    return text


def _audit_row(row: Any) -> dict[str, Any]:
    return {
        "id": row.id, "at": row.at, "user": row.user, "role": row.role, "action": row.action, "resource": row.resource,
        "outcome": row.outcome or "open", "detail": json.loads(row.detail),
    }


def changed_fields(kind: str, old: dict[str, Any], new: dict[str, Any]) -> set[str]:
    """Names of the fields in which two specs differ; what an older version did not know counts as its default."""
    if old == new:
        return set()
    try:
        old = KINDS[kind][0].model_validate(old).model_dump(mode="json")
    except (KeyError, ValidationError):
        pass  # of a version that knew other fields: compared as it is
    return {field for field in old.keys() | new.keys() if old.get(field) != new.get(field)}


def _path(kind: str, name: str, parent: str) -> str:
    return f"{kind}s/{parent}/{name}" if parent else f"{kind}s/{name}"
