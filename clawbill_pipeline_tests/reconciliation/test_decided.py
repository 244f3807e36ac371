"""What people decided on late usage is explained, to the unit; what they did not is a break still."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from clawbill_pipeline.reconciliation.compare import Reconciled
from clawbill_pipeline_tests.reconciliation.month import FINAL, Month, hour
from clawbill_pipeline_tests.reconciliation.test_compare import adds_up, found, run

LATE = [("acme", "tokens", hour(4)), ("acme", "tokens", hour(5))]


def late(month: Month, keys: list[tuple] = LATE) -> None:
    """A month in which the usage of ``keys`` reached Stripe after the invoice was final."""
    month.land_usage()
    month.meter()
    month.rate()
    month.map()
    month.send(key for key in month.usage if key not in keys)
    month.send(keys, settled_at=FINAL + timedelta(hours=1))
    month.hold()
    quantities = {key: month.usage.pop(key) for key in keys}
    month.bill()
    month.usage |= quantities


def propose(
    month: Month, units: object, amount: str, *kinds: str, service: str = "tokens", tenant: str = "acme"
) -> int:
    """A proposal of so many units, and what came of it; its number."""
    period = month.catalog.tenants[tenant].period("2026-10")
    subject = f"in_{tenant}/{service}/{period.start:%Y-%m-%dT%H:%M:%SZ}"
    proposal = 0
    for kind in ("proposed", *kinds):
        (row,) = month.run(
            "INSERT INTO audit_trail (at, kind, tenant_id, subject, detail) VALUES (:at, :kind, :t, :subject,"
            " jsonb_build_object('invoice_id', CAST(:invoice AS text), 'service', CAST(:s AS text), 'period_start',"
            " CAST(:start AS text), 'period_end', CAST(:end AS text), 'currency', 'USD', 'units', CAST(:units AS text),"
            " 'amount', CAST(:amount AS text), 'proposal', CAST(:proposal AS bigint), 'stripe_id', 'ii_1'))"
            " RETURNING id",
            at=FINAL, kind=f"adjustment.{kind}", t=tenant, subject=subject, invoice=f"in_{tenant}", s=service,
            start=period.start.isoformat(), end=period.end.isoformat(), units=str(units), amount=amount,
            proposal=proposal,
        )  # fmt: skip
        proposal = proposal or row.id
    return int(proposal)


def units(month: Month, *keys: tuple) -> int:
    return int(sum(month.units(t, s, month.usage[t, s, at]) for t, s, at in keys))


def places(reconciled: Reconciled) -> list[tuple]:
    return [(b[2], b[4], b[6]) for b in found(reconciled)]


def test_what_an_adjustment_bills_is_no_break(month: Month) -> None:
    late(month)
    assert [b.cause for b in run(month).breaks] == ["late_after_finalisation"] * 2
    proposal = propose(month, units(month, *LATE), "3.10", "accepted", "sending", "done")
    reconciled = run(month)
    assert reconciled.breaks == ()
    assert all(check.passed for check in reconciled.checks)
    assert places(reconciled) == [
        (hour(4), "adjusted", Decimal("-1.5435")), (hour(5), "adjusted", Decimal("-1.554"))
    ]  # fmt: skip
    assert reconciled.explained[0].detail.endswith(f"adjustment {proposal}: 3.1 USD (ii_1)")
    (closed,) = month.run("SELECT count(*) AS n FROM breaks WHERE closed_at IS NOT NULL")
    assert closed.n == 2, "the faults closed themselves, and are kept"
    adds_up(reconciled)


@pytest.mark.parametrize("kinds", [(), ("accepted",), ("accepted", "sending"), ("accepted", "sending", "refused")])
def test_what_stripe_does_not_have_yet_is_a_break_still(month: Month, kinds: tuple[str, ...]) -> None:
    late(month)
    propose(month, units(month, *LATE), "3.10", *kinds)
    assert [b.cause for b in run(month).breaks] == ["late_after_finalisation"] * 2


def test_what_was_taken_back_is_a_break_again(month: Month) -> None:
    late(month)
    propose(month, units(month, *LATE), "3.10", "accepted", "sending", "done", "undone", "done")
    assert [b.cause for b in run(month).breaks] == ["late_after_finalisation"] * 2


def test_a_part_that_is_adjusted_leaves_the_rest(month: Month) -> None:
    late(month)
    part = units(month, LATE[0]) + 54_000
    propose(month, part, "1.60", "accepted", "sending", "done")
    reconciled = run(month)
    assert places(reconciled) == [
        (hour(5), "late_after_finalisation", Decimal("-1.5")),
        (hour(4), "adjusted", Decimal("-1.5435")),
        (hour(5), "adjusted", Decimal("-0.054")),
    ]
    adds_up(reconciled)
    propose(month, 1_500_000, "1.50", "accepted", "sending", "done")
    after = run(month)
    assert (after.breaks, {b.cause for b in after.explained}) == ((), {"adjusted"})
    adds_up(after)


def test_usage_that_stripe_does_not_take_any_more_is_adjusted(month: Month) -> None:
    """Older than Stripe's 35 days: it can be billed in no other way."""
    old = LATE[1]
    month.land_usage()
    month.meter()
    month.rate()
    month.map()
    month.send(key for key in month.usage if key != old)
    month.send([old], state="planned", parked="older than 35 days")
    quantity = month.usage.pop(old)
    month.hold()
    month.bill()
    month.usage[old] = quantity
    assert [b.cause for b in run(month).breaks] == ["parked"]
    propose(month, units(month, old), "1.56", "accepted", "sending", "done")
    reconciled = run(month)
    assert found(reconciled) == [
        ("acme", "tokens", hour(5), "rated_sent", "adjusted", Decimal(-1036), Decimal("-1.554"))
    ]
    adds_up(reconciled)


