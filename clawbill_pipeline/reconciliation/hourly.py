"""Compares the books hour by hour, in DuckDB: raw events, metered, rated, sent. Finds causes; no ledger, no clock.

What only shows over a whole period (Stripe's totals, invoices) is compared in ``totals``.
"""

# ruff: noqa: S608 -- queries are put together from constants of this file; every value is a parameter

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import duckdb
import pyarrow as pa

from clawbill_pipeline.catalog import Calendar


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference between two steps in one hour: the later step less the earlier, so what is missing is negative.

    Before rating ``quantity`` counts, in the service's unit; after it ``units``, in whole units at Stripe.
    ``rated_quantity`` and ``rated_units`` are what is rated for the whole hour.
    """

    tenant_id: str
    service: str
    hour: datetime
    step: str
    cause: str
    quantity: Decimal
    units: Decimal
    rated_quantity: Decimal
    rated_units: Decimal
    detail: str


@dataclass(frozen=True, slots=True)
class Total:
    """What one tenant and service come to over the period, as far as the ledger's own books go.

    ``units`` are planned, ``sent`` acknowledged, ``sent_by_final`` acknowledged before the invoice became final,
    all in whole units at Stripe. ``settled_at`` is the newest acknowledgement.
    """

    tenant_id: str
    service: str
    rated_quantity: Decimal
    rated_amount: Decimal
    rated_units: Decimal
    exact_units: Decimal
    units: Decimal
    sent: Decimal | None
    sent_by_final: Decimal
    settled_at: datetime | None


@dataclass(frozen=True, slots=True)
class SentHour:
    """One hour of a tenant's service as acknowledged, and as Stripe holds it; see ``Total`` for the units.

    ``held`` is None where Stripe's hours were not read, or agreed. ``values`` are the values that were acknowledged one
    by one, ``open_units`` what a call of unknown outcome would add.
    """

    hour: datetime
    sent: Decimal
    sent_by_final: Decimal
    held: Decimal | None
    open_units: Decimal
    settled_at: datetime | None
    values: frozenset[Decimal]
    rated_quantity: Decimal
    rated_units: Decimal


#: How long rated usage may wait to be planned before the wait itself is a fault: one run of the hourly schedule.
PLANNING = timedelta(hours=1)

# Only what differs is kept and classified: nearly all rows agree.
_METERED_RATED = """
CREATE TEMP TABLE metered_rated AS
WITH differing AS (
  SELECT coalesce(m.hour, r.hour) AS hour, coalesce(m.tenant_id, r.tenant_id) AS tenant_id,
    coalesce(m.service, r.service) AS service, coalesce(m.dimensions, r.dimensions) AS dimensions,
    coalesce(m.window_start, r.window_start) AS window_start, m.revision, coalesce(m.quantity, 0) AS metered,
    coalesce(r.quantity, 0) AS rated, m.tenant_id IS NOT NULL AS was_metered, r.tenant_id IS NOT NULL AS was_rated
  FROM metered m
  FULL JOIN rated r ON r.hour = m.hour AND r.tenant_id = m.tenant_id AND r.service = m.service
    AND r.dimensions = m.dimensions AND r.window_start = m.window_start
  WHERE coalesce(m.quantity, 0) <> coalesce(r.quantity, 0))
SELECT d.*,
  CASE WHEN f.kind = 'unmapped' THEN 'unmapped_tenant'
       WHEN f.kind = 'refused' THEN 'rating_refused'
       WHEN NOT was_metered THEN 'unexplained'
       WHEN NOT was_rated AND t.tenant_id IS NULL THEN 'unmapped_tenant'
       ELSE 'not_rated' END AS cause,
  coalesce(f.error, CASE WHEN NOT was_metered THEN 'rated, but never metered'
                         WHEN NOT was_rated THEN 'no amount yet' ELSE 'rated at an older quantity' END) AS detail
FROM differing d
LEFT JOIN failures f ON f.hour = d.hour AND f.tenant_id = d.tenant_id AND f.service = d.service
  AND f.dimensions = d.dimensions AND f.window_start = d.window_start AND f.metered_revision = d.revision
LEFT JOIN tenants t ON t.tenant_id = d.tenant_id
"""
# Every step on one row an hour: one aggregation over all steps costs less than joining them.
_HOURLY = """
CREATE TEMP TABLE hourly AS
WITH steps AS (
  SELECT tenant_id, service, hour, quantity AS raw, events AS raw_events FROM events
  UNION ALL BY NAME SELECT tenant_id, service, hour, quantity AS metered, events FROM metered
  UNION ALL BY NAME SELECT tenant_id, service, hour, quantity AS rated, amount, rated_at FROM rated
  UNION ALL BY NAME SELECT tenant_id, service, hour, units, exact_units FROM records),
