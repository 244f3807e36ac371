"""A machine that rates, plans, sends, fails, corrects, forgets and goes on, in any order that hypothesis thinks of.

Whatever it did, in the end Stripe holds what is rated, rounded once a period. Two of the tenants share a customer; one
of them joins on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from clawbill_pipeline.delivery.operations import Which, park, retry
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.money import rounded
from clawbill_pipeline_tests.conftest import AnyServer, fresh_database
from clawbill_pipeline_tests.delivery.faults import FAULTS, Faulty, faulty
from clawbill_pipeline_tests.delivery.schedule import PAYERS, Schedule
from clawbill_pipeline_tests.delivery.world import BACKENDS, HOUR, World
from clawbill_pipeline_tests.sandbox.stripe.server import Sandbox

tenants = st.sampled_from(["acme", "initech", "hooli"])
hours = st.integers(0, 3)
amounts = st.one_of(st.decimals("0.0000001", 5, places=7), st.sampled_from([Decimal(0), Decimal("0.0000005")]))
booking = st.tuples(tenants, hours, amounts)
faults = st.lists(st.sampled_from([None, *FAULTS]), max_size=8)


def machine(backend: str, server: AnyServer, template: str, sandbox: Sandbox, proxy: Faulty, folder: Path) -> type:
    class Delivery(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            self.database = fresh_database(server, template)
            url = server.url(self.database.__enter__())
            proxy.script()
            self.world = World(Ledger(url), sandbox, sandbox.account())
            self.schedule = Schedule(0, backend, url, self.world, proxy, folder)
            self.rated: dict[tuple[str, int], Decimal] = {}
            self.joined = False

        @rule(booked=st.lists(booking, min_size=1, max_size=6), planned=st.sampled_from(["all", "last", "not"]))
        def usage_is_rated(self, booked: list[tuple[str, int, Decimal]], planned: str) -> None:
            for tenant, hour, amount in booked:
                self.world.rate(tenant, "tokens", self.schedule.hours[hour], amount)
                self.rated[tenant, hour] = amount
            if planned != "not":
                last = self.schedule.hours[booked[-1][1]]
                chosen = None if planned == "all" else (last, last + HOUR)
                self.world.plan(chosen)
                assert self.world.plan(chosen).records == 0

        @rule(faults=faults)
        def plan_and_deliver(self, faults: list[str | None]) -> None:
            self.world.plan()
            proxy.script(*faults)
            self.world.deliver()
            proxy.script()

        @rule(minutes=st.integers(1, 30 * 60))
        def time_passes(self, minutes: int) -> None:
            self.schedule._set_clock(sandbox.now() + minutes * 60)

        @rule(choice=st.integers(0), hours_later=st.sampled_from([0, 1, 26, 26]))
        def an_outcome_is_forgotten(self, choice: int, hours_later: int) -> None:
            """As a crash between Stripe's answer and the commit leaves it, found at once or when the identifier is old.

            Only the newest of a window can be so.
            """
            newest = {(row.customer_id, row.meter, row.window_start): row for row in self.world.rows()}
            done = [row for row in newest.values() if row.state == "delivered"]
            if done:
                forgotten = done[choice % len(done)].identifier
                self.world.execute(
                    "UPDATE usage_records SET state = 'sending', settled_at = NULL WHERE identifier = :it", it=forgotten
                )
                self.schedule._set_clock(sandbox.now() + hours_later * 3600)

        @rule()
        def a_tenant_joins_anothers_customer(self) -> None:
            if not self.joined:
                self.schedule.join("hooli")
                self.joined = True

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
                self.a_tenant_joins_anothers_customer()
                self.schedule._recover()
                self.schedule.check(forgetful=True)
                for payer in ("acme", "initech"):
                    total = sum((value for key, value in self.rated.items() if PAYERS[key[0]] == payer), Decimal(0))
                    assert self._planned(payer) == rounded(total * 1_000_000, 0)
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
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        suppress_health_check=checks,
        database=None,
        phases=[Phase.generate],  # shrinking would take minutes, and the steps read well as they are
    )
    run_state_machine_as_test(machine(*fixtures), settings=chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_order_ends_right(
    backend: str, postgres_server: AnyServer, ledger_template: str, sandbox: Sandbox, proxy: Faulty, tmp_path: Path
) -> None:
    _run(8, 25, backend, postgres_server, ledger_template, sandbox, proxy, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_order_ends_right_at_length(
    backend: str, postgres_server: AnyServer, ledger_template: str, sandbox: Sandbox, proxy: Faulty, tmp_path: Path
) -> None:
    _run(150, 40, backend, postgres_server, ledger_template, sandbox, proxy, tmp_path)
