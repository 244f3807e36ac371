"""From rated usage to the outbox: which whole units each window sends, and the rows that say so. Sends nothing.

A usage record is one per Stripe customer, meter and window: dimension sets, and tenants that share a customer, are
summed; it keeps what each of those tenants has in it. Rounding to whole units telescopes: what is planned for a period
always sums to the rounded sum of what is rated for it (``whole_units``), so no remainder piles up hour by hour.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal, localcontext
from itertools import groupby
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import namedtuple_row
from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.delivery.backends import (
    BACKENDS,
    LONGEST_IDENTIFIER,
    MOST_REVISIONS,
    UNSENDABLE,
    Backend,
    Record,
    canonical,
)
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import copy_rows, lock_key
from clawbill_pipeline.ledger.sharding import Shard, due_anew, in_share, share_of
from clawbill_pipeline.ledger.turns import turn, whom
from clawbill_pipeline.money import EXACT, MICRO, rounded, total
from clawbill_pipeline.results import Check

_BATCH = 20_000

ZERO = Decimal(0)


@dataclass(frozen=True)
class Planned:
    """What planning came to. ``unmapped`` counts rated windows of tenants and services that Stripe doesn't know yet."""

    records: int
    corrections: int
    parked: int
    unmapped: int
    other_currency: int
    #: Runs that were at the same work.
    waited_for: str | None = None

    @property
    def checks(self) -> tuple[Check, ...]:
        return (
            Check(
                "rated_usage_is_mapped",
                not self.unmapped and not self.other_currency,
                "every rated window has a Stripe customer and subscription item in its currency"
                if not self.unmapped and not self.other_currency
                else "rated usage waits: run `clawbill provision`, which maps tenants to Stripe or says why it can't",
                {"unmapped": self.unmapped, "other_currency": self.other_currency},
            ),
        )


@dataclass(frozen=True, slots=True)
class Window:
    """A window whose exact units changed, and what was planned for it before (0 for a new one)."""

    exact: Decimal
    planned_exact: Decimal = ZERO
    planned_units: Decimal = ZERO


def whole_units(windows: Sequence[Window], period_exact: Decimal, period_units: Decimal) -> list[Decimal]:
    """Whole units for the changed ``windows`` of one customer, meter and period, in their order.

    ``period_exact`` and ``period_units`` are what is planned so far for the whole period, these windows included.
    Afterwards the period's units are its exact sum rounded half away from zero. The part of a unit that other windows
    gained or lost by rounding is spread evenly, so that no window is far from its own usage; and none becomes negative
    without negative usage as long as another one of ``windows`` can give what it owes.
    """
    if not windows:
        return []
    with localcontext(EXACT):
        exact = total(window.exact for window in windows)
        others_exact = period_exact - total(window.planned_exact for window in windows)
        others_units = period_units - total(window.planned_units for window in windows)
        whole = rounded(others_exact + exact, 0) - others_units
        drift, count = whole - exact, len(windows)
        units, so_far, before = [], ZERO, ZERO
        for number, window in enumerate(windows, 1):
            so_far += window.exact
            # Multiplied before it is divided: the last one is exact, and lands on the total.
            after = rounded(so_far + drift * number / count, 0)
            units.append(after - before)
            before = after
        return _without_debts(windows, units)


def _without_debts(windows: Sequence[Window], units: list[Decimal]) -> list[Decimal]:
    """The same total, with what windows owe by rounding alone taken from those that got most above their usage."""
    debtors = [number for number, window in enumerate(windows) if units[number] < 0 <= window.exact]
    if debtors:
        owed = -total(units[number] for number in debtors)
        for number in debtors:
            units[number] = ZERO
        for number in sorted(range(len(units)), key=lambda number: windows[number].exact - units[number]):
            given = max(ZERO, min(owed, units[number]))
            units[number] -= given
            owed -= given
        units[debtors[0]] -= owed
    return units


