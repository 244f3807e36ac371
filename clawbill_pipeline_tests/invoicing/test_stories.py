"""A tenant's months, told in a few lines each: the stand-in's clock moves, its webhooks reach the served app.

What was used is sent to Stripe as it is; metering and rating are not part of these stories.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from pydantic import SecretStr

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.dunning import Dunning
from clawbill_pipeline.invoicing.dunning import advance_standing
from clawbill_pipeline.invoicing.inbox import Applied, apply_events
from clawbill_pipeline.invoicing.sweep import sweep_events
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


def test_the_happy_month(story: Story) -> None:
    story.subscribe()
    story.use("12.34")
    story.until_period_end()
    assert story.invoices == [("draft", "0.00")]
    story.wait(hours=1)
    assert story.invoices == [("paid", "12.34")]
    assert story.standings == ["current"]
    (line,) = story.inbox.rows("invoice_lines")
    assert (line.tenant_id, line.service, line.quantity, line.amount) == (
        "globex",
        "requests",
        12_340_000,
        Decimal("12.34"),
    )


def test_the_late_night_file(story: Story) -> None:
    story.subscribe()
    story.use("1.00")
    story.until_period_end()
    story.account.use(story.customer, 2_000_000, story.sandbox.now() - 60)
    story.wait(hours=1)
    assert story.invoices == [("paid", "3.00")]


def test_the_failed_card_that_recovers(story: Story) -> None:
    story.subscribe()
    story.use("5.00")
    story.card("fail")
    story.until_period_end()
    story.wait(hours=2)
    assert (story.invoices, story.standings) == ([("open", "0.00")], ["current", "past_due"])
    story.card("succeed")
    story.wait(days=3.1)
    assert (story.invoices, story.standings) == ([("paid", "5.00")], ["current", "past_due", "current"])


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


def test_the_cancellation_in_mid_hour(story: Story) -> None:
    """PEERS.md, case 8: what was used is billed."""
    story.subscribe()
    story.wait(days=10, hours=0.4)
    story.use("2.00")
    story.wait(hours=0.1)
    story.account.v1.subscriptions.cancel(story.subscription.id, {"invoice_now": True})
    story.wait(hours=2)
    assert story.invoices == [("paid", "2.00")]
    assert story.standings == ["current", "cancelled"]


def test_the_february_anchor(story: Story) -> None:
    """PEERS.md, case 7: periods anchored on the 31st tile through February; each hour is on one invoice."""
    anchor = datetime(story.now.year + 1, 1, 31, tzinfo=UTC)
    story.sandbox.move_to(int(anchor.timestamp()))
    story.subscribe()
    for _ in range(3):
        story.use("1.00")
        story.wait(days=1)
        story.until_period_end()
    story.wait(hours=1)
    assert story.invoices == [("paid", "1.00")] * 3
    spans = [(row.period_start, row.period_end) for row in story.inbox.rows("invoice_lines", "period_start")]
    assert [span[0].day for span in spans] == [31, (anchor.replace(month=3, day=1) - timedelta(days=1)).day, 31]
    assert [span[1] for span in spans[:-1]] == [span[0] for span in spans[1:]]


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


def test_the_webhook_outage_of_two_days(sandbox: Sandbox, ledger: Ledger, ledger_url: str, catalog: Catalog) -> None:
    """PEERS.md, case 10: what happened while nobody listened is swept up, and the ledger is as if it had been told."""
    story = Story(sandbox, ledger, catalog)
    story.card("fail")
    with story.webhook(ledger_url):
        story.subscribe()
        story.use("5.00")
        story.until_period_end()
    story.wait(days=1)
    story.card("succeed")
    story.wait(days=3)
    assert (story.invoices, story.standings) == ([("draft", "0.00")], ["current"])
    with story.webhook(ledger_url):
        swept = sweep_events(ledger, story.api, since=story.now - timedelta(days=5), now=story.now)
        assert swept.problems == ()
        assert 0 < swept.landed < swept.listed, "some were there already"
        story.handle()
    assert story.problems == []
    assert (story.invoices, story.standings[-1]) == ([("paid", "5.00")], "current")
    assert len(story.inbox.rows("invoice_lines")) == 1


def test_the_duplicate_storm(sandbox: Sandbox, ledger: Ledger, ledger_url: str, catalog: Catalog) -> None:
    """Every webhook twice and in no order: the rows are those of the quiet month."""
    story = Story(sandbox, ledger, catalog)
    with story.webhook(ledger_url, webhook_duplicates=1, webhook_shuffle_seconds=0.2):
        story.subscribe()
        story.use("5.00")
        story.card("fail")
        story.until_period_end()
        story.wait(hours=2)
        story.card("succeed")
        story.wait(days=4)
    assert story.problems == []
    assert (story.invoices, story.standings[-1]) == ([("paid", "5.00")], "current")
    events = story.inbox.rows("stripe_events")
    assert len({row.event_id for row in events}) == len(events)
    (invoice,) = story.inbox.rows("invoices")
    assert invoice.object["status"] == story.account.v1.invoices.retrieve(invoice.invoice_id).status == "paid"
