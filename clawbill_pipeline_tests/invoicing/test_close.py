"""The close against the stand-in: hold, correct, compare again, release; a person's word; crashes; the overview."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.catalog.closing import Closing
from clawbill_pipeline.invoicing.adjustments import propose_adjustments
from clawbill_pipeline.invoicing.booked import trial_end
from clawbill_pipeline.invoicing.close import NotADraft, close_drafts, close_status, hold, release
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline_tests.invoicing.conftest import CATALOG
from clawbill_pipeline_tests.invoicing.month import UNITS, Month
from clawbill_pipeline_tests.sandbox.stripe.server import START, Sandbox

FROM = datetime.fromtimestamp(START, UTC)


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return parse(CATALOG.replace("2026-10-01", "2026-03-01"))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    running = Sandbox(tmp_path_factory.mktemp("stripe") / "state")
    yield running
    running.stop()


@pytest.fixture
def month(sandbox: Sandbox, ledger: Ledger, catalog: Catalog) -> Month:
    return Month(sandbox, ledger, catalog)


def test_a_draft_that_agrees_goes_out_untouched(month: Month) -> None:
    month.book()
    for _ in range(2):
        result = month.close()
        assert (result.released, result.held, result.waiting, result.problems) == (1, 0, 0, ())
        assert all(check.passed for check in result.checks)
    assert month.trail() == ["close.compared"]
    assert month.finalized() == "paid"


def test_a_wrong_draft_is_held_corrected_compared_again_and_released(month: Month) -> None:
    month.book(UNITS + 1_000_000)
    result = month.close()
    assert (result.held, result.checks[0].passed) == (1, False)
    assert [each.cause for each in result.comparisons[0].differences] == ["lost_after_acknowledgement"]
    assert month.breaks() == [("requests", "lost_after_acknowledgement", "-1", True)]
    assert month.invoice.auto_advance is False
    assert month.trail() == ["close.compared", "close.hold", "close.done"]
    assert month.finalized() == "draft", "held beyond Stripe's grace"

    month.read()
    again = month.close()
    assert (again.held, again.breaks_opened, again.breaks_closed) == (1, 0, 0)
    month.book(UNITS, revision=2)
    result = month.close()
    assert (result.released, result.problems, result.breaks_closed) == (1, (), 1)
    assert month.breaks() == [("requests", "lost_after_acknowledgement", "-1", False)]
    assert month.invoice.auto_advance is True
    assert month.trail() == [
        "close.compared",
        "close.hold",
        "close.done",
        "close.compared",
        "close.release",
        "close.done",
    ]
    assert month.finalized() == "paid"


def test_usage_under_way_is_waited_for_until_time_is_up(month: Month) -> None:
    month.book(state="planned")
    assert month.close().waiting == 1
    month.sandbox.move_to(month.sandbox.now() + 51 * 60)
    assert month.close(Closing(on_undecided="finalize")).released == 1
    assert month.invoice.auto_advance is True
    assert month.close(Closing(on_undecided="hold")).held == 1
    assert month.invoice.auto_advance is False


def test_hours_that_were_not_metered_are_waited_for(month: Month) -> None:
    month.book(metered=False)
    (found,) = month.close().comparisons
    assert [(each.cause, each.detail) for each in found.differences] == [("not_metered", "744 hours or records")]


def test_what_a_person_held_stays_held(month: Month) -> None:
    month.book()
    invoice_id = month.invoice.id
    assert hold(month.ledger, month.api, invoice_id, why="a call from globex", by="ada", now=month.now) == ()
    assert month.close().held == 1
    assert month.finalized() == "draft"
    month.read()
    assert release(month.ledger, month.api, invoice_id, why="all is well", by="ada", now=month.now) == ()
    assert month.finalized() == "paid"
    month.read()
    with pytest.raises(NotADraft, match="is paid"):
        hold(month.ledger, month.api, invoice_id, why="too late", by="ada", now=month.now)
    with pytest.raises(NotADraft, match="not in the ledger"):
        release(month.ledger, month.api, "in_x", why="", by="ada", now=month.now)


def test_what_a_person_released_goes_out_whatever_the_comparison_says(month: Month) -> None:
    month.book(1)
    assert month.close().held == 1
    assert [is_open for *_, is_open in month.breaks()] == [True]
    assert release(month.ledger, month.api, month.invoice.id, why="known", by="ada", now=month.now) == ()
    assert (month.close().released, month.invoice.auto_advance) == (1, True)
    assert [is_open for *_, is_open in month.breaks()] == [False], "a person took it as it is"


def test_a_decision_that_did_not_reach_stripe_is_carried_out_next_time(month: Month) -> None:
    month.book(1)
    fault = {"kind": "drop", "when": "before", "method": "POST", "path": "/v1/invoices/*", "count": 1}
    assert month.sandbox.control.post("/_sandbox/faults", json=fault).status_code == 200
    result = month.close()
    assert (result.held, len(result.problems), result.checks[1].passed) == (1, 1, False)
    assert month.trail() == ["close.compared", "close.hold"]
    assert month.close().problems == ()
    assert month.invoice.auto_advance is False
    assert month.trail() == ["close.compared", "close.hold", "close.done"]


def test_a_draft_is_behind_until_stripe_counts_again_and_its_meter_says_so(month: Month) -> None:
    """What was delivered after the draft was made is on no line yet; the meter has it, so the invoice will."""
    month.account.use(month.customer, 500_000, month.sandbox.now() - 60)
    month.book(UNITS + 500_000)
    away = replace(month.api, base="http://127.0.0.1:9", timeout=1)
    unread = close_drafts(month.ledger, month.catalog, away, Closing(), now=month.now, run_id="run_1")
    assert (unread.waiting, unread.held) == (1, 0), "nobody is held because Stripe did not answer"
    assert [each.cause for each in unread.comparisons[0].differences] == ["pending"]
    result = month.close()
    assert (result.released, result.comparisons[0].differences) == (1, ())
    (summary,) = month.inbox.rows("usage_summaries")
    assert (summary.units, summary.period_start, summary.hour) == (UNITS + 500_000, month.start, None)
    assert month.finalized() == "paid"
    assert month.invoice.total == 1284


def test_the_overview_shows_every_open_period(month: Month) -> None:
    month.book()
    month.close()
    old, running = close_status(month.ledger, month.catalog, now=month.now)
    assert (old.tenant_id, old.start, old.hours, old.metered) == ("globex", month.start, 744, 744)
    assert (old.delivered, old.confirmed, old.compared, old.decision) == (True, False, "agrees", None)
    assert old.finalizes_at == old.end + timedelta(hours=1)
    hours = (running.end - old.end) // timedelta(hours=1)
    assert (running.start, running.invoice_id, running.metered, running.hours) == (old.end, None, 0, hours)
    assert close_status(month.ledger, month.catalog, now=month.now, tenant_id="nobody") == []


def test_peers_09_usage_after_the_invoice_is_proposed_as_an_adjustment_of_its_period(month: Month) -> None:
    """An event that is late by periods is never dropped in silence (killbill#876)."""
    month.book()
    assert month.finalized() == "paid"
    month.read()
    assert propose_adjustments(month.ledger, month.catalog, now=month.now, run_id="run_1").checks[0].passed

    month.book(UNITS + 2_500_000, revision=2, planned_at=month.now)
    result = propose_adjustments(month.ledger, month.catalog, now=month.now, run_id="run_2")
    (late,) = result.adjustments
    assert (late.tenant_id, late.service, late.units, late.amount) == ("globex", "requests", 2_500_000, Decimal("2.5"))
    assert (late.period_start, late.currency, result.written, result.checks[0].passed) == (month.start, "USD", 1, False)
    assert propose_adjustments(month.ledger, month.catalog, now=month.now, run_id="run_3").written == 0

    month.book(UNITS, revision=3, planned_at=month.now)
    result = propose_adjustments(month.ledger, month.catalog, now=month.now, run_id="run_4")
    assert (result.adjustments, result.written, result.checks[0].passed) == ((), 1, True)
    kept = [row.detail["amount"] for row in month.inbox.rows("audit_trail", "id") if row.kind == "adjustment.proposed"]
    assert kept == ["2.5", "0"]


class Stood:
    def __init__(self, standing: str, day: int) -> None:
        self.standing, self.since = standing, FROM + timedelta(days=day)


@pytest.mark.parametrize(
    ("history", "ended"),
    [
        ([], 0),
        ([("current", -5)], 0),
        ([("trialing", -5), ("current", 10)], 10),
        ([("trialing", -5), ("current", -1), ("past_due", 10)], 0),
        ([("trialing", 0)], 30),
        ([("trialing", 0), ("cancelled", 40)], 30),
        ([("current", -5), ("trialing", 3), ("current", 10)], 0),
    ],
)
def test_usage_of_a_trial_is_free(history: list[tuple[str, int]], ended: int) -> None:
    rows: Any = [Stood(*entry) for entry in history]
    assert trial_end(rows, FROM, FROM + timedelta(days=30)) == FROM + timedelta(days=ended)
