"""How fast usage records reach Stripe, against the bare SDK; how fast the outbox is planned; how the limiter holds.

``python -m clawbill_pipeline_tests.benchmarks.delivery [--records 100000] [--rows 1000000] [--seconds 30]``
All against the Stripe stand-in on this machine and an embedded PostgreSQL of its own; prints a table. The bare SDK and
the sender take turns; the best of each round counts, and beside the clock this process' own processor time, which says
more on a busy machine.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import click
import psycopg
from pydantic import SecretStr
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.catalog.periods import HOUR
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


@dataclass
class Speed:
    """What ``count`` things took: by the clock, and of this process' processor time."""

    count: int
    wall: float
    used: float

    @property
    def per_second(self) -> float:
        return self.count / self.wall

    @property
    def microseconds(self) -> float:
        return self.used / self.count * 1e6


@contextmanager
def measured(count: int, into: list[Speed]) -> Iterator[None]:
    wall, used = time.perf_counter(), time.process_time()
    yield
    into.append(Speed(count, time.perf_counter() - wall, time.process_time() - used))


def best(speeds: list[Speed]) -> Speed:
    return Speed(speeds[0].count, min(each.wall for each in speeds), min(each.used for each in speeds))


@click.command()
@click.option("--records", default=100_000, show_default=True, help="Usage records to deliver.")
@click.option("--rows", default=1_000_000, show_default=True, help="Rated rows to plan.")
@click.option("--rounds", default=3, show_default=True, help="How often the bare SDK and the sender take turns.")
@click.option("--seconds", default=30.0, show_default=True, help="How long the limiter is watched.")
def main(records: int, rows: int, rounds: int, seconds: float) -> None:
    """Measures, and prints the table."""
    catalog = parse(CATALOG)
    with tempfile.TemporaryDirectory(prefix="clawbill-bench-") as folder:
        server = embedded.start(Path(folder) / "postgres", durable=False)
        sandbox = Sandbox(Path(folder) / "stripe", now=int(NOW.timestamp()))
        try:
            _sending(server, sandbox, catalog, records, rounds)
            _planning(server, sandbox, catalog, rows)
            _month(server, sandbox, catalog, rows)
            rate = asyncio.run(held_rate(1000, seconds))
            _say("limiter at 1,000 calls/s", f"{rate:,.1f} calls/s over {seconds:g} s ({rate / 10 - 100:+.2f} %)")
        finally:
            sandbox.stop()
            embedded.stop(Path(folder) / "postgres")


def _say(what: str, result: str) -> None:
    sys.stdout.write(f"{what:42} {result}\n")
    sys.stdout.flush()


def _sending(server: embedded.Server, sandbox: Sandbox, catalog: Catalog, records: int, rounds: int) -> None:
    bare_sdk: list[Speed] = []
    sent: dict[str, list[Speed]] = {"hour_meter": [], "hour_meter_stream": []}
    for number in range(rounds):
        _bare(sandbox, records, bare_sdk)
        for backend, speeds in sent.items():
            _delivered(server, sandbox, catalog, backend, records, number, speeds)
    base = best(bare_sdk)
    _say("bare SDK on AIOHTTPClient, v1", f"{base.per_second:8,.0f} calls/s   {base.microseconds:6.0f} µs of processor")
    for backend, what in (("hour_meter", "outbox, v1 (1 record a call)"), ("hour_meter_stream", "outbox, v2 (100)")):
        speed = best(sent[backend])
        said = f"{speed.per_second:8,.0f} records/s {speed.microseconds:6.0f} µs of processor"
        wall, used = speed.per_second / base.per_second, base.microseconds / speed.microseconds
        _say(what, f"{said}   {wall:.2f} x bare by the clock, {used:.2f} x by processor")


def _bare(sandbox: Sandbox, records: int, into: list[Speed]) -> None:
    account = sandbox.account()
    account.meter("clawbill_tokens", event_time_window="hour")
    windows = [(f"cus_{n % (records // HOURS):06d}", T0 + timedelta(hours=n % HOURS)) for n in range(records)]
    with measured(records, into):
        asyncio.run(bare(StripeApi(SecretStr(account.key), base=sandbox.url), windows, 32))


