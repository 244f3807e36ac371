"""Delivery when calls fail: lost answers, duplicates, rate limits, late settlements, tenants that can't be billed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from clawbill_pipeline.delivery.backends import payload_hash
from clawbill_pipeline.delivery.sending import Delivered
from clawbill_pipeline_tests.delivery.faults import FAULTS, Faulty, faulty
from clawbill_pipeline_tests.delivery.world import HOUR, T0, World

DAY = timedelta(days=1)


@pytest.fixture(params=["hour_meter", "sum_meter"])
def either(request: pytest.FixtureRequest, world: World) -> World:
    """Provisioned, with hourly or plain sum meters."""
    return _provisioned(world, request.param)


@pytest.fixture(params=["hour_meter", "sum_meter"])
def fresh(request: pytest.FixtureRequest, fresh_world: World) -> World:
    """The same with a clock of its own."""
    return _provisioned(fresh_world, request.param)


def _provisioned(world: World, backend: str) -> World:
    if backend == "sum_meter":
        world.account.meter("clawbill_tokens")
    assert not world.provision().failed
    return world


@pytest.fixture
def proxy(request: pytest.FixtureRequest, sandbox: object) -> Iterator[Faulty]:
    with faulty(sandbox.url) as proxy:  # type: ignore[attr-defined]
        yield proxy


def _through(world: World, proxy: Faulty) -> World:
    proxy.target = world.sandbox.url
    world.base = proxy.url
    return world


def _states(world: World, **key: object) -> list[tuple[str, str | None]]:
    return [(row.state, row.parked) for row in world.rows(**key)]


@pytest.mark.parametrize("forgetful", [False, True])
@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_retried_under_the_same_identifier(
    either: World, proxy: Faulty, fault: str, forgetful: bool
) -> None:
    proxy.forgetful = forgetful
    _through(either, proxy).rate("acme", "tokens", T0, "3")
    either.plan()
    proxy.script(fault, fault)
    result = either.deliver()
    assert (result.delivered, result.unknown, result.waiting) == (1, 0, 0)
    assert result.retries == (0 if fault == "slow" else 2)
    assert result.duplicates == (1 if forgetful and fault in ("lost_after", "500_after") else 0)
    assert len({call["identifier"] for call in proxy.calls}) == 1
    assert either.held("acme", "tokens") == 3_000_000
    assert len(either.audited()) == 1


def test_an_outcome_that_stays_unknown_is_settled_by_the_next_delivery(either: World, proxy: Faulty) -> None:
    _through(either, proxy).rate("acme", "tokens", T0, "3")
    either.plan()
    proxy.forgetful = True
    proxy.script(*["lost_after"] * 5)
    result = either.deliver()
    assert (result.delivered, result.unknown) == (0, 1)
    (row,) = either.rows()
    assert (row.state, row.attempts) == ("unknown", 1)
    assert row.next_attempt_at > either.now()
    assert either.deliver() == Delivered()  # not due yet
    either.execute("UPDATE usage_records SET next_attempt_at = NULL")
    result = either.deliver()
    assert (result.delivered, result.duplicates) == (1, 1)
    assert either.held("acme", "tokens") == 3_000_000


def test_what_surely_had_no_effect_is_planned_again(either: World, proxy: Faulty) -> None:
    _through(either, proxy).rate("acme", "tokens", T0, "3")
    either.plan()
    proxy.script(*["429"] * 5)
    result = either.deliver()
    assert (result.waiting, result.unknown) == (1, 0)
    assert _states(either) == [("planned", None)]


def test_retry_after_is_respected(either: World, proxy: Faulty) -> None:
    """A wait that is too long to sit out is left to a later delivery."""
    _through(either, proxy).rate("acme", "tokens", T0, "3")
    either.plan()
    proxy.retry_after = "3600"
    proxy.script("429")
    either.deliver()
    (row,) = either.rows()
    assert len(proxy.calls) == 1
    assert row.next_attempt_at >= either.now() + HOUR


def test_peers_1_one_tenants_failure_bills_the_others_once(either: World, proxy: Faulty) -> None:
    """langfuse#15917: tenant B fails in the middle, the hour is run again, and tenant A is billed once."""
    _through(either, proxy)
    for tenant in ("acme", "globex"):
        either.rate(tenant, "tokens", T0, "3")
    either.plan()
    globex = either.customer("globex")
    proxy.plan = lambda params: "500_before" if params["payload[stripe_customer_id]"] == globex else None
    first = either.deliver()
    assert (first.delivered, first.unknown) == (1, 1)
    proxy.script()
    either.execute("UPDATE usage_records SET next_attempt_at = NULL")
    either.plan()
    assert either.deliver().delivered == 1
    assert [either.held(tenant, "tokens") for tenant in ("acme", "globex")] == [3_000_000, 3_000_000]


