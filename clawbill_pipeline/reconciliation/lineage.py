"""From an invoice line down to its usage events, with file and offset, and up again: does it still come out the same?

Reads only. The way down is what the ledger wrote; the way up is counted again from the lake, so that an event that
was altered or lost since shows.
"""

# ruff: noqa: S608 -- queries are put together from constants; every value is a parameter

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog, Period
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.duck import duck
from clawbill_pipeline.lake import Lake, portions
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.archive import looking_into
from clawbill_pipeline.ledger.sharing import read_sharing
from clawbill_pipeline.ledger.waterfall import unit_scale
from clawbill_pipeline.money import EXACT, invoice_amount, plain, total
from clawbill_pipeline.reconciliation.recount import recount, way
from clawbill_pipeline.results import Check

ZERO = Decimal(0)


class UnknownLine(LookupError):
    """No invoice line of that id is in the ledger, or it bills no tenant's service. The message says which."""


@dataclass(frozen=True)
class Line:
    """The invoice line. ``quantity`` are whole units at Stripe."""

    invoice_id: str
    line_id: str
    number: str | None
    status: str
    tenant_id: str
    service: str
    quantity: Decimal | None
    amount: Decimal
    currency: str
    finalized_at: datetime | None
    period: Period


@dataclass(frozen=True)
class Window:
    """One metered window: what was counted then and now, what OpenClaw answered, what was booked for it."""

    window_start: datetime
    dimensions: str
    metered_quantity: Decimal
    metered_revision: int
    counted_quantity: Decimal
    rated_quantity: Decimal | None
    amount: Decimal | None
    rate_card_version: str | None
    basis: str | None
    asked_quantity: Decimal | None
    answered_amount: Decimal | None
    tenant_id: str


@dataclass(frozen=True)
class Record:
    """A usage record as it went to Stripe."""

    identifier: str
    window_start: datetime
    revision: int
    units: Decimal
    state: str
    settled_at: datetime | None


@dataclass(frozen=True)
class Event:
    """A usage event and where it came from. ``counted`` is False for a duplicate of an earlier one."""

    event_id: str
    event_time: datetime
    quantity: Decimal
    dimensions: str
    source: str
    uri: str
    line: int
    byte_offset: int
    landing_id: int
    counted: bool
    tenant_id: str


@dataclass(frozen=True)
class Lineage:
    """All that is behind an invoice line. ``events`` are the first of ``event_count``, by time.

    ``derived_amount`` is what the line should show by the records that were acknowledged before it became final;
    None where Stripe alone knows the price (a service billed by quantity). ``parts`` is the rated amount by tenant,
    the payer's first: more than one where tenants share the customer.
    """

    line: Line
    windows: tuple[Window, ...]
    records: tuple[Record, ...]
    events: tuple[Event, ...]
    event_count: int
    rated_amount: Decimal
    derived_amount: Decimal | None
    checks: tuple[Check, ...]
    parts: dict[str, Decimal]


def explain(
    ledger: Ledger,
    lake: Lake,
    catalog: Catalog,
    invoice_line_id: str,
    *,
    limit: int = 1000,
    every_byte: bool = False,
) -> Lineage:
    """What the invoice line ``invoice_line_id`` (``il_…``) is made of, with at most ``limit`` of its usage events.

    Quantities are counted again in any case; with ``every_byte`` the lake's files are hashed as well, so that changes
    which come to the same quantity are told, too. Raises UnknownLine.
    """
    with ledger.transaction() as connection:
        line = _read_line(connection, catalog, invoice_line_id)
        tenants = [line.tenant_id, *read_sharing(connection).others(line.tenant_id)]
    first_hour = utc_hour(line.period.start)
    given = {
        "tenants": tenants,
        "service": line.service,
        "starts": line.period.start,
        "ends": line.period.end,
        "first_hour": first_hour,
    }
    with looking_into(ledger, lake, first_hour, line.period.end, tenants) as connection:
        booked = connection.execute(text(_WINDOWS), given).all()
        records = tuple(Record(**row._mapping) for row in connection.execute(text(_RECORDS), given))
        landed = connection.execute(text(_FILES), given).all()
        conflicts = [
            (r.tenant_id, r.landing_id, r.uri, r.place, r.raw) for r in connection.execute(text(_CONFLICTS), given)
        ]
    held = lake.rows([row.file for row in landed])
    missing = [row.file for row in landed if held[row.file] != row.events]
    if every_byte:
        digests = lake.digests([row.file for row in landed if row.sha256])
        missing += [
            row.file for row in landed if row.sha256 and row.file not in missing and digests[row.file] != row.sha256
        ]
    whole = [(row.hour, row.file, row.events) for row in landed if held[row.file]]
    how = way(catalog, line.service)
    events, count, counted = _read_events(lake, whole, conflicts, line, how, tenants, limit)
    windows = _windows(booked, counted)
    parts = {each: total(w.amount or ZERO for w in windows if w.tenant_id == each) for each in tenants}
    derived = _derived(catalog, line, records)
    return Lineage(
        line,
        windows,
        records,
        events,
        count,
        total(parts.values()),
        derived,
        _checks(line, windows, missing, derived, every_byte),
        parts,
    )


