"""Adjustments against the stand-in: billed once whatever happens, taken back, and not proposed again."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest
import stripe
from pydantic import SecretStr
from sqlalchemy import insert, text

from clawbill_pipeline.invoicing.adjusting import Adjusted, NotAdjustable, approve, finish, minor, undo
from clawbill_pipeline.invoicing.adjustments import Proposed, propose_adjustments
from clawbill_pipeline.ledger.adjustment_log import Standing, read_standings
from clawbill_pipeline.ledger.tables import audit_trail
from clawbill_pipeline.money import MoneyError
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.invoicing.test_close import (  # noqa: F401 -- fixtures
    FROM,
    UNITS,
    Month,
    catalog,
    month,
    sandbox,
)
from clawbill_pipeline_tests.sandbox.stripe.server import DAY


@dataclass
class Office:
    """What people and the pipeline do about a month whose invoice is final."""

    month: Month
    revision: int = 1

    def late(self, units: int) -> Proposed:
        """Usage comes (or goes), so that the month has ``units``; what is then proposed."""
        self.revision += 1
        self.month.book(units, revision=self.revision, planned_at=self.month.now)
        return self.propose()

    def propose(self) -> Proposed:
        return propose_adjustments(self.month.ledger, self.month.catalog, now=self.month.now, run_id="run_1")

    @property
    def standings(self) -> list[Standing]:
        with self.month.ledger.transaction() as connection:
            return read_standings(connection)

    @property
    def newest(self) -> int:
        return self.standings[-1].proposal

    @property
    def states(self) -> list[str]:
        return [each.state for each in self.standings]

    def approve(self, proposal: int | None = None, api: StripeApi | None = None) -> Adjusted:
        return self._decide(approve, proposal, api)

    def undo(self, proposal: int | None = None, api: StripeApi | None = None) -> Adjusted:
        return self._decide(undo, proposal, api)

    def _decide(self, action: Callable[..., Adjusted], proposal: int | None, api: StripeApi | None) -> Adjusted:
        given = {"why": "a call to globex", "by": "ada", "now": self.month.now}
        return action(self.month.ledger, api or self.month.api, proposal or self.newest, **given)

    def web(self, kind: str) -> None:
        """The decision as the finance pages write it."""
        last = self.standings[-1]
        detail = {name: value for name, value in last.said.items() if name != "run_id"}
        detail |= {"proposal": last.proposal, "by": "anna (web)", "why": "seen"}
        row = {"at": self.month.now, "kind": kind, "tenant_id": last.tenant_id, "subject": last.subject}
        with self.month.ledger.transaction() as connection:
            connection.execute(insert(audit_trail).values(row | {"detail": detail}))

    @property
    def trail(self) -> list[str]:
        kinds = [row.kind for row in self.month.inbox.rows("audit_trail", "id")]
        return [kind.removeprefix("adjustment.") for kind in kinds if kind.startswith("adjustment.")]

    @property
    def items(self) -> list[Any]:
        return list(self.month.account.v1.invoice_items.list({"customer": self.month.customer}).data)

    @property
    def notes(self) -> list[Any]:
        return list(self.month.account.v1.credit_notes.list({"customer": self.month.customer}).data)

    @property
    def balance(self) -> int:
        return int(self.month.account.v1.customers.retrieve(self.month.customer).balance)

    def fault(self, **fault: Any) -> None:
        account = self.month.account
        answer = account.sandbox.control.post("/_sandbox/faults", json=fault, headers=account.auth)
        assert answer.status_code == 200, answer.text

    def pay(self, outcome: str) -> None:
        account, body = self.month.account, {"customer": self.month.customer, "outcome": outcome}
        assert account.sandbox.control.post("/_sandbox/payments", json=body, headers=account.auth).status_code == 200


@pytest.fixture
def office(month: Month) -> Office:  # noqa: F811
    """After a month of 12.34 USD, which is paid."""
    month.book()
    assert month.finalized() == "paid"
    month.read()
    return Office(month)


def test_what_was_billed_too_little_is_on_the_next_invoice_with_its_own_period(office: Office) -> None:
    office.late(UNITS + 2_500_000)
    month = office.month  # noqa: F811
    done = office.approve()
    assert (done.problems, done.standing.state) == ((), "done")
    (item,) = office.items
    (line,) = month.inbox.rows("invoice_lines")
    assert (item.id, item.amount, item.currency, item.invoice) == (done.standing.stripe_id, 250, "usd", None)
    assert datetime.fromtimestamp(item.period.start, FROM.tzinfo) == line.period_start
    assert datetime.fromtimestamp(item.period.end, FROM.tzinfo) == line.period_end
    assert item.metadata.to_dict() == {
        "clawbill_adjustment": str(office.newest),
        "clawbill_invoice": line.invoice_id,
        "clawbill_invoice_line": line.line_id,
        "service": "requests",
        "tenant_id": "globex",
        "units": "2500000",
    }
    assert office.trail == ["proposed", "accepted", "sending", "done"]

    assert office.approve().standing.state == "done"
    proposed = office.propose()
    assert (proposed.adjustments, proposed.written, proposed.checks[0].passed) == ((), 0, True)
    assert office.trail == ["proposed", "accepted", "sending", "done"]
    assert len(office.items) == 1

    month.sandbox.move_to(
        month.account.v1.subscriptions.retrieve(month.subscription.id)["items"].data[0].current_period_end
    )
    month.read()
    assert month.invoice.total == 250
    (comparison,) = month.close().comparisons
    assert {each.cause for each in comparison.differences} == {"not_metered"}, "April's hours, and nothing else"


def test_further_late_usage_proposes_only_the_rest(office: Office) -> None:
    office.late(UNITS + 2_500_000)
    replaced = office.newest
    office.late(UNITS + 3_000_000)
    assert office.states == ["replaced", "open"]
    with pytest.raises(NotAdjustable, match="a newer proposal replaced it"):
        office.approve(replaced)
    office.approve()
    (rest,) = office.late(UNITS + 3_750_000).adjustments
    assert (rest.units, rest.amount) == (Decimal(750_000), Decimal("0.75"))
    office.approve()
    assert sorted(item.amount for item in office.items) == [75, 300]
    # All of it turns out to have been nothing.
    (back,) = office.late(UNITS).adjustments
    assert (back.units, back.amount) == (Decimal(-3_750_000), Decimal("-3.75"))


def test_what_was_billed_too_much_is_credited_and_the_credit_voided(office: Office) -> None:
    office.late(UNITS - 1_000_000)
    done = office.approve()
    (note,) = office.notes
    (line,) = office.month.inbox.rows("invoice_lines")
    assert (note.id, note.amount, note.status, office.balance) == (done.standing.stripe_id, 100, "issued", -100)
    assert note.lines.data[0].invoice_line_item == line.line_id
    assert note.metadata["clawbill_invoice_line"] == line.line_id
    office.approve()
    assert (len(office.notes), office.propose().adjustments) == (1, ())

    assert office.undo().standing.state == "undone"
    assert (office.notes[0].status, office.balance) == ("void", 0)
    assert office.undo().problems == ()
    assert office.trail == ["proposed", "accepted", "sending", "done", "undone", "done"]
    with pytest.raises(NotAdjustable, match="it was undone"):
        office.approve()
    (again,) = office.propose().adjustments
    assert (again.amount, office.states) == (Decimal(-1), ["undone", "open"])
    office.approve()
    assert [(note.status, note.amount) for note in office.notes] == [("issued", 100), ("void", 100)]


def test_on_an_open_invoice_a_credit_note_lowers_what_is_due(month: Month) -> None:  # noqa: F811
    office = Office(month)
    month.book()
    office.pay("fail")
    assert month.finalized() == "open"
    month.read()
    office.late(UNITS - 340_000)
    assert office.approve().problems == ()
    assert (month.invoice.amount_remaining, office.balance) == (1200, 0)
    assert office.undo().problems == ()
    assert month.invoice.amount_remaining == 1234


def test_an_item_is_taken_back_while_it_is_pending_and_not_later(office: Office) -> None:
    month = office.month  # noqa: F811
    office.late(UNITS + 1_000_000)
    office.approve()
    assert office.undo().standing.state == "undone"
    assert office.items == []
    assert office.propose().written == 1

    office.approve()
    (item,) = office.items
    month.sandbox.move_to(
        month.account.v1.subscriptions.retrieve(month.subscription.id)["items"].data[0].current_period_end
    )
    assert month.finalized() == "paid"
    kept = office.undo()
    assert (kept.standing.state, len(kept.problems)) == ("done", 1)
    assert "Stripe refused" in kept.problems[0]
    assert office.trail[-2:] == ["undone", "refused"], "said before it was tried"
    assert month.account.v1.invoice_items.retrieve(item.id).amount == 100
    assert office.propose().adjustments == ()


def test_an_item_that_somebody_deleted_at_stripe_counts_as_undone(office: Office) -> None:
    office.late(UNITS + 1_000_000)
    office.month.account.v1.invoice_items.delete(office.approve().standing.stripe_id)
    assert (office.undo().problems, office.states) == ((), ["undone"])


class Died(BaseException):
    """The process is gone."""


class Dying(StripeApi):
    def client(self) -> stripe.StripeClient:
        raise Died


@pytest.mark.parametrize(
    ("crash", "days", "more"),
    [
        ("before stripe", 0, 1_000_000),
        ("no answer", 0, -1_000_000),
        ("dropped before", 2, 1_000_000),
        ("dropped after", 0, -1_000_000),
        # Stripe has forgotten the idempotency key.
        ("dropped after", 2, 1_000_000),
        ("dropped after", 2, -1_000_000),
    ],
)
def test_after_a_crash_it_is_billed_once(office: Office, crash: str, days: int, more: int) -> None:
    month = office.month  # noqa: F811
    office.late(UNITS + more)
    if crash == "before stripe":
        with pytest.raises(Died):
            office.approve(api=Dying(month.api.key))
    elif crash == "no answer":
        assert office.approve(api=replace(month.api, base="http://127.0.0.1:9")).problems
    else:
        office.fault(kind="drop", when=crash.removeprefix("dropped "), method="POST")
        assert "not done yet, try again" in office.approve().problems[0]
    assert (office.states, office.trail) == (["sending"], ["proposed", "accepted", "sending"])
    assert office.propose().written == 0, "on its way is not proposed again"
    with pytest.raises(NotAdjustable, match="approve it once more"):
        office.undo()
    month.sandbox.move_to(month.sandbox.now() + days * DAY)

    finished = finish(month.ledger, month.api, now=month.now)
    assert (finished.begun, finished.problems, finished.checks[0].passed) == (1, (), True)
    assert finish(month.ledger, month.api, now=month.now).begun == 0
    assert office.approve().standing.state == "done"
    assert len(office.items) + len(office.notes) == 1
    assert (*office.items, *office.notes)[0].id == office.standings[0].stripe_id
    assert office.trail == ["proposed", "accepted", "sending", "done"]


@pytest.mark.parametrize("units", [UNITS + 1_000_000, UNITS - 1_000_000])
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_undo_that_was_lost_is_gone_on_with(office: Office, when: str, units: int) -> None:
    month = office.month  # noqa: F811
    office.late(units)
    office.approve()
    office.fault(kind="drop", when=when, method="DELETE" if units > UNITS else "POST")
    assert len(office.undo().problems) == 1
    assert (office.states, office.propose().written) == (["undoing"], 0)
    assert finish(month.ledger, month.api, now=month.now).problems == ()
    assert (office.states, office.items, office.balance) == (["undone"], [], 0)
    assert [note.status for note in office.notes] == ["void"] * (units < UNITS)


def test_two_who_approve_at_once_bill_once(office: Office) -> None:
    office.late(UNITS + 1_000_000)
    proposal = office.newest
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda _: office.approve(proposal), range(8)))
    office.approve()
    assert (len(office.items), office.trail) == (1, ["proposed", "accepted", "sending", "done"])


def test_what_stripe_refuses_stands_open_again(office: Office) -> None:
    month = office.month  # noqa: F811
    other = {"invoice": month.invoice.id, "amount": 1234, "out_of_band_amount": 1234}
    note = month.account.v1.credit_notes.create(other)
    office.late(UNITS - 1_000_000)
    refused = office.approve()
    assert (refused.standing.state, len(refused.problems)) == ("refused", 1)
    assert "can be credited" in office.month.inbox.rows("audit_trail", "id")[-1].detail["error"]
    month.account.v1.credit_notes.void_credit_note(note.id)
    assert office.approve().standing.state == "done"
    assert office.balance == -100


def test_what_was_accepted_in_the_finance_pages_is_carried_out(office: Office) -> None:
    office.late(UNITS + 1_000_000)
    office.web("adjustment.accepted")
    assert (office.states, office.propose().written, office.items) == (["accepted"], 0, [])
    assert finish(office.month.ledger, office.month.api, now=office.month.now).begun == 0, "only what was begun"
    assert office.approve().standing.state == "done"
    assert (len(office.items), office.trail) == (1, ["proposed", "accepted", "sending", "done"])


def test_what_was_accepted_can_be_taken_back_before_stripe_hears_of_it(office: Office) -> None:
    office.late(UNITS + 1_000_000)
    with pytest.raises(NotAdjustable, match="is open: there is nothing to undo"):
        office.undo()
    office.web("adjustment.accepted")
    assert (office.undo().standing.state, office.items) == ("undone", [])
    assert office.propose().written == 1


def test_what_was_rejected_stays_so_until_it_changes(office: Office) -> None:
    office.late(UNITS + 1_000_000)
    office.web("adjustment.rejected")
    with pytest.raises(NotAdjustable, match="it was rejected"):
        office.approve()
    proposed = office.propose()
    assert (proposed.written, proposed.adjustments, proposed.checks[0].passed) == (0, (), True)
    (whole,) = office.late(UNITS + 1_500_000).adjustments
    assert (whole.amount, office.states) == (Decimal("1.5"), ["rejected", "open"])


def test_units_that_come_to_no_money_need_no_call(office: Office) -> None:
    office.late(UNITS + 1_000)
    assert office.approve(api=replace(office.month.api, base="http://127.0.0.1:9")).standing.state == "done"
    assert (office.items, office.propose().adjustments) == ([], ())


def test_an_invoice_in_parts_is_credited_beside_its_lines(office: Office) -> None:
    month = office.month  # noqa: F811
    tier = "jsonb_build_object('line_id', 'il_tier_2', 'quantity', 0, 'amount', 0)"
    with month.ledger.transaction() as connection:
        connection.execute(
            text(f"INSERT INTO invoice_lines SELECT (jsonb_populate_record(l, {tier})).* FROM invoice_lines l")
        )
    office.late(UNITS - 1_000_000)
    office.approve()
    (note,) = office.notes
    assert (note.lines.data[0].type, note.lines.data[0].unit_amount, note.amount) == ("custom_line_item", 100, 100)
    assert note.metadata["clawbill_invoice_line"].count(",") == 1


def test_another_account_s_key_decides_nothing(office: Office) -> None:
    month = office.month  # noqa: F811
    other = replace(month.api, key=SecretStr(month.sandbox.account().key))
    office.late(UNITS + 1_000_000)
    office.fault(kind="drop", when="after", method="POST")
    assert office.approve().problems
    assert "not done yet" in office.approve(api=other).problems[0]
    assert office.states == ["sending"]
    assert office.approve().standing.state == "done"
    assert office.undo(api=other).standing.state == "done"
    assert len(office.items) == 1


def test_an_invoice_that_was_voided_needs_no_adjustment(month: Month) -> None:  # noqa: F811
    office = Office(month)
    month.book()
    office.pay("fail")
    assert month.finalized() == "open"
    month.read()
    office.late(UNITS + 1_000_000)
    month.account.v1.invoices.void_invoice(month.invoice.id)
    month.read()
    with pytest.raises(NotAdjustable, match="its invoice is void"):
        office.approve()
    assert (office.trail, office.items) == (["proposed"], [])


def test_only_a_proposal_can_be_decided_on(office: Office) -> None:
    office.late(UNITS + 1_000_000)
    accepted = office.approve().standing.steps[1].id
    for unknown in (accepted, 10**12):
        with pytest.raises(NotAdjustable, match="there is no adjustment"):
            office.approve(unknown)
        with pytest.raises(NotAdjustable, match="there is no adjustment"):
            office.undo(unknown)


@pytest.mark.parametrize(
    ("amount", "currency", "units"),
    [("2.5", "USD", 250), ("-0.01", "EUR", -1), ("80", "JPY", 80), ("1.234", "KWD", 1234), ("5", "ISK", 500)],
)
def test_minor_units_are_stripes(amount: str, currency: str, units: int) -> None:
    assert minor(Decimal(amount), currency) == units


def test_no_amount_is_rounded_on_its_way() -> None:
    with pytest.raises(MoneyError, match=r"0\.005 USD is no whole number"):
        minor(Decimal("0.005"), "USD")
