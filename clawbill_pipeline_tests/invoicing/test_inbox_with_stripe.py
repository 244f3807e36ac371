"""What the inbox asks Stripe for: further pages of lines, the truth between objects of one second, thin events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.invoicing.conftest import Inbox
from clawbill_pipeline_tests.invoicing.objects import invoice, subscription
from clawbill_pipeline_tests.sandbox.stripe.server import Account, Sandbox


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    running = Sandbox(tmp_path_factory.mktemp("stripe") / "state")
    yield running
    running.stop()


class Month:
    """A customer of the stand-in whose month with fourteen tiers is over: its draft has fourteen lines."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self.account: Account = sandbox.account()
        tiers: list[dict[str, Any]] = [{"up_to": 10 * n, "unit_amount": 20 - n} for n in range(1, 14)]
        price = self.account.price(
            self.account.meter().id,
            billing_scheme="tiered",
            tiers_mode="graduated",
            tiers=[*tiers, {"up_to": "inf", "unit_amount": 1}],
        )
        self.customer = self.account.customer(email="a@b.c")
        params = {"customer": self.customer, "items": [{"price": price.id}]}
        self.subscription = self.account.v1.subscriptions.create(params)
        period = self.subscription["items"].data[0]
        self.account.use(self.customer, 1_000, period.current_period_start)
        sandbox.move_to(period.current_period_end)
        self.invoice = self.account.v1.invoices.list({"subscription": self.subscription.id}).data[0]

    @property
    def api(self) -> StripeApi:
        return StripeApi(SecretStr(self.account.key), self.sandbox.url)

    def land_all(self, inbox: Inbox, only: str = "invoice.created") -> None:
        for event in self.account.v1.events.list({"type": only}).auto_paging_iter():
            inbox.land_body(str(event))


@pytest.fixture(scope="module")
def month(sandbox: Sandbox) -> Month:
    return Month(sandbox)


def test_all_pages_of_lines_are_read(unmapped: Inbox, month: Month) -> None:
    month.land_all(unmapped)
    without = unmapped.apply()
    assert (without.lines, without.checks[1].passed) == (10, False)


def test_all_pages_of_lines_are_read_with_stripe(unmapped: Inbox, month: Month) -> None:
    unmapped.api = month.api
    month.land_all(unmapped)
    result = unmapped.apply()
    assert (result.lines, result.checks[1].passed, result.problems) == (14, True, ())
    rows = unmapped.rows("invoice_lines")
    assert {row.subscription_item_id for row in rows} == {month.subscription["items"].data[0].id}
    assert sum(row.quantity for row in rows) == 1_000


def test_between_two_objects_of_one_second_stripe_decides(unmapped: Inbox, month: Month) -> None:
    unmapped.api = month.api
    month.land_all(unmapped)
    stale = invoice("draft", lines=[], id=month.invoice.id, customer=month.customer, auto_advance=False)
    unmapped.land("invoice.updated", stale, month.invoice.created)
    result = unmapped.apply()
    (row,) = unmapped.rows("invoices")
    assert (row.object["auto_advance"], result.lines) == (True, 28)


def test_a_thin_event_is_looked_up(unmapped: Inbox, month: Month) -> None:
    unmapped.api = month.api
    unmapped.land_body(
        f'{{"object": "v2.core.event", "id": "evt_t", "type": "v1.invoice.created", "livemode": false, '
        f'"created": "2026-11-01T01:00:00Z", "related_object": {{"id": "{month.invoice.id}", "type": "invoice"}}}}'
    )
    assert unmapped.apply().lines == 14


def test_a_subscription_tied_in_time_is_looked_up(inbox: Inbox, month: Month) -> None:
    inbox.api = month.api
    with inbox.ledger.transaction() as connection:
        connection.exec_driver_sql(
            "UPDATE stripe_customers SET subscription_id = %s, customer_id = %s",
            (month.subscription.id, month.customer),
        )
    known = {"id": month.subscription.id, "customer": month.customer}
    inbox.land("customer.subscription.updated", subscription("active", **known))
    inbox.land("customer.subscription.updated", subscription("past_due", **known))
    inbox.apply()
    assert inbox.standings() == ["current"]


def test_while_stripe_is_away_events_that_need_it_wait(unmapped: Inbox, month: Month) -> None:
    unmapped.api = replace(month.api, base="http://127.0.0.1:9")
    month.land_all(unmapped)
    unmapped.land("invoice.paid", invoice("paid", id="in_other"))
    result = unmapped.apply()
    assert (result.applied, result.waiting, result.failed) == (1, 1, 0)
    assert month.account.key not in str(result)
    unmapped.api = month.api
    result = unmapped.apply()
    assert (result.applied, result.waiting, result.lines) == (1, 0, 14)


def test_what_stripe_does_not_know_fails_with_its_reason(unmapped: Inbox, month: Month, tmp_path: Path) -> None:
    unmapped.api = month.api
    unmapped.land("invoice.created", invoice(id="in_unknown", has_more=True))
    result = unmapped.apply()
    assert (result.failed, "No such invoice" in result.problems[0]) == (1, True)


def test_a_credit_note_has_its_invoice_read_again(unmapped: Inbox, month: Month) -> None:
    unmapped.api = month.api
    note = {"id": "cn_1", "object": "credit_note", "invoice": month.invoice.id, "customer": month.customer}
    unmapped.land("credit_note.created", note | {"amount": 80, "currency": "usd"}, 1)
    result = unmapped.apply()
    assert (result.applied, result.invoices, result.lines) == (1, 1, 14)
