"""The waterfall reads each station's own rows: periods, revisions, payments shared out to the cent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbill_pipeline.ledger.waterfall import Step, shared_out, waterfall
from clawbill_pipeline_tests.reconciliation.month import CATALOG, END, PERIOD, START, Month, hour, small


@pytest.fixture
def month(ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    month = small(Month.at(ledger_url, tmp_path))
    yield month
    month.ledger.dispose()


def steps(month: Month, tenant: str | None = None) -> dict[tuple[str, str], Step]:
    with month.ledger.transaction() as connection:
        return {(s.tenant_id, s.service): s for s in waterfall(connection, month.catalog, PERIOD, tenant)}


def test_each_step_appears_as_its_station_writes_it(month: Month) -> None:
    key = ("globex", "requests")
    month.meter()
    step = steps(month)[key]
    assert (step.metered_quantity, step.rated_amount, step.invoiced_amount) == (Decimal("34.5"), None, None)
    month.rate()
    assert steps(month)[key].rated_amount == Decimal("8.625")
    month.map()
    month.send()
    assert (steps(month)[key].sent, steps(month)[key].held_by_stripe) == (Decimal("34.5"), None)
    month.hold()
    assert steps(month)[key].held_by_stripe == Decimal("34.5")
    month.invoice("globex", month.lines("globex"), status="draft", finalized_at=None)
    assert (steps(month)[key].invoiced_amount, steps(month)[key].paid_amount) == (Decimal("8.63"), None)
    month.run("UPDATE invoices SET status = 'open', finalized_at = :at", at=END)
    assert steps(month)[key].paid_amount == 0
    month.run("UPDATE invoices SET status = 'paid', amount_paid = 8.63")
    assert (steps(month)[key].paid_amount, steps(month)[key].rounding) == (Decimal("8.63"), Decimal("0.005"))


def test_the_json_has_the_promised_keys_first(month: Month) -> None:
    month.meter()
    month.rate()
    document = steps(month)["globex", "requests"].as_json()
    assert list(document)[:10] == [
        "tenant_id", "service", "currency", "metered_quantity", "rated_amount", "sent", "held_by_stripe",
        "invoiced_amount", "paid_amount", "breaks",
    ]  # fmt: skip
    assert (document["metered_quantity"], document["rated_amount"], document["invoiced_amount"]) == (
        "34.5", "8.625", None
    )  # fmt: skip
    assert Step.from_json(document) == steps(month)["globex", "requests"]


def test_the_newest_revision_counts(month: Month) -> None:
    month.meter()
    month.rate()
    month.map()
    month.send()
    key = ("acme", "tokens", hour(0))
    month.usage[key] = Decimal(2001)
    month.meter(2, [key])
    month.rate([key], revision=2)
    month.send([key], revision=2)
    step = steps(month)["acme", "tokens"]
    assert (step.metered_quantity, step.rated_amount, step.sent) == (7111, Decimal("10.6665"), Decimal("10.6665"))
    month.usage[key] = Decimal(3001)
    month.send([key], revision=3, state="sending")
    assert steps(month)["acme", "tokens"].sent == Decimal("10.6665")


def test_a_row_belongs_to_the_period_of_its_tenant(month: Month) -> None:
    """Tokyo's October begins nine hours before UTC's."""
    month.usage.clear()
    for tenant in ("osaka", "acme", "stranger"):
        month.used(tenant, "tokens", START - timedelta(hours=9), 1)
        month.used(tenant, "tokens", START - timedelta(hours=10), 2)
        month.used(tenant, "tokens", START, 4)
        month.used(tenant, "tokens", END - timedelta(hours=9), 8)
        month.used(tenant, "tokens", END, 16)
    month.meter()
    assert {tenant: step.metered_quantity for (tenant, _), step in steps(month).items()} == {
        "osaka": 1 + 4, "acme": 4 + 8, "stranger": 4 + 8,
    }  # fmt: skip


def test_one_tenant_alone_is_what_it_is_among_all(month: Month) -> None:
    month.used("stranger", "tokens", hour(3), 5)
    month.clean()
    every = steps(month)
    for tenant in ("acme", "globex", "osaka", "stranger"):
        assert steps(month, tenant) == {key: step for key, step in every.items() if key[0] == tenant}
    assert steps(month, "nobody") == {}


def test_a_part_payment_loses_no_cent(month: Month) -> None:
    month.clean()
    month.run("UPDATE invoices SET status = 'open', amount_paid = 3.33 WHERE tenant_id = 'acme'")
    found = steps(month)
    paid = [found["acme", service].paid_amount for service in ("requests", "tokens")]
    assert paid == [Decimal("0.33"), Decimal("3.00")]


def test_a_void_invoice_bills_nothing(month: Month) -> None:
    month.clean()
    month.run("UPDATE invoices SET status = 'void' WHERE tenant_id = 'acme'")
    assert steps(month)["acme", "tokens"].invoiced_amount is None


def test_81_lines_show_their_remainder(ledger_url: str, tmp_path: Path) -> None:
    """81 lines whose rounded sum is 23,072.51 and whose exact sum is 23,072.5296: what is between is on show."""
    services = "\n".join(f"  s{n:02}: {{unit: unit}}" for n in range(81))
    prices = "\n".join(f"          s{n:02}: {{model: per_unit, unit_amount: 1}}" for n in range(81))
    head, _ = CATALOG.split("services:")
    month = Month.at(
        ledger_url,
        tmp_path,
        f"{head}services:\n{services}\nrate_cards:\n  usd:\n    currency: USD\n    versions:\n"
        f"      - effective_from: 2026-01-01T00:00:00Z\n        prices:\n{prices}\ntenants:\n"
        "  acme: {rate_card: usd}\n",
    )
    exact = [Decimal("284.8453")] * 80 + [Decimal("284.9056")]
    month.map()
    lines = {}
    for number, amount in enumerate(exact):
        month.run(
            "INSERT INTO rated_usage (hour, tenant_id, service, dimensions, window_start, revision, metered_revision,"
            " basis, reason, quantity, amount, currency, asked_quantity, answered_amount, period_start, answer,"
            " rate_card_version, latency_ms, rated_at, run_id) VALUES (:h, 'acme', :s, '', :h, 1, 1, 'hourly', 'first',"
            " 1, :a, 'USD', 1, :a, :h, '{}', 'v1', 1, :h, 'r')",
            h=hour(0), s=f"s{number:02}", a=amount,
        )  # fmt: skip
        lines[f"s{number:02}"] = (amount * 1_000_000, amount.quantize(Decimal("0.01")))
    month.invoice("acme", lines)
    found = steps(month).values()
    assert len(found) == 81
    rated, invoiced, rounding = (
        sum(getattr(step, name) for step in found) for name in ("rated_amount", "invoiced_amount", "rounding")
    )
    assert (rated, invoiced) == (Decimal("23072.5296"), sum(amount for _, amount in lines.values()))
    assert rounding == invoiced - rated != 0
    assert all(abs(step.rounding) <= Decimal("0.005") for step in found)
    month.ledger.dispose()


cents = st.integers(-10_000, 10_000).map(lambda n: Decimal(n) / 100)


@given(st.integers(0, 1_000_000).map(lambda n: Decimal(n) / 100), st.lists(cents.map(abs), min_size=1, max_size=12))
def test_shares_add_up_and_are_fair(total: Decimal, weights: list[Decimal]) -> None:
    shares = shared_out(total, weights, 2)
    assert len(shares) == len(weights)
    if not sum(weights):
        assert not any(shares)
        return
    assert sum(shares) == total
    for share, weight in zip(shares, weights, strict=True):
        assert abs(share - total * weight / sum(weights)) < Decimal("0.01")
        assert share == share.quantize(Decimal("0.01"))
        assert weight or not share


@given(st.integers(-100_000, 100_000).map(lambda n: Decimal(n) / 100), st.lists(cents, min_size=1, max_size=8))
def test_shares_add_up_with_credits_among_them(total: Decimal, weights: list[Decimal]) -> None:
    shares = shared_out(total, weights, 2)
    assert sum(shares) == (total if sum(weights) else 0)
