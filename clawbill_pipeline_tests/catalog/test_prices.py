"""What a rate card may say, and what it is refused for."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from clawbill_pipeline.catalog.prices import Graduated, PerUnit, Price

PRICE: TypeAdapter[Price] = TypeAdapter(Price)
UNIT = {"model": "per_unit", "unit_amount": 1}


def tiers(*pairs: tuple[Any, Any], **more: Any) -> dict[str, Any]:
    return {"model": "graduated", "tiers": [{"up_to": up_to, "unit_amount": p} for up_to, p in pairs], **more}


def test_reads_like_stripe_s_tiers() -> None:
    price = PRICE.validate_python(tiers(("5", "7"), (10, "6.5"), ("inf", 6)))
    assert isinstance(price, Graduated)
    assert [(tier.up_to, tier.unit_amount) for tier in price.tiers] == [(5, 7), (10, Decimal("6.5")), (None, 6)]


@pytest.mark.parametrize("text", ["0.000004", "4e-6", "4E-6", " 0.000004 "])
def test_numbers_keep_every_digit(text: str) -> None:
    price = PRICE.validate_python({"model": "per_unit", "unit_amount": text})
    assert isinstance(price, PerUnit)
    assert price.unit_amount == Decimal("0.000004")


def test_prices_survive_a_trip_through_json() -> None:
    price = PRICE.validate_python(tiers(("0.1", "0.000000000001"), (None, 6), included="0.5"))
    assert PRICE.validate_json(PRICE.dump_json(price, by_alias=True)) == price


@pytest.mark.parametrize(
    ("price", "message"),
    [
        (tiers((5, 1)), "no price for quantities above 5; end with a tier of up_to: null"),
        (tiers((5, 1), (5, 2), (None, 3)), "tier 2: up_to 5 is not above tier 1's up_to 5"),
        (tiers((5, 1), (4, 2), (None, 3)), "tier 2: up_to 4 is not above tier 1's up_to 5"),
        (tiers((0, 1), (None, 3)), "tier 1: up_to 0 is not above 0"),
        (tiers((None, 1), (5, 2)), "tier 1 has no end, so tier 2 can never be reached"),
        (tiers(), "at least 1 item"),
        (
            {"model": "volume", "tiers": [{"up_to": 99, "unit_amount": 1}, {"from": 100, "unit_amount": 2}]},
            "tier 2: from 100 leaves a gap after 99",
        ),
        (
            {"model": "volume", "tiers": [{"up_to": 99, "unit_amount": 1}, {"from": 98, "unit_amount": 2}]},
            "tier 2: from 98 leaves an overlap after 99",
        ),
        ({"model": "volume", "tiers": [{"up_to": None}]}, "a tier needs a unit_amount or a flat_amount"),
        (
            {"model": "block", "tiers": [{"up_to": 10, "block_size": 5, "block_amount": 1}]},
            "no price for quantities above 10",
        ),
        ({"model": "per_unit", "unit_amount": 0.1}, "0.1 is a float and may have lost digits"),
        ({"model": "per_unit", "unit_amount": True}, "not an exact number"),
        ({"model": "per_unit", "unit_amount": "-1"}, "greater than or equal to 0"),
        ({"model": "per_unit", "unit_amount": "1,5"}, "'1,5' is not a number; write a decimal number such as 0.25"),
        ({"model": "per_unit", "unit_amount": "nan"}, "not finite"),
        ({"model": "per_unit", "unit_amount": "0.0000000000001"}, "more than 12 decimal places"),
        ({"model": "per_unit"}, "Field required"),
        ({**UNIT, "unit_price": 2}, "Extra inputs are not permitted"),
        ({**UNIT, "per": 0}, "greater than 0"),
        ({**UNIT, "minimum": 5, "maximum": 4}, "minimum 5 is above maximum 4"),
        ({**UNIT, "convert": {}}, "either divide_by or multiply_by"),
        ({**UNIT, "convert": {"divide_by": 2, "decimals": 2}}, "only with round"),
        ({**UNIT, "discounts": [{"kind": "percentage", "percent": 101}]}, "less than or equal to 100"),
        ({"model": "per_user", "unit_amount": 1}, "'per_user' found using 'model' does not match"),
        ({"model": "percentage", "percent": 1, "min_per_event": 2, "max_per_event": 1}, "min_per_event 2 is above"),
        (
            {"model": "capacity", "tiers": [{"amount": 1, "limits": {"cpu": 1}}]},
            "no price above the last tier's limits",
        ),
        (
            {
                "model": "capacity",
                "tiers": [
                    {"amount": 1, "limits": {"cpu": 2}},
                    {"amount": 2, "limits": {"cpu": 1, "gb": 5}},
                    {"amount": 3},
                ],
            },
            "tier 2 can never be reached: all that fits it fits tier 1",
        ),
        ({"model": "matrix", "cells": {"a": {"model": "matrix", "cells": {}}}}, "'matrix' found using 'model'"),
    ],
)
def test_refused(price: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        PRICE.validate_python(price)
    assert message in str(error.value)


def bands(*hours: tuple[str, str, str], **more: Any) -> dict[str, Any]:
    named = [{"name": name, "from": start, "to": end, "price": UNIT} for name, start, end in hours]
    return {"model": "time_of_use", "bands": named, **more}


def test_bands_may_run_over_midnight_and_must_tile_the_week() -> None:
    PRICE.validate_python(bands(("day", "06:00", "22:00"), ("night", "22:00", "06:00")))
    PRICE.validate_python(bands(("all", "00:00", "24:00")))


@pytest.mark.parametrize(
    ("price", "message"),
    [
        (bands(("day", "06:00", "22:00")), "no band holds on mon at 00:00; add a band or an otherwise price"),
        (bands(("day", "06:00", "22:00"), ("night", "21:00", "06:00")), "'day' and 'night' overlap on mon at 21:00"),
        (bands(("a", "06:00", "07:00"), ("a", "07:00", "08:00"), otherwise=UNIT), "two bands are named 'a'"),
        (bands(("all", "00:00", "24:00"), otherwise=UNIT), "the otherwise price can never be reached"),
        (bands(("all", "00:00", "24:01")), "'24:01' is no time of day"),
        (bands(("all", "0", "24:00")), 'write a time of day in quotes, as "18:00"'),
        (bands(("all", "00:00", "24:00"), time_zone="Mars/Base"), "'Mars/Base' is no IANA time zone"),
    ],
)
def test_refused_bands(price: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        PRICE.validate_python(price)
    assert message in str(error.value)


def test_a_json_schema_exists_for_editors() -> None:
    schema = PRICE.json_schema()
    assert set(schema["discriminator"]["mapping"]) >= {"per_unit", "graduated", "matrix", "time_of_use"}


def test_a_digest_changes_with_the_terms_alone() -> None:
    one = PRICE.validate_python(UNIT)
    assert one.digest == PRICE.validate_python({**UNIT, "discounts": []}).digest
    assert one.digest != PRICE.validate_python({**UNIT, "minimum": 1}).digest
    assert len(one.digest) == 16