def test_peers_2_a_duplicate_is_delivered_and_later_hours_flow(either: World) -> None:
    """langfuse#16292: 400 "event already exists" counts as delivered, and does not stall the job."""
    for hour in range(3):
        either.rate("acme", "tokens", T0 + hour * HOUR, "3")
    either.plan()
    row = either.rows()[0]
    either.account.v1.billing.meter_events.create(row.payload)
    result = either.deliver()
    assert (result.delivered, result.duplicates, result.parked) == (3, 1, 0)
    assert [either.held("acme", "tokens", T0 + hour * HOUR) for hour in range(3)] == [3_000_000] * 3


def test_someone_elses_event_under_our_identifier_is_not_taken_for_ours(either: World) -> None:
    for hour in range(2):
        either.rate("acme", "tokens", T0 + hour * HOUR, "3")
    either.plan()
    payload = either.rows()[0].payload
    payload["payload"]["value"] = "17"
    either.account.v1.billing.meter_events.create(payload)
    result = either.deliver()
    assert (result.delivered, result.parked) == (1, 1)
    assert _states(either) == [("planned", "identifier_taken"), ("delivered", None)]


def test_a_payload_that_was_tampered_with_is_not_sent(either: World) -> None:
    either.rate("acme", "tokens", T0, "3")
    either.plan()
    either.execute("ALTER TABLE usage_records DISABLE TRIGGER USER")
    changed = payload_hash({})
    either.execute("UPDATE usage_records SET payload_sha256 = :changed", changed=changed)
    assert either.deliver().parked == 1
    assert _states(either) == [("planned", "payload_changed")]
    assert either.held("acme", "tokens") == 0


def test_peers_3_a_corrected_amount_lands(either: World) -> None:
    """mergewatch.ai#563: the same key with another amount is a correction, not a duplicate."""
    either.rate("acme", "tokens", T0, "3")
    either.plan()
    either.deliver()
    either.rate("acme", "tokens", T0, "4")
    either.plan()
    assert either.deliver().delivered == 1
    assert either.held("acme", "tokens") == 4_000_000


def test_peers_17_one_bad_customer_stops_nobody_else(world: World, proxy: Faulty) -> None:
    """theanswer#678: a customer id that Stripe refuses parks that tenant's records, with the reason."""
    _through(_provisioned(world, "hour_meter"), proxy)
    for tenant in ("acme", "globex"):
        for hour in range(3):
            world.rate(tenant, "tokens", T0 + hour * HOUR, "3")
    world.plan()
    acme = world.customer("acme")
    proxy.plan = lambda params: "missing" if params["payload[stripe_customer_id]"] == acme else None
    result = world.deliver()
    assert (result.delivered, result.parked) == (3, 3)
    assert {(row.state, row.parked) for row in world.rows(tenant_id="acme")} == {("planned", "no_such_customer")}
    assert "No such customer" in world.rows(tenant_id="acme")[0].error
    assert world.held("globex", "tokens") == 9_000_000
    assert not result.checks[0].passed


def test_a_final_no_is_a_rejection_and_the_rest_goes_on(either: World, proxy: Faulty) -> None:
    for hour in range(3):
        _through(either, proxy).rate("acme", "tokens", T0 + hour * HOUR, "3")
    either.plan()
    proxy.script("refused")
    result = either.deliver()
    assert (result.delivered, result.rejected) == (2, 1)
    row = either.rows()[0]
    assert (row.state, row.error) == ("rejected", "on demand: refused (400)")


