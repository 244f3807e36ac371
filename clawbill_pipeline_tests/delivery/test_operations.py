"""What a person sees of the outbox and does with it, and what becomes of records that Stripe rejects later."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert

from clawbill_pipeline.delivery.operations import NotFound, Which, counts, listed, park, retry, show
from clawbill_pipeline.ledger.tables import audit_trail
from clawbill_pipeline_tests.delivery.world import BACKENDS, HOUR, T0, World


@pytest.fixture(params=["hour_meter", "sum_meter"])
def planned(request: pytest.FixtureRequest, world: World) -> World:
    """Two hours of two tenants, planned."""
    world.provision_as(request.param)
    for hour in range(2):
        for tenant in ("acme", "globex"):
            world.rate(tenant, "tokens", T0 + hour * HOUR, "3")
    world.plan()
    return world


def _retry(world: World, **which: Any) -> int:
    return retry(world.ledger, Which(**which), now=world.now(), by="ann")


def test_listing_shows_what_is_not_delivered(planned: World) -> None:
    assert len(listed(planned.ledger, Which())) == 4
    assert [row.tenant_id for row in listed(planned.ledger, Which(tenant_id="acme"))] == ["acme", "acme"]
    assert len(listed(planned.ledger, Which(), limit=3)) == 3
    planned.deliver()
    assert listed(planned.ledger, Which()) == []
    assert len(listed(planned.ledger, Which(state="delivered"))) == 4
    (count,) = counts(planned.ledger)
    assert (count.state, count.parked, count.records, count.tenants, count.oldest) == ("delivered", None, 4, 2, T0)


def test_showing_one_tells_all_of_it(planned: World) -> None:
    planned.deliver()
    row = planned.rows()[0]
    shown = show(planned.ledger, row.identifier)
    assert (shown["state"], shown["payload"]) == ("delivered", row.payload)
    assert [entry["kind"] for entry in shown["trail"]] == ["usage_record.created"]
    for unknown in ("20260301T000000Z:9:cus_1:tokens", "nonsense"):
        with pytest.raises(NotFound):
            show(planned.ledger, unknown)


def test_what_is_parked_waits_until_somebody_retries(planned: World) -> None:
    parked = park(planned.ledger, Which(tenant_id="acme"), reason="disputed", now=planned.now(), by="ann")
    assert parked == 2
    assert planned.deliver().delivered == 2
    assert [row.parked for row in listed(planned.ledger, Which(parked="any"))] == ["disputed"] * 2
    assert _retry(planned, parked="disputed") == 2
    assert _retry(planned, parked="disputed") == 0
    assert planned.deliver().delivered == 2
    assert planned.held("acme", "tokens") == 6_000_000
    kinds = [entry["kind"] for entry in show(planned.ledger, planned.rows(tenant_id="acme")[0].identifier)["trail"]]
    assert kinds == ["usage_record.parked", "usage_record.retried", "usage_record.created"]


def test_parking_everything_is_never_meant(planned: World) -> None:
    with pytest.raises(ValueError, match="say which"):
        park(planned.ledger, Which(), reason="x", now=planned.now(), by="ann")


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_correction_waits_behind_what_is_parked(world: World, backend: str) -> None:
    """Otherwise the older one would come last when somebody lets it go."""
    world.provision_as(backend)
    world.rate("acme", "tokens", T0, "3")
    world.plan()
    park(world.ledger, Which(tenant_id="acme"), reason="disputed", now=world.now(), by="ann")
    world.rate("acme", "tokens", T0, "5")
    world.plan()
    assert world.deliver().delivered == 0
    _retry(world, tenant_id="acme")
    assert world.deliver().delivered == 2
    assert world.held("acme", "tokens") == 5_000_000


def test_a_rejected_record_is_tried_again_as_a_new_revision(planned: World) -> None:
    row = planned.rows(tenant_id="acme")[0]
    planned.execute(
        "UPDATE usage_records SET state = 'rejected', settled_at = now() WHERE identifier = :it", it=row.identifier
    )
    planned.deliver()
    assert planned.plan().records == 0
    assert _retry(planned, state="rejected") == 1
    assert planned.plan().records == 1
    assert planned.plan().records == 0
    assert planned.deliver().delivered == 1
    assert planned.held("acme", "tokens") == 6_000_000
    states = [(row.revision, row.state) for row in planned.rows(tenant_id="acme", window_start=row.window_start)]
    assert states == [(1, "rejected"), (2, "delivered")]


def test_peers_4_rejected_after_the_200(fresh_world: World) -> None:
    """daikoku#1222: 200 first, rejected later, only samples reported. What is named is marked, totals find the rest."""
    world = fresh_world
    world.provision_as("hour_meter")
    world.account.v1.customers.delete(world.customer("acme"))
    for hour in range(8):
        world.rate("acme", "tokens", T0 + hour * HOUR, "3")
    world.rate("globex", "tokens", T0, "3")
    world.plan()
    assert world.deliver().delivered == 9
    world.sandbox.move_to(world.sandbox.now() + 600)
    _land_reports(world)
    world.rate("acme", "tokens", T0 + 9 * HOUR, "3")
    world.plan()
    result = world.deliver()
    assert (result.rejected_later, result.delivered) == (5, 0)
    assert not result.checks[0].passed
    states = [(row.state, row.parked) for row in world.rows(tenant_id="acme")]
    assert sorted(states, key=str) == sorted(
        [("rejected", None)] * 5 + [("delivered", None)] * 3 + [("planned", "no_such_customer")], key=str
    )
    assert world.deliver().rejected_later == 0
    assert world.held("globex", "tokens") == 3_000_000


def _land_reports(world: World) -> None:
    """What the inbox notes of Stripe's reports, as station 5 does."""
    for event in world.account.client.v2.core.events.list({"limit": 100}).auto_paging_iter():
        data = world.account.client.v2.core.events.retrieve(event.id).to_dict()["data"]
        for error in data["reason"]["error_types"]:
            for sample in error["sample_errors"]:
                values = {
                    "at": world.now(),
                    "kind": "usage_record.rejected",
                    "subject": sample["request"]["identifier"],
                    "detail": {"code": error["code"], "message": sample["error_message"]},
                }
                with world.ledger.transaction() as connection:
                    connection.execute(insert(audit_trail).values(values))
