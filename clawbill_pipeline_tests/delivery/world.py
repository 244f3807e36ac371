"""A small world for delivery tests: a ledger, a catalogue, and an account in the Stripe stand-in at one moment."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from pydantic import SecretStr
from sqlalchemy import insert, select, text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.delivery.pacing import Backoff
from clawbill_pipeline.delivery.planning import Planned, plan
from clawbill_pipeline.delivery.provisioning import Provisioned, provision
from clawbill_pipeline.delivery.sending import Delivered, deliver
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import rated_usage, usage_record_trail, usage_records
from clawbill_pipeline.stripe_api import LEGACY_VERSION, StripeApi
from clawbill_pipeline_tests.sandbox.stripe.server import Account, Sandbox

HOUR = timedelta(hours=1)
BACKENDS = ("hour_meter", "sum_meter", "hour_meter_stream", "sum_meter_stream", "usage_record")
#: The first hour that is used; the stand-in's clock starts a day later.
T0 = datetime(2026, 3, 1, tzinfo=UTC)

CATALOG = """
start: 2026-03-01T00:00:00Z
services:
  tokens: {unit: token}
  requests: {unit: request, bill_by: quantity, quantity_decimals: 3}
rate_cards:
  standard:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices:
          tokens: {model: per_unit, unit_amount: "0.000015"}
          requests: {model: per_unit, unit_amount: "0.25"}
tenants:
  acme: {rate_card: standard, name: Acme}
  globex: {rate_card: standard, email: billing@globex.example}
