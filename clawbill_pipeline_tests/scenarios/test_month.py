"""A month of hourly billing by Dagster's real schedules and sensors, and what is left of it: right bills, nothing
unexplained, and hours that cost at the end what they cost at the beginning. How it is played is in ``month``.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from sqlalchemy import text

from clawbill_pipeline.capacity import MAPS_BYTES, Load, constants, predict
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database
from clawbill_pipeline_tests.scenarios import month_bill
from clawbill_pipeline_tests.scenarios.command import environment, processes_of
from clawbill_pipeline_tests.scenarios.month import STORIES
from clawbill_pipeline_tests.scenarios.month_usage import HOUR, TENANTS, Story

#: An hour's own run comes so long after its beginning.
RUN_AFTER = HOUR + timedelta(minutes=10)


@dataclass
class Over:
    """A month that is over: its story, its folder, its ledger, and what was counted."""

    story: Story
    state: Path
    ledger: Ledger
    played: dict[str, Any]

    def __post_init__(self) -> None:
        self.written = month_bill.read(self.story, [self.state / "usage", self.state / "rotated"])

    def rows(self, query: str, **values: object) -> list[Any]:
        with self.ledger.transaction() as connection:
            return list(connection.execute(text(query), values))

    def one(self, query: str, **values: object) -> Any:
        (row,) = self.rows(query, **values)
        return row[0]

    def ordinary_hours(self) -> list[dict[str, Any]]:
        """What hours took in which no invoice was a draft, no service down, and nobody's report due."""
        ends = [end for tenant in TENANTS for end in self.story.ends(tenant)]
        away = [(outage.start - HOUR, outage.end + HOUR) for outage in (*self.story.webhooks, *self.story.openclaw)]
        away += [(end, end + 3 * HOUR) for end in ends]
        at = {name: datetime.fromisoformat(f"{name}:10:00+00:00") for name in self.played["hours"]}
        return [
            hour
            for name, hour in self.played["hours"].items()
            if at[name] - self.story.start > HOUR and not any(start < at[name] < end for start, end in away)
        ]


WHOLE = pytest.param("june", marks=[pytest.mark.slow, pytest.mark.timeout(7200)])


@pytest.fixture(scope="module", params=["last-hours", WHOLE])
def over(
    request: pytest.FixtureRequest, postgres_server: AnyServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Over]:
    """Once a story; everything in it is over when the tests look at it."""
    state = tmp_path_factory.mktemp("month") / "state"
    with fresh_database(postgres_server) as name:
        url = postgres_server.url(name)
        command = [sys.executable, "-m", "clawbill_pipeline_tests.scenarios.month", "--story", request.param]
        done = subprocess.run(
            [*command, "--state", str(state), "--database", url], env=environment(), capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-5000:]
        assert processes_of(state) == []
        ledger = Ledger(url)
        yield Over(STORIES[request.param](), state, ledger, json.loads((state / "month.json").read_text()))
        ledger.dispose()


def test_every_run_succeeded_and_every_hour_has_its_own(over: Over) -> None:
    runs = over.played["runs"]
    assert {job: list(ends) for job, ends in runs.items()} == {job: ["SUCCESS"] for job in runs}
    hours = int((over.story.over - over.story.start) / HOUR)
    assert runs["hourly_billing"]["SUCCESS"] == hours
    days = 1 + (over.story.over.date() - over.story.start.date()).days
    assert runs["day_report"]["SUCCESS"] >= days - 1
    assert runs["reconciliation"]["SUCCESS"] >= 2 * (days - 1)
    assert runs["late_billing"]["SUCCESS"] > 0
    metered = {row.hour for row in over.rows("SELECT DISTINCT hour FROM metered_hours")}
    assert metered >= {over.story.start + number * HOUR for number in range(hours)}


def test_every_line_is_an_event_a_duplicate_or_in_quarantine(over: Over) -> None:
    written, played = over.written, over.played
    assert (written.lines, written.bad, written.again) == (played["lines"], played["bad"], played["again"])
    assert played["late"] > 0
    assert over.one("SELECT sum(lines) FROM landings") == written.lines
    aside = over.rows("SELECT reason, place, detail FROM quarantine")
    assert len(aside) == written.bad > 0
    assert all(row.reason and row.place.startswith("line ") and row.detail for row in aside)
    newest = "SELECT DISTINCT ON (hour) * FROM metered_hours ORDER BY hour, landings DESC"
    (counted,) = over.rows(f"SELECT sum(events) AS events, sum(duplicates) AS again FROM ({newest}) h")
    assert (counted.events, counted.again) == (written.lines - written.bad, written.again)