def plan(
    ledger: Ledger,
    catalog: Catalog,
    *,
    hours: tuple[datetime, datetime] | None,
    now: datetime,
    run_id: str,
    shard: Shard | None = None,
) -> Planned:
    """Appends to the outbox what is rated in the half-open ``hours`` (all of them if None) and not planned yet.

    With ``shard``, of its tenants alone.

    Rows start as ``planned``. A window whose exact units changed gets its next revision; one that was never planned
    and is worth nothing gets none. Planning twice writes nothing the second time, and two planners at once wait for
    each other where they meet in a customer.
    """
    services = list(catalog.services)
    since, until = hours or (datetime(1, 1, 2, tzinfo=UTC), datetime(9999, 12, 1, tzinfo=UTC))
    given = {
        "since": since,
        "until": until,
        "unsendable": UNSENDABLE,
        "services": services,
        "by_amount": [catalog.services[service].bill_by == "amount" for service in services],
        "scales": [_scale(catalog, service) for service in services],
    }
    records = corrections = parked = 0
    with ledger.transaction() as connection:
        share = share_of(connection, shard)
        given |= share.parameters
        buckets = connection.scalars(text(_BUCKETS), given).all()
        keys = [lock_key("planning", str(bucket)) for bucket in buckets]
        waited = turn(connection, keys, run_id=run_id, work="planning")
        connection.execute(text(_WANTED), given)
        connection.execute(text(_CHANGED), given)
        waiting = connection.execute(text(_WAITING)).one()
        connection.execute(text(_NEW_TOTALS))
        for rows in _batches(connection):
            planned = [_records(connection, group, now, run_id) for group in rows]
            fresh = [record for of_period in planned for record in of_period.records]
            copy_rows(connection, "usage_records", _COLUMNS, fresh)
            copy_rows(connection, "new_totals", _TOTALS, (of_period.total for of_period in planned))
            records += len(fresh)
            corrections += sum(1 for record in fresh if record[_REVISION] > 1)
            parked += sum(1 for record in fresh if record[_PARKED] is not None)
        connection.execute(text(_ADD_TOTALS))
        due_anew(connection, share, since, until)
    return Planned(records, corrections, parked, waiting.unmapped, waiting.other_currency, whom(waited))


def _scale(catalog: Catalog, service: str) -> Decimal:
    """Whole units in one major unit of money, or in one unit of the service."""
    sold = catalog.services[service]
    return MICRO if sold.bill_by == "amount" else Decimal(10) ** sold.quantity_decimals


# Who waits for whom: a bucket of tenants that share customers with nobody outside it. Locks of their own for 100,000
# customers would not fit; and shards have no bucket in common.
_BUCKETS = f"""
SELECT DISTINCT bucket(coalesce(c.payer_id, tenant_id))
FROM (SELECT DISTINCT tenant_id FROM rated_usage WHERE hour >= :since AND hour < :until AND {in_share("tenant_id")}) r
JOIN stripe_customers c USING (tenant_id)
ORDER BY 1
"""  # noqa: S608 - of constants

# What is rated now for each tenant, in exact units of the meter.
_WANTED = f"""
CREATE TEMPORARY TABLE wanted ON COMMIT DROP AS
WITH sold AS (
    SELECT * FROM unnest(
        CAST(:services AS text[]), CAST(:by_amount AS boolean[]), CAST(:scales AS numeric[])
    ) AS sold (service, by_amount, scale)
), current AS (
    SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start)
        hour, tenant_id, service, window_start, period_start, currency, amount, quantity
    FROM rated_usage WHERE hour >= :since AND hour < :until AND {in_share("tenant_id")}
    ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC
)
SELECT c.customer_id, i.meter, r.hour, r.window_start, r.tenant_id,
    min(r.period_start) AS period_start, min(r.service) AS service, min(i.backend) AS backend,
    min(i.subscription_item_id) AS subscription_item_id,
    i.meter IS NULL OR sold.scale IS NULL AS unmapped, r.currency <> c.currency AS other_currency,
    sum(CASE WHEN sold.by_amount THEN r.amount ELSE r.quantity END * sold.scale) AS exact_units
FROM current r
LEFT JOIN sold USING (service)
LEFT JOIN stripe_items i USING (tenant_id, service)
LEFT JOIN stripe_customers c USING (tenant_id)
GROUP BY c.customer_id, i.meter, r.hour, r.window_start, r.tenant_id, unmapped, other_currency
"""  # noqa: S608 - of constants
_WAITING = """
SELECT count(*) FILTER (WHERE unmapped) AS unmapped, count(*) FILTER (WHERE other_currency) AS other_currency
FROM wanted
"""

