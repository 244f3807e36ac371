"""What a quantity costs by a price: one rounding a line, half away from zero, in the unit Stripe charges."""

from __future__ import annotations

from typing import Any

import pytest

from clawbill_pipeline.sandbox.stripe.pricing import priced_lines


def per_unit(amount: str, currency: str = "usd", transform: dict[str, Any] | None = None) -> dict[str, Any]:
    return {
        "currency": currency,
        "billing_scheme": "per_unit",
        "unit_amount_decimal": amount,
        "transform_quantity": transform,
    }


def tiered(mode: str, *tiers: tuple[int | None, str | None, str | None]) -> dict[str, Any]:
    return {
        "currency": "usd",
        "billing_scheme": "tiered",
        "tiers_mode": mode,
        "_tiers": [{"up_to": t, "unit_amount_decimal": u, "flat_amount_decimal": f} for t, u, f in tiers],
    }


def amounts(price: dict[str, Any], quantity: int) -> list[tuple[int, int]]:
    return [(line.quantity, line.amount) for line in priced_lines(price, quantity)]


@pytest.mark.parametrize(
    ("price", "quantity", "amount"),
    [
        (per_unit("0.5"), 1, 1),  # half away from zero, not to even
        (per_unit("0.5"), 5, 3),
        (per_unit("0.4999"), 1, 0),
        (per_unit("0.0001"), 23_072_529_600, 2_307_253),
        (per_unit("1", "jpy"), 80, 80),
        (per_unit("100", "isk"), 5, 500),
        (per_unit("50", "isk"), 1, 100),  # ISK is charged in hundredths that end in 00
        (per_unit("0.000000000001"), 999_999_999_999_999, 1_000),
        (per_unit("1"), -7, 0),
    ],
)
def test_per_unit(price: dict[str, Any], quantity: int, amount: int) -> None:
    assert amounts(price, quantity) == [(max(quantity, 0), amount)]


@pytest.mark.parametrize(("quantity", "up", "down"), [(0, 0, 0), (1, 300, 0), (10, 300, 300), (11, 600, 300)])
def test_packages_round_up_or_down(quantity: int, up: int, down: int) -> None:
    for direction, amount in (("up", up), ("down", down)):
        price = per_unit("300", transform={"divide_by": 10, "round": direction})
        assert amounts(price, quantity) == [(quantity, amount)]


GRADUATED = tiered("graduated", (100, "10", None), (200, "5", "1000"), (None, "1", None))
VOLUME = tiered("volume", (100, "10", "50"), (None, "5", None))


@pytest.mark.parametrize(
    ("quantity", "lines"),
    [
        (0, [(0, 0)]),
        (100, [(100, 1000)]),  # up_to is inclusive
        (101, [(100, 1000), (1, 5), (0, 1000)]),
        (250, [(100, 1000), (100, 500), (0, 1000), (50, 50)]),
    ],
)
def test_graduated_tiers_make_a_line_each_and_their_quantities_add_up(
    quantity: int, lines: list[tuple[int, int]]
) -> None:
    assert amounts(GRADUATED, quantity) == lines
    assert sum(shown for shown, _ in lines) == quantity


@pytest.mark.parametrize(
    ("quantity", "lines"),
    [(0, [(0, 0), (0, 50)]), (100, [(100, 1000), (0, 50)]), (101, [(101, 505)])],
)
def test_volume_tiers_price_the_whole_and_the_first_flat_fee_is_due_on_no_usage(
    quantity: int, lines: list[tuple[int, int]]
) -> None:
    assert amounts(VOLUME, quantity) == lines
