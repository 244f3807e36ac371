"""Planning: rounding that telescopes (pure), and what the outbox holds after rated usage changed."""

from __future__ import annotations

import threading
from datetime import timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clawbill_pipeline.catalog import parse
from clawbill_pipeline.delivery.backends import payload_hash
from clawbill_pipeline.delivery.planning import Window, identifier, whole_units
from clawbill_pipeline.money import rounded
from clawbill_pipeline_tests.delivery.world import CATALOG, HOUR, T0, World

D = Decimal
exact_units = st.decimals(min_value=-2000, max_value=100_000, places=6, allow_nan=False, allow_infinity=False)


class Plan:
    """Planned windows of one period, kept as planning keeps them."""

    def __init__(self) -> None:
        self.exact: dict[int, Decimal] = {}
        self.units: dict[int, Decimal] = {}

    def change(self, rated: dict[int, Decimal]) -> None:
        changed = {at: value for at, value in sorted(rated.items()) if value != self.exact.get(at, 0)}
        windows = [Window(value, self.exact.get(at, D(0)), self.units.get(at, D(0))) for at, value in changed.items()]
        units = whole_units(windows, sum(self.exact.values(), D(0)), sum(self.units.values(), D(0)))
        self.exact |= changed
        self.units |= dict(zip(changed, units, strict=True))


@given(st.lists(st.dictionaries(st.integers(0, 30), exact_units, max_size=12), max_size=12))
def test_units_always_sum_to_the_rounded_sum(changes: list[dict[int, Decimal]]) -> None:
    plan = Plan()
    for change in changes:
        untouched = {at: units for at, units in plan.units.items() if change.get(at, plan.exact[at]) == plan.exact[at]}
        plan.change(change)
        assert sum(plan.units.values(), D(0)) == rounded(sum(plan.exact.values(), D(0)), 0)
        assert all(units == units.to_integral_value() for units in plan.units.values())
        assert {at: plan.units[at] for at in untouched} == untouched


@given(st.dictionaries(st.integers(0, 50), exact_units, max_size=40))
def test_at_first_no_window_is_a_whole_unit_off(rated: dict[int, Decimal]) -> None:
    together, one_by_one = Plan(), Plan()
    together.change(rated)
    for at, value in rated.items():
        one_by_one.change({at: value})
    for plan in (together, one_by_one):
        for at, units in plan.units.items():
            assert abs(units - plan.exact[at]) <= 2
    assert sum(together.units.values()) == sum(one_by_one.units.values())


def test_thirds_do_not_pile_up() -> None:
    plan = Plan()
    for hour in range(720):
        plan.change({hour: D("0.333333")})
    assert sum(plan.units.values()) == 240
    assert set(plan.units.values()) == {D(0), D(1)}


@given(st.lists(st.decimals(0, 3, places=3), min_size=1, max_size=20), st.data())
def test_no_window_is_negative_without_negative_usage(before: list[Decimal], data: st.DataObject) -> None:
    plan = Plan()
    plan.change(dict(enumerate(before)))
    plan.change(
        {at: data.draw(st.decimals(0, 3, places=3).filter(lambda new, at=at: new != before[at])) for at in plan.units}
    )
    assert all(units >= 0 for units in plan.units.values())


def test_half_rounds_away_from_zero() -> None:
    assert whole_units([Window(D("2.5"))], D(0), D(0)) == [3]
    assert whole_units([Window(D("-2.5"))], D(0), D(0)) == [-3]


def test_identifiers_are_stable_and_short() -> None:
    name = identifier("cus_1", "tokens", T0, 2)
    assert name == "20260301T000000Z:2:cus_1:tokens"
    long = {identifier("cus_1", "m" * 99, T0 + minutes * timedelta(minutes=15), 1) for minutes in range(4)}
    assert len(long) == 4
    assert {len(name) for name in long} == {100}


@pytest.fixture
def provisioned(world: World) -> World:
    assert not world.provision().failed
    return world


