"""Drops and jumps: hours in which a tenant used far less or far more than it usually does. Nobody's bill waits for it.

Those of the newest hour are written down, for alerts to tell. Usual is the median of the same hour of the week in the
four weeks before, or, where there was nothing, of the day before. What is looked at is the same for every hour, however
long the history is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from statistics import median
from typing import Any

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import HOUR
from clawbill_pipeline.catalog.volumes import Volumes
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.money import SCALE, plain, rounded
from clawbill_pipeline.results import Check

#: Of a run of many hours, the newest ones are looked at.
MOST_HOURS = 24
#: Of an hour, the largest are written down: where all are unusual, it is one matter, and no thousands.
MOST_TOLD = 100
_SHOWN = 20
_WEEK, _WEEKS = timedelta(days=7), 4
_DAY = 24


@dataclass(frozen=True, slots=True)
class Unusual:
    """A tenant's service in an hour that is not as usual. Quantities in the service's unit."""

    tenant_id: str
    service: str
    hour: datetime
    quantity: Decimal
    usual: Decimal

    @property
    def kind(self) -> str:
        return "drop" if self.quantity < self.usual else "jump"

    def __str__(self) -> str:
        usual = plain(rounded(self.usual, 3))
        return f"{self.tenant_id} {self.service} {self.hour:%Y-%m-%dT%HZ}: {plain(self.quantity)}, usually {usual}"


@dataclass(frozen=True)
class Watched:
    """What looking at volumes came to."""

    watched_hours: int
    drops: int
    jumps: int
    checks: tuple[Check, ...]


def watch_volumes(ledger: Ledger, catalog: Catalog, *, start: datetime, end: datetime, now: datetime) -> Watched:
    """Compares the newest metered hours of ``[start, end)`` with what each tenant usually uses.

    What is unusual in the newest hour of all is written down once; called again, it changes no row.
    """
    first = max(start, end - MOST_HOURS * HOUR)
    hours = [first + number * HOUR for number in range(int((end - first) / HOUR))]
    found: list[Unusual] = []
    with ledger.transaction() as connection:
        for hour in hours:
            past = [hour - week * _WEEK for week in range(1, _WEEKS + 1)]
            recent = [hour - number * HOUR for number in range(1, _DAY + 1)]
            looked_at = {"hours": [hour, *past, *recent]}
            metered = set(connection.scalars(_METERED, looked_at))
            if hour in metered:
                rows = connection.execute(_QUANTITIES, looked_at).all()
                weeks = [at for at in past if at in metered]
                found += unusual(hour, rows, weeks, [at for at in recent if at in metered], catalog.volumes)
        largest = sorted(found, key=lambda each: (-max(each.quantity, each.usual), str(each)))
        newest = connection.scalar(_NEWEST)
        _write(connection, [each for each in largest if each.hour == newest][:MOST_TOLD], now)
    drops = sum(each.kind == "drop" for each in found)
    return Watched(
        len(hours),
        drops,
        len(found) - drops,
        (
            Check(
                "volumes_usual",
                not found,
                "No tenant used far less or far more of a service than it usually does at that time.",
                {
                    "drops": drops,
                    "jumps": len(found) - drops,
                    "largest": "; ".join(f"{each.kind}: {each}" for each in largest[:_SHOWN]) or None,
                },
                serious=False,
            ),
        ),
    )


def _write(connection: Connection, found: Sequence[Unusual], now: datetime) -> None:
    rows = [
        {"hour": each.hour, "tenant_id": each.tenant_id, "service": each.service, "quantity": each.quantity,
         "usual": rounded(each.usual, SCALE), "now": now}
        for each in found
    ]  # fmt: skip
    if rows:
        connection.execute(_FOUND, rows)


def unusual(
    hour: datetime, rows: Sequence[Any], weeks: Sequence[datetime], recent: Sequence[datetime], limits: Volumes
) -> list[Unusual]:
    """The tenants and services whose quantity in ``hour`` is not as usual, in the order of their names.

    ``rows`` have tenant_id, service, hour, quantity and events of all hours that are compared; an hour without a row
    is one of no usage, if it is in ``weeks`` or ``recent``.
    """
    held: dict[tuple[str, str], dict[datetime, tuple[Decimal, int]]] = {}
    for row in rows:
        held.setdefault((row.tenant_id, row.service), {})[row.hour] = row.quantity, row.events
    found = []
    for (tenant_id, service), known in sorted(held.items()):
        quantity, events = known.get(hour, _NOTHING)
        usual, usual_events = _median(known, weeks)
        if not usual:
            usual, usual_events = _median(known, recent)
        few = max(Decimal(events), usual_events) < limits.minimum_events
        if usual > 0 and not few and not usual / limits.factor <= quantity <= usual * limits.factor:
            found.append(Unusual(tenant_id, service, hour, quantity, usual))
    return found


_NOTHING = (Decimal(0), 0)


def _median(known: Mapping[datetime, tuple[Decimal, int]], hours: Sequence[datetime]) -> tuple[Decimal, Decimal]:
    """Of the quantities and of the numbers of events."""
    if not hours:
        return Decimal(0), Decimal(0)
    there = [known.get(hour, _NOTHING) for hour in hours]
    return median(quantity for quantity, _ in there), median(Decimal(events) for _, events in there)


_NEWEST = text("SELECT max(hour) FROM metered_hours")
_FOUND = text("""
    INSERT INTO unusual_volumes (hour, tenant_id, service, quantity, usual, found_at)
    VALUES (:hour, :tenant_id, :service, :quantity, :usual, :now) ON CONFLICT DO NOTHING
""")
_METERED = text("SELECT DISTINCT hour FROM metered_hours WHERE hour = ANY(CAST(:hours AS timestamptz[]))")
_QUANTITIES = text("""
    SELECT tenant_id, service, hour, sum(quantity) AS quantity, CAST(sum(events) AS bigint) AS events
    FROM (SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start)
                 hour, tenant_id, service, quantity, events
          FROM metered_usage WHERE hour = ANY(CAST(:hours AS timestamptz[]))
          ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC) m
    GROUP BY tenant_id, service, hour
""")
