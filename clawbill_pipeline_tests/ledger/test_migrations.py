"""The migrations: what they make is what tables.py says, however often and by however many they are run."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import CheckConstraint, create_engine, text
from sqlalchemy.exc import IntegrityError

from clawbill_pipeline.ledger import Ledger, migrate, migration_state
from clawbill_pipeline.ledger.database import _alembic, make_engine
from clawbill_pipeline.ledger.tables import (
    APPEND_ONLY,
    GUARDED,
    PARTITIONED,
    SCHEMA,
    metadata,
    usage_record_trail,
    usage_witnesses,
    witnessed_usage,
)


def differences(url: str) -> list[Any]:
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


def test_what_was_noted_of_usage_records_moves_with_its_months(database_url: str) -> None:
    """From 0015: entries of the audit trail and what witnesses said, of two months; what is of no record stays."""
    command.upgrade(_alembic(database_url), "0015")
    ledger = Ledger(database_url)
    of_records = [("usage_record.created", f"2026{month}T{hour}0000Z:1:cus:m") for month, hour in _MONTHS_AND_HOURS]
    entries = [
        *of_records,
        ("usage_record.parked", "20261001T150000Z:1:cus:m"),
        ("usage_record.created", "mbur_1"),  # of a webhook
        ("usage_record.rejected", "20261001T150000Z:1:cus:m"),  # so is this
        ("close.hold", "in_1"),
    ]
    with ledger.transaction() as connection:
        for kind, subject in entries:
            connection.execute(text(_ENTRY), {"kind": kind, "subject": subject})
        for when in ("2026-09-30 23:00Z", "2026-10-01 00:00Z"):
            connection.execute(text(_SAID), {"at": when})
            connection.execute(text(_WITNESSED), {"at": when})
    migrate(database_url)
    with ledger.transaction() as connection:
        trail = connection.execute(text("SELECT hour, kind, identifier FROM usage_record_trail ORDER BY id")).all()
        assert [(row.kind, row.identifier) for row in trail] == entries[:4]
        assert {(row.hour, row.identifier[:16]) for row in trail} == {
            (datetime.strptime(name[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC), name[:16]) for _, name in entries[:4]
        }
        left = connection.execute(text("SELECT kind, subject FROM audit_trail ORDER BY id")).all()
        assert [tuple(row) for row in left] == entries[4:]
        for table in ("usage_witnesses", "witnessed_usage"):
            counts = [connection.scalar(text(f"SELECT count(*) FROM {table}_2026_{month}")) for month in ("09", "10")]
            assert counts == [1, 1]
    with pytest.raises(IntegrityError, match="append-only"), ledger.transaction() as connection:
        connection.execute(text("DELETE FROM audit_trail"))
    for table in ("usage_record_trail_2026_10", "usage_witnesses_2026_09"):
        with pytest.raises(IntegrityError, match="append-only"), ledger.transaction() as connection:
            connection.execute(text(f"TRUNCATE {table}"))
    ledger.dispose()
    partitions = [f"{table.name}_2026_{month}" for table in _MOVED for month in ("09", "10")]
    others = [found for found in differences(database_url) if getattr(found[1], "name", "") not in partitions]
    assert others == [], "made in the migration, the tables are what those of a new ledger are"


_MOVED = (usage_record_trail, usage_witnesses, witnessed_usage)
_MONTHS_AND_HOURS = (("0930", "23"), ("1001", "00"), ("1001", "15"))
_ENTRY = "INSERT INTO audit_trail (at, kind, tenant_id, subject, detail) VALUES (now(), :kind, 'acme', :subject, '{}')"
_SAID = (
    "INSERT INTO usage_witnesses (source, uri, tenant_id, service, starts, ends, quantity, said_at, read_at)"
    " VALUES ('fleet', 'u', 'acme', 'tokens', CAST(:at AS timestamptz), now(), 1, now(), now())"
)
_WITNESSED = (
    "INSERT INTO witnessed_usage VALUES"
    " (CAST(:at AS timestamptz), 'fleet', 'acme', 'tokens', 1, 1, 1, 0, 0, 0, 0, now(), 'r')"
)
