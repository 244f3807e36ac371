"""A ledger with a mapped tenant, and an inbox to land events in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import insert, text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.invoicing.inbox import Applied, apply_events
from clawbill_pipeline.invoicing.landing import Landed, land, read_envelope
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import stripe_customers, stripe_items
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.invoicing.objects import END, event

NOW = datetime.fromtimestamp(END + 7200, UTC)

CATALOG = """\
version: 1
start: 2026-10-01T00:00:00Z
services:
  requests: {unit: request}
rate_cards:
  standard:
    currency: USD
    versions:
      - effective_from: 2026-10-01T00:00:00Z
        prices: {requests: {model: per_unit, unit_amount: "0.01"}}
tenants:
  globex: {rate_card: standard}
  initech: {rate_card: standard, stripe_customer: cus_named}
"""


@pytest.fixture(scope="session")
def catalog() -> Catalog:
    return parse(CATALOG)


@pytest.fixture
def ledger(ledger_url: str) -> Iterator[Ledger]:
    ledger = Ledger(ledger_url)
    yield ledger
    ledger.dispose()


@dataclass
class Inbox:
    """Lands events and applies them; ``api`` is what they are applied with."""

    ledger: Ledger
    catalog: Catalog
    api: StripeApi | None = None
    landed: list[str] = field(default_factory=list)

    def land(self, event_type: str, obj: dict[str, Any], at: int = END) -> str:
        """Lands one event, ``at`` seconds of Unix time; returns its id."""
        event_id = f"evt_{len(self.landed) + 1}"
        self.land_body(event(event_id, event_type, obj, at))
        return event_id

    def land_body(self, body: str) -> None:
        with self.ledger.transaction() as connection:
            land(connection, [Landed(read_envelope(body), body, {}, "webhook", NOW)])
        self.landed.append(body)

    def apply(self, through: int | None = None) -> Applied:
        return apply_events(self.ledger, self.catalog, self.api, through=through, now=NOW, run_id="run_1")

    def rows(self, table: str, order: str = "1") -> list[Any]:
        with self.ledger.transaction() as connection:
            return list(connection.execute(text(f"SELECT * FROM {table} ORDER BY {order}")))

    def outcomes(self) -> list[str]:
        return [row.outcome for row in self.rows("stripe_events_handled")]

    def standings(self, tenant_id: str = "globex") -> list[str]:
        return [row.standing for row in self.rows("tenant_standing") if row.tenant_id == tenant_id]

    def map(self, tenant_id: str = "globex", number: int = 1, services: tuple[str, ...] = ("requests",)) -> None:
        """Maps a tenant to cus_N, sub_N, and its services to si_N, si_Nb, si_Nc."""
        with self.ledger.transaction() as connection:
            connection.execute(
                insert(stripe_customers).values(
                    tenant_id=tenant_id,
                    customer_id=f"cus_{number}",
                    subscription_id=f"sub_{number}",
                    currency="USD",
                    livemode=False,
                    mapped_at=NOW,
                )
            )
            for service, suffix in zip(services, ("", "b", "c"), strict=False):
                connection.execute(
                    insert(stripe_items).values(
                        tenant_id=tenant_id,
                        service=service,
                        subscription_item_id=f"si_{number}{suffix}",
                        price_id=f"price_{number}{suffix}",
                        meter_id="mtr_1",
                        meter=f"clawbill_{service}",
                        backend="hour_meter",
                        mapped_at=NOW,
                    )
                )


@pytest.fixture
def inbox(ledger: Ledger, catalog: Catalog) -> Inbox:
    """An inbox with globex mapped to cus_1, sub_1 and si_1 (requests)."""
    inbox = Inbox(ledger, catalog)
    inbox.map()
    return inbox


@pytest.fixture
def unmapped(ledger: Ledger, catalog: Catalog) -> Inbox:
    """An inbox of a ledger that knows no customer yet."""
    return Inbox(ledger, catalog)