# --- the ledger ------------------------------------------------------------------------------------------------------


def _read_line(connection: Connection, catalog: Catalog, line_id: str) -> Line:
    row = connection.execute(
        text(
            "SELECT invoice_id, line_id, number, status, l.tenant_id, service, quantity, amount, l.currency,"
            " finalized_at, period_start, period_end FROM invoice_lines l JOIN invoices USING (invoice_id)"
            " WHERE line_id = :id"
        ),
        {"id": line_id},
    ).first()
    if row is None:
        raise UnknownLine(f"no invoice line {line_id!r} is in the ledger; give an id that begins with il_")
    if row.tenant_id is None or row.service is None:
        raise UnknownLine(f"invoice line {line_id!r} bills no tenant's service: it is not made of usage")
    tenant = catalog.tenants.get(row.tenant_id)
    period = tenant.period_at(row.period_start) if tenant else Period(row.period_start, row.period_end, "")
    return Line(
        row.invoice_id, row.line_id, row.number, row.status, row.tenant_id, row.service, row.quantity, row.amount,
        row.currency, row.finalized_at, period,
    )  # fmt: skip


_OF_LINE = (
    "tenant_id = ANY(CAST(:tenants AS text[])) AND service = :service AND hour >= :first_hour AND hour < :ends"
    " AND window_start >= :starts AND window_start < :ends"
)
_WINDOWS = f"""
WITH m AS (
  SELECT DISTINCT ON (hour, tenant_id, dimensions, window_start) * FROM metered_usage WHERE {_OF_LINE}
  ORDER BY hour, tenant_id, dimensions, window_start, revision DESC),
r AS (
  SELECT DISTINCT ON (hour, tenant_id, dimensions, window_start) * FROM rated_usage WHERE {_OF_LINE}
  ORDER BY hour, tenant_id, dimensions, window_start, revision DESC)
SELECT tenant_id, window_start, dimensions, coalesce(m.quantity, 0) AS metered_quantity,
  coalesce(m.revision, 0) AS metered_revision, r.quantity AS rated_quantity, r.amount, r.rate_card_version, r.basis,
  r.asked_quantity, r.answered_amount
FROM m FULL JOIN r USING (hour, tenant_id, dimensions, window_start)"""
_RECORDS = f"""
SELECT identifier, window_start, revision, units, state, settled_at FROM usage_records WHERE {_OF_LINE}
ORDER BY window_start, revision"""
_FILES = "SELECT hour, file, events, sha256 FROM landed_hours WHERE hour >= :first_hour AND hour < :ends ORDER BY file"
_CONFLICTS = """
SELECT tenant_id, landing_id, uri, place, raw FROM quarantine
WHERE reason = 'conflict' AND tenant_id = ANY(CAST(:tenants AS text[])) AND landing_id IN (
  SELECT landing_id FROM landed_hours WHERE hour >= :first_hour AND hour < :ends)"""


# --- the lake --------------------------------------------------------------------------------------------------------

# As metering counts: the first event of an id in an hour stands, conflicts are set aside.
_EVENTS = """
WITH held AS (
  SELECT NULL::VARCHAR AS unique_value WHERE false
  UNION ALL BY NAME FROM read_parquet($files, union_by_name = true))
SELECT event_id, event_time, quantity, dimensions, source, uri, line, byte_offset, landing_id, service, tenant_id,
  coalesce(unique_value, '') AS unique_value,
  row_number() OVER (PARTITION BY tenant_id, source, event_id, date_trunc('hour', event_time)
                     ORDER BY landing_id, line) = 1 AS counted
FROM held e
WHERE list_contains($tenants, tenant_id)
  AND NOT EXISTS (SELECT 1 FROM conflicts c WHERE c.landing_id = e.landing_id AND c.uri = e.uri
                  AND c.tenant_id = e.tenant_id
                  AND c.place = 'line ' || e.line || ', byte ' || e.byte_offset
                  AND starts_with(c.raw, e.event_id || ' ' || e.service || ' '))
"""
_OF_PERIOD = "service = $service AND event_time >= $starts AND event_time < $ends"


_Counted = dict[tuple[str, datetime, str], Decimal]


