"""A month leaves the database only when nothing that runs by itself reads it any more, whatever the calendars are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import dagster as dg
import pytest
from click.testing import CliRunner

from clawbill_pipeline.catalog import parse
from clawbill_pipeline.cli import cli
from clawbill_pipeline.definitions import defs
from clawbill_pipeline.defs import schedules
from clawbill_pipeline.ledger.archive import ArchiveError, archive_month
from clawbill_pipeline.ledger.still_read import reconciled_daily, refuse_still_read
from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline_tests.reconciliation.month import CATALOG, END, NOW, PERIOD, Month, small

OCTOBER = date(2026, 10, 1)
#: From here on only the calendar can be in the way.
SETTLED = END + timedelta(days=36)


def calendar(acme: str = "", osaka: str = "time_zone: UTC") -> str:
    """The catalogue with another calendar for these tenants."""
    return CATALOG.replace("acme: {", f"acme: {{{acme}{acme and ', '}").replace("time_zone: Asia/Tokyo", osaka)


@pytest.fixture
def month(request: pytest.FixtureRequest, ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    text = getattr(request, "param", calendar())
    (tmp_path / "catalog.yaml").write_text(text)
    month = Month.at(ledger_url, tmp_path, text)
    yield month
    month.ledger.dispose()


def refusal(month: Month, now: datetime = SETTLED) -> str:
    with month.ledger.transaction() as connection:
        try:
            refuse_still_read(connection, month.catalog, OCTOBER, now)
        except ArchiveError as error:
            return str(error)
    return ""


@pytest.mark.parametrize(
    ("month", "until"),
    [
        pytest.param(calendar(), SETTLED, id="months of UTC"),
        # 15 October to 15 November is the last period that is over until 15 December.
        pytest.param(calendar("anchor_day: 15"), datetime(2026, 12, 15, tzinfo=UTC), id="from the 15th on"),
        # November begins on 31 October in Tokyo, and is reconciled until it is no more the month before.
        pytest.param(calendar(osaka="time_zone: Asia/Tokyo"), datetime(2027, 1, 1, tzinfo=UTC), id="in Tokyo"),
        # October to December, until the next quarter is over.
        pytest.param(calendar("interval_count: 3"), datetime(2027, 4, 1, tzinfo=UTC), id="quarters"),
        pytest.param(calendar("interval: year"), datetime(2028, 1, 1, tzinfo=UTC), id="years"),
    ],
    indirect=["month"],
)
def test_a_month_stays_while_a_billing_period_that_has_hours_of_it_is_reconciled(month: Month, until: datetime) -> None:
    if until > SETTLED:
        assert "2026-10 is still read every day: it has hours of the billing periods of 202" in refusal(month)
        assert refusal(month, until - timedelta(hours=1))
    assert refusal(month, until) == ""
    # And then it may indeed: no reconciliation of that day misses it.
    archive_month(month.ledger, month.lake, OCTOBER, now=until, by="me")
    for period in reconciled_daily(month.catalog, until):
        reconcile(month.ledger, month.catalog, month.lake, period=period, now=until, run_id="test")


def test_the_months_that_are_reconciled_are_those_that_the_schedule_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    at = datetime(2027, 2, 8, 6, 30, tzinfo=UTC)
    months = dg.MonthlyPartitionsDefinition(start_date=datetime(2025, 12, 1, tzinfo=UTC), end_offset=1, fmt="%Y-%m")
    monkeypatch.setattr(schedules, "periods", months)
    for tenant in ("", "anchor_day: 15", "interval_count: 3", "interval: year", "interval: week"):
        catalog = parse(calendar(tenant))
        monkeypatch.setattr(schedules, "catalog_at_load", lambda catalog=catalog: catalog)
        with dg.build_schedule_context(scheduled_execution_time=at, repository_def=defs.get_repository_def()) as given:
            runs = schedules.daily.evaluate_tick(given).run_requests or ()
        assert {run.partition_key for run in runs} == reconciled_daily(catalog, at), tenant


def test_a_month_stays_while_a_draft_bills_hours_of_it(month: Month) -> None:
    small(month).clean()
    month.run("UPDATE invoices SET status = 'draft' WHERE invoice_id = 'in_acme'")
    assert "2026-10 is still compared with a draft, in_acme of acme" in refusal(month)
    month.run("UPDATE invoices SET status = 'paid' WHERE invoice_id = 'in_acme'")
    assert refusal(month) == ""


def test_a_month_stays_while_a_break_of_its_period_is_open(month: Month) -> None:
    small(month).clean()
    month.run("DELETE FROM invoice_lines WHERE tenant_id = 'acme'")
    reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=NOW, run_id="test")
    assert {row.hour for row in month.run("SELECT hour FROM breaks WHERE closed_at IS NULL")} == {None}
    assert "2026-10 has hours of billing periods of 2026-10, which has open breaks" in refusal(month)


@pytest.mark.parametrize("month", [calendar("interval_count: 3")], indirect=True)
def test_the_command_asks_the_catalogue(month: Month, ledger_url: str, tmp_path: Path) -> None:
    (tmp_path / "clock").write_text(SETTLED.isoformat())
    env = {
        "CLAWBILL_DATABASE_URL": ledger_url, "CLAWBILL_LAKE": str(month.lake.root),
        "CLAWBILL_CLOCK": str(tmp_path / "clock"), "CLAWBILL_CATALOG": str(tmp_path / "catalog.yaml"),
    }  # fmt: skip
    said = CliRunner().invoke(cli, ["archive", "store", "2026-10"], env=env)
    assert isinstance(said.exception, ArchiveError)
    assert month.run("SELECT * FROM archived_months") == []
