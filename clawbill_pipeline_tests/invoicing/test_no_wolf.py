"""What may be on a right invoice beside usage, made by the stand-in: the comparison takes it apart and holds nobody.

And after each of them a unit that is missing is still found: taking apart is not looking away.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import insert

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.invoicing.close import Closed
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import metered_ahead
from clawbill_pipeline.money import plain
from clawbill_pipeline_tests.invoicing.conftest import CATALOG
from clawbill_pipeline_tests.invoicing.month import UNITS, Month
from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Sandbox
from clawbill_pipeline_tests.sandbox.stripe.test_prorations import base_fee

Making = Callable[..., Month]


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return parse(CATALOG.replace("2026-10-01", "2026-03-01"))


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    running = Sandbox(tmp_path_factory.mktemp("stripe") / "state")
    yield running
    running.stop()


@pytest.fixture
def made(sandbox: Sandbox, ledger: Ledger, catalog: Catalog) -> Making:
    def make(*args: Any, **given: Any) -> Month:
        return Month(sandbox, ledger, catalog, *args, **given)

    return make


def agreed(month: Month, *, then_missing: bool = True, currency: str = "USD") -> dict[str, str]:
    """Asserts that the draft goes out; what it has beside usage. Then a million units more in the ledger are missed."""
    result = month.close()
    assert [each.differences for each in result.comparisons] == [()] * len(result.comparisons)
    assert (result.released, result.held, result.breaks_opened) == (len(result.comparisons), 0, 0)
    apart = {name: plain(amount) for name, amount in result.comparisons[-1].apart.items() if amount}
    if then_missing:
        month.book(UNITS + 1_000_000, revision=2, currency=currency)
        assert causes(month.close()) == {"lost_after_acknowledgement"}
    return apart


def causes(result: Closed) -> set[str]:
    return {each.cause for comparison in result.comparisons for each in comparison.differences}


def test_tax(made: Making) -> None:
    def rates(month: Month) -> None:
        rate = month.account.v1.tax_rates.create({"display_name": "VAT", "inclusive": False, "percentage": 19})
        month.account.v1.subscriptions.update(month.subscription.id, {"default_tax_rates": [rate.id]})

    month = made(rates)
    month.book()
    assert agreed(month) == {"tax": "2.34"}


def test_tax_that_is_part_of_the_amount(made: Making) -> None:
    def rates(month: Month) -> None:
        rate = month.account.v1.tax_rates.create({"display_name": "GST", "inclusive": True, "percentage": 10})
        month.account.v1.subscriptions.update(month.subscription.id, {"default_tax_rates": [rate.id]})

    month = made(rates)
    month.book()
    assert month.invoice.total_taxes[0].amount == 112
    assert agreed(month) == {}


def test_discounts(made: Making) -> None:
    def coupons(month: Month) -> None:
        share = month.account.v1.coupons.create({"percent_off": 12.5, "duration": "forever"}).id
        amount = month.account.v1.coupons.create({"amount_off": 100, "currency": "usd"}).id
        both = {"discounts": [{"coupon": share}, {"coupon": amount}]}
        month.account.v1.subscriptions.update(month.subscription.id, both)

    month = made(coupons)
    month.book()
    assert month.invoice.total == 1234 - 154 - 100
    assert agreed(month) == {"discounts": "2.54"}


def test_credits_and_credit_balance(made: Making) -> None:
    def credits(month: Month) -> None:
        v1 = month.account.v1
        amount = {"type": "monetary", "monetary": {"currency": "usd", "value": 300}}
        scope = {"scope": {"price_type": "metered"}}
        grant = {"customer": month.customer, "amount": amount, "applicability_config": scope}
        v1.billing.credit_grants.create(grant)
        v1.customers.balance_transactions.create(month.customer, {"amount": -200, "currency": "usd"})

    month = made(credits)
    month.book()
    agreed(month, then_missing=False)
    assert month.finalized() == "paid"
    assert (month.invoice.total, month.invoice.amount_due) == (934, 734)
    month.read()
    (row,) = month.inbox.rows("invoices")
    assert (row.subtotal, row.total, row.amount_paid) == (Decimal("12.34"), Decimal("9.34"), Decimal("7.34"))


def test_peers_13_proration_and_a_base_fee(made: Making) -> None:
    """What is about time is no usage: fees, an upgrade in the middle, what is given back."""

    def upgrade(month: Month) -> None:
        v1 = month.account.v1
        small, large = base_fee(month.account, 1000), base_fee(month.account, 3100)
        item = v1.subscription_items.create({"subscription": month.subscription.id, "price": small}).id
        month.sandbox.move_to(month.sandbox.now() + 10 * DAY)
        v1.subscription_items.update(item, {"price": large})

    month = made(upgrade)
    month.book()
    (advance, *_) = sorted((line.amount for line in month.invoice.lines.data), reverse=True)
    assert advance == 3100
    # 31 of the next month; 21/31 of 31 less 21/31 of 10; and the 10 of the first day.
    assert agreed(month) == {"other_lines": "55.23"}


def test_a_change_of_the_metered_price_in_the_middle(made: Making) -> None:
    """Usage before it is billed by the old price in its own window, and compared with that window's hours."""

    def changed(month: Month) -> None:
        meter = month.account.v1.prices.retrieve(month.price).recurring.meter
        other = month.account.price(meter, unit_amount_decimal="0.0001").id
        month.sandbox.move_to(month.sandbox.now() + 10 * DAY + 1_234)
        month.account.v1.subscription_items.update(month.item.id, {"price": other})
        month.sandbox.move_to(month.sandbox.now() + HOUR)
        month.account.use(month.customer, 2_000_000, month.sandbox.now() // HOUR * HOUR)

    month = made(changed)
    lines = month.inbox.rows("invoice_lines", "period_start")
    assert [row.quantity for row in lines] == [UNITS, 2_000_000]
    month.book()
    month.book(2_000_000, at=month.start + timedelta(days=10, hours=1))
    assert agreed(month) == {}


def test_a_cancellation_in_mid_hour(made: Making) -> None:
    """The last window ends within an hour, whose usage until then was metered for this tenant alone."""

    def cancelled(month: Month) -> None:
        month.sandbox.move_to(month.sandbox.now() + 10 * DAY + 24 * 60 + 37)
        month.account.v1.subscriptions.cancel(month.subscription.id, {"invoice_now": True, "prorate": True})
        month.read()
        month.book()
        assert causes(month.close()) == {"not_metered"}, "the hour that was cut"
        hour = month.start + timedelta(days=10)
        with month.ledger.transaction() as connection:
            given = {
                "hour": hour,
                "tenant_id": "globex",
                "landings": 0,
                "changed": 0,
                "metered_at": hour,
                "run_id": "r",
            }
            connection.execute(insert(metered_ahead).values(given))
        (line,) = month.inbox.rows("invoice_lines")
        assert line.period_end == hour + timedelta(minutes=24, seconds=37)
        assert agreed(month) == {}

    made(cancelled)


def test_a_trial_that_ends_in_the_month(made: Making) -> None:
    """What was used in the trial is free: neither its draft nor the next one misses it."""

    def tried(month: Month) -> None:
        month.read()
        month.sandbox.move_to(month.sandbox.now() + 10 * DAY)
        month.read()
        month.account.use(month.customer, 1_000_000, month.sandbox.now())

    start = datetime(2026, 1, 1, tzinfo=UTC)
    month = made(tried, trial_period_days=10)
    assert month.start > start
    month.book()
    month.book(1_000_000, at=month.start + timedelta(days=10))
    assert month.inbox.standings() == ["trialing", "current"]
    assert [row.quantity for row in month.inbox.rows("invoice_lines")] == [1_000_000]
    agreed(month, then_missing=False)


def test_several_subscriptions_of_one_customer(made: Making) -> None:
    """Another subscription's draft owes our usage nothing, and ours nothing to it."""

    def another(month: Month) -> None:
        fee = {"price": base_fee(month.account, 4900)}
        month.account.v1.subscriptions.create({"customer": month.customer, "items": [fee]})

    month = made(another)
    month.book()
    assert len(month.close().comparisons) == 2
    assert agreed(month) in ({}, {"other_lines": "49"})


def test_several_currencies(made: Making, catalog: Catalog) -> None:
    """An invoice in yen beside the subscription in dollars; each is compared in its own."""

    def yen(month: Month) -> None:
        v1 = month.account.v1
        v1.invoice_items.create({"customer": month.customer, "currency": "jpy", "amount": 80})
        given = {"customer": month.customer, "currency": "jpy", "pending_invoice_items_behavior": "include"}
        v1.invoices.create({**given, "auto_advance": True})

    month = made(yen)
    month.book()
    result = month.close()
    assert (causes(result), result.held) == (set(), 0)
    assert month.sandbox.now() % HOUR == 0
