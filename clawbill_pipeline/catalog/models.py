"""The catalogue's models: what is metered, at which price, for whom, by which calendar. No file access, no clock.

All models are closed: an unknown key is an error. Prices are in ``prices``, sources in ``sources``.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from clawbill_pipeline.catalog.alerting import Alerting
from clawbill_pipeline.catalog.closing import Closing
from clawbill_pipeline.catalog.correcting import Correcting
from clawbill_pipeline.catalog.costs import UnitCost, costs_of
from clawbill_pipeline.catalog.dunning import Dunning
from clawbill_pipeline.catalog.names import split_openclaw_service
from clawbill_pipeline.catalog.periods import FIRST, Cadence, Interval, Period, period_of_month, utc_hour
from clawbill_pipeline.catalog.prices import Price, needs_more_than_a_quantity
from clawbill_pipeline.catalog.sources import Http, Source
from clawbill_pipeline.catalog.volumes import Volumes
from clawbill_pipeline.money import currency_code


class UnknownTenant(LookupError):
    """No tenant of that id is in the catalogue."""


class UnknownService(LookupError):
    """The tenant's rate card has no price for that service."""


class CatalogError(ValueError):
    """The catalogue can't be used. The message names the file and the line of every fault."""


class Misfit(ValueError):
    """Two parts of a catalogue contradict each other; ``where`` is the path of the one to mend."""

    def __init__(self, where: tuple[str | int, ...], message: str) -> None:
        super().__init__(message)
        self.where = where


_DURATION = re.compile(r"(\d{1,7})\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(value: object) -> object:
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        if isinstance(value, timedelta):
            return value
        raise ValueError("write a duration as a whole number and a unit: 90s, 15m, 24h or 3d")
    return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name!r} is no IANA time zone; write for example UTC or America/New_York") from None
    return name


def _aware(instant: datetime) -> datetime:
    if instant.tzinfo is None:
        raise ValueError("give a time zone, for example 2026-10-01T00:00:00Z")
    return instant.astimezone(UTC)


def _on_the_hour(instant: datetime) -> datetime:
    if utc_hour(instant) != instant:
        raise ValueError("must be on a full UTC hour")
    return instant


Duration = Annotated[
    timedelta,
    BeforeValidator(_duration, json_schema_input_type=Annotated[str, Field(pattern=rf"^{_DURATION.pattern}$")]),
]
Instant = Annotated[datetime, AfterValidator(_aware)]
Currency = Annotated[str, AfterValidator(currency_code)]
ServiceName = Annotated[str, Field(pattern=r"^[a-z0-9](?:[a-z0-9_.-]{0,62}[a-z0-9])?$")]
StripeCustomer = Annotated[str, Field(pattern=r"^cus_\w+$")]
StripeItem = Annotated[str, Field(pattern=r"^si_\w+$")]
TenantId = Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,62}[A-Za-z0-9])?$")]


#: Intervals of a period at most (docs.stripe.com/api/prices/create#create_price-recurring-interval_count).
LONGEST_PERIOD = {"day": 1095, "week": 156, "month": 36, "year": 3}


