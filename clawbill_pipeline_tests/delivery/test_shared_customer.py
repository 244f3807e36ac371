"""Two tenants on one Stripe customer, from rated usage to the draft of their one invoice, at the stand-in."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from clawbill_pipeline.catalog import parse
from clawbill_pipeline.invoicing.booked import read_booked, read_drafts
from clawbill_pipeline.invoicing.draft import Comparison, compare_draft
from clawbill_pipeline.invoicing.inbox import apply_events
from clawbill_pipeline.invoicing.sweep import sweep_events
from clawbill_pipeline_tests.delivery.world import BACKENDS, CATALOG, HOUR, T0, World

SHARED = CATALOG.replace("name: Acme", "stripe_customer: {0}, name: Acme").replace(
    "globex: {rate_card: standard", "globex: {rate_card: standard, stripe_customer: {0}"
)


def share(world: World) -> None:
    world.catalog = parse(SHARED.replace("{0}", world.account.customer()))
    result = world.provision()
    assert not result.failed, result.failed


@pytest.mark.parametrize("backend", [name for name in BACKENDS if name != "usage_record"])
def test_all_that_maps_to_a_customer_is_summed_whoever_is_corrected(world: World, backend: str) -> None:
    """An hour meter would let one tenant's usage overwrite the other's."""
    if backend.startswith("sum"):
        world.account.meter("clawbill_tokens")
    share(world)
    if backend.endswith("_stream"):
        world.execute("UPDATE stripe_items SET backend = backend || '_stream' WHERE service = 'tokens'")
    amounts = [("acme", "1"), ("globex", "2"), ("globex", "5"), ("acme", "0"), ("globex", "0.5"), ("acme", "3")]
    now = {"acme": Decimal(0), "globex": Decimal(0)}
    for tenant, amount in amounts:
        world.rate(tenant, "tokens", T0, amount)
        now[tenant] = Decimal(amount)
        assert world.plan().records == 1
        assert world.plan().records == 0
        assert world.deliver().delivered == 1
        assert world.held("acme", "tokens", T0) == sum(now.values()) * 1_000_000
    assert len({row.customer_id for row in world.rows()}) == 1


def test_what_one_tenant_gains_from_the_other_is_planned_though_the_sum_stays(world: World) -> None:
    share(world)
    world.rate("acme", "tokens", T0, "3")
    world.rate("globex", "tokens", T0, "2")
    world.plan()
    world.rate("acme", "tokens", T0, "1")
    world.rate("globex", "tokens", T0, "4")
    assert world.plan().corrections == 1
    assert [row.parts for row in world.rows()] == [
        {"acme": "3000000", "globex": "2000000"}, {"acme": "1000000", "globex": "4000000"},
    ]  # fmt: skip
    world.deliver()
    assert world.held("acme", "tokens", T0) == 5_000_000


def test_a_tenant_in_another_currency_waits_alone(world: World) -> None:
    share(world)
    world.rate("acme", "tokens", T0, "3")
    world.rate("globex", "tokens", T0, "2", currency="EUR")
    planned = world.plan()
    assert (planned.records, planned.other_currency) == (1, 1)
    world.deliver()
    assert world.held("acme", "tokens", T0) == 3_000_000


def test_the_draft_of_a_shared_invoice_is_compared_with_the_sum(fresh_world: World) -> None:
    world = fresh_world
    share(world)
    end = world.catalog.tenant("acme").period_at(T0).end
    for tenant, amount in (("acme", "1.5"), ("globex", "2.25")):
        world.rate(tenant, "tokens", end - 2 * HOUR, amount)
        world.rate(tenant, "requests", end - 3 * HOUR, "0.25", quantity="1")
    world.sandbox.move_to(int((end - 30 * timedelta(minutes=1)).timestamp()))
    world.plan()
    assert world.deliver().delivered == 2
    world.sandbox.move_to(int((end + timedelta(minutes=20)).timestamp()))
    sweep_events(world.ledger, world.api, since=T0, now=world.now())
    apply_events(world.ledger, world.catalog, world.api, through=None, now=world.now(), run_id="test")
    world.execute(
        "INSERT INTO metered_hours SELECT h, 1, 0, 0, 0, 0, h, 'test'"
        " FROM generate_series(CAST(:start AS timestamptz), CAST(:last AS timestamptz), interval '1 hour') h",
        start=T0,
        last=end - HOUR,
    )

    def compared() -> Comparison:
        with world.ledger.transaction() as connection:
            (draft,) = read_drafts(connection)
            assert draft.tenant_id == "acme"
            return compare_draft(draft, read_booked(connection, world.catalog, draft))

    assert compared().agrees, compared()
    world.rate("globex", "tokens", end - 2 * HOUR, "2")  # not planned yet: the other tenant's part is the fault
    assert ("tokens", "not_sent") in {(each.service, each.cause) for each in compared().differences}
