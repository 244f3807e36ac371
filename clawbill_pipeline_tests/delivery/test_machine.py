"""A machine that rates, plans, sends, fails, corrects, forgets and goes on, in any order that hypothesis thinks of.

Whatever it did, in the end Stripe holds what is rated, rounded once a period.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from clawbill_pipeline.delivery.operations import Which, park, retry
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.money import rounded
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database
from clawbill_pipeline_tests.delivery.faults import FAULTS, Faulty, faulty
from clawbill_pipeline_tests.delivery.schedule import Schedule
from clawbill_pipeline_tests.delivery.world import BACKENDS, World
from clawbill_pipeline_tests.sandbox.stripe.server import Sandbox

tenants = st.sampled_from(["acme", "globex"])
hours = st.integers(0, 3)
amounts = st.one_of(st.just(Decimal(0)), st.decimals(0, 5, places=7))
faults = st.lists(st.sampled_from([None, *FAULTS]), max_size=8)


def machine(server: AnyServer, template: str, sandbox: Sandbox, proxy: Faulty, folder: Path) -> type:
    class Delivery(RuleBasedStateMachine):
        @initialize(backend=st.sampled_from(BACKENDS))
        def begin(self, backend: str) -> None:
            self.database = fresh_database(server, template)
            url = server.url(self.database.__enter__())
            proxy.script()
            self.world = World(Ledger(url), sandbox, sandbox.account())
            self.schedule = Schedule(0, backend, url, self.world, proxy, folder)
            self.rated: dict[tuple[str, int], Decimal] = {}

        @rule(tenant=tenants, hour=hours, amount=amounts)
        def usage_is_rated(self, tenant: str, hour: int, amount: Decimal) -> None:
            self.world.rate(tenant, "tokens", self.schedule.hours[hour], amount)
            self.rated[tenant, hour] = amount

        @rule()
        def plan(self) -> None:
            self.world.plan()
            assert self.world.plan().records == 0

        @rule(hour=hours)
        def plan_one_hour(self, hour: int) -> None:
            start = self.schedule.hours[hour]
            self.world.plan((start, start.replace(hour=start.hour, minute=59)))

        @rule(faults=faults)
        def deliver(self, faults: list[str | None]) -> None:
            proxy.script(*faults)
            self.world.deliver()
            proxy.script()

        @rule(minutes=st.integers(1, 30 * 60))
        def time_passes(self, minutes: int) -> None:
            self.schedule._set_clock(sandbox.now() + minutes * 60)

        @rule(choice=st.integers(0))
        def an_outcome_is_forgotten(self, choice: int) -> None:
            """As a crash between Stripe's answer and the commit leaves it. Only the newest of a window can be so."""
            newest = {(row.customer_id, row.meter, row.window_start): row for row in self.world.rows()}
            done = [row for row in newest.values() if row.state == "delivered"]
            if done:
                forgotten = done[choice % len(done)].identifier
                self.world.execute(
                    "UPDATE usage_records SET state = 'sending', settled_at = NULL WHERE identifier = :it", it=forgotten
                )

        @rule(tenant=tenants)
        def somebody_parks(self, tenant: str) -> None:
            which = Which(tenant_id=tenant)
            park(self.world.ledger, which, reason="disputed", now=self._now(), by="ann")

        @rule()
        def somebody_retries(self) -> None:
            retry(self.world.ledger, Which(parked="disputed"), now=self._now(), by="ann")

        @invariant()
        def nothing_needs_a_person_by_itself(self) -> None:
            if hasattr(self, "world"):
                assert {row.parked for row in self.world.rows()} <= {None, "disputed"}

        def _now(self) -> datetime:
            return datetime.fromtimestamp(sandbox.now(), UTC)

        def teardown(self) -> None:
            if not hasattr(self, "world"):
                return
            try:
                self.somebody_retries()
                self.schedule._recover()
                self.schedule.check(forgetful=True)
                for tenant in ("acme", "globex"):
                    total = sum((value for key, value in self.rated.items() if key[0] == tenant), Decimal(0))
                    assert self._planned(tenant) == rounded(total * 1_000_000, 0)
            finally:
                self.world.ledger.dispose()
                self.database.__exit__(None, None, None)

        def _planned(self, tenant: str) -> Decimal:
            newest = {row.window_start: row.units for row in self.world.rows(tenant_id=tenant)}
            return sum(newest.values(), Decimal(0))

    return Delivery


@pytest.fixture(scope="module")
def proxy(sandbox: Sandbox) -> Iterator[Faulty]:
    with faulty(sandbox.url) as running:
        yield running


def _run(examples: int, steps: int, *fixtures: object) -> None:
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large]
    chosen = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=checks, database=None
    )
    run_state_machine_as_test(machine(*fixtures), settings=chosen)  # type: ignore[arg-type]


def test_any_order_ends_right(
    postgres_server: AnyServer, ledger_template: str, sandbox: Sandbox, proxy: Faulty, tmp_path: Path
) -> None:
    _run(15, 20, postgres_server, ledger_template, sandbox, proxy, tmp_path)


@pytest.mark.slow
def test_any_order_ends_right_at_length(
    postgres_server: AnyServer, ledger_template: str, sandbox: Sandbox, proxy: Faulty, tmp_path: Path
) -> None:
    _run(300, 40, postgres_server, ledger_template, sandbox, proxy, tmp_path)
