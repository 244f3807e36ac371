"""From events to Stripe in shards: the same rows, amounts and identifiers as without them, whatever the order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from pydantic import SecretStr
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.delivery.provisioning import provision
from clawbill_pipeline.delivery.sending import deliver
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.sharding import Shard, shards
from clawbill_pipeline.metering import meter
from clawbill_pipeline.metering.unused import meter_unused
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating.station import rate
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database
from clawbill_pipeline_tests.delivery.world import HOUR, IMPATIENT, T0
from clawbill_pipeline_tests.metering.world import Event, World, world
from clawbill_pipeline_tests.rating.world import TOKEN, real_openclaw
from clawbill_pipeline_tests.sandbox.stripe.server import Account, Sandbox

TENANTS = [f"t-{number}" for number in range(7)]
CATALOGUE = """
version: 1
start: 2026-03-01T00:00:00Z
services:
  tokens: {{unit: token, dimensions: [model]}}
  requests: {{unit: request, bill_by: quantity, quantity_decimals: 3}}
  storage: {{unit: GB-hour, basis: period_to_date}}
rate_cards:
  card:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices:
          tokens: {{model: per_unit, unit_amount: "0.0000151"}}
          requests: {{model: per_unit, unit_amount: "0.25"}}
          storage:
            model: graduated
            tiers: [{{up_to: 10, unit_amount: "1.5"}}, {{up_to: null, unit_amount: "0.333"}}]
tenants:
"""
#: Of each table what says neither when nor by which run.
TABLES = {
    "metered_usage": "hour, tenant_id, service, dimensions, window_start, revision, quantity, events, reason",
    "rated_usage": "hour, tenant_id, service, dimensions, window_start, revision, metered_revision, basis, reason,"
    " quantity, amount, currency, asked_quantity, answered_amount, period_start, unlimited_amount, period_amount",
    "rating_failures": "hour, tenant_id, service, dimensions, window_start, metered_revision, kind",
    "usage_records": "hour, identifier, tenant_id, service, customer_id, meter, window_start, revision, units, value,"
    " exact_units, parts, period_start, event_timestamp, payload::text, payload_sha256",
    "planned_totals": "customer_id, meter, period_start, exact_units, units",
    "quarantine": "uri, place, reason, detail, tenant_id",
}


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    running = Sandbox(tmp_path_factory.mktemp("stripe") / "state", now=int(T0.timestamp()) + 86_400)
    yield running
    running.stop()


def catalogue(account: Account) -> str:
    """Every second tenant is on one customer; ``nobody`` of the events is no tenant at all."""
    shared = account.customer()
    lines = [
        f"  {tenant}: {{rate_card: card{f', stripe_customer: {shared}' if number % 2 else ''}}}"
        for number, tenant in enumerate(TENANTS)
    ]
    return CATALOGUE.format() + "\n".join(lines) + "\n"


def arrivals(chance: random.Random) -> list[list[Event]]:
    """Two landings of two hours, with duplicates, contradictions and late usage."""
    kinds = [("tokens", "large"), ("tokens", "small"), ("requests", ""), ("storage", "")]
    made = []
    for _ in range(2):
        events = []
        for line in range(120):
            service, dimensions = chance.choice(kinds)
            at = T0 + timedelta(minutes=chance.randrange(120))
            quantity = Decimal(chance.randrange(1, 9999)) / 1000
            tenant = chance.choice([*TENANTS, "nobody"])
            events.append(Event(f"e{chance.randrange(90)}", at, quantity, tenant, service, dimensions, "app", line))
        made.append(events)
    return made


def bill(place: World, url: str, account: Account, sandbox: Sandbox, shard: Shard | None, hour: int) -> None:
    """What a run does: all stations for its share of an hour."""
    start = T0 + hour * HOUR
    now = T0 + 24 * HOUR
    given = {"start": start, "end": start + HOUR, "now": now, "run_id": f"run {shard}", "shard": shard}
    assert all(check.passed for check in meter(place.ledger, place.lake, place.catalog, **given).checks)
    meter_unused(place.ledger, place.catalog, **given)
    rate(place.ledger, place.catalog, OpenClaw(url, SecretStr(TOKEN), timeout=30), **given)
    plan(place.ledger, place.catalog, hours=(start, start + HOUR), now=now, run_id="run", shard=shard)
    api = StripeApi(SecretStr(account.key), base=sandbox.url)
    sent = deliver(
        place.ledger, place.catalog, api, now=lambda: now, run_id="run", shard=shard, backoff=IMPATIENT
    )  # fmt: skip
    assert not sent.parked + sent.rejected + sent.waiting + sent.busy


def contents(place: World) -> dict[str, list[str]]:
    return {
        table: sorted(str(tuple(row.values())) for row in place.rows(f"SELECT {columns} FROM {table}"))
        for table, columns in TABLES.items()
    }


def mapped(place: World, account: Account, sandbox: Sandbox, known: Ledger | None) -> None:
    """Tenants at Stripe: made there, or copied from another ledger so that customers are the same."""
    if known is None:
        api = StripeApi(SecretStr(account.key), base=sandbox.url)
        result = provision(place.ledger, place.catalog, api, now=T0 + 24 * HOUR, run_id="provision")
        assert not result.failed, result.failed
        return
    for table in ("stripe_customers", "stripe_items"):
        with known.transaction() as c:
            rows = [dict(row) for row in c.execute(text(f"SELECT * FROM {table} ORDER BY 1")).mappings()]
        rows.sort(key=lambda row: str(row.get("payer_id") or ""))
        with place.ledger.transaction() as c:
            names = list(rows[0])
            columns, values = ", ".join(names), ", ".join(f":{name}" for name in names)
            c.execute(text(f"INSERT INTO {table} ({columns}) VALUES ({values})"), rows)


def test_an_hour_in_shards_is_sent_as_one_that_is_whole(
    tmp_path: Path, sandbox: Sandbox, postgres_server: AnyServer, ledger_template: str
) -> None:
    account = sandbox.account()
    document = catalogue(account)
    catalog: Catalog = parse(document)
    landed = arrivals(random.Random(8))
    found: list[dict[str, list[str]]] = []
    known: Ledger | None = None
    (tmp_path / "openclaw").mkdir()
    with (
        real_openclaw(tmp_path / "openclaw", document) as url,
        fresh_database(postgres_server, template=ledger_template) as one,
        fresh_database(postgres_server, template=ledger_template) as other,
    ):
        for name, parts in ((one, 1), (other, 3)):
            with world(tmp_path / name, postgres_server.url(name), catalog=catalog) as place:
                mapped(place, account, sandbox, known)
                chance = random.Random(parts)
                for events in landed:
                    place.land(events)
                    for hour in range(2):
                        order = shards(parts)
                        chance.shuffle(order)
                        for part in order:
                            bill(place, url, account, sandbox, part, hour)
                found.append(contents(place))
                known = Ledger(postgres_server.url(name)) if known is None else known
                assert not place.rows("SELECT 1 FROM usage_records WHERE state <> 'delivered'")
        assert known is not None
        known.dispose()
    whole, joined = found
    assert joined == whole
    assert len(whole["usage_records"]) > 30
    assert whole["rating_failures"], "somebody is no tenant"
