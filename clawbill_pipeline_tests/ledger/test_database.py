"""How stations reach the ledger: transactions and what they say when it is away, COPY, locks, partitions."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest
from sqlalchemy import make_url, text
from sqlalchemy.exc import IntegrityError, ProgrammingError

from clawbill_pipeline.ledger import Ledger, LedgerError, migration_state
from clawbill_pipeline.ledger.database import copy_arrow, copy_rows, lock, lock_all, lock_key, make_engine, shown
from clawbill_pipeline.ledger.tables import PARTITIONED

NOVEMBER = datetime(2026, 11, 1, tzinfo=UTC)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.dispose()


def partitions(ledger: Ledger) -> list[str]:
    with ledger.transaction() as c:
        return list(c.scalars(text("SELECT inhrelid::regclass::text FROM pg_inherits i JOIN pg_class k "
                                   "ON k.oid = i.inhrelid WHERE k.relkind = 'r' ORDER BY 1")))  # fmt: skip


def test_a_transaction_is_all_or_nothing(ledger: Ledger) -> None:
    insert = text("INSERT INTO audit_trail (at, kind, subject, detail) VALUES (now(), 'k', 's', '{}')")
    with pytest.raises(ProgrammingError), ledger.transaction() as c:
        [c.execute(statement) for statement in (insert, text("no such statement"))]
    with ledger.transaction() as c:
        assert c.scalar(text("SELECT count(*) FROM audit_trail")) == 0
        assert c.scalar(text("SHOW timezone")) == "UTC"


def test_a_database_without_a_ledger_says_what_to_run(database_url: str) -> None:
    ledger = Ledger(database_url)
    with pytest.raises(LedgerError, match="run: clawbill migrate"), ledger.transaction() as c:
        c.execute(text("SELECT * FROM metered_usage"))
    with pytest.raises(LedgerError, match="run: clawbill migrate"), ledger.transaction() as c:
        copy_rows(c, "metered_usage", ("hour",), [(NOVEMBER,)])
    with pytest.raises(LedgerError, match="run: clawbill migrate"):
        ledger.ensure_partitions([NOVEMBER])
    ledger.dispose()


def test_a_database_that_is_away_says_how_to_start_it_and_shows_no_password(ledger_url: str) -> None:
    away = make_url(ledger_url).set(host="127.0.0.1", port=1, username="u", password="hunter2", query={})
    url = away.render_as_string(hide_password=False)
    for call in (lambda: Ledger(url).ensure_partitions([NOVEMBER]), lambda: migration_state(url)):
        with pytest.raises(LedgerError, match="clawbill up") as away_error:
            call()
        assert "hunter2" not in str(away_error.value)
    assert "hunter2" not in repr(Ledger(url)) + shown(url)


@pytest.mark.parametrize(
    "url", ["", "nonsense hunter2", "postgresql://u:hunter2@host:port/db", "mysql://u:hunter2@h/d"]
)
def test_what_is_no_postgresql_url_is_refused_without_showing_it(url: str) -> None:
    with pytest.raises(LedgerError, match="postgresql://") as refused:
        make_engine(url)
    assert "hunter2" not in str(refused.value)


def test_copy_keeps_every_digit_and_every_letter(ledger: Ledger) -> None:
    rows = [
        (Decimal("99999999999999999999999999.999999999999"), "tab\t, newline\n, backslash \\N and ✓", NOVEMBER),
        (Decimal("-1E-12"), "", NOVEMBER + timedelta(microseconds=1)),
        (None, None, None),
    ]
    with ledger.transaction() as c:
        c.execute(text("CREATE TEMP TABLE held (a numeric(38, 12), b text, c timestamptz)"))
        assert copy_rows(c, "held", ("a", "b", "c"), iter(rows)) == 3
        assert [tuple(row) for row in c.execute(text("SELECT * FROM held"))] == rows
        assert copy_rows(c, "held", ("a",), []) == 0


def test_copy_of_arrow_tables_is_as_exact(ledger: Ledger) -> None:
    rows = [
        (Decimal("99999999999999999999999999.999999999999"), 'quoted "text", comma, newline\n and \\. ✓', NOVEMBER),
        (Decimal("-0.000000000001"), "", NOVEMBER + timedelta(microseconds=1)),
        (None, None, None),
    ]
    schema = pa.schema([("a", pa.decimal128(38, 12)), ("b", pa.string()), ("c", pa.timestamp("us", tz="UTC"))])
    table = pa.Table.from_pylist([dict(zip("abc", row, strict=True)) for row in rows], schema=schema)
    with ledger.transaction() as c:
        c.execute(text("CREATE TEMP TABLE held (a numeric(38, 12), b text, c timestamptz)"))
        assert copy_arrow(c, "held", table) == 3
        assert [tuple(row) for row in c.execute(text("SELECT * FROM held"))] == rows
        assert copy_arrow(c, "held", table.slice(0, 0)) == 0


def test_one_name_one_holder(ledger: Ledger) -> None:
    order: list[str] = []
    held, asked = threading.Event(), threading.Event()

    def second() -> None:
        held.wait(10)
        with ledger.transaction() as c:
            asked.set()
            lock(c, "name")
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(second)
        with ledger.transaction() as c:
            lock(c, "name")
            held.set()
            asked.wait(10)
            with ledger.transaction() as other:
                lock(other, "another name")
            order.append("first")
        waiting.result(10)
    assert order == ["first", "second"]


def test_more_names_than_postgresql_has_locks(ledger: Ledger) -> None:
    with ledger.transaction() as c:
        lock_all(c, (("period", str(number)) for number in range(50_000)))
        assert (
            c.scalar(text("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"))
            == 256
        )
        with ledger.transaction() as other:
            taken = text("SELECT pg_try_advisory_xact_lock(:key)")
            assert other.scalar(taken, {"key": lock_key("another kind", "0")})


def test_workers_that_take_many_locks_never_wait_in_a_ring(ledger: Ledger) -> None:
    def work(shift: int) -> None:
        for _ in range(20):
            with ledger.transaction() as c:
                lock_all(c, (("hour", str((number + shift) % 40)) for number in range(40)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, (0, 10, 20, 30)))


def test_partitions_are_made_once_by_many_at_once(ledger: Ledger) -> None:
    hours = [NOVEMBER + timedelta(days=15 * number) for number in range(6)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ledger.ensure_partitions(hours), range(4)))
    months = ("2026_11", "2026_12", "2027_01")
    assert partitions(ledger) == sorted(f"{table.name}_{month}" for table in PARTITIONED for month in months)
    ledger.ensure_partitions(hours)


def test_a_partition_is_made_while_others_read_and_write_the_table(ledger: Ledger) -> None:
    ledger.ensure_partitions([NOVEMBER])
    columns = ("hour", "tenant_id", "service", "dimensions", "window_start", "revision", "quantity", "events",
               "reason", "metered_at", "run_id")  # fmt: skip
    row = (NOVEMBER, "a", "s", "", NOVEMBER, 1, 1, 1, "first", NOVEMBER, "r")
    with ledger.transaction() as c:
        c.execute(text("SET LOCAL lock_timeout = '10s'"))
        copy_rows(c, "metered_usage", columns, [row])
        Ledger.ensure_partitions(ledger, [NOVEMBER + timedelta(days=40)])
        december = NOVEMBER + timedelta(days=40)
        copy_rows(c, "metered_usage", columns, [(december, "a", "s", "", december, *row[5:])])
    with ledger.transaction() as c:
        assert c.scalar(text("SELECT count(*) FROM metered_usage")) == 2
        assert c.scalar(text("SELECT count(*) FROM metered_usage_2026_12")) == 1


def test_months_end_where_the_next_begins(ledger: Ledger) -> None:
    last = datetime(2026, 12, 31, 23, tzinfo=UTC)
    ledger.ensure_partitions([last, last + timedelta(hours=1)])
    insert = text("INSERT INTO metered_usage VALUES (:h, 'a', 's', '', :h, 1, 1, 1, 'first', :h, 'r')")
    with ledger.transaction() as c:
        for hour in (last, last + timedelta(hours=1)):
            c.execute(insert, {"h": hour})
        assert c.scalar(text("SELECT count(*) FROM metered_usage_2026_12")) == 1
        assert c.scalar(text("SELECT count(*) FROM metered_usage_2027_01")) == 1
    with pytest.raises(IntegrityError, match="no partition"), ledger.transaction() as c:
        c.execute(insert, {"h": last + timedelta(days=60)})
