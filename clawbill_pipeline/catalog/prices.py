"""Prices as a rate card writes them: closed models that read like Stripe's tiers. Rating them is rating/engine's.

Amounts are in the card's currency, in its major unit (dollars, yen). Tiers are ``up_to`` inclusive and everything
above belongs to the next one, so a fraction between two whole numbers always has a tier; the last one is open
(``up_to: null`` or ``inf``). A card that leaves a quantity without a price, or a tier that none can reach, is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from clawbill_pipeline.money import MoneyError, exact, plain


def _number(value: Any) -> Any:
    if isinstance(value, float):
        raise ValueError(f"{value!r} is a float and may have lost digits; give it as a string")
    try:
        return exact(value.strip() if isinstance(value, str) else value)
    except MoneyError as error:
        raise ValueError(f"{error}; write a decimal number such as 0.25") from None


def _bound(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value.strip().lower() in ("inf", ".inf", "infinity")):
        return None
    return _number(value)


Number = Annotated[Decimal, BeforeValidator(_number)]
NotNegative = Annotated[Number, Field(ge=0)]
Positive = Annotated[Number, Field(gt=0)]
Bound = Annotated[Decimal | None, BeforeValidator(_bound)]
Rounding = Literal["up", "down", "half_up"]

ZERO = Decimal(0)
ONE = Decimal(1)


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# --- tiers ---------------------------------------------------------------------------------------------------------


class _Tier(_Closed):
    up_to: Bound = Field(None, description="Last quantity of the tier, inclusive; null or inf on the last one.")
    from_: NotNegative | None = Field(
        None,
        alias="from",
        description="Optional: where the tier before ends. Only checked, for the reader.",
    )


AnyTier = TypeVar("AnyTier", bound=_Tier)


def _tiling(tiers: tuple[AnyTier, ...]) -> tuple[AnyTier, ...]:
    """``tiers``, if they cover every quantity from 0 on exactly once."""
    start = ZERO
    for number, tier in enumerate(tiers, 1):
        here = f"tier {number}"
        if tier.from_ is not None and tier.from_ != start:
            fault = "a gap" if tier.from_ > start else "an overlap"
            raise ValueError(
                f"{here}: from {plain(tier.from_)} leaves {fault} after {plain(start)}, where the tier before ends; "
                f"tiers are up_to inclusive and the next begins right above: write from: {plain(start)} or leave it out"
            )
        if tier.up_to is None:
            if number < len(tiers):
                raise ValueError(f"{here} has no end, so tier {number + 1} can never be reached; give {here} an up_to")
            return tiers
        if tier.up_to <= start:
            before = f"tier {number - 1}'s up_to {plain(start)}" if number > 1 else "0"
            raise ValueError(
                f"{here}: up_to {plain(tier.up_to)} is not above {before}, so no quantity falls into it; "
                "put the tiers in order, each up_to above the one before"
            )
        start = tier.up_to
    raise ValueError(f"no price for quantities above {plain(start)}; end with a tier of up_to: null")


class Tier(_Tier):
    """A tier of units, as Stripe's: units times ``unit_amount``, plus ``flat_amount`` once the tier is reached."""

    unit_amount: NotNegative = ZERO
    flat_amount: NotNegative = ZERO
    maximum: NotNegative | None = Field(None, description="The most that this tier charges, flat amount included.")

    @model_validator(mode="after")
    def _priced(self) -> Tier:
        if not self.model_fields_set & {"unit_amount", "flat_amount"}:
            raise ValueError("a tier needs a unit_amount or a flat_amount (0 if it is free)")
        return self


class PercentTier(_Tier):
    """A tier of a graduated percentage: ``percent`` of what falls into it, plus ``flat_amount`` once it is reached."""

    percent: NotNegative
    flat_amount: NotNegative = ZERO


class BlockTier(_Tier):
    """A tier of blocks: ``block_amount`` for each ``block_size`` units, a started block in full."""

    block_size: Positive
    block_amount: NotNegative


class DiscountTier(_Tier):
    """A tier of a tiered discount, ``up_to`` in money."""

    percent: Annotated[NotNegative, Field(le=100)]