def test_a_crash_between_call_and_commit_is_found_out(either: World) -> None:
    """The worker died after Stripe's 200: the row is still ``sending``, and the next delivery asks again."""
    either.rate("acme", "tokens", T0, "3")
    either.plan()
    row = either.rows()[0]
    either.execute("UPDATE usage_records SET state = 'sending', attempts = 1, first_sent_at = :now", now=either.now())
    either.account.v1.billing.meter_events.create(row.payload, {"idempotency_key": row.identifier})
    result = either.deliver()
    assert result.delivered == 1
    assert either.held("acme", "tokens") == 3_000_000
    assert len(either.audited()) == 1


@pytest.mark.parametrize("arrived", [True, False])
def test_an_old_unknown_is_settled_by_stripes_total(fresh: World, proxy: Faulty, arrived: bool) -> None:
    """After 24 h Stripe may have forgotten the identifier: a difference sent again would count twice."""
    world = _through(fresh, proxy)
    world.rate("acme", "tokens", T0, "2")
    world.plan()
    world.deliver()
    world.rate("acme", "tokens", T0, "5")
    world.plan()
    proxy.script(*["lost_after" if arrived else "lost_before"] * 5)
    assert world.deliver().unknown == 1
    world.sandbox.move_to(world.sandbox.now() + 2 * 86_400)
    calls = len(proxy.calls)
    result = world.deliver()
    assert (result.delivered, result.parked) == (1, 0)
    assert len(proxy.calls) - calls == (0 if arrived else 1)
    assert world.held("acme", "tokens") == 5_000_000


def test_an_old_unknown_that_no_total_explains_waits_for_a_person(fresh_world: World, proxy: Faulty) -> None:
    world = _through(_provisioned(fresh_world, "sum_meter"), proxy)
    world.rate("acme", "tokens", T0, "5")
    world.plan()
    proxy.script(*["lost_before"] * 5)
    assert world.deliver().unknown == 1
    payload = {"stripe_customer_id": world.customer("acme"), "value": "7"}
    event = {"event_name": "clawbill_tokens", "payload": payload, "timestamp": int(T0.timestamp()) + 9}
    world.account.v1.billing.meter_events.create(event)
    world.sandbox.move_to(world.sandbox.now() + 2 * 86_400)
    assert world.deliver().parked == 1
    assert _states(world) == [("unknown", "unclear_total")]


def test_usage_older_than_35_days_is_parked_never_redated(fresh: World) -> None:
    fresh.rate("acme", "tokens", T0, "3")
    fresh.rate("acme", "tokens", T0 + 5 * DAY, "4")
    fresh.plan()
    fresh.sandbox.move_to(int((T0 + 36 * DAY).timestamp()))
    result = fresh.deliver()
    assert (result.delivered, result.parked) == (1, 1)
    assert _states(fresh) == [("planned", "too_old"), ("delivered", None)]
    assert fresh.held("acme", "tokens", T0) == 0


def test_future_usage_waits_for_its_time(fresh: World) -> None:
    later = fresh.now() + HOUR
    fresh.rate("acme", "tokens", later, "3")
    fresh.plan()
    assert fresh.deliver().waiting == 1
    fresh.sandbox.move_to(int(later.timestamp()) + 60)
    assert fresh.deliver().delivered == 1


def test_one_call_at_a_time_for_a_customer_and_meter(either: World, proxy: Faulty) -> None:
    _through(either, proxy)
    for hour in range(10):
        for tenant in ("acme", "globex"):
            either.rate(tenant, "tokens", T0 + hour * HOUR, "3")
            either.rate(tenant, "requests", T0 + hour * HOUR, "3", quantity="1")
    either.plan()
    proxy.plan = lambda params: "slow"
    assert either.deliver().delivered == 40
    assert proxy.most_a_lane == 1
    assert proxy.most > 1


def test_two_workers_share_the_work_and_send_nothing_twice(either: World, proxy: Faulty) -> None:
    _through(either, proxy)
    for hour in range(12):
        for tenant in ("acme", "globex"):
            either.rate(tenant, "tokens", T0 + hour * HOUR, "3")
    either.plan()
    proxy.plan = lambda params: "slow"
    results: list[Delivered] = []
    threads = [threading.Thread(target=lambda: results.append(either.deliver())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(result.delivered for result in results) == 24
    assert len(proxy.calls) == 24
    assert proxy.most_a_lane == 1
    assert either.held("acme", "tokens") == either.held("globex", "tokens") == 36_000_000