def test_what_was_adjusted_too_much_is_a_break(month: Month) -> None:
    late(month)
    propose(month, units(month, *LATE) + 500_000, "3.60", "accepted", "sending", "done")
    reconciled = run(month)
    assert [(b.cause, b.hour, b.amount) for b in reconciled.breaks] == [
        ("late_after_finalisation", None, Decimal("0.5"))
    ]
    adds_up(reconciled)
    propose(month, -500_000, "-0.50", "accepted", "sending", "done")
    after = run(month)
    assert after.breaks == ()
    adds_up(after)


def test_a_credit_note_makes_up_for_what_was_billed_too_much(month: Month) -> None:
    """Usage that was corrected to less after the invoice."""
    month.clean()
    month.used("acme", "tokens", hour(5), 36)
    month.land([("minus", "acme", "tokens", hour(5), -1000)])
    month.meter(revision=2, keys=[LATE[1]])
    month.rate(keys=[LATE[1]], revision=2, at=FINAL + timedelta(hours=1))
    month.send([LATE[1]], revision=2, settled_at=FINAL + timedelta(hours=1))
    month.hold()
    assert [(b.cause, b.amount) for b in run(month).breaks] == [("late_after_finalisation", Decimal("1.5"))]
    propose(month, -1_500_000, "-1.50", "accepted", "sending", "done")
    reconciled = run(month)
    assert [(b[4], b[6]) for b in found(reconciled)] == [("adjusted", Decimal("1.5"))]
    adds_up(reconciled)


def test_what_is_let_go_is_no_break_until_more_comes(month: Month) -> None:
    late(month)
    propose(month, units(month, *LATE), "3.10", "rejected")
    reconciled = run(month)
    assert (reconciled.breaks, {b.cause for b in reconciled.explained}) == ((), {"waived"})
    assert "let go" in reconciled.explained[0].detail
    adds_up(reconciled)
    propose(month, units(month, *LATE) + 10, "3.11")
    assert [b.cause for b in run(month).breaks] == ["late_after_finalisation"] * 2


def test_by_quantity_too(month: Month) -> None:
    key = ("globex", "requests", hour(5))
    late(month, [key])
    assert [b.cause for b in run(month).breaks] == ["late_after_finalisation"]
    propose(month, units(month, key), "2.06", "accepted", "sending", "done", tenant="globex", service="requests")
    reconciled = run(month)
    assert [b[:6] for b in found(reconciled)] == [
        ("globex", "requests", hour(5), "held_invoiced", "adjusted", Decimal("-8.25"))
    ]
    adds_up(reconciled)
