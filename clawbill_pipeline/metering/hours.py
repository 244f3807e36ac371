"""Meters hours: reads what landed, has it counted, writes a new revision of each quantity that changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog, hours_between
from clawbill_pipeline.catalog.periods import HOUR
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import copy_rows, lock_all
from clawbill_pipeline.metering.counting import Count, Cut, count
from clawbill_pipeline.money import plain
from clawbill_pipeline.results import Check


@dataclass(frozen=True)
class Metered:
    """What metering came to. ``quantities`` is the total by service, in each service's unit."""

    hours: int
    events: int
    duplicates: int
    conflicts: int
    rows: int
    new_revisions: int
    late_revisions: int
    quantities: dict[str, Decimal]
    checks: tuple[Check, ...]


def meter(
    ledger: Ledger, lake: Lake, catalog: Catalog, *, start: datetime, end: datetime, now: datetime, run_id: str
) -> Metered:
    """Meters the UTC hours of ``[start, end)`` from all that landed for them. Run again, it changes nothing.

    Two workers on the same hour wait for one another. Raises LedgerError where the database is away.
    """
    hours = list(hours_between(start, end))
    ledger.ensure_partitions(hours)
    with ledger.transaction() as connection:
        lock_all(connection, (("metering", hour.isoformat()) for hour in hours))
        landed = connection.execute(_LANDED, {"start": start, "end": end}).all()
        counted = count([lake.path(row.file) for row in landed], _cuts(catalog, start, end)) if landed else None
        revisions = _write_quantities(connection, counted, start, end, now, run_id) if counted else []
        if counted:
            _write_conflicts(connection, counted, now)
        _write_hours(connection, hours, landed, counted, revisions, now, run_id)
        totals = {row.service: row.quantity for row in connection.execute(_TOTALS, {"start": start, "end": end})}
    return _result(hours, counted, revisions, totals)


def late_hours(ledger: Ledger, *, before: datetime, limit: int = 1000) -> list[tuple[datetime, int]]:
    """Hours, oldest first, that were metered and have been touched by a landing since, with how many touch them."""
    with ledger.transaction() as connection:
        return [(row.hour, row.landings) for row in connection.execute(_LATE, {"before": before, "limit": limit})]


_LANDED = text("SELECT landing_id, hour, file FROM landed_hours WHERE hour >= :start AND hour < :end ORDER BY 1, 2")
_LATE = text("""
    SELECT l.hour, l.landings FROM (SELECT hour, count(*) AS landings FROM landed_hours WHERE hour < :before GROUP BY hour) l
    JOIN (SELECT hour, max(landings) AS landings FROM metered_hours GROUP BY hour) m USING (hour)
    WHERE l.landings > m.landings ORDER BY l.hour LIMIT :limit
""")
_TOTALS = text("""
    SELECT service, sum(quantity) AS quantity FROM (
        SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) service, quantity FROM metered_usage
        WHERE hour >= :start AND hour < :end
        ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC) c
    GROUP BY service ORDER BY service
""")
# A quantity that is gone (its events moved to another name) becomes zero: nothing is ever deleted.
_REVISE = text("""
    WITH held AS (
        SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) *
        FROM metered_usage WHERE hour >= :start AND hour < :end
        ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC)
    INSERT INTO metered_usage (hour, tenant_id, service, dimensions, window_start, revision, quantity, events,
                               reason, metered_at, run_id)
    SELECT hour, tenant_id, service, dimensions, window_start, coalesce(h.revision, 0) + 1,
           coalesce(c.quantity, 0), coalesce(c.events, 0),
           CASE WHEN h.revision IS NULL AND m.hour IS NULL THEN 'first'
                WHEN coalesce(c.events, 0) > coalesce(h.events, 0) THEN 'late' ELSE 'corrected' END,
           :now, :run_id
    FROM counted c FULL JOIN held h USING (hour, tenant_id, service, dimensions, window_start)
    LEFT JOIN (SELECT DISTINCT hour FROM metered_hours WHERE hour >= :start AND hour < :end) m USING (hour)
    WHERE coalesce(c.quantity, 0) IS DISTINCT FROM h.quantity
    RETURNING hour, tenant_id, reason
""")
_COLUMNS = ("hour", "tenant_id", "service", "dimensions", "window_start", "quantity", "events")


def _write_quantities(
    connection: Connection, counted: Count, start: datetime, end: datetime, now: datetime, run_id: str
) -> list[tuple[datetime, str]]:
    connection.execute(
        text(
            "CREATE TEMP TABLE counted (hour timestamptz, tenant_id text, service text, dimensions text, "
            "window_start timestamptz, quantity numeric(38, 12), events bigint) ON COMMIT DROP"
        )
    )
    copy_rows(connection, "counted", _COLUMNS, _rows(counted))
    written = connection.execute(_REVISE, {"start": start, "end": end, "now": now, "run_id": run_id})
    return [(row.hour, row.reason) for row in written]


