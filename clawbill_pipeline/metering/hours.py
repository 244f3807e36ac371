"""Meters hours: reads what landed, has it counted, writes a new revision of each quantity that changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
from sqlalchemy import Connection, Row, text

from clawbill_pipeline.catalog import Catalog, hours_between
from clawbill_pipeline.catalog.periods import HOUR, Cadence, utc_hour
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import copy_arrow
from clawbill_pipeline.ledger.sharding import ALL, Shard, Share, in_share, share_of
from clawbill_pipeline.ledger.turns import hours_turn, whom
from clawbill_pipeline.metering.counting import Count, Cut, count
from clawbill_pipeline.metering.neighbours import Hour, taken_elsewhere
from clawbill_pipeline.metering.shards import METERED_BEFORE, Joined, write_shards
from clawbill_pipeline.metering.uniques import once_a_period, over_period
from clawbill_pipeline.metering.witnessed import with_witnesses, witnessed, write_witnessed
from clawbill_pipeline.money import plain, total
from clawbill_pipeline.results import Check

#: So many landings are looked at again rather than marked as done with.
MARK_STEP = 100
_SETTLED = timedelta(days=1)
#: Hours are metered together up to so many events; an hour alone may have more.
BATCH_EVENTS = 5_000_000


@dataclass(frozen=True)
class Metered:
    """What metering came to. ``quantities`` is the total by service, in each service's unit.

    Of a ``shard``, all numbers are its own; ``awaited_shards`` are those without which its hours are not metered yet.
    ``waited_for`` names runs that were at the same work.
    """

    hours: int
    events: int
    duplicates: int
    conflicts: int
    rows: int
    new_revisions: int
    late_revisions: int
    quantities: dict[str, Decimal]
    checks: tuple[Check, ...]
    shard: str | None = None
    awaited_shards: tuple[int, ...] | None = None
    waited_for: str | None = None


def meter(
    ledger: Ledger,
    lake: Lake,
    catalog: Catalog,
    *,
    start: datetime,
    end: datetime,
    now: datetime,
    run_id: str,
    memory_limit: str | None = None,
    shard: Shard | None = None,
) -> Metered:
    """Meters the UTC hours of ``[start, end)`` from all that landed for them. Run again, it changes nothing.

    With ``shard``, those of its tenants alone; the hours are metered once all shards are. Two workers on the same hour
    and tenants wait for one another. ``memory_limit`` (``1GB``) is DuckDB's, the lake's by default; what is more spills
    to disk. Raises LedgerError where the database is away.
    """
    memory_limit = memory_limit or lake.memory_limit
    hours = list(hours_between(start, end))
    ledger.ensure_partitions(hours)
    batches = [
        _meter_batch(ledger, lake, catalog, batch, now, run_id, memory_limit, shard)
        for batch in _batches(ledger, hours)
    ]
    return _result(hours, batches, shard)


def late_hours(
    ledger: Ledger,
    *,
    before: datetime,
    missed_before: datetime | None = None,
    after: datetime | None = None,
    limit: int = 1000,
) -> list[tuple[datetime, int]]:
    """Hours, oldest first, that have landings which were never counted, with how many landings touch them.

    Metered hours before ``before`` that were touched since; and, if given, hours before ``missed_before`` that nobody
    metered: those for which no schedule ran, because everything was down or because their logs are older than the
    installation. With ``after``, those after that hour. What it looks at is what landed lately, or is late: it does
    not grow with history.
    """
    given = {"before": before, "missed_before": missed_before, "after": after, "limit": limit}
    with ledger.transaction() as connection:
        found = [(row.hour, row.landings) for row in connection.execute(_LATE, given)]
        connection.execute(_MARK, {"now": before, "settled": before - _SETTLED, "step": MARK_STEP})
    return found


@dataclass(frozen=True)
class _Batch:
    """Some hours metered together: events that landed, and what became of them."""

    events: int
    counted: Count | None
    revisions: list[tuple[datetime, str, str]]
    totals: dict[str, Decimal]
    waited: frozenset[str]
    joined: Joined | None


def _batches(ledger: Ledger, hours: Sequence[datetime]) -> Iterator[list[datetime]]:
    """Consecutive hours that are metered in one transaction: few events each, so that memory is bounded."""
    with ledger.transaction() as connection:
        given = {"start": hours[0], "end": hours[-1] + HOUR} if hours else {"start": None, "end": None}
        events = {row.hour: row.events for row in connection.execute(_SIZES, given)}
    batch: list[datetime] = []
    size = 0
    for hour in hours:
        if batch and size + events.get(hour, 0) > BATCH_EVENTS:
            yield batch
            batch, size = [], 0
        batch.append(hour)
        size += events.get(hour, 0)
    if batch:
        yield batch


def _meter_batch(
    ledger: Ledger,
    lake: Lake,
    catalog: Catalog,
    hours: list[datetime],
    now: datetime,
    run_id: str,
    memory_limit: str | None,
    shard: Shard | None,
) -> _Batch:
    start, end = hours[0], hours[-1] + HOUR
    with ledger.transaction() as connection:
        waited = hours_turn(connection, "metering", hours, run_id=run_id, shard=shard)
        share = share_of(connection, shard)
        landed = connection.execute(LANDED, {"start": start, "end": end}).all()
        counted: Count | None = None
        revisions: list[tuple[datetime, str, str]] = []
        if landed:
            counted = count_landed(connection, lake, catalog, landed, start, end, share, memory_limit)
            revisions = write_quantities(connection, counted, start, end, now, run_id, share=share)
            _write_conflicts(connection, counted, now)
            if sources := with_witnesses(catalog):
                landings = {hour: len(of_hour) for hour, of_hour in _by_hour(landed).items()}
                with lake.at_hand([row.file for row in landed]) as files:
                    rows = witnessed(files, sources, landings, share=share, memory_limit=memory_limit)
                write_witnessed(connection, rows, now, run_id)
        rows_of_hours = _hours(hours, landed, counted, revisions, share)
        given = {"start": start, "end": end, "now": now, "run_id": run_id, **share.parameters}
        joined = None
        if shard is None:
            connection.execute(_RECOUNTED, given)
            connection.execute(_WRITE_HOURS, [{**given, **row} for row in rows_of_hours])
        else:
            joined = write_shards(connection, shard, share.layout, rows_of_hours, now, run_id)
        totals = {row.service: row.quantity for row in connection.execute(_TOTALS, given)}
    events = sum(row["events"] for row in rows_of_hours)
    return _Batch(events, counted, revisions, totals, waited, joined)


def count_landed(
    connection: Connection,
    lake: Lake,
    catalog: Catalog,
    landed: Sequence[Row[Any]],
    start: datetime,
    end: datetime,
    share: Share = ALL,
    memory_limit: str | None = None,
) -> Count:
    """The quantities of the files ``landed`` (rows of LANDED), which are all of the hours ``[start, end)``."""
    taken = _taken(connection, lake, start, end, catalog, share, memory_limit)
    with lake.at_hand([row.file for row in landed]) as files:
        counted = count(
            files,
            _cuts(catalog, start, end),
            aggregations={name: service.aggregation for name, service in catalog.services.items()},
            once_a_period=over_period(catalog),
            taken=taken,
            share=share,
            memory_limit=memory_limit,
        )
    return replace(counted, quantities=once_a_period(connection, catalog, counted, start, end))


def _taken(
    connection: Connection,
    lake: Lake,
    start: datetime,
    end: datetime,
    catalog: Catalog,
    share: Share,
    memory_limit: str | None,
) -> pa.Table | None:
    """The ids of ``[start, end)`` that belong to an event of another hour within the conflict window."""
    window = catalog.calendar.conflict_window
    if not window:
        return None
    landed = _by_hour(connection.execute(LANDED, {"start": start - window, "end": end + window}))
    newest = {hour: (hour, len(rows), max(row.landing_id for row in rows)) for hour, rows in landed.items()}
    indexes = {hour: lake.ids_file(*of_hour) for hour, of_hour in newest.items()}
    if not share.whole:
        # An index of all tenants does as well, where an hour was metered as a whole.
        missing = lake.missing(list(indexes.values()))
        of_share = {hour: lake.ids_file(*of_hour, share.name) for hour, of_hour in newest.items()}
        indexes |= {hour: of_share[hour] for hour, index in indexes.items() if index in missing}
    near = [Hour(hour, tuple(row.file for row in rows), indexes[hour]) for hour, rows in landed.items()]
    own = [hour for hour in near if start <= hour.hour < end]
    values = any(service.unique_by for service in catalog.services.values())
    return taken_elsewhere(lake, own, near, window, values=values, share=share, memory_limit=memory_limit)


def _by_hour(rows: Iterable[Row[Any]]) -> dict[datetime, list[Row[Any]]]:
    hours: dict[datetime, list[Row[Any]]] = {}
    for row in rows:
        hours.setdefault(row.hour, []).append(row)
    return hours


_SIZES = text("""
    SELECT hour, CAST(sum(events) AS bigint) AS events FROM landed_hours
    WHERE hour >= :start AND hour < :end GROUP BY hour
