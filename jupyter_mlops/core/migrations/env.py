"""Alembic's entry: runs on the connection that the store hands over, inside the store's own transaction."""

from alembic import context

from jupyter_mlops.core.schema import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
