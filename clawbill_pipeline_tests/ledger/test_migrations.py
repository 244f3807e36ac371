"""The migrations: what they make is what tables.py says, however often and by however many they are run."""

from __future__ import annotations

import os
import subprocess
import sys

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, create_engine, text

from clawbill_pipeline.ledger import Ledger, migrate, migration_state
from clawbill_pipeline.ledger.database import make_engine
from clawbill_pipeline.ledger.tables import APPEND_ONLY, GUARDED, PARTITIONED, SCHEMA, metadata


def differences(url: str) -> list[object]:
    """What Alembic would still have to do to make the database like tables.py."""
    engine = create_engine(url)  # with PostgreSQL's own search path, so that the schema's name is seen
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "include_name": lambda name, kind, _: name == SCHEMA if kind == "schema" else True,
                "version_table_schema": SCHEMA,
                "compare_type": True,
                "compare_server_default": True,
            },
        )
        found = list(compare_metadata(context, metadata))
    engine.dispose()
    return found


def test_what_the_migrations_make_is_what_the_tables_say(ledger_url: str) -> None:
    assert differences(ledger_url) == []
    engine = make_engine(ledger_url)
    with engine.begin() as connection:
        # Alembic does not compare these.
        checks = {
            f"{table}.{name}"
            for table, name in connection.execute(
                text(
                    "SELECT conrelid::regclass, conname FROM pg_constraint "
                    "WHERE contype = 'c' AND connamespace = 'ledger'::regnamespace"
                )
            )
        }
        assert checks == {
            f"{table.name}.{constraint.name}"
            for table in metadata.tables.values()
            for constraint in table.constraints
            if isinstance(constraint, CheckConstraint)
        }
        partitioned = connection.scalars(text("SELECT partrelid::regclass::text FROM pg_partitioned_table")).all()
        assert sorted(partitioned) == sorted(table.name for table in PARTITIONED)
        connection.execute(text(f"ALTER TABLE {SCHEMA}.landings DROP COLUMN run_id"))
    engine.dispose()
    assert differences(ledger_url), "the comparison sees a difference where there is one"


def test_every_table_is_append_only_or_says_what_may_move() -> None:
    # What may change freely is listed here, so that a new table is a decision.
    free = {
        "rating_failures",
        "stripe_customers",
        "stripe_items",
        "invoices",
        "invoice_lines",
        "breaks",
        "alerts",
        "unique_values",
        "hour_recounts",
    }
    free |= {"planned_totals"}
    # What was posted is never changed, and deleted only once it was landed (usage/test_ingested.py).
    free |= {"ingest_requests", "tallies"}
    kept = {table.name for table in (*APPEND_ONLY, *GUARDED)}
    assert {table.name for table in metadata.tables.values()} - kept == free


def test_migrating_twice_changes_nothing(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    with ledger.transaction() as connection:
        connection.execute(text("INSERT INTO audit_trail (at, kind, subject, detail) VALUES (now(), 'k', 's', '{}')"))
    migrate(ledger_url)
    with ledger.transaction() as connection:
        assert connection.scalar(text("SELECT count(*) FROM audit_trail")) == 1
    ledger.dispose()
    current, newest = migration_state(ledger_url)
    assert current == newest


def test_two_processes_may_migrate_at_once(database_url: str) -> None:
    assert migration_state(database_url)[0] is None
    program = "import os; from clawbill_pipeline.ledger import migrate; migrate(os.environ['URL'])"
    started = [
        subprocess.Popen([sys.executable, "-c", program], env={**os.environ, "URL": database_url}) for _ in range(3)
    ]
    assert [process.wait(60) for process in started] == [0, 0, 0]
    current, newest = migration_state(database_url)
    assert current == newest
    assert differences(database_url) == []