def test_every_invoice_line_is_what_the_log_files_say(over: Over) -> None:
    billed: dict[tuple[str, datetime], dict[str, Decimal]] = {}
    for row in over.rows(
        "SELECT l.tenant_id, l.service, l.amount, l.period_end, i.status FROM invoice_lines l"
        " JOIN invoices i USING (invoice_id) WHERE l.service IS NOT NULL AND i.status <> 'void'"
    ):
        assert row.status == "paid"
        of = billed.setdefault((row.tenant_id, row.period_end), {})
        assert row.service not in of, "a service is billed twice"
        of[row.service] = row.amount
    expected = {
        (tenant, end): month_bill.lines(tenant, used, whole=over.story.is_whole(tenant, end))
        for (tenant, end), used in over.written.used.items()
        if end
    }
    assert billed == expected
    assert any(lines["support"] == 25 for lines in billed.values()), "a minimum is billed"
    totals = {
        (row.tenant_id, row.total)
        for row in over.rows("SELECT tenant_id, total FROM invoices WHERE status = 'paid' AND total > 0")
    }
    assert totals == {(tenant, total) for (tenant, _), lines in expected.items() if (total := sum(lines.values()))}


def test_every_amount_of_an_open_period_is_what_the_log_files_say(over: Over) -> None:
    rated: dict[tuple[str, str], Decimal] = {}
    for row in over.rows(
        """SELECT tenant_id, service, period_start, sum(amount) AS amount FROM (
             SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) * FROM rated_usage
             ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC) r
           GROUP BY 1, 2, 3"""
    ):
        ends = over.story.ends(row.tenant_id)
        if not ends or row.period_start >= ends[-1]:
            rated[row.tenant_id, row.service] = row.amount
    for tenant in TENANTS:
        owed = month_bill.owed(tenant, over.written.used[tenant, None])
        for service, amount in owed.items():
            assert rated.get((tenant, service), 0) == amount, (tenant, service)


def test_nothing_is_left_unexplained(over: Over) -> None:
    open_breaks = over.rows("SELECT tenant_id, cause, detail FROM breaks WHERE closed_at IS NULL")
    assert [row for row in open_breaks if row.cause != "quarantined"] == []
    assert over.rows("SELECT * FROM breaks WHERE cause = 'unexplained'") == []
    assert over.rows("SELECT * FROM rating_failures") == []
    unsettled = "SELECT identifier FROM usage_records WHERE state <> 'delivered' OR parked IS NOT NULL"
    assert {row.identifier for row in over.rows(unsettled)} <= set(over.played["taken_back"])
    assert over.rows("SELECT * FROM invoices WHERE status NOT IN ('paid', 'void')") == []


def test_what_was_taken_back_at_stripe_is_put_right_once(over: Over) -> None:
    small, large = over.played["taken_back"]
    lost = over.rows("SELECT id, amount, closed_at FROM breaks WHERE cause = 'lost_after_acknowledgement' ORDER BY id")
    assert len(lost) == 2
    assert all(row.closed_at is not None for row in lost)
    trail = over.rows(
        "SELECT kind, subject, detail ->> 'by' AS by FROM audit_trail WHERE kind LIKE 'correction.%'"
        " AND subject = ANY(:breaks) ORDER BY id",
        breaks=[f"break {row.id}" for row in lost],
    )
    kinds = [row.kind.removeprefix("correction.") for row in trail]
    assert sorted(kinds) == ["approved", "begun", "begun", "done", "done", "proved", "proved"]
    (approved,) = [row for row in trail if row.kind == "correction.approved"]
    assert (approved.subject, approved.by) == (f"break {max(lost, key=lambda row: abs(row.amount)).id}", "ann")
    again = over.rows("SELECT state FROM usage_records WHERE identifier = ANY(:ids)", ids=[small, large])
    assert [row.state for row in again] == ["rejected", "rejected"], "the newer revisions count instead"