Tiers = Annotated[tuple[Tier, ...], Field(min_length=1), AfterValidator(_tiling)]
PercentTiers = Annotated[tuple[PercentTier, ...], Field(min_length=1), AfterValidator(_tiling)]
BlockTiers = Annotated[tuple[BlockTier, ...], Field(min_length=1), AfterValidator(_tiling)]
DiscountTiers = Annotated[tuple[DiscountTier, ...], Field(min_length=1), AfterValidator(_tiling)]


# --- modifiers -----------------------------------------------------------------------------------------------------


class Conversion(_Closed):
    """From metered to priced units, before all else: bytes to GB is ``divide_by: 1000000000``."""

    divide_by: Positive | None = None
    multiply_by: Positive | None = None
    round: Rounding | None = Field(None, description="How a part of a unit is rounded; null keeps it, exactly.")
    decimals: int = Field(0, ge=0, le=9, description="Decimal places that rounding keeps.")

    @model_validator(mode="after")
    def _one_factor(self) -> Conversion:
        if (self.divide_by is None) == (self.multiply_by is None):
            raise ValueError("give either divide_by or multiply_by")
        if self.decimals and self.round is None:
            raise ValueError("decimals has a meaning only with round")
        return self


class _Discount(_Closed):
    name: str = Field("", description="What the customer reads.")


class PercentageDiscount(_Discount):
    """``percent`` of what the discounts before it have left: 25 % and 10 % together take 32.5 %."""

    kind: Literal["percentage"]
    percent: Annotated[NotNegative, Field(le=100)]


class FixedDiscount(_Discount):
    """``amount`` off, never below zero."""

    kind: Literal["fixed"]
    amount: NotNegative


class TieredDiscount(_Discount):
    """A percentage that grows with the amount: of each tier's part (graduated), or of all of it (volume)."""

    kind: Literal["tiered"]
    mode: Literal["graduated", "volume"] = "graduated"
    tiers: DiscountTiers


Discount = Annotated[PercentageDiscount | FixedDiscount | TieredDiscount, Field(discriminator="kind")]


class _Limited(_Closed):
    """What every price may carry on top. Order: the model's amount, discounts, ``maximum``, ``minimum``."""

    discounts: tuple[Discount, ...] = ()
    maximum: NotNegative | None = Field(None, description="The most that is charged.")
    minimum: NotNegative | None = Field(None, description="The least that is charged, also for no usage.")
    charge_flat_on_zero: bool = Field(True, description="Whether no usage is charged the flat amount, as Stripe does.")
    prorate: bool = Field(
        False,
        description="Whether flat amounts, included units, maximum and minimum shrink with the days that the "
        "subscription runs in its first and last period.",
    )

    @cached_property
    def digest(self) -> str:
        """Sixteen hex digits that change with any of the price's terms."""
        return hashlib.sha256(self.model_dump_json(exclude_defaults=True).encode()).hexdigest()[:16]

    @model_validator(mode="after")
    def _limits(self) -> _Limited:
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {plain(self.minimum)} is above maximum {plain(self.maximum)}")
        return self


class _Simple(_Limited):
    """A price of one quantity. The quantity is converted and rounded first, then the included units come off."""

    convert: Conversion | None = None
    included: NotNegative = Field(ZERO, description="Units that cost nothing, in converted units.")


# --- models --------------------------------------------------------------------------------------------------------


class PerUnit(_Simple):
    """``unit_amount`` for each ``per`` units, begun ``increment``s in full, plus ``flat_amount`` (a connect fee)."""

    model: Literal["per_unit"]
    unit_amount: NotNegative
    per: Positive = ONE
    increment: Positive | None = Field(None, description="Units are rounded up to a multiple of it.")
    flat_amount: NotNegative = ZERO


class Graduated(_Simple):
    """Each unit at the price of the tier it falls into; every tier that is reached adds its flat amount."""

    model: Literal["graduated"]
    tiers: Tiers
    per: Positive = Field(ONE, description="How many units a tier's unit_amount buys; up_to stays in single units.")


class Volume(_Simple):
    """All units at the price of the one tier that the total falls into, plus that tier's flat amount."""

    model: Literal["volume"]
    tiers: Tiers
    per: Positive = Field(ONE, description="How many units a tier's unit_amount buys; up_to stays in single units.")


