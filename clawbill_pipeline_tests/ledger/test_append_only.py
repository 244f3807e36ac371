"""History never changes: the database itself refuses it, whoever asks."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Boolean, Date, DateTime, Integer, Numeric, Table, Text, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.exc import IntegrityError

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import APPEND_ONLY, GUARDED, PARTITIONED
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database

HOUR = datetime(2026, 11, 22, 10, tzinfo=UTC)
#: Where a value of the column's type alone would break a constraint.
VALID: dict[str, dict[str, Any]] = {
    "archived_months": {"action": "archived"},
    "landings": {"lines": 1, "event_lines": 1, "quarantined": 0},
    "metered_usage": {"reason": "first"},
    "rated_usage": {"reason": "first", "basis": "hourly"},
    "stripe_events": {"via": "webhook"},
    "stripe_events_handled": {"outcome": "applied"},
    "usage_records": {"state": "planned"},
    "tenant_standing": {"standing": "current"},
}
GIVEN = {Text: "x", DateTime: HOUR, Date: HOUR.date(), Boolean: False, Numeric: 1, Integer: 1, JSONB: "{}", ARRAY: "{}"}


def row(table: Table) -> dict[str, Any]:
    """A valid row, made from the columns' types."""
    values: dict[str, Any] = {}
    for column in table.columns:
        if column.identity is None and not column.nullable:
            kind = next(kind for kind in GIVEN if isinstance(column.type, kind))
            values[column.name] = GIVEN[kind]
    return values | VALID.get(table.name, {})


def add(ledger: Ledger, table: Table) -> None:
    """A row of ``table``, after rows of the tables that it refers to."""
    for key in table.foreign_keys:
        add(ledger, key.column.table)
    values = row(table)
    names, given = ", ".join(values), ", ".join(f":{name}" for name in values)
    with ledger.transaction() as connection:
        statement = f"INSERT INTO {table.name} ({names}) VALUES ({given}) ON CONFLICT DO NOTHING"
        connection.execute(text(statement), values)


@pytest.fixture(scope="module")
def ledger(postgres_server: AnyServer, ledger_template: str) -> Iterator[Ledger]:
    """One database for all: no test here can change a row of it."""
    with fresh_database(postgres_server, template=ledger_template) as name:
        ledger = Ledger(postgres_server.url(name))
        ledger.ensure_partitions([HOUR])
        yield ledger
        ledger.dispose()


@pytest.mark.parametrize("table", APPEND_ONLY, ids=lambda table: table.name)
def test_rows_of_history_never_change(ledger: Ledger, table: Table) -> None:
    add(ledger, table)
    column = next(c.name for c in table.columns if c.identity is None and isinstance(c.type, Text | DateTime))
    changed = "now()" if isinstance(table.c[column].type, DateTime) else "'changed'"
    for statement in (f"UPDATE {table.name} SET {column} = {changed}", f"DELETE FROM {table.name}"):
        with pytest.raises(IntegrityError, match=r"append-only.*write a new revision"), ledger.transaction() as c:
            c.execute(text(statement))
    with pytest.raises(IntegrityError, match="append-only"), ledger.transaction() as c:
        c.execute(text(f"TRUNCATE {table.name} CASCADE"))
    with ledger.transaction() as c:
        assert c.scalar(text(f"SELECT count(*) FROM {table.name}"))


def test_partitions_are_as_closed_as_their_table(ledger: Ledger) -> None:
    for table in APPEND_ONLY:
        if table in PARTITIONED:
            add(ledger, table)
            for statement in ("UPDATE {} SET tenant_id = 'changed'", "DELETE FROM {}", "TRUNCATE {}"):
                with pytest.raises(IntegrityError, match="append-only"), ledger.transaction() as c:
                    c.execute(text(statement.format(f"{table.name}_2026_11")))


@pytest.mark.parametrize("table", GUARDED, ids=lambda table: table.name)
def test_of_a_guarded_row_only_the_named_columns_move(ledger: Ledger, table: Table) -> None:
    add(ledger, table)
    moves = GUARDED[table]
    other = {"state": "sending", "attempts": 2, "answer": "{}"}
    for column in table.columns:
        kind = next(kind for kind in GIVEN if isinstance(column.type, kind))
        changed = {Text: "'changed'", DateTime: "now()", JSONB: """'{"a": 1}'""", ARRAY: "'{changed}'"}.get(kind, "2")
        if column.name in moves:
            with ledger.transaction() as c:
                value = f"'{other[column.name]}'" if column.name in other else changed
                assert c.execute(text(f"UPDATE {table.name} SET {column.name} = {value}")).rowcount
        elif column.identity is None and column.name != "hour":
            with pytest.raises(IntegrityError, match="append-only"), ledger.transaction() as c:
                c.execute(text(f"UPDATE {table.name} SET {column.name} = {changed}"))
    with pytest.raises(IntegrityError, match="append-only"), ledger.transaction() as c:
        c.execute(text(f"DELETE FROM {table.name}"))


@pytest.mark.parametrize(
    ("table", "wrong"),
    [
        ("metered_usage", {"reason": "because"}),
        ("metered_usage", {"revision": 0}),
        ("metered_usage", {"window_start": HOUR.replace(hour=11)}),
        ("rated_usage", {"basis": "guess"}),
        ("rated_usage", {"metered_revision": 0}),
        ("landings", {"lines": 3}),
        ("usage_records", {"state": "lost"}),
        ("usage_records", {"state": "delivered"}),  # without settled_at
        ("usage_records", {"identifier": "x" * 101}),
        ("tenant_standing", {"standing": "gone"}),
        ("stripe_events", {"via": "mail"}),
    ],
)
def test_constraints_refuse_what_cannot_be(ledger: Ledger, table: str, wrong: dict[str, Any]) -> None:
    known = next(t for t in (*APPEND_ONLY, *GUARDED) if t.name == table)
    values = row(known) | wrong
    names, given = ", ".join(values), ", ".join(f":{name}" for name in values)
    with pytest.raises(IntegrityError), ledger.transaction() as c:
        c.execute(text(f"INSERT INTO {table} ({names}) VALUES ({given})"), values)
