"""The state machine of standing, exhaustively where it is small enough."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime

import pytest

from clawbill_pipeline.invoicing.states import TRANSITIONS, of_invoice, of_subscription, owed, step
from clawbill_pipeline.ledger.tables import STANDINGS
from clawbill_pipeline_tests.invoicing.objects import END, invoice

AT = datetime.fromtimestamp(END + 86_400, UTC)
BADNESS = {
    standing: number for number, standing in enumerate(("trialing", "current", "past_due", "overdue", "suspended"))
}


def test_every_standing_can_be_reached_and_is_one_the_ledger_takes() -> None:
    reached = {to for moves in TRANSITIONS.values() for to in moves.values()}
    assert reached == set(STANDINGS)
    for signal, before in itertools.product(TRANSITIONS, (None, *STANDINGS)):
        once = step(before, [signal])
        assert step(once, [signal]) == once or (signal, before) == ("trial", "x"), "a signal twice moves once"


@pytest.mark.parametrize("signal", ["failing", "overdue", "suspend"])
def test_a_debt_never_improves_a_standing(signal: str) -> None:
    for before in BADNESS:
        after = step(before, [signal])  # type: ignore[list-item]
        assert after is not None
        assert BADNESS[after] >= BADNESS[before]
    assert step("cancelled", [signal]) == "cancelled"  # type: ignore[list-item]


def test_only_a_subscription_ends_a_cancellation() -> None:
    assert [signal for signal, moves in TRANSITIONS.items() if "cancelled" in moves] == ["trial", "active"]


def test_an_active_subscription_does_not_forgive_a_debt() -> None:
    assert step("overdue", of_subscription("active", in_debt=True)) == "overdue"
    assert step("overdue", of_subscription("active", in_debt=False)) == "current"
    assert of_subscription("incomplete", in_debt=False) == ()


@pytest.mark.parametrize(
    ("event_type", "obj", "in_debt", "path"),
    [
        ("invoice.paid", invoice("paid"), False, {None: "current", "overdue": "current", "trialing": "trialing"}),
        ("invoice.paid", invoice("paid"), True, {"overdue": "overdue", None: None}),
        ("invoice.paid", invoice("paid", lines=[]), False, {None: None, "past_due": "current", "trialing": "trialing"}),
        ("invoice.voided", invoice("void"), False, {"past_due": "current", None: None}),
        ("invoice.payment_failed", invoice("open"), False, {"current": "past_due", "overdue": "overdue"}),
        ("invoice.payment_action_required", invoice("open"), False, {"current": "past_due"}),
        ("invoice.overdue", invoice("open"), False, {"current": "overdue", "suspended": "suspended"}),
        ("invoice.marked_uncollectible", invoice("uncollectible"), False, {"overdue": "suspended"}),
        ("invoice.finalized", invoice("open"), False, {"current": "current"}),
        ("invoice.updated", invoice("open", attempted=True), False, {"current": "past_due"}),
        ("invoice.payment_failed", invoice("paid"), False, {"current": "current", "past_due": "current"}),
    ],
)
def test_what_an_invoice_says(event_type: str, obj: dict, in_debt: bool, path: dict) -> None:
    signals = of_invoice(event_type, obj["status"], obj, AT, in_debt=in_debt)
    assert {before: step(before, signals) for before in path} == path


def test_when_an_invoice_is_owed() -> None:
    assert owed("open", invoice("open"), AT) is None
    assert owed("open", invoice("open", attempted=True), AT) == "failing"
    assert owed("open", invoice("open", attempted=True, amount_remaining=0), AT) is None
    sent = invoice("open", collection_method="send_invoice", due_date=END + 86_400)
    assert owed("open", sent, AT) is None
    assert owed("open", {**sent, "due_date": END + 86_399}, AT) == "overdue"
    assert owed("draft", invoice(due_date=1), AT) is None
    assert owed("uncollectible", invoice("uncollectible"), AT) == "suspend"
