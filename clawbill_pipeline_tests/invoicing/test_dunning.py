"""Dunning: steps that only time takes, dated when they were due, ended by a payment."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError

from clawbill_pipeline.catalog.dunning import Dunning
from clawbill_pipeline.invoicing.dunning import Advanced, advance_standing
from clawbill_pipeline_tests.invoicing.conftest import Inbox
from clawbill_pipeline_tests.invoicing.objects import END, invoice

DAYS = Dunning(overdue_after_days=7, suspended_after_days=14)


@pytest.fixture
def failed(inbox: Inbox) -> Inbox:
    """A tenant whose payment failed at END."""
    inbox.land("invoice.payment_failed", invoice("open", attempted=True), END)
    inbox.apply()
    return inbox


def advance(inbox: Inbox, days: int, dunning: Dunning = DAYS) -> Advanced:
    (first, *_) = inbox.rows("tenant_standing", "id")
    return advance_standing(inbox.ledger, dunning, now=first.since + timedelta(days=days))


def test_a_debt_gets_worse_day_by_day(failed: Inbox) -> None:
    assert advance(failed, 6) == Advanced(0, 0)
    assert advance(failed, 7) == Advanced(1, 0)
    assert advance(failed, 20) == Advanced(0, 0)
    assert advance(failed, 21) == Advanced(0, 1)
    assert advance(failed, 300) == Advanced(0, 0)
    assert failed.standings() == ["past_due", "overdue", "suspended"]


def test_steps_are_dated_when_they_were_due(failed: Inbox) -> None:
    assert advance(failed, 100) == Advanced(1, 1)
    rows = failed.rows("tenant_standing", "id")
    assert [(row.since - rows[0].since).days for row in rows] == [0, 7, 21]


def test_a_payment_ends_it_and_the_next_debt_starts_anew(failed: Inbox) -> None:
    advance(failed, 10)
    failed.land("invoice.paid", invoice("paid"), END + 11 * 86_400)
    failed.land("invoice.payment_failed", invoice("open", id="in_2", attempted=True), END + 12 * 86_400)
    failed.apply()
    assert advance(failed, 18) == Advanced(0, 0)
    assert advance(failed, 19) == Advanced(1, 0)
    assert failed.standings() == ["past_due", "overdue", "current", "past_due", "overdue"]


def test_nobody_is_suspended_where_the_catalogue_says_so(failed: Inbox) -> None:
    assert advance(failed, 360, Dunning(overdue_after_days=0, suspended_after_days=None)) == Advanced(1, 0)


def test_the_model_is_closed() -> None:
    with pytest.raises(ValidationError):
        Dunning(overdue_after_days=-1)
    with pytest.raises(ValidationError):
        Dunning.model_validate({"days": 3})
