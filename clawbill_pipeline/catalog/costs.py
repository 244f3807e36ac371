"""Provider cost as the catalogue has it: cost cards, which read like rate cards, and what a unit costs by them.

A cost is known by the unit, so that an hour's, a tenant's and a month's add up whichever way they are cut. Prices of
another kind (tiers, fees, limits) are refused: how much of them one tenant causes, nobody can say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from clawbill_pipeline.catalog.names import split_openclaw_service
from clawbill_pipeline.catalog.prices import ONE, Dynamic, Matrix, Percentage, PerUnit, Price, Simple
from clawbill_pipeline.money import EXACT, plain


@dataclass(frozen=True)
class UnitCost:
    """``per`` units of a service cost ``amount`` (major units of ``currency``) from ``starts`` on, until ``ends``.

    ``dimensions`` are the values that it is for, as in the service's name; None for all others of the service.
    """

    service: str
    dimensions: str | None
    amount: Decimal
    per: Decimal
    currency: str
    card: str
    starts: datetime
    ends: datetime | None

    def as_json(self) -> dict[str, str | None]:
        """Decimals as strings, instants in ISO 8601."""
        return {
            **asdict(self),
            "amount": plain(self.amount),
            "per": plain(self.per),
            "starts": self.starts.isoformat(),
            "ends": self.ends and self.ends.isoformat(),
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> UnitCost:
        """The cost that ``as_json`` wrote."""
        numbers = {name: Decimal(row[name]) for name in ("amount", "per")}
        instants = {name: row[name] and datetime.fromisoformat(row[name]) for name in ("starts", "ends")}
        return cls(**{**row, **numbers, **instants})


def costs_of(name: str, price: Price) -> Iterator[tuple[str, str | None, Decimal, Decimal]]:
    """``(service, dimensions, amount, per)`` of a cost card's entry. Raises ValueError where it is not by the unit."""
    service, dimensions = split_openclaw_service(name)
    if isinstance(price, Matrix):
        if dimensions:
            raise ValueError("a matrix names all dimensions itself: write it for the service without them")
        _refuse_more(price)
        for cell, of in price.cells.items():
            yield service, cell, *_unit(of)
        if price.otherwise is not None:
            yield service, None, *_unit(price.otherwise)
    else:
        yield service, dimensions or None, *_unit(price)


def _unit(price: Price | Simple) -> tuple[Decimal, Decimal]:
    match price:
        case PerUnit() if price.increment is None and not price.flat_amount:
            amount, per = price.unit_amount, price.per
        case Dynamic():
            amount, per = price.multiplier, ONE
        case Percentage():
            amount, per = price.percent, Decimal(100)
        case _:
            raise ValueError(
                "a cost is by the unit: per_unit (without increment and flat_amount), percentage, dynamic or a matrix "
                "of them"
            )
    _refuse_more(price)
    rule = price.convert
    if price.included or (rule is not None and rule.round is not None):
        raise ValueError("a cost is by the unit: without included units, and converted without rounding")
    if rule is not None:
        amount, per = EXACT.multiply(amount, rule.multiply_by or ONE), EXACT.multiply(per, rule.divide_by or ONE)
    return amount, per


def _refuse_more(price: Price | Simple) -> None:
    if price.discounts or price.maximum is not None or price.minimum is not None or price.prorate:
        raise ValueError("a cost is by the unit: without discounts, maximum, minimum and prorate")