#: What usage takes at most, from where it lies to Stripe: drafts have it looked for every ten minutes (the schedule
#: ``open_matters``), a minute later its hour is asked for, and is metered, rated and sent.
TO_STRIPE = timedelta(minutes=15)


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Calendar(Closed):
    """When things happen, in one place, so that limits that contradict each other can't be configured."""

    metering_lag: Duration = Field(timedelta(minutes=10), description="How long after its end an hour is metered.")
    late_window: Duration = Field(
        timedelta(minutes=45), description="How late usage may arrive and still be on the period's invoice."
    )
    stripe_grace: Duration = Field(
        timedelta(hours=1),
        description="Stripe's time between draft and finalised invoice, 1h to 72h (account setting).",
    )
    settle_lag: Duration = Field(
        timedelta(minutes=10), description="How long Stripe's summaries may lag before a difference is a break."
    )
    conflict_window: Duration = Field(
        timedelta(hours=24), description="How far apart the same event id under another time is looked for."
    )

    @model_validator(mode="after")
    def _coherent(self) -> Calendar:
        if self.stripe_grace > timedelta(hours=72):
            raise Misfit(("calendar", "stripe_grace"), "is longer than the 72h that Stripe allows; shorten it")
        if self.stripe_grace < self.late_window:
            raise Misfit(
                ("calendar", "stripe_grace"),
                "stripe_grace is shorter than late_window: usage that is allowed to be late would miss its invoice; "
                "raise stripe_grace or shorten late_window",
            )
        if self.late_window < self.metering_lag:
            raise Misfit(
                ("calendar", "late_window"),
                "is shorter than metering_lag: a period's last hour could never be billed; raise it",
            )
        return self

    def warnings(self) -> list[tuple[str, str]]:
        """What is allowed and may yet not be meant, with what to do about it."""
        if self.late_window + TO_STRIPE <= self.stripe_grace:
            return []
        apart = f"{TO_STRIPE // timedelta(minutes=1)} minutes"
        what = f"calendar.late_window: ends less than {apart} before stripe_grace does: late usage may miss its invoice"
        remedy = f"shorten late_window, or raise stripe_grace (at Stripe, too), until there are {apart} between them"
        return [(what, remedy)]


class Service(Closed):
    """Something that is metered and sold, such as ``tokens.output``."""

    unit: str = Field(description="What one unit is: token, request, GB-hour.")
    description: str = ""
    aggregation: Literal["sum", "count", "max", "unique_count", "latest", "time_weighted"] = Field(
        "sum",
        description="How the events of an hour become its quantity: their sum, their number, the largest, the number "
        "of different values of unique_by, the last by event time, or time_weighted: each is a level that holds until "
        "the next one or the end of the hour, in unit-hours (report a level that lasts again at every full hour).",
    )
    unique_by: str | None = Field(
        None, min_length=1, description="unique_count: the field whose different values are counted, such as user_id."
    )
    unique_over: Literal["hour", "period"] = Field(
        "hour",
        description="unique_count: hour counts a value once an hour; period once a billing period, in the hour in "
        "which it was used first.",
    )
    dimensions: tuple[str, ...] = Field((), description="Priced dimensions, in the fixed order of their values' names.")
    basis: Literal["hourly", "period_to_date"] = Field(
        "hourly", description="hourly rates each hour by itself; period_to_date lets tiers span the billing period."
    )
    bill_by: Literal["amount", "quantity"] = Field(
        "amount", description="amount sends OpenClaw's amount in millionths; quantity sends units that Stripe prices."
    )
    quantity_decimals: int = Field(0, ge=0, le=9, description="bill_by quantity: decimal places that are sent.")
    allow_negative: bool = Field(False, description="Whether an event may take usage back.")
    meter: str | None = Field(None, pattern=r"^[A-Za-z0-9_.-]{1,100}$", description="Stripe meter event name.")

    @model_validator(mode="after")
    def _fits(self) -> Service:
        if self.bill_by == "quantity" and self.dimensions:
            raise ValueError(
                "bill_by: quantity needs a meter for each priced combination; drop the dimensions, make a service of "
                "each combination, or use bill_by: amount"
            )
        if self.quantity_decimals and self.bill_by == "amount":
            raise ValueError("quantity_decimals has a meaning only with bill_by: quantity")
        if len(set(self.dimensions)) != len(self.dimensions):
            raise ValueError("a dimension is named twice")
        if (self.aggregation == "unique_count") != (self.unique_by is not None):
            raise ValueError("aggregation: unique_count and unique_by, the field that it counts, go together")
        if self.unique_over == "period" and self.aggregation != "unique_count":
            raise ValueError("unique_over has a meaning only with aggregation: unique_count")
        if self.unique_by in ("quantity", "timestamp"):
            raise ValueError("unique_by names the quantity or the time of an event; name what tells who or what")
        return self


