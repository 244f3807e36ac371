"""What a load needs: time a station, workers, rows and bytes, and which limit binds first. Arithmetic, no database.

The numbers that it multiplies by are measured: ``capacity.toml`` holds them, and says how they are measured again.
What it does not know is in docs/scale.md.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from importlib import resources

#: Stripe's limits: calls of v1 a second in live mode, calls of the v2 stream a second and events in each, reads a
#: second, items of a subscription (docs.stripe.com/rate-limits, …/api/v2/meter-event-streams, …/api/subscriptions).
STRIPE_CALLS = 1_000
STRIPE_STREAM_CALLS, STRIPE_STREAM_EVENTS = 10_000, 100
STRIPE_READS = 100
STRIPE_ITEMS = 20
#: Hours that Stripe lists in a page, and days that it may keep a draft back at most.
STRIPE_PAGE = 100
LONGEST_GRACE = timedelta(hours=72)
#: PostgreSQL keeps the elements of a JSON array's binary form in 28 bits of length (src/include/utils/jsonb.h).
JSONB_BYTES = 2**28 - 1
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
MONTH_HOURS = 720
#: What a table that was vacuumed has beside its rows: a map of free space in three pages, one of visibility in one.
MAPS_BYTES = 4 * 8192
#: Of an event's id in the index of ids (metering/neighbours.py).
_HASH_BYTES = 8
#: Replaced versions of an outbox row: planned, sending.
_REPLACED = 2
#: Runs a month that no load changes (defs/schedules.py): drafts every ten minutes, the sweep, days and periods.
_FIXED_RUNS = 30 * (144 + 24 + 1 + 2)


@dataclass(frozen=True)
class Cost:
    """Of one ``unit``, in microseconds: by the clock, of the worker's processor, of the database's."""

    unit: str
    wall_us: float
    worker_us: float
    database_us: float


@dataclass(frozen=True)
class Constants:
    """What was measured, in bytes but for ``costs``. ``row_bytes`` by table, with its indexes; ``event_bytes`` in the
    lake; ``tenant_ids_bytes`` of a tenant in an hour's index of ids, beside the hashes; what else says capacity.toml.
    """

    measured: str
    machine: str
    costs: Mapping[str, Cost]
    row_bytes: Mapping[str, float]
    event_bytes: float
    tenant_ids_bytes: float
    waterfall_bytes: float
    run_bytes: float


@cache
def constants() -> Constants:
    """Those of ``capacity.toml``."""
    text = resources.files("clawbill_pipeline").joinpath("capacity.toml").read_text(encoding="utf-8")
    return parsed(text)


def parsed(text: str) -> Constants:
    """The constants of a document like ``capacity.toml``. Raises ValueError or TypeError for one that is none."""
    found = tomllib.loads(text)
    costs = {name: Cost(**cost) for name, cost in found.pop("costs").items()}
    return Constants(costs=costs, **found)


@dataclass(frozen=True)
class Load:
    """What is billed. ``services`` are those that a tenant uses, ``dimensions`` the priced combinations of each.

    ``revised`` is the share of windows that late usage or a correction changes once; ``files`` bring an hour's usage.
    ``stream`` sends by the v2 meter event stream. ``hours`` and ``closes`` (billing periods that end) are of what is
    predicted: a month, unless a part of one is measured.
    """

    events_per_hour: int
    tenants: int
    services: int
    dimensions: int = 1
    revised: float = 0.0
    files: int = 1
    stream: bool = False
    within: timedelta = HOUR
    hours: int = MONTH_HOURS
    closes: int = 1

    def __post_init__(self) -> None:
        for name in ("events_per_hour", "tenants", "services", "dimensions", "files", "hours"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}")
        if not 0 <= self.revised <= 1:
            raise ValueError(f"revised is a share from 0 to 1, not {self.revised}")
        if not timedelta(0) < self.within <= HOUR:
            raise ValueError("an hour must be done before the next one ends: within is more than 0 and at most 1 hour")

    @property
    def accounts(self) -> int:
        """A tenant's service: one item of a Stripe subscription."""
        return self.tenants * self.services

    @property
    def days(self) -> int:
        return max(self.hours // 24, 1)


def seen(places: int, events: int) -> int:
    """How many of ``places`` at least one of ``events`` falls on, where all are as likely: the expected number.

    Real usage is uneven, and falls on fewer.
    """
    return round(-places * math.expm1(events * math.log1p(-1 / places))) if places > 1 else min(places, events)


@dataclass(frozen=True)
class Stage:
    """A station's work. ``seconds`` on one worker as large as the machine that measured, and processor seconds."""

    name: str
    count: int
    unit: str
    seconds: float
    worker: float
    database: float


@dataclass(frozen=True)
class Size:
    """``rows`` (of the lake: events) and their ``bytes``."""

    rows: int
    bytes: int


@dataclass(frozen=True)
class Limit:
    """Something that ends somewhere. Binds where ``needed`` is more than ``allowed``, both in ``unit``."""

    name: str
    needed: float
    allowed: float
    unit: str
    remedy: str

    @property
    def share(self) -> float:
        return self.needed / self.allowed

    @property
    def binds(self) -> bool:
        return self.share > 1


@dataclass(frozen=True)
class Prediction:
    """What ``load`` needs. ``hour`` are the stages of every hour, ``day`` those of the last day of a period, ``close``
    those of its end. ``workers`` are done with an hour's usage in ``load.within``, a shard each; None where no number
    of them is. ``tables`` and ``lake`` are what ``load.hours`` leave behind.
    """

    load: Load
    windows: int
    records: int
    hour: tuple[Stage, ...]
    day: tuple[Stage, ...]
    close: tuple[Stage, ...]
    workers: int | None
    tables: Mapping[str, Size]
    lake: Mapping[str, Size]
    limits: tuple[Limit, ...]
    measured: str = field(compare=False)

    @property
    def seconds(self) -> float:
        """Of an hour's usage on one worker."""
        return sum(stage.seconds for stage in self.hour)

    @property
    def database_cores(self) -> float:
        return sum(stage.database for stage in self.hour) / self.load.within.total_seconds()

    @property
    def binding(self) -> tuple[Limit, ...]:
        """Limits that are passed, the most passed one first."""
        return tuple(sorted((limit for limit in self.limits if limit.binds), key=lambda limit: -limit.share))


def predict(load: Load, measured: Constants | None = None) -> Prediction:
    """What ``load`` needs, from the constants of ``capacity.toml`` or those given."""
    known = measured or constants()
    windows = seen(load.accounts * load.dimensions, load.events_per_hour)
    records = seen(load.accounts, load.events_per_hour)
    used = seen(load.accounts, load.events_per_hour * load.hours)

    def stage(name: str, count: float) -> Stage:
        cost = known.costs[name]
        times = [count * us / 1e6 for us in (cost.wall_us, cost.worker_us, cost.database_us)]
        return Stage(name, round(count), cost.unit, *times)

    again = 1 + load.revised
    hour = (
        stage("landing", load.events_per_hour),
        stage("counting", load.events_per_hour),
        stage("metering", windows * again),
        stage("rating", windows * again),
        stage("planning", records * again),
        stage("sending, v2" if load.stream else "sending, v1", records * again),
    )
    day = (
        stage("reading back", load.accounts),
        stage("reading the lake", load.events_per_hour * load.hours),
        stage("comparing", records * load.hours),
        stage("summing up", used),
    )
    close = (stage("closing", load.tenants * load.closes),)
    tables = {
        name: Size(round(rows), round(rows * known.row_bytes[name] + spare + MAPS_BYTES if rows else 0))
        for name, rows, spare in _rows(load, windows, records, used, known)
    }
    workers = _workers(hour, load)
    runs = round(load.hours * ((workers or 1) + _FIXED_RUNS / MONTH_HOURS))
    tables["Dagster's own"] = Size(runs, round(runs * known.run_bytes))
    events = load.events_per_hour * load.hours
    ids = _HASH_BYTES * events + known.tenant_ids_bytes * seen(load.tenants, load.events_per_hour) * load.hours
    lake = {
        "usage_events": Size(events, round(known.event_bytes * events)),
        "usage_ids": Size(events, round(ids)),
    }
    limits = tuple(_limits(load, hour, day, close, records, used, known))
    return Prediction(load, windows, records, hour, day, close, workers, tables, lake, limits, known.measured)


def _rows(load: Load, windows: int, records: int, used: int, known: Constants) -> list[tuple[str, float, float]]:
    """Table, rows, and bytes beside them: an hour's replaced versions, which the next hour takes the room of."""
    again, hours, periods = 1 + load.revised, load.hours, load.closes
    spare = _REPLACED * records * known.row_bytes["usage_records"]
    return [
        ("metered_usage", windows * hours * again, 0),
        ("rated_usage", windows * hours * again, 0),
        ("usage_records", records * hours * again, spare),
        ("usage_record_trail", records * hours * again, 0),
        ("audit_trail", (2 + periods) * load.tenants, 0),
        ("planned_totals", used, 0),
        ("usage_summaries", load.accounts * load.days, 0),
        ("reconciliations", load.days * used, 0),  # a row a day, as large as all accounts: counted by these
        ("landings", load.files * hours, 0),
        ("landed_hours", load.files * hours, 0),
        ("metered_hours", hours * again, 0),
        ("stripe_customers", load.tenants, 0),
        ("stripe_items", load.accounts, 0),
        ("tenant_standing", load.tenants * periods, 0),
        ("stripe_events", 7 * load.tenants * periods, 0),
        ("stripe_events_handled", 7 * load.tenants * periods, 0),
        ("invoices", load.tenants * periods, 0),
        ("invoice_lines", load.accounts * periods, 0),
    ]


def _workers(hour: Sequence[Stage], load: Load) -> int | None:
    """How many share out what one run lands, so that all is done in time; None where landing alone takes longer."""
    landing = hour[0].seconds
    left = load.within.total_seconds() - landing
    return max(math.ceil((sum(stage.seconds for stage in hour) - landing) / left), 1) if left > 0 else None


def _limits(
    load: Load,
    hour: tuple[Stage, ...],
    day: tuple[Stage, ...],
    close: tuple[Stage, ...],
    records: int,
    used: int,
    known: Constants,
) -> list[Limit]:
    seconds = load.within.total_seconds()
    a_second = records * (1 + load.revised) / seconds
    pages = math.ceil(31 * 24 / STRIPE_PAGE)
    by_name = {stage.name: stage for stage in (*hour, *day, *close)}
    calls = Limit(
        "Stripe: v1 meter events", a_second, STRIPE_CALLS, "calls/s",
        "the v2 stream, which is chosen where delivery.calls_per_second is above 1,000",
    )  # fmt: skip
    stream = Limit(
        "Stripe: v2 stream", a_second / STRIPE_STREAM_EVENTS, STRIPE_STREAM_CALLS, "calls/s",
        "fewer priced services, or several installations, each with a Stripe account of its own",
    )  # fmt: skip
    return [
        *([] if load.stream else [calls]),
        stream,
        Limit(
            "Stripe: reads on the day after a close", load.accounts * (1 + pages) / DAY.total_seconds(), STRIPE_READS,
            "calls/s", "spread the tenants' anchor days, so that few periods end together",
        ),
        Limit(
            "Stripe: items of a subscription", load.services, STRIPE_ITEMS, "services",
            "fewer services, with what they differ in as dimensions",
        ),
        Limit(
            "One worker: landing a source", by_name["landing"].seconds, seconds, "s an hour",
            "a worker of four cores, all of which landing uses, and Parquet instead of JSON lines",
        ),
        Limit(
            "One worker: comparing a period", sum(stage.seconds for stage in day[1:]), DAY.total_seconds(), "s a day",
            "shorter periods (weeks, days), or several installations",
        ),
        Limit(
            "One worker: closing a period", close[0].seconds, LONGEST_GRACE.total_seconds(), "s",
            "spread the tenants' anchor days",
        ),
        Limit(
            "PostgreSQL: a reconciliation's waterfall", used * known.waterfall_bytes, JSONB_BYTES, "bytes",
            "several installations, each with some of the tenants and a Stripe account of its own",
        ),
    ]  # fmt: skip
