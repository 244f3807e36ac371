"""Whole months: many faults at once, each found with its own cause, place and cents; and a large one without any."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clawbill_pipeline.reconciliation.compare import Reconciled, reconcile
from clawbill_pipeline_tests.reconciliation.month import CATALOG, FINAL, NOW, PERIOD, START, Month, hour

TENANTS = 12
#: Tokens that 2.50 USD buy.
UNKNOWN = Decimal("1666.666666666667")
HEAD = CATALOG.split("tenants:")[0]


@pytest.fixture
def month(ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    tenants = "".join(f"  t{n:02}: {{rate_card: usd}}\n" for n in range(TENANTS))
    month = Month.at(ledger_url, tmp_path, f"{HEAD}tenants:\n{tenants}")
    yield month
    month.ledger.dispose()


def generate(month: Month, step: int) -> None:
    """Usage in every ``step``-th hour of the month, of both services, different everywhere."""
    for tenant in range(TENANTS):
        for number in range(tenant % step, 744, step):
            month.used(f"t{tenant:02}", "tokens", hour(number), 1000 + 37 * number % 911 + tenant)
            month.used(f"t{tenant:02}", "requests", hour(number), Decimal(number % 90 + 1) / 4)


def run(month: Month) -> Reconciled:
    return reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=NOW, run_id="test")


def test_many_faults_at_once(month: Month) -> None:
    generate(month, 24)
    month.used("stranger", "tokens", hour(100), 50)
    every = list(month.usage)
    of = {t: next(key for key in every if key[:2] == (f"t{t:02}", "tokens") and key[2] > hour(200)) for t in range(10)}
    month.land_usage()
    month.meter(keys=[key for key in every if key != of[1]])
    month.rate(key for key in every if key not in (of[1], of[2]))
    month.run(
        "INSERT INTO rating_failures VALUES (:h, :t, 'tokens', '', :h, 1, 'refused', 'HTTP 422: no', '', 1, NULL, :h,"
        " 'r')",
        h=of[2][2], t=of[2][0],
    )  # fmt: skip
    month.map()
    apart = {of[1], of[2], of[3], of[4], of[5], of[7]}
    month.send(key for key in every if key not in apart)
    month.send([of[3]], state="rejected", error="timestamp too old")
    month.send([of[4]], state="unknown", parked="outcome unknown for a day")
    month.send([of[7]], settled_at=FINAL + timedelta(minutes=1))
    # From here on ``usage`` is what Stripe got, for what it holds and bills.
    quantities = dict(month.usage)
    for key in (of[1], of[2], of[3], of[4], of[5]):
        del month.usage[key]
    month.hold()
    units = {n: month.units("t00", "tokens", quantities[of[n]]) for n in of}
    month.held("t06", "tokens", month.totals()["t06", "tokens"] - units[6])
    month.hold_hours("t06", "tokens", **{f"h{int((of[6][2] - START).total_seconds() // 3600)}": 0})
    month.held("t08", "tokens", month.totals()["t08", "tokens"] + 2_500_000)
    month.hold_hours("t08", "tokens", h3=2_500_000)
    for key in (of[6], of[7]):
        del month.usage[key]
    for tenant in range(TENANTS):
        lines = month.lines(f"t{tenant:02}")
        if tenant == 8:
            billed, amount = lines["tokens"]
            lines["tokens"] = (billed + 2_500_000, amount + Decimal("2.50"))
        if tenant == 9:
            billed, amount = lines["requests"]
            lines["requests"] = (billed, amount + Decimal("0.13"))
        month.invoice(f"t{tenant:02}", lines)
    reconciled = run(month)

    def at(n: int, step: str, cause: str, sign: int = -1) -> tuple:
        quantity = sign * quantities[of[n]]
        return (of[n][0], "tokens", of[n][2], step, cause, quantity, quantity * Decimal("0.0015"))

    expected = [
        ("stranger", "tokens", hour(100), "metered_rated", "unmapped_tenant", Decimal(-50), Decimal(0)),
        at(1, "landed_metered", "not_metered"),
        at(2, "metered_rated", "rating_refused"),
        at(3, "rated_sent", "rejected"),
        at(4, "rated_sent", "parked"),
        at(5, "rated_sent", "not_sent"),
        at(6, "sent_held", "lost_after_acknowledgement"),
        at(7, "held_invoiced", "late_after_finalisation"),
        (
            "t08",
            "tokens",
            hour(3),
            "sent_held",
            "unknown_usage_at_stripe",
            Decimal("1666.666666666667"),
            Decimal("2.5"),
        ),
        ("t09", "requests", None, "held_invoiced", "price_differs", Decimal(0), Decimal("0.13")),
    ]
    found = [(b.tenant_id, b.service, b.hour, b.step, b.cause, b.quantity, b.amount) for b in reconciled.breaks]
    # What was never rated is worth the average price: exact to a billionth for a price a unit.
    assert sorted(f[:5] for f in found if f[2]) == sorted(e[:5] for e in expected if e[2])
    assert sorted((f[5], round(f[6], 9)) for f in found) == sorted((e[5], round(e[6], 9)) for e in expected)
    assert (reconciled.waiting, reconciled.explained) == ((), ())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_clean_month_of_a_million_events_has_no_break(month: Month) -> None:
    generate(month, 1)
    parts = 1_000_000 // len(month.usage) + 1
    # Quantities are parted evenly, so they are multiples of what they are parted into.
    month.usage = {key: quantity * parts for key, quantity in month.usage.items()}
    month.land_usage(parts)
    month.meter()
    month.rate()
    month.map()
    month.send()
    month.hold()
    month.bill()
    assert month.run("SELECT sum(events) AS events FROM landed_hours")[0].events >= 1_000_000
    reconciled = run(month)
    assert (reconciled.breaks, reconciled.waiting, reconciled.explained) == ((), (), ())
    assert all(check.passed for check in reconciled.checks)
    assert sum(step.metered_quantity for step in reconciled.waterfall) == sum(month.usage.values())