class RateCardVersion(Closed):
    """Prices that hold from a moment on, until the next version of the card."""

    effective_from: Instant
    prices: dict[str, Price] = Field(description="By service as OpenClaw sees it: tokens.output, or with dimensions.")


class RateCard(Closed):
    currency: Currency
    description: str = ""
    versions: tuple[RateCardVersion, ...]

    @model_validator(mode="after")
    def _ordered(self) -> RateCard:
        if not self.versions:
            raise ValueError("versions must have at least one version")
        starts = [version.effective_from for version in self.versions]
        if sorted(set(starts)) != starts:
            raise ValueError("versions must be in order of effective_from, each later than the one before")
        return self

    def version_at(self, at: datetime) -> RateCardVersion | None:
        """The version in force at ``at``, or None before the first."""
        return next((v for v in reversed(self.versions) if v.effective_from <= at), None)


class CostCard(RateCard):
    """What a provider charges for what is sold, in the prices of a rate card; what it does not name is unknown."""


class Tenant(Closed):
    name: str = ""
    rate_card: str
    time_zone: Annotated[str, AfterValidator(_zone)] = "UTC"
    interval: Interval = Field("month", description="What billing periods are counted in, as Stripe counts them.")
    interval_count: int = Field(
        1, ge=1, description="How many intervals a billing period has: 3 months make a quarter."
    )
    anchor_day: int = Field(1, ge=1, le=31, description="Day of the month on which billing periods start.")
    anchor_date: date | None = Field(
        None,
        description="A day on which a billing period starts, where a day of the month does not tell it; without one, "
        "intervals count from Monday, 1 January 2024.",
    )
    stripe_customer: StripeCustomer | None = Field(
        None, description="An existing customer to bill. Tenants that name the same one share its bill."
    )
    stripe_items: dict[ServiceName, StripeItem] = Field(
        default_factory=dict, description="Existing subscription items of that customer, by the service they bill."
    )
    email: str | None = None
    prices: dict[str, Price] = Field(default_factory=dict, description="Overrides of the rate card, by service.")
    starts: date | None = Field(None, description="First day of the subscription, in the tenant's time zone.")
    ends: date | None = Field(None, description="First day on which the subscription runs no longer.")

    @model_validator(mode="after")
    def _runs(self) -> Tenant:
        if self.starts and self.ends and self.ends <= self.starts:
            raise ValueError(f"ends {self.ends} is not after starts {self.starts}, so the subscription never runs")
        return self

    @model_validator(mode="after")
    def _cadenced(self) -> Tenant:
        if self.interval_count > LONGEST_PERIOD[self.interval]:
            raise ValueError(
                f"interval_count: a period of {self.interval_count} {self.interval}s is longer than the three years "
                f"that Stripe takes ({LONGEST_PERIOD[self.interval]})"
            )
        if "anchor_day" in self.model_fields_set and (self.anchor_date or self.cadence.by_days):
            raise ValueError("anchor_day: give anchor_date alone, or keep anchor_day for periods of months and years")
        if self.stripe_items and self.stripe_customer is None:
            raise ValueError("stripe_items: whose items they are is not said; add stripe_customer")
        return self

    @property
    def cadence(self) -> Cadence:
        return Cadence(self.interval, self.interval_count, self.anchor_date or FIRST.replace(day=self.anchor_day))

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.time_zone)

    def days(self, period: Period) -> tuple[int, int]:
        """``(days of the period that the subscription runs, days of the period)``, in the tenant's calendar."""
        first, after = (at.astimezone(self.zone).date() for at in (period.start, period.end))
        runs = min(self.ends or after, after) - max(self.starts or first, first)
        return max(runs.days, 0), (after - first).days

    def prorated(self, price: Price, period: Period) -> tuple[int, int] | None:
        """``days`` where ``price`` is prorated and the subscription does not run the whole ``period``, else None."""
        part, whole = self.days(period)
        return (part, whole) if price.prorate and part < whole else None

    def close(self, period: Period) -> datetime:
        """When no more usage of ``period`` is to come: at its end, or with the subscription's if that is earlier."""
        if self.ends is None:
            return period.end
        ends = datetime.combine(self.ends, time.min, self.zone).astimezone(UTC)
        return ends if period.start < ends < period.end else period.end

    def period_at(self, instant: datetime) -> Period:
        """The billing period that ``instant`` lies in."""
        return self.cadence.period_at(instant, self.zone)

    def period(self, key: str) -> Period:
        """The billing period with that key (see ``Period``); an ``empty`` one if the tenant has none."""
        return self.cadence.period(key, self.zone)