summed AS (
  SELECT tenant_id, service, hour, coalesce(sum(raw), 0) AS raw, coalesce(sum(raw_events), 0) AS raw_events,
    coalesce(sum(metered), 0) AS metered, coalesce(sum(events), 0) AS events, coalesce(sum(rated), 0) AS rated,
    coalesce(sum(amount), 0) AS amount, max(rated_at) AS rated_at, sum(units) AS units,
    coalesce(sum(exact_units), 0) AS exact_units
  FROM steps GROUP BY tenant_id, service, hour)
SELECT s.*, s.units IS NOT NULL AS planned,
  CASE WHEN coalesce(p.by_amount, true) THEN amount * 1000000
       ELSE rated * CAST(p.scale AS DECIMAL(19, 0)) END AS rated_units
FROM summed s LEFT JOIN services p USING (service)
"""
_DIFFERENCES = """
WITH raw_metered AS (
  SELECT h.tenant_id, h.service, h.hour, 'landed_metered' AS step,
    CASE WHEN metered > raw AND events > raw_events AND raw > 0 THEN 'counted_twice'
         WHEN metered > raw THEN 'not_landed'
         WHEN (g.counted IS NULL OR g.landed > g.counted)
           AND greatest(h.hour + INTERVAL 1 HOUR, g.landed_at) + $metering_lag > $now THEN 'pending'
         ELSE 'not_metered' END AS cause,
    metered - raw AS quantity, NULL AS units, rated AS rated_quantity, rated_units,
    CASE WHEN metered > raw THEN 'metered ' || events || ' events; the lake holds ' || raw_events
         WHEN g.counted IS NULL AND g.shards IS NOT NULL THEN 'of the hour only shards ' || g.shards || ' are metered'
         WHEN g.counted IS NULL THEN 'the hour was never metered'
         WHEN g.landed > g.counted THEN 'a file landed after the hour was metered'
         ELSE 'the lake holds ' || raw_events || ' events; ' || events || ' were metered' END AS detail
  FROM hourly h LEFT JOIN hours g USING (hour) WHERE raw <> metered),
metered_rated AS (
  SELECT m.tenant_id, m.service, m.hour, 'metered_rated' AS step, m.cause, sum(m.rated - m.metered) AS quantity,
    NULL AS units, any_value(h.rated) AS rated_quantity, any_value(h.rated_units) AS rated_units,
    min(m.detail) AS detail
  FROM metered_rated m JOIN hourly h USING (tenant_id, service, hour) GROUP BY ALL),
rated_planned AS (
  SELECT h.tenant_id, h.service, h.hour, 'rated_sent' AS step,
    CASE WHEN p.tenant_id IS NULL AND NOT h.planned THEN 'unmapped_tenant'
         WHEN h.rated_at IS NULL THEN 'unexplained'
         WHEN h.rated_at > f.finalized_at THEN 'late_after_finalisation'
         WHEN h.rated_at + $planning > $now THEN 'pending'
         ELSE 'not_sent' END AS cause,
    NULL AS quantity, exact_units - rated_units AS units, rated AS rated_quantity, rated_units,
    CASE WHEN p.tenant_id IS NULL AND NOT h.planned THEN 'no customer and subscription item at Stripe'
         WHEN h.rated_at IS NULL THEN 'planned for Stripe, but never rated'
         WHEN h.planned THEN 'the usage record is of an older amount' ELSE 'no usage record is planned' END AS detail
  FROM hourly h LEFT JOIN mapped p USING (tenant_id, service) LEFT JOIN finals f USING (tenant_id, service)
  WHERE exact_units <> rated_units),
open_records AS (
  SELECT *, CASE WHEN parked IS NOT NULL THEN 'parked' WHEN state = 'rejected' THEN 'rejected'
                 WHEN state = 'delivered' THEN 'unexplained' ELSE 'pending' END AS cause,
    CASE WHEN cause = 'pending' THEN 'the usage record is ' || state
         ELSE coalesce(parked, error, 'without a reason on record') END AS detail
  FROM records WHERE delivered <> units),
planned_sent AS (
  SELECT o.tenant_id, o.service, o.hour, 'rated_sent' AS step, o.cause, NULL AS quantity,
    sum(o.delivered - o.units) AS units, any_value(h.rated) AS rated_quantity,
    any_value(h.rated_units) AS rated_units, min(o.detail) AS detail
  FROM open_records o JOIN hourly h USING (tenant_id, service, hour)
  GROUP BY o.tenant_id, o.service, o.hour, o.cause HAVING sum(o.delivered - o.units) <> 0)
SELECT tenant_id, service, hour, step, cause, CAST(coalesce(quantity, 0) AS DECIMAL(38, 12)),
  CAST(coalesce(units, 0) AS DECIMAL(38, 12)), rated_quantity, rated_units, detail
FROM (FROM raw_metered UNION ALL BY NAME FROM metered_rated UNION ALL BY NAME FROM rated_planned
      UNION ALL BY NAME FROM planned_sent)
ORDER BY ALL
"""
_TOTALS = """
WITH sent AS (
  SELECT tenant_id, service, sum(delivered) AS sent, sum(delivered_by_final) AS sent_by_final,
    max(settled_at) AS settled_at
  FROM records WHERE settled_at IS NOT NULL GROUP BY ALL)