class Package(_Simple):
    """``package_amount`` for each package of ``package_size`` units."""

    model: Literal["package"]
    package_size: Positive
    package_amount: NotNegative
    round: Rounding = "up"


class Percentage(_Simple):
    """``percent`` of a quantity that is money, with an optional fee and optional limits for each event."""

    model: Literal["percentage"]
    percent: NotNegative
    fixed_per_event: NotNegative = ZERO
    free_events: int = Field(
        0,
        ge=0,
        description="How many events carry no fixed fee (and, one by one, no percentage); with included units, the "
        "events among which these are free.",
    )
    min_per_event: NotNegative | None = None
    max_per_event: NotNegative | None = None

    @model_validator(mode="after")
    def _event_limits(self) -> Percentage:
        low, high = self.min_per_event, self.max_per_event
        if low is not None and high is not None and low > high:
            raise ValueError(f"min_per_event {plain(low)} is above max_per_event {plain(high)}")
        return self


class GraduatedPercentage(_Simple):
    """As graduated, with a percentage of a quantity that is money."""

    model: Literal["graduated_percentage"]
    tiers: PercentTiers


class Block(_Simple):
    """Whole blocks: of each tier's units (graduated), or of all units at the tier that the total reaches (volume)."""

    model: Literal["block"]
    mode: Literal["graduated", "volume"] = "graduated"
    tiers: BlockTiers


class Dynamic(_Simple):
    """The quantity is an amount of money already (a provider's cost); ``multiplier`` adds the markup: 1.2 is 20 %."""

    model: Literal["dynamic"]
    multiplier: NotNegative = ONE


class CapacityTier(_Closed):
    amount: NotNegative
    limits: dict[str, NotNegative] = Field(default_factory=dict, description="The most of each unit that still fits.")


