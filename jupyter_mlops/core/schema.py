"""The tables of ``store.db``. Changed only together with a migration in ``migrations/versions``."""

from __future__ import annotations

from sqlalchemy import Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text, UniqueConstraint, text

#: The newest migration that this code knows; a database beyond it is refused.
HEAD = "0001"

metadata = MetaData()

resource = Table(
    "resource",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("parent", String(64), nullable=False, server_default=text("''")),
    Column("name", String(64), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("generation", Integer, nullable=False),
    Column("created_by", String(250), nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("updated_at", String(32), nullable=False),
    Column("phase", String(32), nullable=False),
    Column("deleting", Boolean, nullable=False, server_default=text("0")),
    Column("spec", Text, nullable=False),
    Column("status", Text, nullable=False),
    # Never leaves the control plane: hashed keys and the like.
    Column("private", Text, nullable=False, server_default=text("'{}'")),
    UniqueConstraint("kind", "parent", "name", name="uq_resource"),
)
Index("ix_resource_phase", resource.c.kind, resource.c.phase)

# AUTOINCREMENT: a sequence number is never used twice, not even after the newest rows were pruned.
change = Table(
    "change",
    metadata,
    Column("seq", Integer, primary_key=True),
    Column("kind", String(32), nullable=False),
    Column("name", String(250), nullable=False),
    Column("parent", String(64), nullable=False),
    Column("op", String(8), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("phase", String(32), nullable=False),
    Column("at", String(32), nullable=False),
    sqlite_autoincrement=True,
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("at", String(32), nullable=False),
    Column("user", String(250), nullable=False),
    Column("role", String(32), nullable=False),
    Column("action", String(64), nullable=False),
    Column("resource", String(700), nullable=False),
    Column("detail", Text, nullable=False),
    # NULL while an intent that passed to MLflow is open; else done, failed or unknown.
    Column("outcome", String(16)),
    Column("request_id", String(64)),
    Column("response_status", Integer),
    Column("response_body", Text),
    sqlite_autoincrement=True,
)
Index("ix_audit_request", audit.c.request_id, unique=True, sqlite_where=audit.c.request_id.isnot(None))
Index("ix_audit_open", audit.c.outcome, sqlite_where=audit.c.outcome.is_(None))

token = Table(
    "token",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("hash", String(64), nullable=False, unique=True),
    Column("role", String(32), nullable=False),
    Column("user", String(250), nullable=False),
    Column("job", String(64), nullable=False),
    Column("holder_pid", Integer),
    Column("holder_started", String(32)),
    # Seconds since the epoch of the last use; bounds the life of tokens whose holder cannot be seen.
    Column("last_used", Float, nullable=False),
    Column("created_at", String(32), nullable=False),
)