def test_a_row_says_exactly_what_will_be_sent(provisioned: World) -> None:
    provisioned.rate("acme", "tokens", T0, "1.2345678")
    planned = provisioned.plan()
    assert (planned.records, planned.corrections, planned.parked) == (1, 0, 0)
    assert all(check.passed for check in planned.checks)
    (row,) = provisioned.rows()
    customer = provisioned.customer("acme")
    assert (row.state, row.units, row.value, row.exact_units) == ("planned", 1234568, 1234568, D("1234567.8"))
    assert row.event_timestamp == T0 + timedelta(seconds=1)
    assert row.payload == {
        "event_name": "clawbill_tokens",
        "identifier": f"20260301T000000Z:1:{customer}:clawbill_tokens",
        "timestamp": int(T0.timestamp()) + 1,
        "payload": {"stripe_customer_id": customer, "value": "1234568"},
    }
    assert row.payload_sha256 == payload_hash(row.payload)


def test_quantities_are_scaled_to_whole_units(provisioned: World) -> None:
    provisioned.rate("acme", "requests", T0, "99", quantity="12.3456")
    provisioned.plan()
    (row,) = provisioned.rows()
    assert (row.units, row.exact_units) == (12346, D("12345.6"))


def test_dimension_sets_are_summed_into_one_record(provisioned: World) -> None:
    provisioned.rate("acme", "tokens", T0, "1.0000004", dimensions="mockai/large")
    provisioned.rate("acme", "tokens", T0, "2.0000004", dimensions="mockai/small")
    provisioned.plan()
    (row,) = provisioned.rows()
    assert row.units == 3000001


def test_planning_again_writes_nothing(provisioned: World) -> None:
    for hour in range(5):
        provisioned.rate("acme", "tokens", T0 + hour * HOUR, "0.0000004")
    assert provisioned.plan().records == 5
    before = provisioned.rows()
    assert [row.units for row in before] == [0, 1, 0, 1, 0]
    assert provisioned.plan().records == 0
    assert provisioned.plan((T0, T0 + HOUR)).records == 0
    assert provisioned.rows() == before


def test_only_what_changed_is_planned_again(provisioned: World) -> None:
    for hour in range(3):
        provisioned.rate("acme", "tokens", T0 + hour * HOUR, "1.5")
    provisioned.plan()
    provisioned.rate("acme", "tokens", T0 + HOUR, "0.25")
    planned = provisioned.plan()
    assert (planned.records, planned.corrections) == (1, 1)
    assert [(row.window_start, row.revision, row.units) for row in provisioned.rows()] == [
        (T0, 1, 1_500_000),
        (T0 + HOUR, 1, 1_500_000),
        (T0 + HOUR, 2, 250_000),
        (T0 + 2 * HOUR, 1, 1_500_000),
    ]
    assert provisioned.rows()[2].event_timestamp == T0 + HOUR + timedelta(seconds=2)


def test_nothing_used_is_planned_only_as_a_correction(provisioned: World) -> None:
    provisioned.rate("acme", "tokens", T0, "0")
    assert provisioned.plan().records == 0
    provisioned.rate("acme", "tokens", T0, "1")
    provisioned.plan()
    provisioned.rate("acme", "tokens", T0, "0")
    assert provisioned.plan().corrections == 1
    assert [row.value for row in provisioned.rows()] == [1_000_000, 0]


def test_a_sum_meter_gets_signed_differences(world: World) -> None:
    world.account.meter("clawbill_tokens")
    world.provision()
    for amount in ("3", "5", "1", "0"):
        world.rate("acme", "tokens", T0, amount)
        world.plan()
    assert [int(row.value) for row in world.rows()] == [3_000_000, 2_000_000, -4_000_000, -1_000_000]
    assert [int(row.units) for row in world.rows()] == [3_000_000, 5_000_000, 1_000_000, 0]


def test_a_rejected_difference_is_made_up_for(world: World) -> None:
    world.account.meter("clawbill_tokens")
    world.provision()
    world.rate("acme", "tokens", T0, "3")
    world.plan()
    world.execute("UPDATE usage_records SET state = 'rejected', settled_at = now()")
    world.rate("acme", "tokens", T0, "5")
    world.plan()
    assert [int(row.value) for row in world.rows()] == [3_000_000, 5_000_000]