# Windows whose exact units, or whose tenants' parts, are not those of their newest planned revision, or whose rejected
# record a person wants to try again. What was rejected or can't be sent has no effect, so a difference does not build
# on it. Parts are there from the first time on that another tenant than the payer has some.
_CHANGED = """
CREATE TEMPORARY TABLE changed ON COMMIT DROP AS
WITH newest AS (
    SELECT hour, customer_id, meter, window_start, max(revision) AS revision,
        (array_agg(exact_units ORDER BY revision DESC))[1] AS exact_units,
        (array_agg(units ORDER BY revision DESC))[1] AS units,
        (array_agg(parts ORDER BY revision DESC))[1] AS parts,
        (array_agg(state = 'rejected' AND parked = 'replan' ORDER BY revision DESC))[1] AS again,
        sum(value) FILTER (WHERE state <> 'rejected' AND parked IS DISTINCT FROM :unsendable) AS sent
    FROM usage_records WHERE hour >= :since AND hour < :until
    GROUP BY hour, customer_id, meter, window_start
), payers AS (
    SELECT customer_id, tenant_id AS payer_id FROM stripe_customers
    WHERE customer_id IN (SELECT customer_id FROM stripe_customers WHERE payer_id IS NOT NULL) AND payer_id IS NULL
), summed AS (
    SELECT customer_id, meter, hour, window_start, period_start, tenant_id, service, backend, subscription_item_id,
        exact_units, CAST(NULL AS jsonb) AS parts, false AS others
    FROM wanted WHERE NOT unmapped AND NOT other_currency AND customer_id NOT IN (SELECT customer_id FROM payers)
    UNION ALL
    SELECT customer_id, meter, hour, window_start, min(period_start), payers.payer_id, min(service), min(backend),
        min(subscription_item_id), sum(exact_units),
        jsonb_build_object(payers.payer_id, '0') || jsonb_object_agg(tenant_id, trim_scale(exact_units)::text),
        bool_or(exact_units <> 0 AND tenant_id <> payers.payer_id)
    FROM wanted JOIN payers USING (customer_id) WHERE NOT unmapped AND NOT other_currency
    GROUP BY customer_id, meter, hour, window_start, payers.payer_id
), compared AS (
    SELECT w.*, CASE WHEN w.others OR n.parts IS NOT NULL THEN w.parts END AS now_parts, n.parts AS planned_parts,
        coalesce(n.revision, 0) AS revision, coalesce(n.exact_units, 0) AS planned_exact,
        coalesce(n.units, 0) AS planned_units, coalesce(n.sent, 0) AS sent, n.again
    FROM summed w LEFT JOIN newest n USING (hour, customer_id, meter, window_start)
)
SELECT hour, customer_id, meter, period_start, window_start, tenant_id, service, backend, subscription_item_id,
    now_parts::text AS parts, exact_units AS exact, revision, planned_exact, planned_units, sent
FROM compared WHERE exact_units <> planned_exact OR now_parts IS DISTINCT FROM planned_parts OR again
"""

# The changed windows with what is planned for their whole period, in an order in which a period's windows meet.
_BY_PERIOD = """
SELECT changed.*, coalesce(totals.exact_units, 0) AS period_exact, coalesce(totals.units, 0) AS period_units
FROM changed LEFT JOIN planned_totals totals USING (customer_id, meter, period_start)
ORDER BY customer_id, meter, period_start, window_start
"""


def _batches(connection: Connection) -> Iterator[list[list[Any]]]:
    """The changed windows, grouped by customer, meter and period, some thousands at a time."""
    raw: psycopg.Connection[Any] = connection.connection.dbapi_connection  # type: ignore[assignment]
    with raw.cursor("changed_windows", row_factory=namedtuple_row) as cursor:
        cursor.itersize = _BATCH
        cursor.execute(_BY_PERIOD)
        batch: list[list[Any]] = []
        size = 0
        for _, rows in groupby(cursor, _period):
            group = list(rows)
            batch.append(group)
            size += len(group)
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch


def _period(row: Any) -> tuple[Any, ...]:
    return row.customer_id, row.meter, row.period_start


_COLUMNS = (
    "hour", "identifier", "tenant_id", "service", "customer_id", "meter", "backend", "window_start", "revision",
    "units", "value", "exact_units", "parts", "period_start", "event_timestamp", "payload", "payload_sha256",
    "planned_at", "run_id", "parked", "error",
)  # fmt: skip
_REVISION, _PARKED = _COLUMNS.index("revision"), _COLUMNS.index("parked")


class _OfPeriod(NamedTuple):
    """Rows of ``usage_records``, and what they add to the running total of their customer, meter and period."""

    records: list[tuple[Any, ...]]
    total: tuple[str, str, datetime, Decimal, Decimal]


def _records(connection: Connection, group: Sequence[Any], now: datetime, run_id: str) -> _OfPeriod:
    """What is written for the changed windows of one customer, meter and period."""
    units_of = _units(group)
    if owed := -total(min(units, ZERO) for row, units in zip(group, units_of, strict=True) if row.exact >= 0):
        # Rounding alone would make a window negative: windows that did not change give what is missing.
        group = [*group, *_lenders(connection, group, int(owed))]
        units_of = _units(group)
    records = [_record(row, units, now, run_id) for row, units in zip(group, units_of, strict=True)]
    with localcontext(EXACT):
        exact = total(row.exact - row.planned_exact for row in group)
        whole = total(units - row.planned_units for row, units in zip(group, units_of, strict=True))
    return _OfPeriod(records, (*_period(group[0]), exact, whole))