def _read_events(
    lake: Lake,
    landed: Sequence[tuple[datetime, str, int]],
    conflicts: Sequence[tuple[Any, ...]],
    line: Line,
    how: str,
    tenants: Sequence[str],
    limit: int,
) -> tuple[tuple[Event, ...], int, _Counted]:
    """The first events of the line, how many there are, and what they count to by tenant, window and dimensions.

    ``how`` they are counted is ``recount``'s to know.
    """
    if not landed:
        return (), 0, {}
    given = {"service": line.service, "starts": line.period.start, "ends": line.period.end}
    with duck(memory_limit=lake.memory_limit) as db:
        db.execute(
            "CREATE TABLE conflicts (tenant_id VARCHAR, landing_id BIGINT, uri VARCHAR, place VARCHAR, raw VARCHAR)"
        )
        if conflicts:
            db.executemany("INSERT INTO conflicts VALUES (?, ?, ?, ?, ?)", conflicts)
        for number, files in enumerate(portions(landed)):
            with lake.at_hand(files) as paths:
                into = "INSERT INTO traced" if number else "CREATE TEMP TABLE traced AS"
                db.execute(into + _EVENTS, {"files": paths, "tenants": list(tenants)})
        events = db.execute(
            "SELECT event_id, event_time, quantity, dimensions, source, uri, line, byte_offset, landing_id, counted,"
            f" tenant_id FROM traced WHERE {_OF_PERIOD} ORDER BY event_time, event_id, landing_id, line"
            f" LIMIT {int(limit)}",
            given,
        ).fetchall()
        db.execute(
            "CREATE TEMP TABLE of_line AS SELECT *, greatest(date_trunc('hour', event_time), $starts) AS window_start,"
            " least(date_trunc('hour', event_time) + INTERVAL 1 HOUR, $ends) AS window_end"
            f" FROM traced WHERE counted AND {_OF_PERIOD}",
            given,
        )
        recount(db, "of_line", how, "recounted")
        counted = db.execute("SELECT tenant_id, window_start, dimensions, quantity FROM recounted").fetchall()
        every = db.execute(f"SELECT count(*) FROM traced WHERE {_OF_PERIOD}", given).fetchone()
    count = int(every[0]) if every else 0
    return tuple(Event(*row) for row in events), count, {tuple(key): quantity for *key, quantity in counted}


# --- up again --------------------------------------------------------------------------------------------------------


def _windows(booked: Sequence[Any], counted: _Counted) -> tuple[Window, ...]:
    """Every window that was metered or that has events now, in order."""
    rest = dict(counted)
    windows = []
    for row in booked:
        windows.append(
            Window(
                row.window_start, row.dimensions, row.metered_quantity, row.metered_revision,
                rest.pop((row.tenant_id, row.window_start, row.dimensions), ZERO), row.rated_quantity, row.amount,
                row.rate_card_version, row.basis, row.asked_quantity, row.answered_amount, row.tenant_id,
            )
        )  # fmt: skip
    for (tenant_id, window_start, dimensions), quantity in rest.items():
        windows.append(
            Window(window_start, dimensions, ZERO, 0, quantity, None, None, None, None, None, None, tenant_id)
        )  # fmt: skip
    return tuple(sorted(windows, key=lambda window: (window.window_start, window.tenant_id, window.dimensions)))


def _derived(catalog: Catalog, line: Line, records: Sequence[Record]) -> Decimal | None:
    """The line's amount by the records that Stripe acknowledged before the invoice became final."""
    service = catalog.services.get(line.service)
    if service is None or service.bill_by != "amount":
        return None
    newest: dict[datetime, Decimal] = {}
    for record in records:
        final, settled = line.finalized_at, record.settled_at
        if record.state == "delivered" and settled and (final is None or settled <= final):
            newest[record.window_start] = record.units
    with localcontext(EXACT):
        return invoice_amount(total(newest.values()) / unit_scale(catalog, line.service), line.currency)


def _checks(
    line: Line, windows: Sequence[Window], damaged: Sequence[str], derived: Decimal | None, every_byte: bool
) -> tuple[Check, ...]:
    files = "as it was written" if every_byte else "whole"
    altered = [window for window in windows if window.counted_quantity != window.metered_quantity]
    unrated = [window for window in windows if (window.rated_quantity or ZERO) != window.metered_quantity]
    first = ""
    if altered:
        at, then, now = altered[0].window_start, altered[0].metered_quantity, altered[0].counted_quantity
        first = f"{at:%Y-%m-%d %H:%M}: metered {plain(then)}, now {plain(now)}"
    return (
        Check(
            "events_unaltered",
            not altered and not damaged,
            f"The events in the lake still come to what was metered, and every lake file is {files}.",
            {
                "altered_windows": len(altered),
                "damaged_files": len(damaged),
                "first": first,
            },
        ),
        Check(
            "everything_rated",
            not unrated,
            "Every metered window is rated at its newest quantity.",
            {"unrated_windows": len(unrated)},
        ),
        Check(
            "amount_derived",
            derived is None or derived == line.amount,
            "The usage records that were acknowledged in time come to the line's amount.",
            {"derived": derived, "invoiced": line.amount},
        ),
    )
