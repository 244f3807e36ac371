"""Alembic's entry point: one connection, one lock, the ledger's schema. Revisions are in versions/."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text

from clawbill_pipeline.ledger.database import lock_key, make_engine
from clawbill_pipeline.ledger.tables import SCHEMA, metadata

engine = make_engine(context.config.attributes["url"])
with engine.connect() as connection:
    # Held by the session, so that the revisions' own transactions may end without giving it away.
    connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": lock_key("migrations")})
    connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}"))
    connection.commit()
    context.configure(connection=connection, target_metadata=metadata, version_table_schema=SCHEMA)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
engine.dispose()