def _ledger(server: embedded.Server, name: str) -> Ledger:
    with psycopg.connect(server.dsn(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
    migrate(server.url(name))
    return Ledger(server.url(name))


def _delivered(
    server: embedded.Server,
    sandbox: Sandbox,
    catalog: Catalog,
    backend: str,
    records: int,
    number: int,
    into: list[Speed],
) -> None:
    account, ledger = sandbox.account(), _ledger(server, f"{backend}_{number}")
    fill(ledger, account, records, backend)
    plan(ledger, catalog, hours=None, now=NOW, run_id="benchmark")
    api = StripeApi(SecretStr(account.key), base=sandbox.url)
    with measured(records, into):
        delivered = deliver(ledger, catalog, api, now=lambda: NOW, run_id="benchmark")
    ledger.dispose()
    if delivered.delivered != records:
        raise SystemExit(f"{delivered} instead of {records}")


def _planning(server: embedded.Server, sandbox: Sandbox, catalog: Catalog, rows: int) -> None:
    ledger = _ledger(server, "planning")
    fill(ledger, sandbox.account(), rows, "hour_meter")
    speeds: list[Speed] = []
    for expected, what in ((rows, f"planning {rows:,} rated rows"), (0, "planning them again, unchanged")):
        with measured(rows, speeds):
            planned = plan(ledger, catalog, hours=None, now=NOW, run_id="benchmark")
        if planned.records != expected:
            raise SystemExit(f"{planned} instead of {expected} records")
        _say(what, f"{speeds[-1].wall:8.1f} s   {speeds[-1].per_second:8,.0f} rows/s")
    ledger.dispose()


def _month(server: embedded.Server, sandbox: Sandbox, catalog: Catalog, rows: int) -> None:
    """An hour of a thirtieth of the rows' customers at the start of a month and at its end."""
    ledger, customers, days = _ledger(server, "month"), max(rows // 720, 10), 30
    fill(ledger, sandbox.account(), customers * HOURS, "hour_meter")
    with ledger.transaction() as connection:
        connection.execute(
            text("""
                INSERT INTO rated_usage (hour, tenant_id, service, dimensions, window_start, revision,
                    metered_revision, basis, reason, quantity, amount, currency, asked_quantity, answered_amount,
                    period_start, answer, rate_card_version, latency_ms, rated_at, run_id)
                SELECT h, tenant_id, service, '', h, 1, 1, basis, reason, quantity, amount, currency, asked_quantity,
                    answered_amount, period_start, answer, rate_card_version, latency_ms, rated_at, run_id
                FROM rated_usage, generate_series(CAST(:first AS timestamptz), CAST(:last AS timestamptz),
                    interval '1 hour') AS h
                WHERE hour = :start"""),
            {"start": T0, "first": T0 + timedelta(hours=HOURS), "last": T0 + timedelta(days=days, hours=-1)},
        )
    spans: dict[str, list[Speed]] = {"first": [], "between": [], "last": []}
    end = T0 + timedelta(days=days)
    for what, since, until in (("first", T0, T0 + 5 * HOUR), ("between", T0 + 5 * HOUR, end - 5 * HOUR),
                               ("last", end - 5 * HOUR, end)):  # fmt: skip
        step = HOUR if what != "between" else until - since
        while since < until:
            with measured(customers, spans[what]):
                plan(ledger, catalog, hours=(since, since + step), now=end, run_id="benchmark")
            since += step
        with ledger.engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))
    ledger.dispose()
    first, last = best(spans["first"]), best(spans["last"])
    said = f"{first.wall * 1000:,.0f} ms on day 1, {last.wall * 1000:,.0f} ms on day {days}"
    _say(f"planning an hour of {customers:,} customers", f"{said} ({last.wall / first.wall:.2f} x)")


if __name__ == "__main__":
    main()
