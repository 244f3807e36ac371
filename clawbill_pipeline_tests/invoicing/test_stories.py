"""What Stripe alone brings about in a tenant's months: a card that never recovers, a trial, a credit note, a rejection.

What was used is sent to Stripe as it is. The stories through every station are in ``scenarios.test_stories``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.dunning import Dunning
from clawbill_pipeline.invoicing.dunning import advance_standing
from clawbill_pipeline.invoicing.inbox import Applied, apply_events
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline_tests.invoicing.conftest import Inbox
from clawbill_pipeline_tests.sandbox.stripe.server import DAY, HOUR, Account, Sandbox
from clawbill_pipeline_tests.web.serving import served

SECRET = "whsec_story"


class Story:
    """globex, a customer of an account of its own, billed per million of a dollar; what came of it is in the ledger."""

    def __init__(self, sandbox: Sandbox, ledger: Ledger, catalog: Catalog) -> None:
        self.sandbox, self.ledger, self.catalog = sandbox, ledger, catalog
        self.account: Account = sandbox.account()
        self.api = StripeApi(SecretStr(self.account.key), sandbox.url)
        self.inbox = Inbox(ledger, catalog)
        price = self.account.price(self.account.meter().id, unit_amount_decimal="0.0001")
        self.customer = self.account.customer(email="a@b.c")
        self.items = [{"price": price.id}]
        self.problems: list[str] = []

    def subscribe(self, **params: Any) -> None:
        given = {"customer": self.customer, "items": self.items, **params}
        self.subscription = self.account.v1.subscriptions.create(given)
        self.inbox.map()
        ids = (self.customer, self.subscription.id)
        with self.ledger.transaction() as connection:
            connection.exec_driver_sql("UPDATE stripe_customers SET customer_id = %s, subscription_id = %s", ids)
            item = (self.subscription["items"].data[0].id,)
            connection.exec_driver_sql("UPDATE stripe_items SET subscription_item_id = %s", item)

    @contextmanager
    def webhook(self, ledger_url: str, **settings: Any) -> Iterator[None]:
        """While it lasts, Stripe reaches the app."""
        app = create_app(Settings(stripe_webhook_secrets=(SecretStr(SECRET),)), Ledger(ledger_url), live=False)
        self.account.set(**settings) if settings else None
        with served(app) as address:
            for is_thin in (False, True):
                endpoint = {"url": f"{address}/stripe/webhook", "secret": SECRET, "thin": is_thin}
                answer = self.sandbox.control.post("/_sandbox/webhooks", json=endpoint, headers=self.account.auth)
                assert answer.status_code == 200, answer.text
            yield
        for each in self.account.v1.webhook_endpoints.list({"limit": 100}).data:
            self.account.v1.webhook_endpoints.delete(each.id)

    def use(self, dollars: str, **params: Any) -> None:
        self.account.use(self.customer, int(Decimal(dollars) * 1_000_000), self.sandbox.now(), **params)

    def wait(self, *, days: float = 0, hours: float = 0) -> None:
        """Time goes by; what Stripe sent is handled."""
        self.sandbox.move_to(self.sandbox.now() + int(days * DAY + hours * HOUR))
        self.handle()

    def until_period_end(self) -> None:
        self.sandbox.move_to(
            self.account.v1.subscriptions.retrieve(self.subscription.id)["items"].data[0].current_period_end
        )
        self.handle()

    def handle(self) -> Applied:
        while self.account.v1.webhook_endpoints.list().data and self.flush()["pending"]:
            pass
        result = apply_events(self.ledger, self.catalog, self.api, through=None, now=self.now, run_id="story")
        advance_standing(self.ledger, Dunning(overdue_after_days=7, suspended_after_days=14), now=self.now)
        self.problems += result.problems
        return result

    def flush(self) -> dict[str, int]:
        counts: dict[str, int] = self.sandbox.control.post("/_sandbox/webhooks/flush", headers=self.account.auth).json()
        return counts

    def card(self, outcome: str) -> None:
        body = {"customer": self.customer, "outcome": outcome}
        assert self.sandbox.control.post("/_sandbox/payments", json=body, headers=self.account.auth).status_code == 200

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.sandbox.now(), UTC)

    @property
    def invoices(self) -> list[tuple[str, str]]:
        return [(row.status, f"{row.amount_paid:.2f}") for row in self.inbox.rows("invoices", "created")]

    @property
    def standings(self) -> list[str]:
        return self.inbox.standings()


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    running = Sandbox(tmp_path_factory.mktemp("stripe") / "state")
    yield running
    running.stop()


@pytest.fixture
def story(sandbox: Sandbox, ledger: Ledger, ledger_url: str, catalog: Catalog) -> Iterator[Story]:
    """The story with its webhook in place."""
    story = Story(sandbox, ledger, catalog)
    with story.webhook(ledger_url):
        yield story
    assert story.problems == []


def test_the_card_that_never_recovers(story: Story) -> None:
    story.subscribe()
    story.use("5.00")
    story.card("fail")
    story.until_period_end()
    story.wait(hours=2)
    story.wait(days=7)
    assert story.standings == ["current", "past_due", "overdue"]
    story.wait(days=14)
    assert story.standings == ["current", "past_due", "overdue", "suspended"]
    open_invoice = story.inbox.rows("invoices")[0].invoice_id
    story.account.v1.invoices.void_invoice(open_invoice)
    story.wait(hours=1)
    assert story.standings[-1] == "current"


def test_the_trial(story: Story) -> None:
    story.subscribe(trial_end=story.sandbox.now() + 10 * DAY)
    story.use("99.00")
    story.wait(days=1)
    assert story.standings == ["trialing"]
    story.wait(days=9)
    assert story.standings == ["trialing", "current"]
    story.use("1.50")
    story.until_period_end()
    story.wait(hours=1)
    assert story.invoices[-1] == ("paid", "1.50")


def test_the_credit_note(story: Story) -> None:
    story.subscribe()
    story.use("5.00")
    story.until_period_end()
    story.wait(hours=1)
    (invoice,) = story.inbox.rows("invoices")
    story.account.v1.credit_notes.create({"invoice": invoice.invoice_id, "amount": 100, "credit_amount": 100})
    story.wait(hours=1)
    (row,) = [row for row in story.inbox.rows("audit_trail") if row.kind == "credit_note.created"]
    assert (row.tenant_id, row.detail["amount"]) == ("globex", "1")
    assert story.inbox.rows("invoices")[0].object["post_payment_credit_notes_amount"] == 100


def test_usage_that_stripe_rejects_after_its_200(story: Story) -> None:
    """PEERS.md, case 4: the report names the record by the key that it was sent under."""
    story.subscribe()
    options: Any = {"idempotency_key": "cb1-lost"}
    event = {"event_name": "tokens", "payload": {"stripe_customer_id": "cus_unknown", "value": "7"}}
    story.account.v1.billing.meter_events.create({**event, "identifier": "cb1-lost"}, options)
    story.wait(hours=1)
    rejected = [row for row in story.inbox.rows("audit_trail") if row.kind == "usage_record.rejected"]
    assert [(row.subject, row.detail["code"]) for row in rejected] == [("cb1-lost", "meter_event_customer_not_found")]
