"""A month of a tenant at the Stripe stand-in, whose usage is written into the ledger as it is; no station runs but the
close. For the whole line see ``scenarios.company``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pydantic import SecretStr
from sqlalchemy import insert, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.closing import Closing
from clawbill_pipeline.invoicing.close import Closed, close_drafts
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import metered_usage, rated_usage, usage_records
from clawbill_pipeline.money import plain
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.invoicing.conftest import Inbox
from clawbill_pipeline_tests.sandbox.stripe.server import HOUR, Account, Sandbox

UNITS = 12_340_000


class Month:
    """A month of globex at the stand-in, of 31 days, whose draft is there.

    ``given`` goes to Stripe with the subscription; ``meanwhile`` is what happens before the month ends.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        ledger: Ledger,
        catalog: Catalog,
        meanwhile: Callable[[Month], None] = lambda month: None,
        *,
        currency: str = "usd",
        sent: int = UNITS,
        **given: Any,
    ) -> None:
        sandbox.move_to_next_month()
        self.sandbox, self.ledger, self.catalog = sandbox, ledger, catalog
        self.account: Account = sandbox.account()
        meter = self.account.meter()
        unit = "0.0001" if currency == "usd" else "0.000001"
        self.price = self.account.price(meter.id, unit_amount_decimal=unit, currency=currency).id
        self.customer = self.account.customer(email="a@b.c")
        params = {"customer": self.customer, "items": [{"price": self.price}], **given}
        self.subscription = self.account.v1.subscriptions.create(params)
        self.item = self.subscription["items"].data[0]
        self.start = self.now
        if sent:
            self.account.use(self.customer, sent, self.item.current_period_start)
        self.api = StripeApi(SecretStr(self.account.key), sandbox.url)
        self.inbox = Inbox(ledger, catalog, self.api)
        self.inbox.map()
        with ledger.transaction() as connection:
            both = {"customer": self.customer, "subscription": self.subscription.id, "item": self.item.id}
            connection.execute(
                text("UPDATE stripe_customers SET customer_id = :customer, subscription_id = :subscription"), both
            )
            items = "UPDATE stripe_items SET subscription_item_id = :item, meter_id = :meter"
            connection.execute(text(items), both | {"meter": meter.id})
        meanwhile(self)
        self.until_period_end()

    def until_period_end(self) -> None:
        """Stripe drafts the invoice, and says so."""
        found = self.account.v1.subscriptions.retrieve(self.subscription.id)
        self.sandbox.move_to(found["items"].data[0].current_period_end)
        self.read()

    @property
    def now(self) -> datetime:
        return datetime.fromtimestamp(self.sandbox.now(), UTC)

    def read(self) -> None:
        """Lands and applies what Stripe sent meanwhile."""
        seen = {row.event_id for row in self.inbox.rows("stripe_events")}
        for event in reversed(list(self.account.v1.events.list({"limit": 100}).auto_paging_iter())):
            if event.id not in seen:
                self.inbox.land_body(str(event))
        self.inbox.apply()

    def book(
        self,
        units: int = UNITS,
        *,
        revision: int = 1,
        state: str = "delivered",
        metered: bool = True,
        at: datetime | None = None,
        planned_at: datetime | None = None,
        currency: str = "USD",
    ) -> None:
        """Puts the month's usage into the ledger, all in its first hour (or another, ``at``)."""
        hour = at or self.start
        self.ledger.ensure_partitions([hour])
        amount = Decimal(units) / 1_000_000
        window: dict[str, Any] = {
            "hour": hour,
            "tenant_id": "globex",
            "service": "requests",
            "window_start": hour,
            "revision": revision,
            "run_id": "run_1",
        }
        rated = {
            "dimensions": "",
            "metered_revision": revision,
            "basis": "hourly",
            "reason": "first",
            "quantity": amount,
            "amount": amount,
            "currency": currency,
            "asked_quantity": amount,
            "answered_amount": amount,
            "period_start": self.start,
            "answer": {},
            "rate_card_version": "standard",
            "latency_ms": 1,
            "rated_at": hour,
        }
        record = {
            "identifier": f"id_{hour:%d%H}_{revision}",
            "customer_id": self.customer,
            "meter": "tokens",
            "backend": "sum_meter",
            "units": units,
            "value": units,
            "exact_units": units,
            "period_start": self.start,
            "event_timestamp": hour,
            "payload": {},
            "payload_sha256": "x",
            "planned_at": planned_at or hour,
            "state": state,
            "settled_at": hour if state == "delivered" else None,
        }
        with self.ledger.transaction() as connection:
            if metered:
                connection.execute(
                    text(
                        "INSERT INTO metered_hours SELECT hour, 0, 1, 0, 0, 1, hour, 'run_1' FROM"
                        " generate_series(:first, :last, interval '1 hour') hour ON CONFLICT DO NOTHING"
                    ),
                    {"first": self.start, "last": self.now - timedelta(hours=1)},
                )
            quantity = {"quantity": amount, "events": 1, "reason": "first", "metered_at": hour, "dimensions": ""}
            connection.execute(insert(metered_usage).values(window | quantity))
            connection.execute(insert(rated_usage).values(window | rated))
            connection.execute(insert(usage_records).values(window | record))

    def close(self, closing: Closing | None = None) -> Closed:
        return close_drafts(self.ledger, self.catalog, self.api, closing or Closing(), now=self.now, run_id="run_1")

    @property
    def invoice(self) -> Any:
        return self.account.v1.invoices.list({"subscription": self.subscription.id}).data[0]

    def breaks(self) -> list[tuple[str, str, str, bool]]:
        """Service, cause and amount of each break of a draft, and whether it is open."""
        rows = self.inbox.rows("breaks", "id")
        expected = ("ledger_drafted", f"{self.start:%Y-%m}", "globex")
        assert {(row.step, row.period, row.tenant_id) for row in rows} <= {expected}
        return [(row.service, row.cause, plain(row.amount), row.closed_at is None) for row in rows]

    def trail(self) -> list[str]:
        return [row.kind for row in self.inbox.rows("audit_trail", "id") if row.kind.startswith("close.")]

    def finalized(self) -> str:
        self.sandbox.move_to(self.sandbox.now() + 3 * HOUR)
        return str(self.invoice.status)
