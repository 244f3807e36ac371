"""Delivery against the stand-in over the real SDK: one effect for each record, whatever comes in between."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from clawbill_pipeline.delivery.sending import deliver
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline_tests.delivery.world import HOUR, T0, World


@pytest.fixture
def provisioned(world: World) -> World:
    assert not world.provision().failed
    return world


@pytest.fixture(params=["hour_meter", "sum_meter"])
def either(request: pytest.FixtureRequest, world: World) -> World:
    if request.param == "sum_meter":
        world.account.meter("clawbill_tokens")
    world.provision()
    return world


def test_what_is_planned_is_at_stripe(either: World) -> None:
    for hour in range(3):
        either.rate("acme", "tokens", T0 + hour * HOUR, "1.5")
    either.rate("globex", "tokens", T0, "2")
    either.plan()
    result = either.deliver()
    assert (result.delivered, result.waiting, result.parked, result.rejected, result.unknown) == (4, 0, 0, 0, 0)
    assert all(check.passed for check in result.checks)
    assert [either.held("acme", "tokens", T0 + hour * HOUR) for hour in range(4)] == [1_500_000] * 3 + [0]
    assert either.held("globex", "tokens") == 2_000_000
    rows = either.rows()
    assert {(row.state, row.attempts) for row in rows} == {("delivered", 1)}
    assert all(row.settled_at and row.first_sent_at and row.answer["object"] == "billing.meter_event" for row in rows)
    assert sorted(either.audited()) == sorted(row.identifier for row in rows)


def test_delivering_again_sends_nothing(either: World) -> None:
    either.rate("acme", "tokens", T0, "1")
    either.plan()
    either.deliver()
    before, stats = either.rows(), either.account.stats()
    again = either.deliver()
    assert again.delivered == 0
    assert all(check.passed for check in again.checks)
    assert either.rows() == before
    assert either.account.stats() == stats


def test_corrections_up_down_and_to_zero_land(either: World) -> None:
    for amount, held in (("3", 3_000_000), ("5", 5_000_000), ("1", 1_000_000), ("0", 0), ("2", 2_000_000)):
        either.rate("acme", "tokens", T0, amount)
        either.plan()
        either.deliver()
        assert either.held("acme", "tokens") == held


def test_several_revisions_wait_for_each_other(either: World) -> None:
    for amount in ("3", "5", "1"):
        either.rate("acme", "tokens", T0, amount)
        either.plan()
    assert either.deliver().delivered == 3
    assert either.held("acme", "tokens") == 1_000_000


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