class Capacity(_Limited):
    """One flat amount: that of the first tier which every unit's quantity (its peak) fits. The last has no limits."""

    model: Literal["capacity"]
    tiers: tuple[CapacityTier, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _reachable(self) -> Capacity:
        if self.tiers[-1].limits:
            raise ValueError("no price above the last tier's limits; end with a tier without limits")
        for number, tier in enumerate(self.tiers, 1):
            for earlier_number, earlier in enumerate(self.tiers[: number - 1], 1):
                if all(unit in tier.limits and tier.limits[unit] <= most for unit, most in earlier.limits.items()):
                    raise ValueError(
                        f"tier {number} can never be reached: all that fits it fits tier {earlier_number}; "
                        "put tiers in order of their limits"
                    )
        return self


Simple = Annotated[
    PerUnit | Graduated | Volume | Package | Percentage | GraduatedPercentage | Block | Dynamic,
    Field(discriminator="model"),
]


class Matrix(_Limited):
    """A price for each set of dimension values, named as in the service's name: ``mockai/mock-large``."""

    model: Literal["matrix"]
    cells: dict[str, Simple] = Field(min_length=1)
    otherwise: Simple | None = Field(None, description="The price of all other sets; without it, they have none.")


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no IANA time zone; write for example UTC or America/New_York") from None
    return name


def _minute(value: Any) -> Any:
    hours, colon, minutes = value.partition(":") if isinstance(value, str) else ("", "", "")
    if not (colon and hours.isdigit() and minutes.isdigit() and len(minutes) == 2):
        raise ValueError('write a time of day in quotes, as "18:00"')
    minute = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or minute > 1440:
        raise ValueError(f'{value!r} is no time of day; write "00:00" to "24:00"')
    return minute


Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
WEEK = 7 * 1440
TimeOfDay = Annotated[int, BeforeValidator(_minute, json_schema_input_type=str)]


class Band(_Closed):
    """A price for a part of the week, half-open ``[from, to)`` in local time; a night belongs to its first day."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$", description="As in the service's name: compute:peak.")
    days: tuple[Day, ...] = Field(DAYS, min_length=1)
    from_: TimeOfDay = Field(alias="from", description='Such as "08:00".')
    to: TimeOfDay = Field(description='Such as "18:00"; "24:00" is the end of the day.')
    price: Simple

    @cached_property
    def minutes(self) -> frozenset[int]:
        """The minutes of the week, counted from Monday 00:00, that lie in the band."""
        length = (self.to - self.from_) % 1440 or 1440
        starts = (DAYS.index(day) * 1440 + self.from_ for day in self.days)
        return frozenset((start + minute) % WEEK for start in starts for minute in range(length))


class TimeOfUse(_Limited):
    """A price by time of day and week. Usage comes by band, or with its time."""

    model: Literal["time_of_use"]
    time_zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    bands: tuple[Band, ...] = Field(min_length=1)
    otherwise: Simple | None = Field(None, description="The price outside all bands; its band is named otherwise.")
    flat_amount: NotNegative = ZERO

    @model_validator(mode="after")
    def _covered(self) -> TimeOfUse:
        taken: dict[int, str] = {}
        for band in self.bands:
            if band.name == "otherwise" or band.name in (other.name for other in self.bands if other is not band):
                raise ValueError(f"two bands are named {band.name!r}; names must differ")
            for minute in sorted(band.minutes):
                if minute in taken:
                    raise ValueError(f"bands {taken[minute]!r} and {band.name!r} overlap {_when(minute)}")
                taken[minute] = band.name
        gap = next((minute for minute in range(WEEK) if minute not in taken), None)
        if gap is not None and self.otherwise is None:
            raise ValueError(f"no band holds {_when(gap)}; add a band or an otherwise price")
        if gap is None and self.otherwise is not None:
            raise ValueError("the bands cover the whole week, so the otherwise price can never be reached")
        return self

    def band_at(self, at: datetime) -> str:
        """The name of the band that ``at`` (aware) lies in: what metering puts into the service's name."""
        local = at.astimezone(ZoneInfo(self.time_zone))
        minute = local.weekday() * 1440 + local.hour * 60 + local.minute
        return next((band.name for band in self.bands if minute in band.minutes), "otherwise")


def _when(minute: int) -> str:
    return f"on {DAYS[minute // 1440]} at {minute % 1440 // 60:02}:{minute % 60:02}"


Price = Annotated[
    PerUnit
    | Graduated
    | Volume
    | Package
    | Percentage
    | GraduatedPercentage
    | Block
    | Dynamic
    | Capacity
    | Matrix
    | TimeOfUse,
    Field(discriminator="model"),
]


# --- what the rating contract can carry ----------------------------------------------------------------------------


def needs_more_than_a_quantity(price: Price, dimensions: Sequence[str]) -> str | None:
    """Why ``price`` can never rate a request of tenant, service and quantity; None where it can.

    ``dimensions`` are the names of those that the service's own name carries, in their order.
    """
    if any(part.prorate for part in _parts(price)):
        return "prorate: true belongs to the price as a whole, not to a cell or band of it; write it beside model"
    match price:
        case Matrix() if not dimensions:
            return (
                "a matrix needs dimensions in the service's name, and this service has none; name them in the "
                "service's dimensions"
            )
        case Matrix():
            stray = next((cell for cell in price.cells if len(cell.split("/")) != len(dimensions)), None)
            if stray is not None:
                return f"cell {stray!r} can never be reached: it does not name {'/'.join(dimensions)} in their order"
        case TimeOfUse() if len(dimensions) != 1:
            return (
                "a time_of_use price needs the band in the service's name "
                f"(service:{price.bands[0].name}), and metering does not tell bands from times; give the service the "
                "one dimension band, and let usage events carry it"
            )
        case Capacity():
            units = sorted({unit for tier in price.tiers for unit in tier.limits})
            if len(units) > 1:
                return (
                    f"a capacity of several units ({', '.join(units)}) needs a quantity of each, and a request carries "
                    "one; price one unit"
                )
        case Percentage():
            keys = ("fixed_per_event", "free_events", "min_per_event", "max_per_event")
            told = [key for key in keys if getattr(price, key) != Percentage.model_fields[key].default]
            if told:
                return (
                    f"{', '.join(told)}: a request carries a quantity and no events; meter the events as a service "
                    "of their own, with a per_unit price"
                )
    for part in _parts(price):
        fault = needs_more_than_a_quantity(part, dimensions)
        if fault:
            return fault
    return None


def _parts(price: Price) -> list[Simple]:
    match price:
        case Matrix():
            parts = [*price.cells.values(), price.otherwise]
        case TimeOfUse():
            parts = [*(band.price for band in price.bands), price.otherwise]
        case _:
            parts = []
    return [part for part in parts if part is not None]