def _rows(counted: Count) -> Iterator[tuple[object, ...]]:
    for batch in counted.quantities.select(_COLUMNS).to_batches():
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _write_conflicts(connection: Connection, counted: Count, now: datetime) -> None:
    found = [
        {
            "source": row["source"],
            "uri": row["uri"],
            "place": f"line {row['line']}, byte {row['byte_offset']}",
            "reason": "conflict",
            "field": "event_id",
            "detail": _contradiction(row),
            "raw": f"{row['event_id']} {row['service']} {plain(row['quantity'])} {row['event_time'].isoformat()}",
            "tenant_id": row["tenant_id"],
            "landing_id": row["landing_id"],
            "now": now,
        }
        for row in counted.conflicts.to_pylist()
    ]
    if found:
        connection.execute(_QUARANTINE, found)


_QUARANTINE = text("""
    INSERT INTO quarantine (source, uri, place, reason, field, detail, raw, tenant_id, landing_id, quarantined_at)
    VALUES (:source, :uri, :place, :reason, :field, :detail, :raw, :tenant_id, :landing_id, :now)
    ON CONFLICT DO NOTHING
""")


def _contradiction(row: dict[str, object]) -> str:
    first = row["first"]
    assert isinstance(first, dict)  # noqa: S101 - the shape of our own query
    differing = [name for name in ("service", "dimensions", "quantity", "event_time") if row[name] != first[name]]
    return (
        f"the event id {row['event_id']!r} was used before with another {' and '.join(differing)}; "
        "the first one is billed. Give each usage event an id of its own"
    )


def _write_hours(
    connection: Connection,
    hours: list[datetime],
    landed: Iterable[object],
    counted: Count | None,
    revisions: list[tuple[datetime, str]],
    now: datetime,
    run_id: str,
) -> None:
    seen = {row["hour"]: row for row in counted.hours.to_pylist()} if counted else {}
    landings = _tally(row.hour for row in landed)  # type: ignore[attr-defined]
    conflicts = _tally(counted.conflicts["hour"].to_pylist()) if counted else {}
    changed = _tally(hour for hour, _ in revisions)
    connection.execute(
        text("""
            INSERT INTO metered_hours (hour, landings, events, duplicates, conflicts, changed, metered_at, run_id)
            VALUES (:hour, :landings, :events, :duplicates, :conflicts, :changed, :now, :run_id)
            ON CONFLICT DO NOTHING
        """),
        [
            {
                "hour": hour,
                "landings": landings.get(hour, 0),
                "events": seen.get(hour, {}).get("events", 0),
                "duplicates": seen.get(hour, {}).get("repeats", 0) - conflicts.get(hour, 0),
                "conflicts": conflicts.get(hour, 0),
                "changed": changed.get(hour, 0),
                "now": now,
                "run_id": run_id,
            }
            for hour in hours
        ],
    )


def _tally(hours: Iterable[datetime]) -> dict[datetime, int]:
    tally: dict[datetime, int] = {}
    for hour in hours:
        tally[hour] = tally.get(hour, 0) + 1
    return tally


def _cuts(catalog: Catalog, start: datetime, end: datetime) -> Iterator[Cut]:
    """The hours of ``[start, end)`` that a tenant's period boundary cuts in two."""
    for tenant_id, tenant in catalog.tenants.items():
        boundary = tenant.period_at(start).end
        while boundary < end:
            hour = boundary.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
            if hour != boundary and hour + HOUR > start:
                yield tenant_id, hour, boundary
            boundary = tenant.period_at(boundary).end


def _result(
    hours: list[datetime], counted: Count | None, revisions: list[tuple[datetime, str]], totals: dict[str, Decimal]
) -> Metered:
    per_hour = counted.hours.to_pylist() if counted else []
    events = sum(row["events"] for row in per_hour)
    repeats = sum(row["repeats"] for row in per_hour)
    conflicts = counted.conflicts.num_rows if counted else 0
    kept = sum(counted.quantities["events"].to_pylist()) if counted else 0
    summed: dict[str, Decimal] = {}
    for row in counted.quantities.to_pylist() if counted else ():
        summed[row["service"]] = summed.get(row["service"], Decimal(0)) + row["quantity"]
    booked = {service: total for service, total in totals.items() if total or service in summed}
    return Metered(
        hours=len(hours),
        events=events,
        duplicates=repeats - conflicts,
        conflicts=conflicts,
        rows=counted.quantities.num_rows if counted else 0,
        new_revisions=len(revisions),
        late_revisions=sum(reason != "first" for _, reason in revisions),
        quantities=totals,
        checks=(
            Check(
                "conservation",
                events - repeats == kept and summed == booked,
                "Accepted events minus duplicates and conflicts are what was metered, exactly.",
                {"events": events, "duplicates": repeats - conflicts, "conflicts": conflicts, "metered": kept},
            ),
        ),
    )