""")
LANDED = text("""
    SELECT landing_id, hour, events, file FROM landed_hours WHERE hour >= :start AND hour < :end
    ORDER BY landing_id, hour
""")
# Hours that landings behind the mark touch, and hours that another one has changed: not all hours there ever were.
_TOUCHED = """
    WITH touched AS (
        SELECT DISTINCT hour FROM landed_hours
        WHERE landing_id > (SELECT coalesce(max(through), 0) FROM landings_mark)),
    looked_at AS (
        SELECT t.hour, l.landings, coalesce(c.asked, 0) AS asked, m.landings AS counted,
               l.landings > m.landings OR c.asked > c.done AS late
        FROM (SELECT hour FROM touched UNION SELECT hour FROM hour_recounts WHERE asked > done) t
        LEFT JOIN hour_recounts c USING (hour)
        CROSS JOIN LATERAL (SELECT count(*) AS landings FROM landed_hours WHERE hour = t.hour) l
        CROSS JOIN LATERAL (SELECT max(landings) AS landings FROM metered_hours WHERE hour = t.hour) m)
"""
_LATE = text(f"""{_TOUCHED}
    SELECT hour, landings + asked AS landings FROM looked_at
    WHERE hour < :before AND (CAST(:after AS timestamptz) IS NULL OR hour > CAST(:after AS timestamptz))
      AND (late OR counted IS NULL AND hour < CAST(:missed_before AS timestamptz))
    ORDER BY hour LIMIT :limit
