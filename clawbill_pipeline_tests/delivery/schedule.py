"""Crash schedules: real worker processes, killed at random, over faults, late data, corrections and a moving clock."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from datetime import UTC, datetime
from decimal import Decimal
from multiprocessing.synchronize import Event
from pathlib import Path

from pydantic import SecretStr
from sqlalchemy import text

from clawbill_pipeline.catalog import parse
from clawbill_pipeline.clock import file_clock, set_file_clock
from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.delivery.sending import deliver
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.money import rounded
from clawbill_pipeline.stripe_api import LEGACY_VERSION, StripeApi
from clawbill_pipeline_tests.delivery.faults import Faulty
from clawbill_pipeline_tests.delivery.world import CATALOG, HOUR, IMPATIENT, World

SERVICES = ("tokens", "requests")
#: Each with a customer of its own, but for hooli, which shares initech's.
PAYERS = {"acme": "acme", "globex": "globex", "initech": "initech", "hooli": "initech"}
TENANTS = tuple(PAYERS)
TEXT = CATALOG + "  initech: {rate_card: standard}\n  hooli: {rate_card: standard}\n"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def work(url: str, key: str, base: str, clock: Path, started: Event) -> None:
    """What a worker process does: plan, deliver, end."""
    ledger = Ledger(url)
    now = file_clock(clock)
    catalog = parse(TEXT)
    started.set()
    plan(ledger, catalog, hours=None, now=now(), run_id=str(os.getpid()))
    api = StripeApi(SecretStr(key), base=base, timeout=5)
    deliver(ledger, catalog, api, now=now, run_id=str(os.getpid()), backoff=IMPATIENT)


class Schedule:
    """One seeded schedule over a fresh ledger and account. ``backend`` is that of all meters."""

    def __init__(self, seed: int, backend: str, url: str, world: World, proxy: Faulty, folder: Path) -> None:
        self.random = random.Random(seed)
        self.url, self.world, self.proxy = url, world, proxy
        self.clock = folder / "clock"
        world.catalog = parse(TEXT)
        world.base = proxy.url
        proxy.target = world.sandbox.url
        self._set_clock(world.sandbox.now())
        self._items: dict[str, list[tuple[str, ...]]] = {}
        self._customers: dict[str, str] = {}
        self.hours = [self._now().replace(minute=0, second=0) - number * HOUR for number in range(4, 0, -1)]
        self._map(backend)

    def _map(self, backend: str) -> None:
        """The least that delivery needs at Stripe, and the map of it; provisioning has tests of its own."""
        account, catalog = self.world.account, self.world.catalog
        window = {"event_time_window": "hour"} if backend.startswith("hour") else {}
        legacy = backend == "usage_record"
        names = {service: catalog.meter(service) for service in SERVICES}
        meters = {service: "" if legacy else account.meter(name, **window).id for service, name in names.items()}
        for tenant in dict.fromkeys(PAYERS.values()):
            customer = account.customer()
            items = self._legacy_items(customer) if legacy else {name: f"si_{tenant}_{name}" for name in SERVICES}
            self._items[tenant] = [(name, items[name], meters[name], names[name], backend) for name in SERVICES]
            self._customers[tenant] = customer
            self.join(tenant)

    def join(self, tenant: str) -> None:
        """Maps ``tenant`` to its payer's customer and items."""
        payer = PAYERS[tenant]
        self.world.execute(
            "INSERT INTO stripe_customers VALUES (:tenant, :customer, 'sub', 'USD', false, now(), :payer)",
            tenant=tenant,
            customer=self._customers[payer],
            payer=payer if payer != tenant else None,
        )
        for service, item, meter_id, meter, backend in self._items[payer]:
            self.world.execute(
                "INSERT INTO stripe_items VALUES "
                "(:tenant, :service, :item, 'price', :meter_id, :meter, :backend, now())",
                tenant=tenant,
                service=service,
                item=item,
                meter_id=meter_id,
                meter=meter,
                backend=backend,
            )

    def _legacy_items(self, customer: str) -> dict[str, str]:
        """Items without a meter, open from the schedule's first hour until long after its last."""
        client, old = self.world.account.client, {"stripe_version": LEGACY_VERSION}
        product = client.v1.products.create({"name": "OpenClaw Usage"}).id
        recurring = {"interval": "month", "usage_type": "metered"}
        terms = {"currency": "usd", "product": product, "recurring": recurring, "unit_amount": 1}
        prices = {service: client.v1.prices.create(terms, old).id for service in SERVICES}
        given = {
            "customer": customer,
            "items": [{"price": price} for price in prices.values()],
            "backdate_start_date": int(self.hours[0].timestamp()),
            "billing_cycle_anchor": int(self.hours[0].timestamp()) + 20 * 86_400,
        }
        made = client.v1.subscriptions.create(given, old).to_dict()["items"]["data"]
        ids = {item["price"]["id"]: item["id"] for item in made}
        return {service: ids[price] for service, price in prices.items()}

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self.world.sandbox.now(), UTC)

    def _set_clock(self, at: int) -> None:
        self.world.sandbox.move_to(at)
        set_file_clock(self.clock, datetime.fromtimestamp(at, UTC))

    def run(self) -> None:
        turns = self.random.randint(2, 4)
        joining = self.random.randrange(turns)
        for turn in range(turns):
            if turn == joining:
                self.join("hooli")
            self._usage()
            self.proxy.chance(self.random.randrange(2**32), self.random.choice([0.0, 0.2, 0.5, 0.9]))
            self._workers()
            if self.random.random() < 0.3:
                self._set_clock(self.world.sandbox.now() + self.random.randint(60, 30 * 3600))
        self.proxy.script()
        self._recover()

    def _usage(self) -> None:
        """New, late and corrected usage: amounts with parts of a unit, to zero and back."""
        for _ in range(self.random.randint(2, 10)):
            amount = self.random.choice([Decimal(0), Decimal(self.random.randrange(1, 30_000_000)).scaleb(-7)])
            self.world.rate(
                self.random.choice(TENANTS),
                self.random.choice(SERVICES),
                self.random.choice(self.hours),
                amount,
                quantity=amount,
                dimensions=self.random.choice(["", "mockai/large"]),
            )

    def _workers(self) -> None:
        workers = []
        for _ in range(self.random.choice([1, 1, 2, 3])):
            started = _context.Event()
            given = (self.url, self.world.account.key, self.proxy.url, self.clock, started)
            process = _context.Process(target=work, args=given)
            process.start()
            assert started.wait(30)
            workers.append(process)
        for process in workers:
            if self.random.random() < 0.8:
                time.sleep(self.random.choice([0.0, 0.02, 0.05, 0.1, 0.2]) * self.random.random())
                process.kill()
        for process in workers:
            process.join(60)
            assert process.exitcode in (0, -signal.SIGKILL)
            process.close()

    def _recover(self) -> None:
        """What the next scheduled runs do: they find out what became of everything."""
        world = self.world
        for _ in range(10):
            world.plan()
            world.deliver()
            if all(row.state == "delivered" for row in world.rows()):
                return
            self._set_clock(world.sandbox.now() + 600)
        raise AssertionError([(row.identifier, row.state, row.parked, row.error) for row in world.rows()])

    def check(self, *, forgetful: bool = False) -> None:
        """Stripe's total equals the ledger for every customer, service and hour, and each tenant's part what is rated.

        ``forgetful``: outcomes were undone after their commit, so that some stand in the audit trail twice.
        """
        expected: dict[tuple[str, str, datetime], Decimal] = {}
        exact: dict[tuple[str, str, datetime], Decimal] = {}
        rows = self.world.rows()
        for row in rows:
            key = (row.tenant_id, row.service, row.window_start)
            expected[key], exact[key] = row.units, row.exact_units
        first, last = self.hours[0], self.hours[-1] + HOUR
        for tenant in dict.fromkeys(PAYERS.values()):
            for service in SERVICES:
                meter, customer = self.world.meter(service, tenant), self.world.customer(tenant)
                span = (int(first.timestamp()), int(last.timestamp()))
                if meter:
                    held = dict(self.world.account.held(meter, customer, *span, value_grouping_window="hour"))
                    for hour in self.hours:
                        key = (tenant, service, hour)
                        assert Decimal(held.get(int(hour.timestamp()), 0)) == expected.get(key, 0), key
                else:
                    of_item = [units for key, units in expected.items() if key[:2] == (tenant, service)]
                    assert self.world.held(tenant, service) == sum(of_item)
                for period in {self.world.catalog.tenant(tenant).period_at(hour).start for hour in self.hours}:
                    mine = [key for key in exact if key[:2] == (tenant, service) and self._period(key) == period]
                    total = sum((exact[key] for key in mine), Decimal(0))
                    assert sum((expected[key] for key in mine), Decimal(0)) == rounded(total, 0)
        assert self._parts() == self._rated()
        audited = self.world.audited()
        assert sorted(set(audited) if forgetful else audited) == sorted(row.identifier for row in rows)
        assert self.proxy.most_a_lane <= 1 + self._killed_slack

    def _parts(self) -> dict[tuple[str, str, datetime], Decimal]:
        """Exact units that were planned, for whom they are."""
        return self._summed("""
            SELECT tenant_id, service, window_start, exact_units FROM (
                SELECT *, max(revision) OVER (PARTITION BY customer_id, meter, window_start) AS newest
                FROM usage_record_parts) parts
            WHERE revision = newest""")

    def _rated(self) -> dict[tuple[str, str, datetime], Decimal]:
        """Exact units that are rated of mapped tenants."""
        return self._summed("""
            SELECT tenant_id, service, window_start, amount * CASE service WHEN 'tokens' THEN 1000000 ELSE 1000 END
            FROM (SELECT DISTINCT ON (tenant_id, service, window_start, dimensions) * FROM rated_usage
                  ORDER BY tenant_id, service, window_start, dimensions, revision DESC) newest
            JOIN stripe_customers USING (tenant_id)""")

    def _summed(self, query: str) -> dict[tuple[str, str, datetime], Decimal]:
        found: dict[tuple[str, str, datetime], Decimal] = {}
        with self.world.ledger.transaction() as connection:
            for tenant, service, window, units in connection.execute(text(query)):
                found[tenant, service, window] = found.get((tenant, service, window), Decimal(0)) + units
        return {key: units for key, units in found.items() if units}

    #: A killed worker's last call may still be under way at Stripe when the next worker takes the lane.
    _killed_slack = 3

    def _period(self, key: tuple[str, str, datetime]) -> datetime:
        return self.world.catalog.tenant(key[0]).period_at(key[2]).start