SELECT h.tenant_id, h.service, sum(h.rated), sum(h.amount), sum(h.rated_units), sum(h.exact_units),
  CAST(coalesce(sum(h.units), 0) AS DECIMAL(38, 12)), any_value(s.sent),
  coalesce(any_value(s.sent_by_final), 0), any_value(s.settled_at)
FROM hourly h LEFT JOIN sent s USING (tenant_id, service) GROUP BY ALL ORDER BY ALL
"""
# Stripe holds one sum for tenants that share a customer: it is beside the payer.
_OF_PAYERS = """
WITH paid_records AS (
  SELECT r.* REPLACE (coalesce(p.payer_id, r.tenant_id) AS tenant_id)
  FROM records r LEFT JOIN payers p ON p.tenant_id = r.tenant_id),
paid_hours AS (
  SELECT coalesce(p.payer_id, h.tenant_id) AS tenant_id, h.service, h.hour, sum(h.rated) AS rated,
    sum(h.rated_units) AS rated_units
  FROM hourly h LEFT JOIN payers p ON p.tenant_id = h.tenant_id GROUP BY ALL),
"""
_SENT_HOURS = f"""
{_OF_PAYERS} o AS (
  SELECT tenant_id, service, hour, sum(delivered) AS sent, sum(delivered_by_final) AS sent_by_final,
    coalesce(sum(units - delivered) FILTER (WHERE state IN ('sending', 'unknown')), 0) AS open_units,
    max(settled_at) AS settled_at, string_agg("values", ' ') AS "values"
  FROM paid_records GROUP BY ALL)
SELECT tenant_id, service, hour, CAST(coalesce(o.sent, 0) AS DECIMAL(38, 12)),
  CAST(coalesce(o.sent_by_final, 0) AS DECIMAL(38, 12)), g.units,
  CAST(coalesce(o.open_units, 0) AS DECIMAL(38, 12)), o.settled_at, coalesce(o."values", ''),
  CAST(coalesce(h.rated, 0) AS DECIMAL(38, 12)), CAST(coalesce(h.rated_units, 0) AS DECIMAL(38, 12))
FROM o FULL JOIN held_hours g USING (tenant_id, service, hour)
LEFT JOIN paid_hours h USING (tenant_id, service, hour) JOIN chosen USING (tenant_id, service)
ORDER BY tenant_id, service, hour
"""

_APART = f"""
{_OF_PAYERS} o AS (SELECT tenant_id, service, hour, sum(delivered) AS sent FROM paid_records SEMI JOIN held_hours
  USING (tenant_id, service, hour) GROUP BY ALL)
SELECT DISTINCT tenant_id, service FROM held_hours g LEFT JOIN o USING (tenant_id, service, hour)
WHERE g.units <> coalesce(o.sent, 0)
"""


def compare_hours(db: duckdb.DuckDBPyConnection, calendar: Calendar, now: datetime) -> Iterator[Difference]:
    """Every difference between raw events, metered, rated and sent usage, with its cause. None cancels another.

    Leaves table ``hourly`` behind, which ``read_totals`` and ``read_sent_hours`` go on from.
    """
    for statement in (_METERED_RATED, _HOURLY):
        db.execute(statement)
    result = db.execute(_DIFFERENCES, {"now": now, "metering_lag": calendar.metering_lag, "planning": PLANNING})
    while rows := result.fetchmany(10_000):
        yield from (Difference(*row) for row in rows)


def read_apart(db: duckdb.DuckDBPyConnection) -> set[tuple[str, str]]:
    """Tenants and services of which Stripe holds something else in an hour that was read, whatever the total says."""
    return {(row[0], row[1]) for row in db.execute(_APART).fetchall()}


def read_totals(db: duckdb.DuckDBPyConnection) -> dict[tuple[str, str], Total]:
    """What each tenant and service come to over the period."""
    return {(row[0], row[1]): Total(*row) for row in db.execute(_TOTALS).fetchall()}


def read_sent_hours(
    db: duckdb.DuckDBPyConnection, chosen: list[tuple[str, str]]
) -> dict[tuple[str, str], list[SentHour]]:
    """The hours of the chosen tenants and services, acknowledged beside held."""
    names = {"tenant_id": [tenant_id for tenant_id, _ in chosen], "service": [service for _, service in chosen]}
    db.register("chosen", pa.table(names, schema=pa.schema([("tenant_id", pa.string()), ("service", pa.string())])))
    hours: dict[tuple[str, str], list[SentHour]] = {}
    for tenant_id, service, hour, sent, by_final, held, open_units, settled_at, values, *rated in db.execute(
        _SENT_HOURS
    ).fetchall():
        acknowledged = frozenset(Decimal(value) for value in values.split())
        hours.setdefault((tenant_id, service), []).append(
            SentHour(hour, sent, by_final, held, open_units, settled_at, acknowledged, *rated)
        )
    return hours