def test_what_failed_meanwhile_was_made_up_for(over: Over) -> None:
    for outage in over.story.webhooks:
        heard = over.rows(
            "SELECT via FROM stripe_events WHERE created > :start AND created < :end",
            start=outage.start,
            end=outage.end - HOUR,
        )
        assert heard
        assert {row.via for row in heard} == {"sweep"}
    for outage in over.story.openclaw:
        late = over.rows(
            "SELECT rated_at FROM rated_usage WHERE hour >= :start AND hour < :end AND reason = 'first'",
            start=outage.start - RUN_AFTER, end=outage.end - RUN_AFTER,
        )  # fmt: skip
        assert late
        assert all(row.rated_at >= outage.end for row in late)


def test_the_close_went_by_the_book(over: Over) -> None:
    decided = over.rows(
        "SELECT kind, tenant_id, detail ->> 'by' AS by FROM audit_trail WHERE kind IN ('close.hold', 'close.release')"
        " ORDER BY id"
    )
    assert [(row.kind, row.tenant_id) for row in decided] == [("close.hold", "hooli"), ("close.release", "hooli")]
    assert all(row.by.endswith("(clawbill)") for row in decided)
    drafts = over.one("SELECT count(DISTINCT subject) FROM audit_trail WHERE kind = 'close.compared'")
    assert drafts >= sum(len(over.story.ends(tenant)) for tenant in TENANTS) - 1, "each draft was compared"
    # Whoever gets alerts heard of what was open, and of its end.
    told = " ".join(over.played["told"])
    assert re.search(r"Breaks of 2026-0\d: 2", told)
    assert "resolved: Held invoices: 1" in told


def middle(measured: list[dict[str, Any]], name: str, table: str = "") -> float:
    """The median of what is called ``name``, of one ``table`` where it is told by the table."""
    return median(float(each[name].get(table, 0) if table else each[name]) for each in measured)


def test_the_last_hours_take_what_the_first_ones_took(over: Over) -> None:
    """Counted, not timed. The first two days fill the windows that hours look back over."""
    ordinary, days = over.ordinary_hours(), list(over.played["days"].values())
    if len(days) < 10:
        hours = list(over.played["hours"].values())
        assert hours[-1]["statements"] <= 1.25 * hours[3]["statements"]
        return
    first, last = ordinary[48:96], ordinary[-48:]
    assert middle(last, "statements") <= 1.1 * middle(first, "statements")
    for name in (
        "metered_usage",
        "rated_usage",
        "usage_records",
        "usage_record_trail",
        "planned_totals",
        "landed_hours",
    ):
        assert middle(last, "rows_read", name) <= 1.5 * middle(first, "rows_read", name) + 100, name
    for memory in ("memory", "web_memory"):
        assert middle(days[-4:-1], memory) <= 1.25 * middle(days[1:4], memory), memory


def test_tables_and_lake_are_as_large_as_predicted(over: Over) -> None:
    days = list(over.played["days"].values())
    if len(days) < 10:
        pytest.skip("how tables grow shows in a month; in a few hours there is a page of each")
    hours = 24 * len(days)
    events = (over.written.lines - over.written.bad - over.written.again) // hours
    predicted = predict(Load(events_per_hour=events, tenants=len(TENANTS) - 1, services=6, hours=hours))
    for name in ("metered_usage", "rated_usage", "usage_records", "usage_record_trail"):
        rows, size = days[-1]["tables"][name]
        assert rows == pytest.approx(predicted.tables[name].rows, rel=0.3), name
        assert size == pytest.approx(rows * constants().row_bytes[name] + MAPS_BYTES, rel=0.35), name
        # As much every day: what is there after ten days says what will be there in the end.
        assert rows == pytest.approx(days[9]["tables"][name][0] * len(days) / 10, rel=0.1), name
    # Files of an hour's hundred events have more of their own beside the events than the model knows of.
    assert days[-1]["lake_bytes"] == pytest.approx(sum(size.bytes for size in predicted.lake.values()), rel=0.15)
    assert days[-1]["lake_bytes"] == pytest.approx(days[9]["lake_bytes"] * len(days) / 10, rel=0.1)
    runs = sum(count for ends in over.played["runs"].values() for count in ends.values())
    dagster = sum(size for _, size in days[-1]["dagster"].values())
    assert dagster <= 1.1 * runs * constants().run_bytes
