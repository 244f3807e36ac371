"""Delivery against the stand-in over the real SDK: one effect for each record, whatever comes in between."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr

from clawbill_pipeline.delivery import sending
from clawbill_pipeline.delivery.outbox import claiming, due_lanes
from clawbill_pipeline.delivery.sending import deliver
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.delivery.faults import faulty
from clawbill_pipeline_tests.delivery.world import BACKENDS, HOUR, T0, World


@pytest.fixture
def provisioned(world: World) -> World:
    assert not world.provision().failed
    return world


@pytest.fixture(params=BACKENDS)
def each(request: pytest.FixtureRequest, world: World) -> World:
    """A world of each backend."""
    world.provision_as(request.param)
    return world


def test_what_is_planned_is_at_stripe(each: World) -> None:
    for hour in range(3):
        each.rate("acme", "tokens", T0 + hour * HOUR, "1.5")
    each.rate("globex", "tokens", T0, "2")
    each.plan()
    result = each.deliver()
    assert (result.delivered, result.waiting, result.parked, result.rejected, result.unknown) == (4, 0, 0, 0, 0)
    assert all(check.passed for check in result.checks)
    assert each.held("acme", "tokens") == 4_500_000
    if each.meter("tokens"):
        assert [each.held("acme", "tokens", T0 + hour * HOUR) for hour in range(4)] == [1_500_000] * 3 + [0]
    assert each.held("globex", "tokens") == 2_000_000
    rows = each.rows()
    assert {(row.state, row.attempts) for row in rows} == {("delivered", 1)}
    assert all(row.settled_at and row.first_sent_at and row.answer for row in rows)
    assert sorted(each.audited()) == sorted(row.identifier for row in rows)


def test_delivering_again_sends_nothing(each: World) -> None:
    each.rate("acme", "tokens", T0, "1")
    each.plan()
    each.deliver()
    before, stats = each.rows(), each.account.stats()
    again = each.deliver()
    assert again.delivered == 0
    assert all(check.passed for check in again.checks)
    assert each.rows() == before
    assert each.account.stats() == stats


def test_corrections_up_down_and_to_zero_land(each: World) -> None:
    for amount, held in (("3", 3_000_000), ("5", 5_000_000), ("1", 1_000_000), ("0", 0), ("2", 2_000_000)):
        each.rate("acme", "tokens", T0, amount)
        each.plan()
        each.deliver()
        assert each.held("acme", "tokens") == held


def test_several_revisions_wait_for_each_other(each: World) -> None:
    for amount in ("3", "5", "1"):
        each.rate("acme", "tokens", T0, amount)
        each.plan()
    assert each.deliver().delivered == 3
    assert each.held("acme", "tokens") == 1_000_000


def test_a_refused_key_stops_everything_and_loses_nothing(provisioned: World) -> None:
    provisioned.rate("acme", "tokens", T0, "1")
    provisioned.plan()
    bad = StripeApi(SecretStr("sk_nonsense_1234567890abcdef"), base=provisioned.sandbox.url)
    result = deliver(provisioned.ledger, provisioned.catalog, bad, now=provisioned.now, run_id="test")
    assert result.stopped
    assert "STRIPE_SECRET_KEY" in result.stopped
    assert "cdef" not in result.stopped
    assert not result.checks[0].passed
    assert [row.state for row in provisioned.rows()] == ["planned"]
    assert provisioned.deliver().delivered == 1
    assert provisioned.held("acme", "tokens") == 1_000_000


def test_a_stream_takes_a_hundred_records_a_call(world: World) -> None:
    world.provision_as("sum_meter_stream")
    for hour in range(20):
        for tenant in ("acme", "globex"):
            for amount in ("1", "3", "2"):
                world.rate(tenant, "tokens", T0 + hour * HOUR, amount)
                world.plan((T0 + hour * HOUR, T0 + (hour + 1) * HOUR))
    with faulty(world.sandbox.url) as proxy:
        world.base = proxy.url
        assert world.deliver().delivered == 120
        # A correction never travels with what it corrects: three calls, one a revision.
        assert len(proxy.calls) == 3
    assert world.held("acme", "tokens") == world.held("globex", "tokens") == 40_000_000


def test_a_stream_whose_session_lapsed_asks_for_another(fresh_world: World) -> None:
    world = fresh_world
    world.provision_as("hour_meter_stream")
    for hour in range(2):
        world.rate("acme", "tokens", T0 + hour * HOUR, "1")
    world.plan()
    with faulty(world.sandbox.url) as proxy:
        world.base = proxy.url
        # The first call dies of a lost connection; by the time it is repeated the token is too old.
        proxy.plan = _once(lambda: world.sandbox.move_to(world.sandbox.now() + 1000))
        result = world.deliver()
    assert (result.delivered, result.retries) == (2, 2)
    assert world.held("acme", "tokens") == 2_000_000


def _once(effect: Callable[[], object]) -> Callable[[dict[str, str]], str | None]:
    pending = [effect]

    def plan(params: dict[str, str]) -> str | None:
        if not pending:
            return None
        pending.pop()()
        return "lost_before"

    return plan


def test_a_negative_usage_record_is_parked(world: World) -> None:
    world.provision_as("usage_record")
    world.rate("acme", "tokens", T0, "-1")
    assert world.plan().parked == 1
    world.rate("acme", "tokens", T0, "2")
    world.plan()
    result = world.deliver()
    assert result.delivered == 1
    assert world.held("acme", "tokens") == 2_000_000


def test_what_another_delivery_has_in_hand_is_waited_for_and_then_sent(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one may have read the customer's records before the newest was planned."""
    world.provision()
    world.rate("acme", "tokens", T0, "1")
    world.plan()
    lanes = due_lanes(world.ledger, world.now())
    with ThreadPoolExecutor() as other, claiming(world.ledger, "other") as claims:
        assert claims.take(lanes) == lanes
        waiting = other.submit(world.deliver)
        while "another run is at the same delivery, waiting for it: run other" not in caplog.text:
            time.sleep(0.02)
        claims.release(lanes)
        delivered = waiting.result(60)
    assert (delivered.delivered, delivered.busy, delivered.waited_for) == (1, 0, "run other")
    assert world.held("acme", "tokens", T0) == 1_000_000


def test_nobody_waits_for_ever_for_what_another_delivery_has_in_hand(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "_BUSY_AT_MOST", 0.0)
    world.provision()
    world.rate("acme", "tokens", T0, "1")
    world.plan()
    lanes = due_lanes(world.ledger, world.now())
    with claiming(world.ledger, "other") as claims:
        claims.take(lanes)
        delivered = world.deliver()
    assert (delivered.delivered, delivered.busy) == (0, 1)
    assert not delivered.checks[0].passed
    assert world.deliver().delivered == 1
