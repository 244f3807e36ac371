"""Cases of the shared file's models that it does not have, worked out by hand; and random ones, against a calculator
that knows fractions and nothing of the engine."""

from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clawbill_pipeline_tests.rating_cases import run_case

Case = tuple[str, dict[str, Any], Any, str]


def tier(up_to: str | None, unit: str = "0", flat: str | None = "0", **more: Any) -> dict[str, Any]:
    return {"up_to": up_to, "unit_amount": unit, "flat_amount": flat, **more}


LAGO = [tier("10", "10", "2"), tier("20", "5", "3"), tier(None, "5", "3")]
LAGO_VOLUME = [tier("100", "2", "10"), tier("200", "1"), tier(None, "0.5", "50")]
FLAT_FIRST = [tier("5", flat="100"), tier("10", flat="150"), tier("15", "10"), tier(None, "5")]
PARTS = [tier("0.1", "10"), tier("1", "5"), tier(None, "2")]
PERCENT = [
    {"up_to": "10", "rate_percent": "1", "flat_amount": "200"},
    {"up_to": "20", "rate_percent": "2", "flat_amount": "300"},
    {"up_to": None, "rate_percent": "3", "flat_amount": "400"},
]
BLOCKS = [
    {"block_size": "100", "max_blocks": "10", "price": "1"},
    {"block_size": "1000", "max_blocks": "100", "price": "1"},
    {"block_size": "1000", "max_blocks": "100", "price": "0.5"},
]
SEATS = [
    {"price": "10", "limits": {"unit1": "100", "unit2": "1000"}},
    {"price": "20", "limits": {"unit1": "200", "unit2": "2000"}},
    {"price": "30", "limits": {"unit1": "-1"}},
]
EVENTS = ["50", "100", "250", "400"]
SAME_PERCENT = {"rate_percent": "1.3", "fixed_per_event": "2.0"}
LIMITS = {"rate_percent": "2.99", "fixed_per_event": "0", "min_per_event": "1.75", "max_per_event": "12"}