def _record(row: Any, units: Decimal, now: datetime, run_id: str) -> tuple[Any, ...]:
    backend, revision = BACKENDS[row.backend], row.revision + 1
    value = units if backend.absolute else units - row.sent
    record = Record(
        identifier=identifier(row.customer_id, row.meter, row.window_start, revision),
        customer_id=row.customer_id,
        subscription_item_id=row.subscription_item_id,
        meter=row.meter,
        value=value,
        window_start=row.window_start,
        revision=revision,
    )
    payload = canonical(backend.params(record))
    event_timestamp = backend.event_timestamp(row.window_start, revision)
    parked, error = _hindrance(backend, value, revision)
    return (
        row.hour, record.identifier, row.tenant_id, row.service, row.customer_id, row.meter, row.backend,
        row.window_start, revision, units, value, row.exact, row.parts, row.period_start, event_timestamp,
        payload, hashlib.sha256(payload.encode()).hexdigest(), now, run_id, parked, error,
    )  # fmt: skip


_TOTALS = ("customer_id", "meter", "period_start", "exact_units", "units")
_NEW_TOTALS = "CREATE TEMPORARY TABLE new_totals (LIKE planned_totals) ON COMMIT DROP"
_ADD_TOTALS = """
INSERT INTO planned_totals AS known SELECT * FROM new_totals
ON CONFLICT (customer_id, meter, period_start) DO UPDATE
SET exact_units = known.exact_units + excluded.exact_units, units = known.units + excluded.units
"""


def _units(group: Sequence[Any]) -> list[Decimal]:
    windows = [Window(row.exact, row.planned_exact, row.planned_units) for row in group]
    return whole_units(windows, group[0].period_exact, group[0].period_units)


def _lenders(connection: Connection, group: Sequence[Any], most: int) -> Sequence[Any]:
    """Windows of the group's period that did not change and have units to give, furthest above their usage first."""
    given = {
        "customer_id": group[0].customer_id,
        "meter": group[0].meter,
        "period_start": group[0].period_start,
        "windows": [row.window_start for row in group],
        "unsendable": UNSENDABLE,
        "most": most,
    }
    return connection.execute(text(_LENDERS), given).all()


_LENDERS = """
WITH newest AS (
    SELECT DISTINCT ON (hour, window_start) hour, customer_id, meter, period_start, window_start, tenant_id, service,
        backend, exact_units AS exact, revision, exact_units AS planned_exact, units AS planned_units,
        parts::text AS parts, state, parked
    FROM usage_records
    WHERE customer_id = :customer_id AND meter = :meter
      AND hour >= CAST(:period_start AS timestamptz) - interval '1 hour'
      AND hour < CAST(:period_start AS timestamptz) + interval '367 days'
    ORDER BY hour, window_start, revision DESC
)
SELECT newest.*, i.subscription_item_id,
    (
        SELECT coalesce(sum(value), 0) FROM usage_records u
        WHERE u.hour = newest.hour AND u.customer_id = newest.customer_id AND u.meter = newest.meter
          AND u.window_start = newest.window_start
          AND u.state <> 'rejected' AND u.parked IS DISTINCT FROM :unsendable
    ) AS sent
FROM newest JOIN stripe_items i USING (tenant_id, service)
WHERE period_start = :period_start AND planned_units > 0 AND state <> 'rejected' AND parked IS NULL
  AND window_start <> ALL(CAST(:windows AS timestamptz[]))
ORDER BY planned_units - exact DESC, window_start LIMIT :most
"""


def identifier(customer_id: str, meter: str, window_start: datetime, revision: int) -> str:
    """The identifier of a usage record, at most 100 characters: the same row, the same identifier, on any machine.

    The window comes first, also where a long name is cut: it tells in which partition the row is.
    """
    name = f"{window_start.astimezone(UTC):%Y%m%dT%H%M%SZ}:{revision}:{customer_id}:{meter}"
    if len(name) <= LONGEST_IDENTIFIER:
        return name
    tail = hashlib.sha256(name.encode()).hexdigest()[:32]
    return f"{name[: LONGEST_IDENTIFIER - len(tail) - 1]}:{tail}"


def _hindrance(backend: Backend, value: Decimal, revision: int) -> tuple[str | None, str | None]:
    """Why a record can't be sent as it is: a short code and a sentence."""
    if (refused := backend.hindrance(value)) is not None:
        return UNSENDABLE, refused
    if revision > MOST_REVISIONS:
        return "too_many_revisions", f"revision {revision}: a window has a second of its own for {MOST_REVISIONS} only"
    return None, None