""")  # noqa: S608 - both parts are constants
# A transaction that began long ago may yet commit landings of smaller numbers: those of the last day stay in view.
_MARK = text(f"""{_TOUCHED}
    , reached AS (
        SELECT CASE WHEN newest IS NOT NULL THEN least(newest, due - 1) END AS through
        FROM (SELECT max(id) AS newest FROM landings WHERE landed_at < :settled) s,
             (SELECT min(h.landing_id) AS due FROM landed_hours h JOIN looked_at USING (hour)
              WHERE (late OR counted IS NULL)
                AND h.landing_id > (SELECT coalesce(max(through), 0) FROM landings_mark)) d)
    INSERT INTO landings_mark (through, marked_at)
    SELECT through, :now FROM reached WHERE through > (SELECT coalesce(max(through), 0) FROM landings_mark) + :step
    ON CONFLICT DO NOTHING
""")  # noqa: S608 - both parts are constants
_RECOUNTED = text("UPDATE hour_recounts SET done = asked WHERE hour >= :start AND hour < :end AND done < asked")
_TOTALS = text(f"""
    SELECT service, sum(quantity) AS quantity FROM (
        SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) service, quantity FROM metered_usage
        WHERE hour >= :start AND hour < :end AND {in_share("tenant_id")}
        ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC) c
    GROUP BY service ORDER BY service