CASES: list[Case] = [
    # graduated: at each edge, between edges, nothing, very little, very much
    ("graduated", {"tiers": LAGO}, "10", "102"),
    ("graduated", {"tiers": LAGO}, "10.000000001", "105.000000005"),
    ("graduated", {"tiers": LAGO}, "20", "155"),
    ("graduated", {"tiers": LAGO}, "21", "163"),
    ("graduated", {"tiers": LAGO}, "0.000000001", "2.00000001"),
    ("graduated", {"tiers": LAGO}, "1000000000000000", "5000000000000058"),
    ("graduated", {"tiers": PARTS}, "0.1", "1"),
    ("graduated", {"tiers": PARTS}, "0.15", "1.25"),
    ("graduated", {"tiers": PARTS}, "1.5", "6.5"),
    ("graduated", {"tiers": [tier("1", "10"), tier("2", "20"), tier(None, "30")]}, "2.5", "45"),
    ("graduated", {"tiers": [tier("1", "10", None), tier(None, "20", None)]}, 3, "50"),
    ("graduated", {"tiers": LAGO, "maximum": "100"}, "12", "100"),
    ("graduated", {"tiers": LAGO, "minimum": "30"}, "0", "30"),
    ("graduated", {"tiers": LAGO, "free_units": "5"}, "12", "72"),
    ("graduated", {"tiers": LAGO, "discounts": [["percent", "10"]]}, "12", "103.5"),
    ("graduated_capped", {"tiers": [tier("10", "1"), tier(None, "1")], "tier_cap": "3"}, "5", "3"),
    ("graduated_capped", {"tiers": [tier("10", "1", "1", tier_cap="4"), tier(None, "2")]}, "12", "8"),
    # volume: a total reprices all of it
    ("volume", {"tiers": LAGO_VOLUME}, "101", "101"),
    ("volume", {"tiers": LAGO_VOLUME}, "200", "200"),
    ("volume", {"tiers": LAGO_VOLUME}, "200.5", "150.25"),
    ("volume", {"tiers": LAGO_VOLUME}, "300", "200"),
    ("volume", {"tiers": LAGO_VOLUME}, "0", "10"),
    ("volume", {"tiers": [tier("99", "1"), tier("199", "0.5"), tier(None, "0.25")]}, "99.5", "49.75"),
    ("volume", {"tiers": [tier("1"), tier("100", "2", "10"), tier(None, "0.5", "50")]}, "0", "0"),
    ("volume", {"tiers": FLAT_FIRST}, "15", "150"),
    ("volume", {"tiers": FLAT_FIRST}, "10.5", "105"),
    ("volume", {"tiers": FLAT_FIRST, "maximum": "100"}, "6", "100"),
    ("volume", {"tiers": FLAT_FIRST, "minimum": "150"}, "0", "150"),
    ("volume", {"tiers": FLAT_FIRST, "minimum": "100"}, "100", "500"),
    ("volume", {"tiers": [tier(None, "5")]}, "0", "0"),
    # packages
    ("package", {"package_size": "10", "package_amount": "100", "free_units": "0"}, "121", "1300"),
    ("package", {"package_size": "10", "package_amount": "100", "free_units": "10"}, "121", "1200"),
    ("package", {"package_size": "10", "package_amount": "100", "free_units": "121"}, "121", "0"),
    ("package", {"package_size": "10", "package_amount": "100", "free_units": "120"}, "120.5", "100"),
    ("package", {"package_size": "10", "package_amount": "15"}, "0", "0"),
    ("package", {"package_size": "0.5", "package_amount": "1"}, "1.2", "3"),
    ("package", {"package_size": "60", "package_amount": "10", "round": "half_up"}, "90", "20"),
    ("package", {"package_size": "60", "package_amount": "10", "round": "half_up"}, "89.9", "10"),
    ("package", {"package_size": "60", "package_amount": "10", "round": None}, "61", "20"),
    ("package", {"package_size": "10", "package_amount": "15", "minimum": "100"}, "0", "100"),
    ("package", {"package_size": "10", "package_amount": "15", "maximum": "100"}, "110", "100"),
    ("package_progressive", {"package_size": "10", "package_amount": "15", "already_rated_quantity": "17"}, "3", "0"),
    ("package_progressive", {"package_size": "10", "package_amount": "15", "already_rated_quantity": "20"}, "1", "15"),
    (
        "package_progressive",
        {"package_size": "10", "package_amount": "15", "maximum": "100", "already_rated_quantity": "60",
         "already_billed": "90"},
        "50",
        "10",
    ),
    # increments of a period
    ("graduated_progressive", {"tiers": LAGO, "already_rated_quantity": "10"}, "10", "53"),
    ("graduated_progressive", {"tiers": LAGO, "already_rated_quantity": "0"}, "10", "102"),
    ("graduated_progressive", {"tiers": LAGO, "already_rated_quantity": "12"}, "0", "0"),
    (
        "per_unit_progressive",
        {"unit_amount": "10", "maximum": "100", "already_billed": "35", "discounts": [["percent", "50"]]},
        "20",
        "65",
    ),
    ("per_unit_progressive", {"unit_amount": "10", "maximum": "100", "already_billed": "100"}, "5", "0"),
    ("per_unit_progressive", {"unit_amount": "10", "already_rated_quantity": "7"}, "5", "50"),
    ("late_correction_delta", {"model": "per_unit", "unit_amount": "10", "already_billed": "50"}, "8", "30"),
    ("late_correction_delta", {"model": "graduated", "tiers": LAGO, "already_billed": "102"}, "9", "-10"),
    ("late_correction_delta", {"model": "volume", "tiers": FLAT_FIRST, "already_billed": "0"}, "16", "80"),
    # percentages, of sums and event by event
    ("percentage", {**SAME_PERCENT, "events": 4, "free_units": "250", "free_events": 2}, "800", "11.15"),
    ("percentage", {**SAME_PERCENT, "events": 4, "free_units": "400", "free_events": 3}, "800", "7.2"),
    ("percentage", {**SAME_PERCENT, "events": 4, "free_units": "400", "free_events": 5}, "400", "0"),
    ("percentage", {**SAME_PERCENT, "events": 4, "free_units": "250", "free_events": 2}, "0", "0"),
    ("percentage", {**SAME_PERCENT, "rate_percent": "0", "events": 4, "free_units": None}, "800", "8"),
    ("percentage", {"rate_percent": "2.9", "events": 4}, "4", "0.116"),
    ("percentage", {**SAME_PERCENT, "free_events": 3}, EVENTS, "7.2"),
    ("percentage", {**SAME_PERCENT, "free_units": "250"}, EVENTS, "11.15"),
    ("percentage", {**SAME_PERCENT, "free_units": "250", "free_events": 3}, EVENTS, "11.15"),
    ("percentage", {**SAME_PERCENT, "free_units": "500", "free_events": 3}, EVENTS, "7.2"),
    ("percentage", SAME_PERCENT, EVENTS, "18.4"),
    ("percentage_per_event", {**LIMITS, "fixed_per_event": "2.0"}, ["10", "80", "10000"], "18.691"),
    ("percentage_per_event", {**LIMITS, "free_events": 2}, ["10", "80", "10000"], "12"),
    ("percentage_per_event", {**LIMITS, "free_units": "30"}, ["10", "80", "10000"], "13.794"),
    ("percentage_per_event", {**LIMITS, "free_units": "10000", "free_events": 3}, ["10", "80", "10000"], "2.691"),
    ("percentage_per_event", {**LIMITS, "max_per_event": None}, ["10", "10000"], "300.75"),
    ("percentage_per_event", LIMITS, [], "0"),
    ("graduated_percentage", {"tiers": PERCENT}, "0", "200"),
    ("graduated_percentage", {"tiers": PERCENT}, "11", "500.12"),
    ("graduated_percentage", {"tiers": PERCENT}, "20", "500.3"),
    ("graduated_percentage", {"tiers": PERCENT}, "21", "900.33"),
    # blocks and capacity
    ("block_volume", {"blocks": BLOCKS}, "1001", "2"),
    ("block_volume", {"blocks": BLOCKS}, "101001", "51"),
    ("block_volume", {"blocks": BLOCKS}, "300000", "150"),
    ("block_volume", {"blocks": BLOCKS}, "0", "0"),
    ("block_graduated", {"blocks": BLOCKS}, "5325", "15"),
    ("block_graduated", {"blocks": [BLOCKS[0], {**BLOCKS[1], "max_blocks": "-1"}]}, "5325", "15"),
    (
        "block_graduated",
        {"blocks": [{"block_size": "1", "max_blocks": n, "price": p}
                    for n, p in (("10", "1.5"), ("100", "1.0"), ("1000", "0.5"))]},
        "111",
        "115.5",
    ),
    ("block_graduated", {"blocks": BLOCKS}, "1000.1", "11"),
    ("capacity", {"tiers": SEATS}, {"unit1": "100", "unit2": "1000"}, "10"),
    ("capacity", {"tiers": SEATS}, {"unit1": "101", "unit2": "1001"}, "20"),
    ("capacity", {"tiers": SEATS}, {"unit1": "10", "unit2": "2001"}, "30"),
    ("capacity", {"tiers": SEATS}, {"unit1": "100.5"}, "20"),
    ("capacity", {"tiers": SEATS}, {}, "10"),
    # units
    ("per_unit", {"unit_amount": "5.12345"}, "10", "51.2345"),
    ("per_unit", {"unit_amount": "0.1", "per": "60", "increment": "60"}, "61", "0.2"),
    ("per_unit", {"unit_amount": "10", "minimum": "100"}, "0", "100"),
    ("per_unit", {"unit_amount": "10"}, "-3", "-30"),
    ("per_unit_connect", {"connect_fee": "0.15", "unit_amount": "0.05", "per": "60"}, "0", "0.15"),
    ("unit_convert", {"divide_by": "1000", "round": "ceiling", "unit_amount": "10"}, "1400", "20"),
    ("unit_convert", {"divide_by": "1000", "round": "floor", "unit_amount": "10"}, "1400", "10"),
    ("unit_convert", {"divide_by": "1000", "round": "up", "precision": 1, "unit_amount": "10"}, "1410", "15"),
    ("unit_convert", {"multiply_by": "1.2", "unit_amount": "10"}, "5", "60"),
    ("unit_convert", {"divide_by": "3600", "unit_amount": "36"}, "1", "0.01"),
    (
        "unit_convert_graduated",
        {"divide_by": "1000", "round": "up", "tiers": [tier("5", "1"), tier(None, "0.5")]},
        "5000.1",
        "5.5",
    ),
    ("dynamic_multiplier", {"multiplier": "1.33333"}, "50", "66.6665"),
    ("dynamic_multiplier", {"multiplier": "1", "minimum": "100"}, "0", "100"),
    ("dynamic_sum_cents", {}, ["40.2", "0.8", "-1"], "0.4"),
    ("per_bucket_graduated", {"tiers": [tier("10", "1"), tier(None, "2")]}, ["5", "11", "0"], "17"),
    ("per_bucket_package", {"package_size": "100", "package_amount": "10"}, ["50", "150"], "30"),
    ("per_bucket_volume", {"tiers": [tier("10", "0.10"), tier("20", "0.05"), tier(None, "0.02")]}, [], "0"),
    ("time_of_use", {"connect_fee": "0", "segments": [["60", "1"], ["50", "0.5"]]}, "110", "85"),
    ("time_of_use", {"connect_fee": "1", "per": "60", "segments": [["24", "0.05"], ["30", "0.1"]]}, "54", "1.07"),
    ("time_of_use", {"segments": [["0", "5"]]}, "0", "0"),
    # adjustments
    ("discounts", {"subtotal": "100.00", "discounts": [["percent", "10"], ["fixed", "50"]]}, "1", "40"),
    ("discounts", {"subtotal": "100.00", "discounts": [["fixed", "50"], ["percent", "10"]]}, "1", "40"),
    ("discounts", {"subtotal": "100.00", "discounts": [["fixed", "80"], ["fixed", "50"]]}, "1", "0"),
    ("discounts", {"subtotal": "100.00", "discounts": [["percentage", "100"]]}, "1", "0"),
    ("discounts", {"subtotal": "100.00", "discounts": []}, "1", "100"),
    ("minimum_true_up", {"minimum": "10.00", "used_amount": "10.004"}, "1", "0"),
    ("metering_weighted_sum", {"period_seconds": 2678400, "deltas": [["0", "1000"]]}, "1 event", "1000"),
    ("metering_weighted_sum", {"period_seconds": 100, "deltas": [], "initial_value": "7"}, "0 events", "7"),
    ("metering_weighted_sum", {"period_seconds": 2678400, "deltas": [["0", "3"], ["0", "3"]]}, "2 events", "6"),
    (
        "metering_weighted_sum",
        {"period_seconds": 2678400, "deltas": [["3600", "3"]], "round_places": 5},
        "1 event",
        "2.99597",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("model", "params", "quantity", "expected"), CASES)
def test_by_hand(model: str, params: dict[str, Any], quantity: Any, expected: str) -> None:
    case = {"model": model, "params": params, "quantity": quantity, "currency": "USD", "rounding": "none"}
    assert run_case(case) == Decimal(expected)


ROUNDED: list[tuple[str, dict[str, Any], Any, str, str, str]] = [
    ("round_amount", {"amount": "10.275"}, "1", "USD", "line_half_up", "10.28"),
    ("round_amount", {"amount": "-0.005"}, "1", "GBP", "line_half_up", "-0.01"),
    ("round_amount", {"amount": "0.0005"}, "1", "KWD", "line_half_up", "0.001"),
    ("round_amount", {"amount": "1023.45"}, "1", "JPY", "line_half_up", "1023"),
    ("round_amount", {"amount": "0.17"}, "1", "*any", "line_half_up", "0.17"),
    ("round_amount", {"amount": "10.275"}, "1", "USD", "none", "10.275"),
    ("sum_of_rounded_lines", {}, ["100.4", "200.5", "300.6"], "JPY", "line_half_up", "602"),
    ("sum_of_rounded_lines", {}, ["0.011", "0.012", "0.013", "0.014", "0.015"], "USD", "line_half_up", "0.06"),
    ("sum_of_rounded_lines", {}, ["10.333333"] * 3, "USD", "total_half_up", "31"),
    ("minimum_true_up", {"minimum": "10.00", "used_amount": "9.994"}, "1", "USD", "line_half_up", "0.01"),
    (
        "proration_net",
        {"old": "100", "new": "30", "remaining_days": 17, "period_days": 31},
        "1",
        "USD",
        "line_half_up",
        "-38.39",
    ),
    ("proration_net", {"new": "25", "remaining_days": 17, "period_days": 31}, "1", "USD", "line_half_up", "13.71"),
    ("proration_net", {"old": "40", "remaining_days": 17, "period_days": 31}, "1", "USD", "line_half_up", "-21.94"),
    (
        "proration_net",
        {"old": "10", "new": "20", "remaining_days": 31, "period_days": 31},
        "1",
        "USD",
        "line_half_up",
        "10",
    ),
    (
        "proration_net",
        {"old": "10", "new": "20", "remaining_days": 0, "period_days": 28},
        "1",
        "USD",
        "line_half_up",
        "0",
    ),
]


@pytest.mark.parametrize(("model", "params", "quantity", "currency", "rounding", "expected"), ROUNDED)
def test_rounded_by_hand(
    model: str, params: dict[str, Any], quantity: Any, currency: str, rounding: str, expected: str
) -> None:
    case = {"model": model, "params": params, "quantity": quantity, "currency": currency, "rounding": rounding}
    assert run_case(case) == Decimal(expected)


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (None, "2"),
        ("zero_usage_bills_first_flat", "2"),
        ("zero_usage_bills_nothing", "0"),
        ("zero_usage_skips_flat", "0"),
        ("no_flat_on_zero", "0"),
    ],
)
@pytest.mark.parametrize("model", ["graduated", "volume"])
def test_what_no_usage_costs_is_the_case_s_policy(model: str, policy: str | None, expected: str) -> None:
    case = {"model": model, "params": {"tiers": LAGO}, "quantity": "0", "currency": "EUR", "policy": policy}
    assert run_case(case) == Decimal(expected)


