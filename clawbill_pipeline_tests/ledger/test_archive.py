"""A month moves into the lake and back without losing a digit; explainable all the while, and never half."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import text

from clawbill_pipeline.cli import cli
from clawbill_pipeline.delivery.operations import NotFound, show
from clawbill_pipeline.ledger import LedgerError, archive
from clawbill_pipeline.ledger.archive import (
    ArchiveError,
    archive_month,
    archived,
    archived_of,
    looking_into,
    restore_month,
)
from clawbill_pipeline.ledger.tables import PARTITIONED
from clawbill_pipeline.ledger.waterfall import waterfall
from clawbill_pipeline.reconciliation.lineage import explain
from clawbill_pipeline.usage.witnesses import Said, keep
from clawbill_pipeline_tests.reconciliation.month import END, PERIOD, START, Month, small

OCTOBER = date(2026, 10, 1)
LATER = END + timedelta(days=36)


@pytest.fixture
def month(ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    month = small(Month.at(ledger_url, tmp_path))
    month.clean()
    # What a text format could lose: digits, a text that is empty or strange, a JSON value, a microsecond.
    month.run(
        "INSERT INTO metered_usage (hour, tenant_id, service, dimensions, window_start, revision, quantity, events,"
        " reason, metered_at, run_id) VALUES (:h, :t, 'tokens', '', :h, 1, :q, 1, 'first', :at, '')",
        h=START + timedelta(hours=9), t='quo"te,\n\\N', q=Decimal("12345678901234567890123456.123456789012"),
        at=datetime(2026, 10, 1, 10, 0, 0, 1, tzinfo=UTC),
    )  # fmt: skip
    month.run(
        "INSERT INTO usage_record_trail (hour, identifier, at, kind, tenant_id, detail)"
        " SELECT hour, identifier, settled_at, 'usage_record.created', tenant_id,"
        """ '{"run_id": "r", "why": "a \\"quote\\",\\n"}' FROM usage_records"""
    )
    month.run(
        "INSERT INTO witnessed_usage SELECT hour, 'fleet', tenant_id, service, 1, quantity, NULL, 0, 0, 0, 0,"
        " metered_at, run_id FROM metered_usage"
    )
    month.run(
        "INSERT INTO usage_witnesses (source, uri, tenant_id, service, starts, ends, quantity, cost, said_at, read_at)"
        " SELECT source, 'answer.json', tenant_id, service, hour, hour + interval '1 hour', quantity, cost, metered_at,"
        " metered_at FROM witnessed_usage"
    )
    yield month
    month.ledger.dispose()


def everything(month: Month) -> dict[str, list[str]]:
    return {
        table.name: sorted(row.line for row in month.run(f"SELECT t::text AS line FROM {table.name} t"))
        for table in PARTITIONED
    }


def store(month: Month, now: datetime = LATER) -> list[str]:
    return [each.table for each in archive_month(month.ledger, month.lake, OCTOBER, now=now, by="me")]


def test_a_month_comes_back_as_it_was(month: Month):
    before = everything(month)
    assert all(before.values())
    assert store(month) == [table.name for table in PARTITIONED]
    assert not any(everything(month).values())
    assert store(month) == []
    back = restore_month(month.ledger, month.lake, OCTOBER, now=LATER, by="me")
    assert [each.rows for each in back] == [len(before[each.table]) for each in back]
    assert everything(month) == before
    assert store(month) == [table.name for table in PARTITIONED], "and it may leave again"


def test_an_invoice_line_of_an_archived_month_is_explained_as_before(month: Month):
    def told():
        return explain(month.ledger, month.lake, month.catalog, "il_acme_tokens")

    before = told()
    assert all(check.passed for check in before.checks)
    store(month)
    assert told() == before
    assert not any(everything(month).values()), "looking changes nothing"
    with looking_into(month.ledger, month.lake, START, END, ["acme"]) as connection:
        tenants = connection.scalars(text("SELECT DISTINCT tenant_id FROM metered_usage")).all()
    assert tenants == ["acme"]


def test_the_commands(month: Month, ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CLAWBILL_DATABASE_URL", ledger_url)
    monkeypatch.setenv("CLAWBILL_LAKE", str(month.lake.root))
    (tmp_path / "clock").write_text(LATER.isoformat())
    monkeypatch.setenv("CLAWBILL_CLOCK", str(tmp_path / "clock"))

    def clawbill(*words: str) -> str:
        return CliRunner().invoke(cli, ["archive", *words], catch_exceptions=False).output

    assert "archive/rated_usage/2026-10.parquet" in clawbill("store", "2026-10")
    assert clawbill("store", "2026-10") == "2026-10 is archived already.\n"
    assert len(clawbill("list").splitlines()) == 2 + len(PARTITIONED)
    assert "usage_records" in clawbill("restore", "2026-10")
    assert all(everything(month).values())
    assert "is no month; write it as 2026-01" in clawbill("store", "october")


def test_what_is_asked_or_said_of_an_archived_month_is_answered_clearly(month: Month):
    identifier = f"{START:%Y%m%dT%H%M%SZ}:1:cus_1:tokens"
    with pytest.raises(NotFound, match="no usage record"):
        show(month.ledger, identifier)
    store(month)
    with pytest.raises(ArchiveError, match="clawbill archive restore 2026-10"):
        show(month.ledger, identifier)
    said = [Said("answer.json", "acme", "tokens", at, at + timedelta(hours=1), Decimal(5), None, LATER)
            for at in (START - timedelta(hours=1), START)]  # fmt: skip
    assert keep(month.ledger, "fleet", said, LATER) == 1, "that of the month that is still there"
    assert len(everything(month)["usage_witnesses"]) == 1


def test_sums_over_an_archived_month_are_refused_and_so_are_new_rows(month: Month):
    with month.ledger.transaction() as connection:
        assert waterfall(connection, month.catalog, PERIOD)
    store(month)
    with (
        month.ledger.transaction() as connection,
        pytest.raises(ArchiveError, match="clawbill archive restore 2026-10"),
    ):
        waterfall(connection, month.catalog, PERIOD)
    with pytest.raises(LedgerError, match="2026-10 is archived and takes no more rows"):
        month.ledger.ensure_partitions([START])


def test_a_month_that_may_still_change_stays(month: Month):
    with pytest.raises(ArchiveError, match="usage is taken until 35 days after its end, 2026-12-06"):
        store(month, END + timedelta(days=34))
    month.run("UPDATE usage_records SET state = 'unknown' WHERE ctid = (SELECT ctid FROM usage_records LIMIT 1)")
    with pytest.raises(ArchiveError, match="1 usage records on their way"):
        store(month)
    assert all(everything(month).values())


def test_a_month_that_is_being_read_is_told_and_stays(month: Month, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(archive, "PATIENCE", "200ms")
    with month.ledger.transaction() as reading:
        assert archived_of(reading, START, END) == ()
        with pytest.raises(ArchiveError, match="metered_usage is being read just now, for longer than 200ms"):
            store(month)
    assert all(everything(month).values())
    assert store(month) == [table.name for table in PARTITIONED]


def test_a_damaged_file_is_told_and_nothing_is_put_back(month: Month):
    store(month)
    with month.ledger.transaction() as connection:
        file = month.lake.path(archived(connection)[0].file)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ArchiveError, match=r"metered_usage/2026-10.parquet of 2026-10 can't be read"):
        restore_month(month.ledger, month.lake, OCTOBER, now=LATER, by="me")
    with pytest.raises(ArchiveError, match="can't be read"):
        explain(month.ledger, month.lake, month.catalog, "il_acme_tokens")
    assert not any(everything(month).values())