def test_a_unit_that_rounding_owes_is_given_by_another_window(provisioned: World) -> None:
    for hour in range(2):
        provisioned.rate("acme", "tokens", T0 + hour * HOUR, "0.0000004")
        provisioned.plan()
    assert [row.units for row in provisioned.rows()] == [0, 1]
    provisioned.rate("acme", "tokens", T0, "0")
    assert provisioned.plan().records == 2
    assert [(row.window_start, row.revision, row.units) for row in provisioned.rows()] == [
        (T0, 1, 0),
        (T0, 2, 0),
        (T0 + HOUR, 1, 1),
        (T0 + HOUR, 2, 0),
    ]
    assert provisioned.plan().records == 0


def test_a_difference_does_not_build_on_what_cannot_be_sent(world: World) -> None:
    world.provision_as("sum_meter")
    for amount in ("1000000000.5", "5"):
        world.rate("acme", "tokens", T0, amount)
        world.plan()
    assert world.deliver().delivered == 1
    assert world.held("acme", "tokens") == 5_000_000


def test_hours_limit_what_is_planned(provisioned: World) -> None:
    for hour in range(4):
        provisioned.rate("acme", "tokens", T0 + hour * HOUR, "0.0000005")
    assert provisioned.plan((T0 + 3 * HOUR, T0 + 4 * HOUR)).records == 1
    assert provisioned.plan((T0, T0 + 2 * HOUR)).records == 2
    assert provisioned.plan().records == 1
    assert sum(row.units for row in provisioned.rows()) == 2  # 4 halves


def test_usage_that_stripe_does_not_know_waits_and_is_counted(world: World) -> None:
    world.rate("acme", "tokens", T0, "1")
    planned = world.plan()
    assert (planned.records, planned.unmapped) == (0, 1)
    assert not planned.checks[0].passed
    world.provision()
    world.rate("globex", "tokens", T0, "1", currency="EUR")
    planned = world.plan()
    assert (planned.records, planned.unmapped, planned.other_currency) == (1, 0, 1)


def test_too_many_digits_are_parked(provisioned: World) -> None:
    provisioned.rate("acme", "tokens", T0, "1000000000.5")
    assert provisioned.plan().parked == 1
    (row,) = provisioned.rows()
    assert row.parked == "invalid_value"


def test_periods_are_rounded_apart(world: World) -> None:
    world.catalog = parse(CATALOG.replace("name: Acme", "anchor_day: 2"))
    world.provision()
    day = timedelta(days=1)
    world.rate("acme", "tokens", T0 + day - HOUR, "0.0000005")
    world.rate("acme", "tokens", T0 + day, "0.0000005")
    world.plan()
    assert [int(row.units) for row in world.rows()] == [1, 1]


def test_an_hour_cut_by_a_period_has_two_records(world: World) -> None:
    world.catalog = parse(CATALOG.replace("name: Acme", "time_zone: Asia/Kolkata, anchor_day: 2"))
    world.provision()
    hour, boundary = T0 + 18 * HOUR, T0 + timedelta(hours=18, minutes=30)
    world.rate("acme", "tokens", hour, "1")
    world.rate("acme", "tokens", boundary, "2")
    assert world.plan().records == 2
    assert [(row.hour, row.window_start, row.value) for row in world.rows()] == [
        (hour, hour, 1_000_000),
        (hour, boundary, 2_000_000),
    ]


def test_two_planners_at_once_plan_each_window_once(provisioned: World) -> None:
    for hour in range(40):
        for tenant in ("acme", "globex"):
            provisioned.rate(tenant, "tokens", T0 + hour % 20 * HOUR, f"0.{hour + 1:07d}")
    results: list[int] = []
    threads = [threading.Thread(target=lambda: results.append(provisioned.plan().records)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(results) == 40
    for tenant in ("acme", "globex"):
        rows = provisioned.rows(tenant_id=tenant)
        assert sum(row.units for row in rows) == rounded(sum(row.exact_units for row in rows), 0)
