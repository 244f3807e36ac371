"""Random valid prices and quantities for property tests, as a card would write them."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import strategies as st
from pydantic import TypeAdapter

from clawbill_pipeline.catalog.prices import Price

PRICE: TypeAdapter[Price] = TypeAdapter(Price)


def numbers(top: int, places: int, bottom: int = 0) -> st.SearchStrategy[Decimal]:
    """Decimals from ``bottom`` to ``top`` with up to ``places`` places."""
    return st.decimals(Decimal(bottom), Decimal(top), allow_nan=False, places=places)


def positive(top: int, places: int) -> st.SearchStrategy[Decimal]:
    return numbers(top, places).filter(bool)


money = numbers(10_000, 12) | numbers(100, 2) | st.just(Decimal(0))
percents = numbers(100, 4)
quantities = (
    numbers(2_000, 0)
    | numbers(2_000, 3)
    | numbers(1, 9)
    | st.sampled_from([Decimal(0), Decimal("1e-9"), Decimal("1e15"), Decimal("999999999999999.999999999")])
)


@st.composite
def tiers(draw: st.DrawFn, *fields: str, unit: st.SearchStrategy[Decimal] = money) -> list[dict[str, Any]]:
    """Tiers in order, the last one open, with a value for each of ``fields``."""
    bounds = sorted(draw(st.sets(positive(1_500, 0) | positive(1_500, 2), max_size=5)))
    return [{"up_to": bound, **{field: draw(unit) for field in fields}} for bound in [*bounds, None]]


def _of(model: str, **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"model": st.just(model), **fields})


per_unit = _of("per_unit", unit_amount=money, per=st.sampled_from([1, 3, 60, 1000]), flat_amount=money)
graduated = _of("graduated", tiers=tiers("unit_amount", "flat_amount"), per=st.sampled_from([1, 7, 1000]))
volume = _of("volume", tiers=tiers("unit_amount", "flat_amount"), per=st.sampled_from([1, 7, 1000]))
package = _of(
    "package", package_size=positive(100, 1), package_amount=money, round=st.sampled_from(["up", "down", "half_up"])
)
percentage = _of("percentage", percent=percents)
graduated_percentage = tiers("percent", unit=percents).map(lambda t: {"model": "graduated_percentage", "tiers": t})
dynamic = _of("dynamic", multiplier=numbers(3, 5))


@st.composite
def blocks(draw: st.DrawFn) -> dict[str, Any]:
    drawn = draw(tiers("block_amount"))
    sized = [{**tier, "block_size": draw(positive(50, 1))} for tier in drawn]
    return {"model": "block", "mode": draw(st.sampled_from(["graduated", "volume"])), "tiers": sized}


conversions = st.fixed_dictionaries(
    {"divide_by": st.sampled_from([3, 7, 60, 1000])},
    optional={"round": st.sampled_from(["up", "down", "half_up"])},
) | st.fixed_dictionaries({"multiply_by": positive(10, 3)})

discounts = st.lists(
    st.fixed_dictionaries({"kind": st.just("percentage"), "percent": percents})
    | st.fixed_dictionaries({"kind": st.just("fixed"), "amount": money})
    | st.fixed_dictionaries(
        {
            "kind": st.just("tiered"),
            "mode": st.sampled_from(["graduated", "volume"]),
            "tiers": tiers("percent", unit=percents),
        }
    ),
    max_size=3,
)

modifiers = st.fixed_dictionaries(
    {},
    optional={
        "included": numbers(200, 2),
        "convert": conversions,
        "discounts": discounts,
        "minimum": numbers(50, 2),
        "maximum": numbers(5_000, 2, 50),
        "charge_flat_on_zero": st.booleans(),
    },
)

#: Dearer with every unit, whatever the numbers.
rising = per_unit | graduated | package | percentage | graduated_percentage | dynamic
plain_prices = rising | volume | blocks()
prices = st.builds(lambda price, extra: PRICE.validate_python({**price, **extra}), plain_prices, modifiers)