# --- against a calculator of its own ---------------------------------------------------------------------------------

NUMBERS = st.decimals(0, 10_000, places=4)
PRICES = st.decimals(0, 100, places=4)
BOUNDS = st.lists(st.decimals("0.0001", 10_000, places=4), max_size=5, unique=True).map(sorted)


@st.composite
def tiers(draw: st.DrawFn) -> list[dict[str, str | None]]:
    ends = [*(str(bound) for bound in draw(BOUNDS)), None]
    return [tier(end, str(draw(PRICES)), str(draw(PRICES))) for end in ends]


def quantities(of: list[dict[str, Any]]) -> st.SearchStrategy[Decimal]:
    """Anything, and often just where a tier ends or begins."""
    edges = [Decimal(one["up_to"]) + nudge for one in of[:-1] for nudge in (Decimal(0), Decimal("0.0001"))]
    return NUMBERS | st.sampled_from([Decimal(0), *edges])


def naive(model: str, of: list[dict[str, Any]], quantity: Fraction) -> Fraction:
    """Tiers one by one, as a person would with pen and paper."""
    total, start = Fraction(0), Fraction(0)
    for number, one in enumerate(of):
        end = None if one["up_to"] is None else Fraction(one["up_to"])
        inside = quantity <= end if end is not None else True
        unit, flat = Fraction(one["unit_amount"]), Fraction(one["flat_amount"])
        if model == "volume":
            if inside:
                return quantity * unit + flat
        elif number == 0 or quantity > start:
            total += ((quantity if inside else end) - start) * unit + flat  # type: ignore[operator]
            if inside:
                return total
        start = end or start
    return total


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(["graduated", "volume"]), tiers(), st.one_of(st.none(), PRICES), st.booleans())
def test_tiers_against_pen_and_paper(
    data: st.DataObject, model: str, of: list[dict[str, Any]], off: Decimal | None, capped: bool
) -> None:
    quantity = data.draw(quantities(of))
    params: dict[str, Any] = {"tiers": of}
    expected = naive(model, of, Fraction(quantity))
    if off is not None:
        params["discounts"] = [["percent", str(off)], ["fixed", "3"]]
        expected = max(expected * (100 - Fraction(off)) / 100 - 3, Fraction(0))
    if capped:
        params |= {"minimum": "20", "maximum": "5000"}
        expected = max(min(expected, Fraction(5000)), Fraction(20))
    assert Fraction(run_case({"model": model, "params": params, "quantity": str(quantity)})) == expected


