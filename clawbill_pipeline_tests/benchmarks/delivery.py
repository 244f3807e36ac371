"""How fast usage records reach Stripe, against the bare SDK; how fast the outbox is planned; how the limiter holds.

``python -m clawbill_pipeline_tests.benchmarks.delivery [--records 100000] [--rows 1000000] [--seconds 30]``
All against the Stripe stand-in on this machine and an embedded PostgreSQL of its own; prints one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import click
from pydantic import SecretStr
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.delivery.pacing import TokenBucket
from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.delivery.sending import deliver
from clawbill_pipeline.ledger import Ledger, embedded, migrate
from clawbill_pipeline.ledger.database import copy_rows
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.sandbox.stripe.server import Account, Sandbox

T0 = datetime(2026, 3, 1, tzinfo=UTC)
NOW = T0 + timedelta(days=3)
HOURS = 10

CATALOG = """
start: 2026-03-01T00:00:00Z
services: {tokens: {unit: token}}
delivery: {concurrency: 32, calls_per_second: 10000}
rate_cards:
  standard:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {tokens: {model: per_unit, unit_amount: "0.000015"}}
"""


def fill(ledger: Ledger, account: Account, rows: int, backend: str) -> list[tuple[str, datetime]]:
    """Rated usage of ``rows`` windows, ten hours a tenant; returns (customer, hour) of each."""
    tenants = rows // HOURS
    customers = [f"cus_{number:06d}" for number in range(tenants)]
    meter = account.meter("clawbill_tokens", **({"event_time_window": "hour"} if backend == "hour_meter" else {})).id
    hours = [T0 + timedelta(hours=hour) for hour in range(HOURS)]
    ledger.ensure_partitions(hours)
    with ledger.transaction() as connection:
        names = ("tenant_id", "customer_id", "subscription_id", "currency", "livemode", "mapped_at")
        copy_rows(
            connection,
            "stripe_customers",
            names,
            ((customer[4:], customer, "sub", "USD", False, NOW) for customer in customers),
        )
        names = (
            "tenant_id",
            "service",
            "subscription_item_id",
            "price_id",
            "meter_id",
            "meter",
            "backend",
            "mapped_at",
        )
        copy_rows(
            connection,
            "stripe_items",
            names,
            (
                (customer[4:], "tokens", f"si_{customer}", "price", meter, "clawbill_tokens", backend, NOW)
                for customer in customers
            ),
        )
        names = (
            "hour", "tenant_id", "service", "dimensions", "window_start", "revision", "metered_revision", "basis",
            "reason", "quantity", "amount", "currency", "asked_quantity", "answered_amount", "period_start", "answer",
            "rate_card_version", "latency_ms", "rated_at", "run_id",
        )  # fmt: skip
        one = Decimal(1)
        copy_rows(
            connection,
            "rated_usage",
            names,
            (
                (
                    hour, customer[4:], "tokens", "", hour, 1, 1, "hourly", "first", one, Decimal("0.0123456789"),
                    "USD", one, one, T0, "{}", "", 1, NOW, "benchmark",
                )
                for hour in hours
                for customer in customers
            ),
        )  # fmt: skip
    with ledger.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))
    return [(customer, hour) for hour in hours for customer in customers]


async def bare(api: StripeApi, windows: list[tuple[str, datetime]], concurrency: int) -> float:
    """Calls a second of the SDK alone on its aiohttp client: no outbox, no limiter, nothing kept."""
    remaining = iter(enumerate(windows))

    async def work() -> None:
        for number, (customer, hour) in remaining:
            event = {
                "event_name": "clawbill_tokens",
                "identifier": f"bare-{number}",
                "timestamp": int(hour.timestamp()),
                "payload": {"stripe_customer_id": customer, "value": "12346"},
            }
            await client.v1.billing.meter_events.create_async(event, {"idempotency_key": f"bare-{number}"})  # type: ignore[arg-type]

    async with api.session() as client:
        started = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(concurrency)))
        return len(windows) / (time.perf_counter() - started)


async def held_rate(rate: int, seconds: float) -> float:
    """What the limiter lets through a second when 64 callers want more."""
    bucket = TokenBucket(rate)
    passed = 0
    ends = time.perf_counter() + seconds

    async def work() -> None:
        nonlocal passed
        while time.perf_counter() < ends:
            await bucket.take()
            passed += 1

    await asyncio.gather(*(work() for _ in range(64)))
    return passed / seconds


@click.command()
@click.option("--records", default=100_000, show_default=True, help="Usage records to deliver.")
@click.option("--rows", default=1_000_000, show_default=True, help="Rated rows to plan.")
@click.option("--seconds", default=30.0, show_default=True, help="How long the limiter is watched.")
def main(records: int, rows: int, seconds: float) -> None:
    catalog = parse(CATALOG)
    result: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="clawbill-bench-") as folder:
        server = embedded.start(Path(folder) / "postgres", durable=False)
        sandbox = Sandbox(Path(folder) / "stripe", now=int(NOW.timestamp()))
        try:
            result["bare_sdk_calls_per_second"] = round(_bare(sandbox, records))
            for backend in ("hour_meter", "hour_meter_stream"):
                result[backend] = _delivered(server, sandbox, catalog, backend, records)
            result["planned_rows_per_second"] = _planned(server, sandbox, catalog, rows)
            result["limiter_1000_per_second"] = round(asyncio.run(held_rate(1000, seconds)), 1)
        finally:
            sandbox.stop()
            embedded.stop(Path(folder) / "postgres")
    json.dump(result, sys.stdout, indent=2)
    sys.stdout.write("\n")


def _bare(sandbox: Sandbox, records: int) -> float:
    account = sandbox.account()
    account.meter("clawbill_tokens", event_time_window="hour")
    windows = [(f"cus_{n % (records // HOURS):06d}", T0 + timedelta(hours=n % HOURS)) for n in range(records)]
    return asyncio.run(bare(StripeApi(SecretStr(account.key), base=sandbox.url), windows, 32))


def _ledger(server: embedded.Server, name: str) -> Ledger:
    import psycopg

    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    migrate(server.url(name))
    return Ledger(server.url(name))


def _delivered(
    server: embedded.Server, sandbox: Sandbox, catalog: Catalog, backend: str, records: int
) -> dict[str, float]:
    account, ledger = sandbox.account(), _ledger(server, backend)
    fill(ledger, account, records, backend)
    plan(ledger, catalog, hours=None, now=NOW, run_id="benchmark")
    api = StripeApi(SecretStr(account.key), base=sandbox.url)
    started = time.perf_counter()
    delivered = deliver(ledger, catalog, api, now=lambda: NOW, run_id="benchmark")
    seconds = time.perf_counter() - started
    ledger.dispose()
    if delivered.delivered != records:
        raise SystemExit(f"{delivered} instead of {records}")
    return {"seconds": round(seconds, 2), "records_per_second": round(records / seconds)}


def _planned(server: embedded.Server, sandbox: Sandbox, catalog: Catalog, rows: int) -> dict[str, float]:
    ledger = _ledger(server, "planning")
    fill(ledger, sandbox.account(), rows, "hour_meter")
    started = time.perf_counter()
    planned = plan(ledger, catalog, hours=None, now=NOW, run_id="benchmark")
    first = time.perf_counter() - started
    started = time.perf_counter()
    again = plan(ledger, catalog, hours=None, now=NOW, run_id="benchmark")
    second = time.perf_counter() - started
    ledger.dispose()
    if (planned.records, again.records) != (rows, 0):
        raise SystemExit(f"{planned}, then {again}, instead of {rows} and 0")
    return {"seconds": round(first, 2), "rows_per_second": round(rows / first), "again_seconds": round(second, 2)}


if __name__ == "__main__":
    main()
