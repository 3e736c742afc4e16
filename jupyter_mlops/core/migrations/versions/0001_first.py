"""The first form of the store: resources, changes, audit, tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "resource",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("parent", sa.String(64), nullable=False, server_default=sa.text("''")),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("generation", sa.Integer, nullable=False),
        sa.Column("created_by", sa.String(250), nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
        sa.Column("updated_at", sa.String(32), nullable=False),
        sa.Column("phase", sa.String(32), nullable=False),
        sa.Column("deleting", sa.Boolean, nullable=False, server_default=sa.text("0")),
        sa.Column("spec", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("private", sa.Text, nullable=False, server_default=sa.text("'{}'")),
        sa.UniqueConstraint("kind", "parent", "name", name="uq_resource"),
    )
    op.create_index("ix_resource_phase", "resource", ["kind", "phase"])
    op.create_table(
        "change",
        sa.Column("seq", sa.Integer, primary_key=True),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("name", sa.String(250), nullable=False),
        sa.Column("parent", sa.String(64), nullable=False),
        sa.Column("op", sa.String(8), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("phase", sa.String(32), nullable=False),
        sa.Column("at", sa.String(32), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("at", sa.String(32), nullable=False),
        sa.Column("user", sa.String(250), nullable=False),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("resource", sa.String(700), nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("outcome", sa.String(16)),
        sa.Column("request_id", sa.String(64)),
        sa.Column("response_status", sa.Integer),
        sa.Column("response_body", sa.Text),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_audit_request", "audit", ["request_id"], unique=True, sqlite_where=sa.text("request_id IS NOT NULL")
    )
    op.create_index("ix_audit_open", "audit", ["outcome"], sqlite_where=sa.text("outcome IS NULL"))
    op.create_table(
        "token",
        sa.Column("id", sa.String(16), primary_key=True),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("role", sa.String(32), nullable=False),
        sa.Column("user", sa.String(250), nullable=False),
        sa.Column("job", sa.String(64), nullable=False),
        sa.Column("holder_pid", sa.Integer),
        sa.Column("holder_started", sa.String(32)),
        sa.Column("last_used", sa.Float, nullable=False),
        sa.Column("created_at", sa.String(32), nullable=False),
    )