""")  # noqa: S608 - of constants
# A quantity that is gone (its events moved to another name) becomes zero: nothing is ever deleted.
_REVISE = text(f"""
    WITH held AS (
        SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) *
        FROM metered_usage WHERE hour >= :start AND hour < :end AND {in_share("tenant_id")}
          AND (CAST(:tenants AS text[]) IS NULL
               OR tenant_id = ANY(CAST(:tenants AS text[])) AND window_start < CAST(:until AS timestamptz))
        ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC)
    INSERT INTO metered_usage (hour, tenant_id, service, dimensions, window_start, revision, quantity, events,
                               reason, metered_at, run_id)
    SELECT hour, tenant_id, service, dimensions, window_start, coalesce(h.revision, 0) + 1,
           coalesce(c.quantity, 0), coalesce(c.events, 0),
           CASE WHEN h.revision IS NULL AND m.hour IS NULL THEN 'first'
                WHEN coalesce(c.events, 0) > coalesce(h.events, 0) THEN 'late' ELSE 'corrected' END,
           :now, :run_id
    FROM counted c FULL JOIN held h USING (hour, tenant_id, service, dimensions, window_start)
    LEFT JOIN (SELECT hour FROM metered_hours WHERE hour >= :start AND hour < :end UNION {METERED_BEFORE}) m
        USING (hour)
    WHERE coalesce(c.quantity, 0) IS DISTINCT FROM h.quantity
    RETURNING hour, tenant_id, reason
""")  # noqa: S608 - of constants


def write_quantities(
    connection: Connection,
    counted: Count,
    start: datetime,
    end: datetime,
    now: datetime,
    run_id: str,
    tenants: Sequence[str] | None = None,
    until: datetime | None = None,
    share: Share = ALL,
) -> list[tuple[datetime, str, str]]:
    """Revises what the hours ``[start, end)`` hold of ``share``, or of ``tenants``' windows before ``until`` alone.

    Returns hour, tenant and reason of each new revision.
    """
    connection.execute(
        text(
            "CREATE TEMP TABLE counted (hour timestamptz, tenant_id text, service text, dimensions text, "
            "window_start timestamptz, quantity numeric(38, 12), events bigint) ON COMMIT DROP"
        )
    )
    copy_arrow(connection, "counted", counted.quantities)
    given: dict[str, Any] = {"start": start, "end": end, "now": now, "run_id": run_id}
    given |= {"tenants": tenants, "until": until, **share.parameters}
    written = connection.execute(_REVISE, given)
    return [(row.hour, row.tenant_id, row.reason) for row in written]


def _write_conflicts(connection: Connection, counted: Count, now: datetime) -> None:
    found = [
        {
            "source": row["source"],
            "uri": row["uri"],
            # A line can bear several events, each with a contradiction of its own.
            "place": f"line {row['line']}, byte {row['byte_offset']}, {row['service']} of {row['event_id']}",
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
    said = ("service", "dimensions", "quantity", "event_time", "unique_value")
    differing = [name for name in said if row[name] != first[name]]
    return (
        f"the event id {row['event_id']!r} was used before with another {' and '.join(differing)}; "
        "the first one is billed. Give each usage event an id of its own"
    )


def _hours(
    hours: list[datetime],
    landed: Sequence[Row[Any]],
    counted: Count | None,
    revisions: list[tuple[datetime, str, str]],
    share: Share,
) -> list[dict[str, Any]]:
    """What became of each hour's events: those of the share."""
    landings = _by_hour(landed)
    repeats = counted.repeats if counted else {}
    conflicts = Counter(counted.conflicts["hour"].to_pylist()) if counted else Counter()
    changed = Counter(hour for hour, _, _ in revisions)
    events: Mapping[datetime, int] = counted.events if counted else {}
    if share.whole:
        events = {hour: sum(row.events for row in of_hour) for hour, of_hour in landings.items()}
    return [
        {
            "hour": hour,
            "landings": len(landings.get(hour, ())),
            "landed": sum(row.events for row in landings.get(hour, ())),
            "events": events.get(hour, 0),
            "duplicates": repeats.get(hour, 0) - conflicts[hour],
            "conflicts": conflicts[hour],
            "changed": changed[hour],
        }
        for hour in hours
    ]


