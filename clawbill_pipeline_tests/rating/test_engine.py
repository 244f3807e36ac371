"""The engine's models one by one, where the shared cases leave something open."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from clawbill_pipeline.catalog.prices import Price
from clawbill_pipeline.rating.engine import (
    Line,
    RatingError,
    Share,
    Usage,
    discounted,
    prorated,
    rate,
    rate_increment,
    true_up,
    weighted_sum,
)
from clawbill_pipeline_tests.rating.random_prices import PRICE


def price(model: str, **fields: Any) -> Price:
    return PRICE.validate_python({"model": model, **fields})


def amount(card: Price, usage: Usage | str) -> Decimal:
    return rate(card, Decimal(usage) if isinstance(usage, str) else usage).amount


TIERS = [
    {"up_to": 5, "unit_amount": 0, "flat_amount": 100},
    {"up_to": 10, "unit_amount": 2},
    {"up_to": "inf", "unit_amount": "0.5", "flat_amount": 7},
]


class TestTiers:
    @pytest.mark.parametrize(
        ("quantity", "expected"),
        [("0", "100"), ("5", "100"), ("5.000000001", "100.000000002"), ("10", "110"), ("12", "118")],
    )
    def test_graduated(self, quantity: str, expected: str) -> None:
        assert amount(price("graduated", tiers=TIERS), quantity) == Decimal(expected)

    @pytest.mark.parametrize(("quantity", "expected"), [("0", "100"), ("5", "100"), ("5.5", "11"), ("12", "13")])
    def test_volume(self, quantity: str, expected: str) -> None:
        assert amount(price("volume", tiers=TIERS), quantity) == Decimal(expected)

    @pytest.mark.parametrize("model", ["graduated", "volume"])
    def test_flat_amount_of_no_usage_is_a_policy_of_the_card(self, model: str) -> None:
        assert amount(price(model, tiers=TIERS, charge_flat_on_zero=False), "0") == 0
        assert amount(price(model, tiers=TIERS, charge_flat_on_zero=False), "0.1") == 100

    def test_lines_name_their_tiers(self) -> None:
        assert rate(price("graduated", tiers=TIERS), Decimal(12)).lines == (
            Line("usage", Decimal(0), Decimal(5), Decimal(0), tier=1),
            Line("flat", Decimal(100), tier=1),
            Line("usage", Decimal(10), Decimal(5), Decimal(2), tier=2),
            Line("usage", Decimal(1), Decimal(2), Decimal("0.5"), tier=3),
            Line("flat", Decimal(7), tier=3),
        )

    def test_a_tier_s_maximum_caps_that_tier_alone(self) -> None:
        tiers = [{"up_to": 10, "unit_amount": 1, "flat_amount": 1, "maximum": 4}, {"unit_amount": 1}]
        rating = rate(price("graduated", tiers=tiers), Decimal(12))
        assert rating.amount == 6
        assert [(line.kind, line.amount) for line in rating.lines if line.kind == "maximum"] == [("maximum", -7)]


class TestUnits:
    def test_a_price_by_the_sixtieth_is_exact_where_it_ends_and_to_twelve_places_where_not(self) -> None:
        by_the_minute = price("per_unit", unit_amount="0.05", per=60)
        assert amount(by_the_minute, "24") == Decimal("0.02")
        assert amount(by_the_minute, "7") == Decimal("0.005833333333")

    def test_a_begun_increment_counts_in_full(self) -> None:
        assert amount(price("per_unit", unit_amount=1, per=60, increment=60), "61") == 2

    def test_an_hour_s_price_is_exact_by_the_second(self) -> None:
        # 1/3600 has no decimal: converted first, this would be 0.010000000008.
        assert amount(price("per_unit", unit_amount=36, convert={"divide_by": 3600}), "1") == Decimal("0.01")

    @pytest.mark.parametrize(
        ("convert", "expected"),
        [
            ({"divide_by": 1000, "round": "up"}, "2"),
            ({"divide_by": 1000, "round": "down"}, "1"),
            ({"divide_by": 1000, "round": "half_up"}, "2"),
            ({"divide_by": 1000, "round": "up", "decimals": 1}, "1.5"),
            ({"divide_by": 1000}, "1.5"),
            ({"multiply_by": "1.2"}, "1800"),
        ],
    )
    def test_conversion(self, convert: dict[str, Any], expected: str) -> None:
        assert amount(price("per_unit", unit_amount=1, convert=convert), "1500") == Decimal(expected)

    def test_included_units_come_off_after_conversion_and_never_below_zero(self) -> None:
        card = price("per_unit", unit_amount=10, convert={"divide_by": 1000, "round": "up"}, included="1.5")
        assert amount(card, "1400") == 5
        assert amount(card, "900") == 0

    def test_packages(self) -> None:
        card = price("package", package_size=10, package_amount=15, included=200)
        assert [amount(card, quantity) for quantity in ("200", "200.1", "210", "211")] == [0, 15, 15, 30]

    def test_blocks_are_charged_in_full_once_begun(self) -> None:
        tiers = [{"up_to": 500, "block_size": 100, "block_amount": 3}, {"block_size": 100, "block_amount": 1}]
        assert amount(price("block", tiers=tiers), "730") == 5 * 3 + 3
        assert amount(price("block", mode="volume", tiers=tiers), "730") == 8


class TestPercentage:
    # Numbers of lago-api spec/services/charge_models/percentage_service_spec.rb
    EVENTS = Usage.of_events([Decimal(10), Decimal(80), Decimal(10_000)])

    def test_fees_are_for_events_beyond_the_free_ones(self) -> None:
        card = price("percentage", percent="1.3", fixed_per_event=2, free_events=2, included=250)
        assert amount(card, Usage(Decimal(800), event_count=4)) == Decimal("11.15")
        assert amount(card, Usage(Decimal(0), event_count=4)) == 0

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ({}, "16.142"),
            ({"fixed_per_event": 2}, "18.691"),
            ({"free_events": 2}, "12"),
            ({"included": 30}, "13.794"),
            ({"free_events": 3, "included": 10_000}, "2.691"),
        ],
    )
    def test_limits_an_event(self, fields: dict[str, Any], expected: str) -> None:
        card = price("percentage", percent="2.99", min_per_event="1.75", max_per_event=12, **fields)
        assert amount(card, self.EVENTS) == Decimal(expected)

    @pytest.mark.parametrize("fields", [{"fixed_per_event": 1}, {"min_per_event": 1}, {"max_per_event": 1}])
    def test_a_sum_is_not_enough_for_fees_and_limits_an_event(self, fields: dict[str, Any]) -> None:
        with pytest.raises(RatingError, match="event"):
            rate(price("percentage", percent=1, **fields), Decimal(100))


class TestParts:
    LARGE = {"model": "per_unit", "unit_amount": 3}
    SMALL = {"model": "graduated", "tiers": [{"up_to": 10, "unit_amount": 1}, {"unit_amount": "0.5"}]}

    def test_matrix(self) -> None:
        card = price("matrix", cells={"mockai/large": self.LARGE, "mockai/small": self.SMALL}, minimum=10)
        assert amount(card, Usage(Decimal(12), part="mockai/small")) == 11
        rating = rate(card, Usage.of_parts({"mockai/large": Decimal(2), "mockai/small": Decimal(1)}))
        assert [(line.part, line.amount) for line in rating.lines] == [
            ("mockai/large", 6),
            ("mockai/small", 1),
            (None, 3),
        ]

    def test_a_set_without_a_price_is_refused_and_not_free(self) -> None:
        with pytest.raises(RatingError, match="no price for 'other'; there is large"):
            rate(price("matrix", cells={"large": self.LARGE}), Usage(Decimal(1), part="other"))
        assert (
            amount(price("matrix", cells={"large": self.LARGE}, otherwise=self.SMALL), Usage(Decimal(1), part="x")) == 1
        )
        with pytest.raises(RatingError, match="needs the dimensions"):
            rate(price("matrix", cells={"large": self.LARGE}), Decimal(1))

    def test_time_of_use_by_band_and_by_time(self) -> None:
        card = price(
            "time_of_use",
            time_zone="Europe/Berlin",
            flat_amount=1,
            bands=[{"name": "peak", "days": ["mon", "tue"], "from": "08:00", "to": "18:00", "price": self.LARGE}],
            otherwise={"model": "per_unit", "unit_amount": 1},
        )
        assert amount(card, Usage.of_parts({"peak": Decimal(2), "otherwise": Decimal(5)})) == 1 + 6 + 5
        assert amount(card, Usage(Decimal(2), part="peak")) == 7
        # Monday 2026-10-26 is the first weekday after the clocks went back: 08:00 in Berlin is 07:00 UTC.
        assert amount(card, Usage(Decimal(2), at=datetime(2026, 10, 26, 7, tzinfo=UTC))) == 7
        assert amount(card, Usage(Decimal(2), at=datetime(2026, 10, 26, 6, 59, tzinfo=UTC))) == 3
        with pytest.raises(RatingError, match="needs the band"):
            rate(card, Decimal(1))

    def test_capacity_is_the_lowest_tier_that_everything_fits(self) -> None:
        tiers = [{"amount": 10, "limits": {"cpu": 4, "gb": 16}}, {"amount": 20, "limits": {"cpu": 8}}, {"amount": 30}]
        card = price("capacity", tiers=tiers)
        sizes = [{"cpu": 4, "gb": 16}, {"cpu": 4, "gb": 17}, {"cpu": 9}, {}]
        got = [amount(card, Usage.of_parts({unit: Decimal(n) for unit, n in size.items()})) for size in sizes]
        assert got == [10, 20, 30, 10]
        with pytest.raises(RatingError, match="each unit: cpu, gb"):
            rate(card, Decimal(1))

    def test_capacity_of_a_single_unit_takes_a_plain_quantity(self) -> None:
        card = price("capacity", tiers=[{"amount": 10, "limits": {"seats": 5}}, {"amount": 20}])
        assert (amount(card, "5"), amount(card, "6")) == (10, 20)


class TestAdjustments:
    def test_order_is_discounts_then_maximum_then_minimum(self) -> None:
        half = {"kind": "percentage", "percent": 50, "name": "launch"}
        rating = rate(price("per_unit", unit_amount=10, discounts=[half], maximum=100), Decimal(27))
        assert [(line.kind, line.amount) for line in rating.lines] == [
            ("usage", 270),
            ("discount", -135),
            ("maximum", -35),
        ]
        assert rating.discounts[0].name == "launch"
        assert amount(price("per_unit", unit_amount=10, discounts=[half], minimum=100), "1") == 100

    def test_minimum_is_due_without_usage(self) -> None:
        assert amount(price("per_unit", unit_amount=10, minimum=100), "0") == 100

    def test_discounts_compound_in_their_order(self) -> None:
        card = price(
            "per_unit",
            unit_amount=1,
            discounts=[
                {"kind": "fixed", "amount": 20},
                {"kind": "percentage", "percent": 25},
                {"kind": "tiered", "tiers": [{"up_to": 10, "percent": 0}, {"percent": 50}]},
            ],
        )
        assert amount(card, "100") == 10 + 25
        assert amount(card, "15") == 0

    def test_tiered_discount_by_volume_is_on_all_of_the_amount(self) -> None:
        tiers = [{"up_to": 10, "percent": 0}, {"percent": 50}]
        card = price("per_unit", unit_amount=1, discounts=[{"kind": "tiered", "mode": "volume", "tiers": tiers}])
        assert (amount(card, "10"), amount(card, "12")) == (10, 6)
        assert discounted(Decimal(12), card.discounts).amount == 6

    def test_credit_is_drawn_down_last_and_never_below_zero(self) -> None:
        card = price("per_unit", unit_amount=1)
        assert rate(card, Decimal(10), credit=Decimal(4)).amount == 6
        assert rate(card, Decimal(10), credit=Decimal(40)).lines[-1] == Line("credit", Decimal(-10))

    def test_a_share_prorates_what_belongs_to_the_period(self) -> None:
        half = Share(Decimal(15), Decimal(30))
        card = price("per_unit", unit_amount=1, flat_amount=10, included=20, minimum=16)
        assert rate(card, Decimal(30), share=half).amount == 20 + 5
        assert rate(card, Decimal(10), share=half).amount == 8
        assert prorated(Decimal(10), Share(Decimal(1), Decimal(3))) == Decimal("3.333333333333")
        with pytest.raises(RatingError, match="share"):
            Share(Decimal(32), Decimal(31))

    def test_true_up(self) -> None:
        assert (true_up(Decimal(10), Decimal(4)), true_up(Decimal(10), Decimal(11))) == (6, 0)

    def test_earlier_bills_count_into_the_limits(self) -> None:
        half = {"kind": "percentage", "percent": 50}
        card = price("per_unit", unit_amount=10, discounts=[half], maximum=100)
        assert rate_increment(card, Decimal(7), Decimal(20), billed=Decimal(35)).amount == 65


def test_negative_quantities_credit_linear_prices_and_are_refused_by_tiers() -> None:
    assert amount(price("per_unit", unit_amount=2, flat_amount=5, included=10), "-3") == -6
    assert amount(price("dynamic", multiplier="1.2"), "-5") == -6
    with pytest.raises(RatingError, match="graduated price has no amount for the negative quantity -1"):
        rate(price("graduated", tiers=TIERS), Decimal(-1))


def test_an_amount_of_too_many_digits_is_refused_and_never_rounded() -> None:
    card = price(
        "per_unit", unit_amount="0.123456789012", discounts=[{"kind": "percentage", "percent": "0.123456789012"}]
    )
    with pytest.raises(RatingError, match="100 digits"):
        rate(card, Decimal(f"{'9' * 26}.{'9' * 60}"))


def test_weighted_sum() -> None:
    held = [(Decimal(10), Decimal(4)), (Decimal(5), Decimal(-2))]
    # 3 for five seconds, 1 for five, 5 for ten: 70 over 20.
    assert weighted_sum(held, Decimal(20), initial=Decimal(3)) == Decimal("3.5")
    assert weighted_sum([(Decimal(1), Decimal(1))], Decimal(3), places=2) == Decimal("0.67")
    with pytest.raises(RatingError, match="outside the period"):
        weighted_sum([(Decimal(21), Decimal(1))], Decimal(20))