@settings(max_examples=80, deadline=None)
@given(NUMBERS, st.decimals("0.5", 500, places=1), PRICES, NUMBERS, st.sampled_from(["up", "down", "half_up"]))
def test_packages_against_pen_and_paper(
    quantity: Decimal, size: Decimal, cost: Decimal, free: Decimal, how: str
) -> None:
    left = max(Fraction(quantity) - Fraction(free), Fraction(0)) / Fraction(size)
    count = {"up": math.ceil(left), "down": math.floor(left), "half_up": math.floor(left + Fraction(1, 2))}[how]
    params = {"package_size": str(size), "package_amount": str(cost), "free_units": str(free), "round": how}
    assert Fraction(run_case({"model": "package", "params": params, "quantity": str(quantity)})) == count * Fraction(
        cost
    )


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 500), st.integers(1, 20), PRICES), min_size=1, max_size=4),
    st.decimals(0, 50_000, places=2),
    st.sampled_from(["block_graduated", "block_volume"]),
)
def test_blocks_against_pen_and_paper(blocks: list[tuple[int, int, Decimal]], quantity: Decimal, model: str) -> None:
    start, expected, units = 0, Fraction(0), Fraction(quantity)
    for number, (size, most, cost) in enumerate(blocks, 1):
        last = number == len(blocks) or units <= start + size * most
        if model == "block_volume":
            expected = math.ceil(units / size) * Fraction(cost)
        else:
            inside = units - start if last else Fraction(size * most)
            expected += math.ceil(inside / size) * Fraction(cost)
        if last:
            break
        start += size * most
    given = [{"block_size": str(size), "max_blocks": str(most), "price": str(cost)} for size, most, cost in blocks]
    assert Fraction(run_case({"model": model, "params": {"blocks": given}, "quantity": str(quantity)})) == expected


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.decimals(0, 5000, places=2), max_size=6),
    st.decimals(0, 20, places=2),
    st.decimals(0, 3, places=2),
    st.integers(0, 4),
    st.decimals(0, 3000, places=2),
    st.tuples(st.one_of(st.none(), st.integers(0, 5)), st.one_of(st.none(), st.integers(5, 40))),
)
def test_percentages_against_pen_and_paper(
    events: list[Decimal],
    percent: Decimal,
    fee: Decimal,
    free_events: int,
    free_units: Decimal,
    limits: tuple[int | None, int | None],
) -> None:
    low, high = limits
    expected, left = Fraction(0), Fraction(free_units)
    for number, event in enumerate(map(Fraction, events), 1):
        if free_units:
            taken = min(left, event) if number <= free_events or not free_events else Fraction(0)
            if taken and taken == event:
                left -= taken
                continue
        elif number <= free_events:
            continue
        else:
            taken = Fraction(0)
        left -= taken
        amount = (event - taken) * Fraction(percent) / 100 + Fraction(fee)
        amount = amount if low is None else max(amount, Fraction(low))
        expected += amount if high is None else min(amount, Fraction(high))
    params = {"rate_percent": str(percent), "fixed_per_event": str(fee), "free_events": free_events,
              "free_units": str(free_units), "min_per_event": low, "max_per_event": high}  # fmt: skip
    case = {"model": "percentage_per_event", "params": params, "quantity": [str(event) for event in events]}
    assert Fraction(run_case(case)) == expected
