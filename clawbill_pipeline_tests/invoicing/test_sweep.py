"""The sweep: what the webhook missed is landed once, as far back as Stripe lists it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import SecretStr

from clawbill_pipeline.invoicing.sweep import Swept, sweep_events
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.invoicing.conftest import Inbox
from clawbill_pipeline_tests.sandbox.stripe.server import DAY, Account, Sandbox


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    running = Sandbox(tmp_path_factory.mktemp("stripe") / "state")
    yield running
    running.stop()


class Billed:
    """An account with a customer who was billed for a month, and the sweep over it."""

    def __init__(self, sandbox: Sandbox, inbox: Inbox) -> None:
        self.sandbox, self.inbox = sandbox, inbox
        self.account: Account = sandbox.account()
        price = self.account.price(self.account.meter().id)
        self.customer = self.account.customer(email="a@b.c")
        params = {"customer": self.customer, "items": [{"price": price.id}]}
        self.subscription = self.account.v1.subscriptions.create(params)
        period = self.subscription["items"].data[0]
        self.account.use(self.customer, 100, period.current_period_start)
        sandbox.move_to(period.current_period_end + 2 * 3600)
        self.api = StripeApi(SecretStr(self.account.key), sandbox.url)

    def sweep(self, days: int) -> Swept:
        now = datetime.fromtimestamp(self.sandbox.now(), UTC)
        return sweep_events(self.inbox.ledger, self.api, since=now - timedelta(days=days), now=now)


@pytest.fixture
def billed(sandbox: Sandbox, unmapped: Inbox) -> Billed:
    return Billed(sandbox, unmapped)


def of_snapshots(result: Swept) -> list[str]:
    return [problem for problem in result.problems if not problem.startswith("reports of rejected usage")]


def test_what_was_missed_is_landed_once(billed: Billed) -> None:
    first = billed.sweep(2)
    assert (first.landed, of_snapshots(first)) == (first.listed, [])
    rows = billed.inbox.rows("stripe_events", "id")
    assert {row.via for row in rows} == {"sweep"}
    assert "invoice.paid" in {row.type for row in rows}
    assert "customer.created" not in {row.type for row in rows}, "only what has a handler"
    second = billed.sweep(2)
    assert (second.listed, second.landed) == (first.listed, 0)


def test_a_webhook_lost_after_its_200_comes_back(billed: Billed) -> None:
    """PEERS.md, case 10: the state is that of the whole story although its end was lost on the way."""
    billed.sweep(2)
    assert billed.inbox.apply().problems == ()
    (row,) = billed.inbox.rows("invoices")
    assert (row.status, row.customer_id, row.amount_paid) == ("paid", billed.customer, 1)


def test_the_sweep_says_what_is_out_of_reach(billed: Billed) -> None:
    now = billed.sandbox.now()
    result = billed.sweep(40)
    assert result.since == datetime.fromtimestamp(now - 30 * DAY, UTC)
    assert "no longer listed" in of_snapshots(result)[0]
    assert not result.checks[0].passed


def test_while_stripe_is_away_the_sweep_says_so(billed: Billed) -> None:
    billed.api = replace(billed.api, base="http://127.0.0.1:9", timeout=1)
    result = billed.sweep(2)
    assert (result.landed, result.checks[0].passed) == (0, False)
    assert all("did not list them" in problem for problem in result.problems)
    assert billed.account.key not in str(result)