class Metering(Closed):
    """How many workers an hour is for."""

    shards: int = Field(
        1, ge=1, le=256, description="Runs that an hour is shared out into, by a hash of the tenant; 1 leaves it whole."
    )


class Rating(Closed):
    """How hard OpenClaw is asked."""

    concurrency: int = Field(16, ge=1, le=512)
    timeout: Duration = timedelta(seconds=30)
    attempts: int = Field(5, ge=1, le=20)


class Delivery(Closed):
    """How hard Stripe is asked. Stripe's live limit is 1,000 meter events a second for all that an account does."""

    concurrency: int = Field(16, ge=1, le=512)
    calls_per_second: int = Field(500, ge=1, le=10_000)
    attempts: int = Field(5, ge=1, le=20)


class PricedService(Closed):
    """What ``Catalog.price_for`` finds: a price and where it comes from.

    ``days`` are those of the period that count, and all of them, where the price is prorated and they differ.
    """

    price: Price
    currency: str
    rate_card: str
    version: str
    days: tuple[int, int] | None


class Catalog(Closed):
    """The whole catalogue. ``folder`` is where its relative paths start; it is set by the loader."""

    version: Literal[1] = 1
    live: bool = Field(False, description="Must be true before a live Stripe key is accepted.")
    start: Annotated[Instant, AfterValidator(_on_the_hour)] = Field(description="First hour that is metered.")
    product: str = "OpenClaw Usage"
    calendar: Calendar = Calendar()
    dunning: Dunning = Dunning()
    closing: Closing = Closing()
    alerts: Alerting = Alerting()
    volumes: Volumes = Volumes()
    correcting: Correcting = Correcting()
    metering: Metering = Metering()
    rating: Rating = Rating()
    delivery: Delivery = Delivery()
    sources: tuple[Source, ...] = ()
    services: dict[ServiceName, Service] = Field(min_length=1)
    rate_cards: dict[str, RateCard] = Field(min_length=1)
    costs: dict[str, CostCard] = Field(default_factory=dict, description="What providers charge, for the margin.")
    tenants: dict[TenantId, Tenant] = Field(default_factory=dict)
    customers: str | None = Field(
        None, description="A CSV file of tenants' Stripe customers and subscription items, beside the catalogue."
    )

    _folder: Path = PrivateAttr(default_factory=Path)

    @property
    def folder(self) -> Path:
        return self._folder

    def at(self, folder: Path) -> Catalog:
        """This catalogue with its relative paths anchored at ``folder``."""
        placed = self.model_copy()
        placed._folder = folder
        return placed

    @model_validator(mode="after")
    def _whole(self) -> Catalog:
        if self.closing.margin >= self.calendar.stripe_grace:
            raise Misfit(
                ("closing",), "margin_minutes is not shorter than calendar.stripe_grace: no draft could be compared"
            )
        _no_twins(("sources",), [source.name for source in self.sources])
        if sum(isinstance(source, Http) for source in self.sources) > 1:
            raise Misfit(("sources",), "only one source can be of kind http: there is one POST /usage")
        if unknown := set(self.alerts.stale_after_hours_by_source) - {source.name for source in self.sources}:
            raise Misfit(("alerts", "stale_after_hours_by_source"), f"names no source: {', '.join(sorted(unknown))}")
        _no_twins(("services",), [self.meter(name) for name in self.services])
        for card_name, card in self.rate_cards.items():
            for position, version in enumerate(card.versions):
                where = ("rate_cards", card_name, "versions", position, "prices")
                self._check_prices(where, version.prices)
                missing = [service for service in self.services if service not in version.prices]
                if missing:
                    raise Misfit(where, f"no price for {', '.join(missing)}; every service needs one")
        self._check_costs()
        for tenant_id, tenant in self.tenants.items():
            if tenant.rate_card not in self.rate_cards:
                raise Misfit(
                    ("tenants", tenant_id, "rate_card"),
                    f"{tenant.rate_card!r} does not exist; there is {', '.join(self.rate_cards)}",
                )
            self._check_prices(("tenants", tenant_id, "prices"), tenant.prices)
        self.check_sharing()
        return self

    def check_sharing(self) -> None:
        """Tenants of one Stripe customer are on one invoice: what an invoice has once they must have in common."""
        first: dict[str, str] = {}
        for tenant_id, tenant in self.tenants.items():
            if tenant.stripe_customer is None:
                continue
            other_id = first.setdefault(tenant.stripe_customer, tenant_id)
            if other_id == tenant_id:
                continue
            other = self.tenants[other_id]
            for what, here, there in (
                ("currency", self.currency(tenant_id), self.currency(other_id)),
                ("time_zone", tenant.time_zone, other.time_zone),
                ("billing period", tenant.cadence, other.cadence),
                ("stripe_items", tenant.stripe_items, other.stripe_items),
            ):
                if here != there:
                    raise Misfit(
                        ("tenants", tenant_id, "stripe_customer"),
                        f"{tenant.stripe_customer} bills {other_id} too, with another {what}; tenants that share a "
                        "customer are on one invoice: make them alike, or give each a customer",
                    )
            for service, sold in self.services.items():
                if sold.bill_by == "quantity" and not self._adds_up(tenant, other, service):
                    raise Misfit(
                        ("tenants", tenant_id, "stripe_customer"),
                        f"{tenant.stripe_customer} bills {other_id} too, and Stripe would price their {service} as one "
                        "quantity: give both the same per_unit price, or the service bill_by: amount",
                    )

    def _adds_up(self, tenant: Tenant, other: Tenant, service: str) -> bool:
        """Whether one price of the sum is the same money as each tenant's price of its part."""
        own = [each.prices.get(service) for each in (tenant, other)]
        if own[0] != own[1] or (own[0] is None and tenant.rate_card != other.rate_card):
            return False
        versions = self.rate_cards[tenant.rate_card].versions
        prices = [own[0]] if own[0] is not None else [version.prices[service] for version in versions]
        return all(price.model == "per_unit" for price in prices)

    def _check_costs(self) -> None:
        seen: dict[str, str] = {}
        for card_name, card in self.costs.items():
            for position, version in enumerate(card.versions):
                where = ("costs", card_name, "versions", position, "prices")
                self._check_prices(where, version.prices)
                for name, price in version.prices.items():
                    if seen.setdefault(name, card_name) != card_name:
                        raise Misfit((*where, name), f"is in cost card {seen[name]!r} too; keep one of them")
                    try:
                        list(costs_of(name, price))
                    except ValueError as error:
                        raise Misfit((*where, name), str(error)) from None

    def unit_costs(self) -> list[UnitCost]:
        """What is known of provider cost, in the order of the cards; a dimension set named by itself comes first."""
        found: dict[tuple[str, str | None, datetime], UnitCost] = {}
        for card_name, card in self.costs.items():
            ends = [version.effective_from for version in card.versions[1:]]
            for version, end in zip(card.versions, [*ends, None], strict=True):
                # A name with dimensions wins over a cell of a matrix.
                for name in sorted(version.prices, key=lambda name: not split_openclaw_service(name)[1]):
                    for service, dimensions, amount, per in costs_of(name, version.prices[name]):
                        key = (service, dimensions, version.effective_from)
                        cost = UnitCost(
                            service, dimensions, amount, per, card.currency, card_name, version.effective_from, end
                        )
                        found.setdefault(key, cost)
        return list(found.values())

    def _check_prices(self, where: tuple[str | int, ...], prices: dict[str, Price]) -> None:
        for name, price in prices.items():
            base, dimensions = split_openclaw_service(name)
            service = self.services.get(base)
            if service is None:
                raise Misfit((*where, name), f"prices no service of the catalogue; there is {', '.join(self.services)}")
            if dimensions and len(dimensions.split("/")) != len(service.dimensions):
                order = "/".join(service.dimensions) or "none"
                raise Misfit((*where, name), f"does not name the service's dimensions ({order}) in their order")
            if fault := needs_more_than_a_quantity(price, service.dimensions):
                raise Misfit((*where, name), fault)
            if price.prorate and service.basis == "hourly":
                raise Misfit(
                    (*where, name), "prorate: true is by days of the period, and this service is rated by the hour; "
                    "give the service basis: period_to_date, or drop it"
                )  # fmt: skip

    def period_keys(self, month: str, now: datetime) -> list[str]:
        """``month`` (``YYYY-MM``), and the keys of billing periods of days and weeks that start in it until ``now``."""
        keys: set[str] = set()
        for cadence, zone in {(tenant.cadence, tenant.zone) for tenant in self.tenants.values()}:
            if not cadence.by_days:
                continue
            period = cadence.period_at(period_of_month(month, 1, zone).start, zone)
            while period.key[: len(month)] <= month and period.start <= now:
                keys |= {period.key} if period.key.startswith(month) else set()
                period = cadence.period_at(period.end, zone)
        return [month, *sorted(keys)]

    def open_months(self, now: datetime) -> set[str]:
        """The months (``YYYY-MM``) in which a billing period starts that runs at ``now``, or that ended last."""
        months: set[str] = set()
        for cadence, zone in {(tenant.cadence, tenant.zone) for tenant in self.tenants.values()}:
            runs = cadence.period_at(now, zone)
            before = cadence.period_at(runs.start - timedelta(microseconds=1), zone)
            months |= {period.key[: len("2026-01")] for period in (before, runs)}
        return months

    def meter(self, service: str) -> str:
        """The Stripe meter event name of ``service``."""
        return self.services[service].meter or "clawbill_" + re.sub(r"[^A-Za-z0-9]", "_", service)

    def currency(self, tenant_id: str) -> str:
        """The currency that ``tenant_id`` is billed in. Raises UnknownTenant."""
        return self.rate_cards[self.tenant(tenant_id).rate_card].currency

    def tenant(self, tenant_id: str) -> Tenant:
        try:
            return self.tenants[tenant_id]
        except KeyError:
            raise UnknownTenant(f"tenant {tenant_id!r} is not in the catalogue") from None

    def price_for(self, tenant_id: str, service: str, at: datetime) -> PricedService:
        """The price of ``service`` (as OpenClaw sees it) for a tenant at a moment.

        The most specific wins: the tenant's own price with dimensions, without, the rate card's with, without.
        Raises UnknownTenant or UnknownService.
        """
        tenant = self.tenant(tenant_id)
        card = self.rate_cards[tenant.rate_card]
        version = card.version_at(at)
        base, _ = split_openclaw_service(service)
        found = (tenant.prices.get(service) or tenant.prices.get(base)) or (
            version and (version.prices.get(service) or version.prices.get(base))
        )
        if not found or not version:
            raise UnknownService(
                f"rate card {tenant.rate_card!r} has no price for service {service!r} at {at:%Y-%m-%d}"
            )
        return PricedService.model_construct(
            price=found,
            currency=card.currency,
            rate_card=tenant.rate_card,
            version=f"{tenant.rate_card}@{version.effective_from:%Y-%m-%dT%H:%M:%SZ}",
            days=tenant.prorated(found, tenant.period_at(at)) if found.prorate else None,
        )


def _no_twins(where: tuple[str, ...], names: list[str]) -> None:
    twins = sorted({name for name in names if names.count(name) > 1})
    if twins:
        raise Misfit(where, f"{', '.join(twins)} is used twice (as a name or meter); each must differ")