"""

#: Quick for tests; what is waited for is the same.
IMPATIENT = Backoff(first=0.001, longest=0.01)


@dataclass
class World:
    ledger: Ledger
    sandbox: Sandbox
    account: Account
    catalog: Catalog = field(default_factory=lambda: parse(CATALOG))
    base: str | None = None
    timeout: float = 30

    @property
    def api(self) -> StripeApi:
        return StripeApi(SecretStr(self.account.key), base=self.base or self.sandbox.url, timeout=self.timeout)

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.sandbox.now(), UTC)

    def provision(self, **options: Any) -> Provisioned:
        return provision(self.ledger, self.catalog, self.api, now=self.now(), run_id="test", **options)

    def provision_as(self, backend: str) -> None:
        """Provisions so that tokens go by ``backend``: by what is at Stripe before, as in real life."""
        if backend.startswith("sum_meter"):
            self.account.meter("clawbill_tokens")
        if backend == "usage_record":
            for tenant in self.catalog.tenants:
                self.legacy_subscription(tenant)
        result = self.provision()
        assert not result.failed, result.failed
        if backend.endswith("_stream"):  # chosen in live mode only
            self.execute("UPDATE stripe_items SET backend = backend || '_stream' WHERE service = 'tokens'")

    def legacy_subscription(self, tenant: str, unit_amount: str = "0.0001") -> str:
        """A subscription whose tokens are billed by a price without a meter, made as one did years ago."""
        client, old = self.account.client, {"stripe_version": LEGACY_VERSION}
        customer = self.account.customer(metadata={"tenant_id": tenant})
        product = client.v1.products.create({"name": "OpenClaw Usage"}).id
        recurring = {"interval": "month", "usage_type": "metered"}
        terms = {"currency": "usd", "product": product, "recurring": recurring, "unit_amount_decimal": unit_amount}
        items = [{"price": client.v1.prices.create(terms, old).id, "metadata": {"service": "tokens"}}]
        given = {
            "customer": customer,
            "items": items,
            "metadata": {"tenant_id": tenant},
            "backdate_start_date": int(T0.timestamp()),
            "billing_cycle_anchor": int(self.catalog.tenant(tenant).period_at(T0).end.timestamp()),
        }
        return str(client.v1.subscriptions.create(given, old).id)

    def rate(
        self,
        tenant: str,
        service: str,
        hour: datetime,
        amount: str | Decimal,
        quantity: str | Decimal = "0",
        dimensions: str = "",
        currency: str = "USD",
    ) -> None:
        """Books the newest revision of a window, as station 3 does."""
        start = hour.replace(minute=0)
        self.ledger.ensure_partitions([start])
        key = {
            "hour": start,
            "tenant_id": tenant,
            "service": service,
            "dimensions": dimensions,
            "window_start": hour,
        }
        with self.ledger.transaction() as connection:
            earlier = select(rated_usage.c.revision).filter_by(**key).order_by(rated_usage.c.revision.desc())
            revision = (connection.scalar(earlier.limit(1)) or 0) + 1
            connection.execute(
                insert(rated_usage).values(
                    **key,
                    revision=revision,
                    metered_revision=revision,
                    basis="hourly",
                    reason="first" if revision == 1 else "corrected",
                    quantity=quantity,
                    amount=amount,
                    currency=currency,
                    asked_quantity=quantity,
                    answered_amount=amount,
                    period_start=self.catalog.tenant(tenant).period_at(hour).start,
                    answer={},
                    rate_card_version="",
                    latency_ms=1,
                    rated_at=start + HOUR,
                    run_id="test",
                )
            )

    def plan(self, hours: tuple[datetime, datetime] | None = None) -> Planned:
        return plan(self.ledger, self.catalog, hours=hours, now=self.now(), run_id="test")

    def deliver(self, **options: Any) -> Delivered:
        return deliver(self.ledger, self.catalog, self.api, now=self.now, run_id="test", backoff=IMPATIENT, **options)

    def rows(self, **key: Any) -> list[Any]:
        query = select(usage_records).filter_by(**key)
        order = usage_records.c
        with self.ledger.transaction() as connection:
            return list(
                connection.execute(query.order_by(order.customer_id, order.meter, order.window_start, order.revision))
            )

    def audited(self, kind: str = "usage_record.created") -> list[str]:
        with self.ledger.transaction() as connection:
            query = select(usage_record_trail.c.identifier).filter_by(kind=kind)
            return list(connection.scalars(query.order_by("id")))

    def execute(self, sql: str, **values: Any) -> None:
        with self.ledger.transaction() as connection:
            connection.execute(text(sql), values)

    def customer(self, tenant: str) -> str:
        with self.ledger.transaction() as connection:
            found = "SELECT customer_id FROM stripe_customers WHERE tenant_id = :tenant"
            return str(connection.scalar(text(found), {"tenant": tenant}))

    def meter(self, service: str, tenant: str = "acme") -> str:
        """Stripe's id of the service's meter; empty for a legacy item."""
        with self.ledger.transaction() as connection:
            found = "SELECT meter_id FROM stripe_items WHERE service = :service AND tenant_id = :tenant"
            return str(connection.scalar(text(found), {"service": service, "tenant": tenant}))

    def held(self, tenant: str, service: str, hour: datetime | None = None, hours: int = 1) -> int:
        """Whole units that Stripe holds: of some hours, or of the whole month. Legacy items tell the month's alone."""
        if not self.meter(service, tenant):
            return self._held_by_item(tenant, service)
        start, length = (T0, 31 * 24 * HOUR) if hour is None else (hour, hours * HOUR)
        end = int((start + length).timestamp())
        values = self.account.held(self.meter(service, tenant), self.customer(tenant), int(start.timestamp()), end)
        return int(sum(value for _, value in values))

    def _held_by_item(self, tenant: str, service: str) -> int:
        found = "SELECT subscription_item_id FROM stripe_items WHERE tenant_id = :tenant AND service = :service"
        with self.ledger.transaction() as connection:
            item = connection.scalar(text(found), {"tenant": tenant, "service": service})
        path = f"/v1/subscription_items/{item}/usage_record_summaries"
        answer = self.account.client.raw_request("get", path, stripe_version=LEGACY_VERSION)
        return sum(int(summary["total_usage"]) for summary in json.loads(answer.body)["data"])