_WRITE_HOURS = text("""
    INSERT INTO metered_hours (hour, landings, events, duplicates, conflicts, changed, metered_at, run_id)
    VALUES (:hour, :landings, :events, :duplicates, :conflicts, :changed, :now, :run_id)
    ON CONFLICT DO NOTHING
""")


def _cuts(catalog: Catalog, start: datetime, end: datetime) -> Iterator[Cut]:
    """The hours of ``[start, end)`` that a tenant's period boundary cuts in two."""
    alike: dict[tuple[str, Cadence], list[str]] = {}
    for tenant_id, tenant in catalog.tenants.items():
        alike.setdefault((tenant.time_zone, tenant.cadence), []).append(tenant_id)
    for tenants in alike.values():
        tenant = catalog.tenants[tenants[0]]
        boundary = tenant.period_at(start).end
        while boundary < end:
            hour = utc_hour(boundary)
            if hour != boundary:
                yield from ((tenant_id, hour, boundary) for tenant_id in tenants)
            boundary = tenant.period_at(boundary).end


def _result(hours: list[datetime], batches: Sequence[_Batch], shard: Shard | None) -> Metered:
    counts = [batch.counted for batch in batches if batch.counted]
    events = sum(batch.events for batch in batches)
    repeats = sum(sum(counted.repeats.values()) for counted in counts)
    conflicts = sum(counted.conflicts.num_rows for counted in counts)
    kept = sum(sum(counted.quantities["events"].to_pylist()) for counted in counts)
    summed: dict[str, list[Decimal]] = {}
    booked: dict[str, list[Decimal]] = {}
    for counted in counts:
        for service, quantity in zip(
            *(counted.quantities[name].to_pylist() for name in ("service", "quantity")), strict=True
        ):
            summed.setdefault(service, []).append(quantity)
    for batch in batches:
        for service, quantity in batch.totals.items():
            booked.setdefault(service, []).append(quantity)
    quantities = {service: total(parts) for service, parts in sorted(booked.items())}
    revisions = [reason for batch in batches for _, _, reason in batch.revisions]
    joined = [batch.joined for batch in batches if batch.joined]
    return Metered(
        hours=len(hours),
        events=events,
        duplicates=repeats - conflicts,
        conflicts=conflicts,
        rows=sum(counted.quantities.num_rows for counted in counts),
        new_revisions=len(revisions),
        late_revisions=sum(reason != "first" for reason in revisions),
        quantities=quantities,
        checks=(
            Check(
                "conservation",
                events - repeats == kept
                and not any(each.lost for each in joined)
                and all(quantity == total(summed.get(service, ())) for service, quantity in quantities.items()),
                "Accepted events minus duplicates and conflicts are what was metered, exactly.",
                {
                    "events": events,
                    "duplicates": repeats - conflicts,
                    "conflicts": conflicts,
                    "metered": kept,
                    "in_no_shard": sum(each.lost for each in joined) if shard else None,
                },
            ),
        ),
        shard=str(shard) if shard else None,
        awaited_shards=tuple(sorted({number for each in joined for number in each.awaited})) if shard else None,
        waited_for=whom({run for batch in batches for run in batch.waited}),
    )
