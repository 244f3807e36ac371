"""Reads back what Stripe's meters hold, sparingly: a total a customer and meter, all hours only where it is not ours.

Reading is rationed (about 100 reads a second live). Two hours that differ by as much in opposite ways leave a total as
it is; so a rolling plan looks at the hours of everybody too: those of the last days, which one call lists, and all of
them once a period is over, before it is closed. Nothing is judged here; what differs is found in ``compare``.
"""

# ruff: noqa: S608 -- queries are put together from constants; every value is a parameter

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import stripe
from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Calendar, Catalog, Period
from clawbill_pipeline.catalog.periods import HOUR, utc_hour
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.archive import refuse_archived
from clawbill_pipeline.ledger.database import copy_rows, lock
from clawbill_pipeline.ledger.waterfall import Scope, scope_of
from clawbill_pipeline.money import total
from clawbill_pipeline.results import Check
from clawbill_pipeline.stripe_api import StripeApi

#: Calls under way at once; at most one a customer and meter.
CONCURRENCY = 8
#: Tries of one call before the customer's meter is given up for this run.
ATTEMPTS = 5
#: Hours that are looked at although the total agrees: as many as one call lists. A daily run sees each four times.
RECENT = timedelta(hours=96)
#: How long after a period's invoice should be final a run still looks at all hours: a daily one falls into it.
AFTER_CLOSE = timedelta(days=1)
#: Meters whose hours are in memory at once.
BATCH = 1000
#: Whole numbers above it are not all exact in Stripe's floats.
EXACT_BELOW = Decimal(2**53)


@dataclass(frozen=True)
class Account:
    """A customer's meter whose total is wanted; ``sent`` are the whole units that Stripe acknowledged for it.

    ``look`` are the hours that are wanted whatever the total says: from and to, None for none.
    """

    tenant_id: str
    service: str
    customer_id: str
    meter_id: str
    meter: str
    period: Period
    sent: Decimal
    look: tuple[datetime, datetime] | None


@dataclass(frozen=True)
class Held:
    """What Stripe says it holds, in whole units: of the period, and of each hour that has any in ``looked``."""

    account: Account
    units: Decimal
    looked: tuple[datetime, datetime] | None
    hours: dict[datetime, Decimal]


@dataclass(frozen=True)
class Unread:
    """A meter that could not be read, and Stripe's words for it."""

    tenant_id: str
    service: str
    error: str


@dataclass(frozen=True)
class SummariesRead:
    """What reading came to: meters read, how many of them by the hour too, how many differ from what was sent in total
    or in any hour, rows appended, and what failed."""

    period: str
    read: int
    read_by_hour: int
    differing: int
    appended: int
    unread: tuple[Unread, ...]
    checks: tuple[Check, ...]


def read_summaries(
    ledger: Ledger, catalog: Catalog, api: StripeApi, *, period: str, now: datetime, run_id: str
) -> SummariesRead:
    """Reads Stripe's totals of the billing periods that start in ``period`` (``YYYY-MM``) and have begun.

    Appends to ``usage_summaries`` what is not the newest there. A customer that fails is named in the answer and in
    the audit trail, and stops nobody else. Raises LedgerError where the database is away, and ArchiveError where rows
    of the period are in the lake alone: there would be nothing to compare with.
    """
    with ledger.transaction() as connection:
        scope = scope_of(catalog, period)
        refuse_archived(connection, *scope.hours)
        recorded = _read_recorded(connection, scope)
        accounts = _read_accounts(connection, catalog, period, now, recorded)
    read = by_hour = differing = appended = 0
    unread: list[Unread] = []
    for at in range(0, len(accounts), BATCH):
        results = asyncio.run(_read_all(api, accounts[at : at + BATCH]))
        held = [result for result in results if isinstance(result, Held)]
        failed = [result for result in results if isinstance(result, Unread)]
        with ledger.transaction() as connection:
            lock(connection, "usage_summaries", period)
            sent = _read_sent_hours(connection, held)
            rows = [row for result in held for row in _changed(result, sent, recorded)]
            appended += _write(connection, rows, now, run_id)
            _write_unread(connection, failed, period, now)
        read += len(held)
        by_hour += sum(result.looked is not None for result in held)
        differing += sum(_differs(result, sent) for result in held)
        unread += failed
    return SummariesRead(period, read, by_hour, differing, appended, tuple(unread), _checks(read, unread, differing))


def _checks(read: int, unread: list[Unread], differing: int) -> tuple[Check, ...]:
    return (
        Check(
            "every_meter_read",
            not unread,
            "Stripe answered for every customer and meter.",
            {"read": read, "unread": len(unread), "first": unread[0].error if unread else None},
        ),
        Check(
            "held_is_what_was_sent",
            not differing,
            "Stripe's totals, and the hours that were looked at, are what it acknowledged.",
            {"differing": differing},
        ),
    )


# --- the ledger ------------------------------------------------------------------------------------------------------


def _read_accounts(
    connection: Connection, catalog: Catalog, period: str, now: datetime, recorded: _Recorded
) -> list[Account]:
    scope = scope_of(catalog, period)
    query = f"""
        WITH {scope.PERIODS}, sent AS (
          SELECT tenant_id, service, sum(units) AS units, max(hour) AS last FROM (
            SELECT DISTINCT ON (hour, customer_id, meter, window_start) hour, tenant_id, service, units
            {scope.rows("usage_records")} AND state = 'delivered'
            ORDER BY hour, customer_id, meter, window_start, revision DESC) newest
          GROUP BY tenant_id, service)
        SELECT tenant_id, service, customer_id, meter_id, meter, coalesce(sent.units, 0) AS sent, sent.last
        FROM stripe_items JOIN stripe_customers USING (tenant_id) LEFT JOIN sent USING (tenant_id, service)
        WHERE payer_id IS NULL
        ORDER BY tenant_id, service"""
    accounts = []
    for row in connection.execute(text(query), scope.parameters):
        if row.tenant_id in catalog.tenants:
            of = catalog.tenants[row.tenant_id].period(period)
            if of.start <= now and not of.empty:
                look = _look(of, row.last, catalog.calendar, now)
                if recorded.get((row.tenant_id, row.service), {}).keys() - {None}:  # it differed before: still?
                    look = (of.start, of.end)
                accounts.append(
                    Account(row.tenant_id, row.service, row.customer_id, row.meter_id, row.meter, of, row.sent, look)
                )
    return accounts


def _look(
    period: Period, last_sent: datetime | None, calendar: Calendar, now: datetime
) -> tuple[datetime, datetime] | None:
    """Whose turn it is: the hours to look at although the total agrees. Where nothing was sent nothing can cancel."""
    if last_sent is None:
        return None
    if period.end <= now:
        over = period.end + calendar.stripe_grace + calendar.settle_lag + AFTER_CLOSE
        return (period.start, period.end) if now < over else None
    settled = utc_hour(now - calendar.metering_lag - calendar.settle_lag) - HOUR
    since = max(settled - RECENT, period.start)
    return (since, settled) if since <= last_sent and since < settled else None


#: By tenant and service: the newest units on record, of the period (None) and of hours.
_Recorded = dict[tuple[str, str], dict[datetime | None, Decimal]]


def _read_recorded(connection: Connection, scope: Scope) -> _Recorded:
    query = (
        f"WITH {scope.PERIODS} SELECT DISTINCT ON (tenant_id, service, hour) tenant_id, service, hour, units"
        f" {scope.rows('usage_summaries', 'period_start', hourly=False)} ORDER BY tenant_id, service, hour, id DESC"
    )
    recorded: _Recorded = {}
    for row in connection.execute(text(query), scope.parameters):
        recorded.setdefault((row.tenant_id, row.service), {})[row.hour] = row.units
    return recorded


_Row = tuple[Account, datetime | None, Decimal]
#: By tenant and service: whole units that Stripe acknowledged, hour by hour.
_Sent = dict[tuple[str, str], dict[datetime, Decimal]]


def _read_sent_hours(connection: Connection, held: Iterable[Held]) -> _Sent:
    """What was acknowledged in the hours that were looked at."""
    looked = [(result.account, *result.looked) for result in held if result.looked is not None]
    hours: _Sent = {(account.tenant_id, account.service): {} for account, *_ in looked}
    if looked:
        given = {
            "tenants": [account.tenant_id for account, *_ in looked],
            "services": [account.service for account, *_ in looked],
            "sinces": [since for _, since, _ in looked],
            "untils": [until for *_, until in looked],
            "first_hour": utc_hour(min(since for _, since, _ in looked)),
            "last": max(until for *_, until in looked),
        }
        for row in connection.execute(text(_SENT_HOURS), given):
            hours[row.tenant_id, row.service][row.hour] = row.units
    return hours


_SENT_HOURS = """
WITH looked AS (
  SELECT * FROM unnest(CAST(:tenants AS text[]), CAST(:services AS text[]), CAST(:sinces AS timestamptz[]),
    CAST(:untils AS timestamptz[])) AS l (tenant_id, service, since, until))
SELECT tenant_id, service, hour, sum(units) AS units FROM (
  SELECT DISTINCT ON (u.hour, u.customer_id, u.meter, u.window_start) u.tenant_id, u.service, u.hour, u.units
  FROM usage_records u JOIN looked l USING (tenant_id, service)
  WHERE u.hour >= :first_hour AND u.hour < :last AND u.window_start >= l.since AND u.window_start < l.until
    AND u.state = 'delivered'
  ORDER BY u.hour, u.customer_id, u.meter, u.window_start, u.revision DESC) newest
GROUP BY tenant_id, service, hour"""


def _hours(held: Held, sent: _Sent) -> dict[datetime, tuple[Decimal, Decimal]]:
    """Hour → (held, sent) of all that was looked at and is not empty on both sides."""
    ours = sent.get((held.account.tenant_id, held.account.service), {})
    zero = Decimal(0)
    return {at: (held.hours.get(at, zero), ours.get(at, zero)) for at in sorted({*held.hours, *ours})}


def _differs(held: Held, sent: _Sent) -> bool:
    return held.units != held.account.sent or any(one != other for one, other in _hours(held, sent).values())


def _changed(held: Held, sent: _Sent, recorded: _Recorded) -> Iterable[_Row]:
    """What is new: the total, and the hours of a meter that differs, or that was found to differ before.

    Hours that agree throughout are not kept: there are too many of them. One that Stripe doesn't list is empty there.
    """
    before = recorded.get((held.account.tenant_id, held.account.service), {})
    rows: list[tuple[datetime | None, Decimal]] = [(None, held.units)]
    if held.looked is not None:
        known = [at for at in before if at is not None]
        hours = {at: one for at, (one, _) in _hours(held, sent).items()} if known or _differs(held, sent) else {}
        rows += sorted({**dict.fromkeys(known, Decimal(0)), **hours}.items())
    for hour, units in rows:
        if before.get(hour) != units:
            yield held.account, hour, units


_COLUMNS = (
    "tenant_id", "service", "customer_id", "meter", "period_start", "hour", "units", "read_at", "run_id",
)  # fmt: skip


def _write(connection: Connection, rows: list[_Row], now: datetime, run_id: str) -> int:
    return copy_rows(
        connection,
        "usage_summaries",
        _COLUMNS,
        ((a.tenant_id, a.service, a.customer_id, a.meter, a.period.start, hour, units, now, run_id)
         for a, hour, units in rows),
    )  # fmt: skip


def _write_unread(connection: Connection, unread: list[Unread], period: str, now: datetime) -> None:
    if unread:
        connection.execute(
            text(
                "INSERT INTO audit_trail (at, kind, tenant_id, subject, detail) VALUES (:at, 'usage_summary.unread',"
                " :tenant_id, :service, jsonb_build_object('period', CAST(:period AS text), 'error',"
                " CAST(:error AS text)))"
            ),
            [{"at": now, "tenant_id": u.tenant_id, "service": u.service, "period": period, "error": u.error}
             for u in unread],
        )  # fmt: skip


# --- Stripe ----------------------------------------------------------------------------------------------------------


async def _read_all(api: StripeApi, accounts: list[Account]) -> list[Held | Unread]:
    turn = asyncio.Semaphore(CONCURRENCY)
    async with api.session() as client:

        async def read(account: Account) -> Held | Unread:
            async with turn:
                try:
                    return await _read(client, account)
                except stripe.StripeError as error:
                    return Unread(account.tenant_id, account.service, _said(error))
                except ValueError as error:
                    return Unread(account.tenant_id, account.service, str(error))

        return list(await asyncio.gather(*(read(account) for account in accounts)))


async def _read(client: stripe.StripeClient, account: Account) -> Held:
    period = account.period
    units = total([value async for _, value in _summaries(client, account, period.start, period.end)])
    exact = abs(units) < EXACT_BELOW
    look = account.look if exact and units == account.sent else (period.start, period.end)
    if look is None:
        return Held(account, units, None, {})
    hours = {at: value async for at, value in _by_hour(client, account, *look)}
    # A float this large is only near the truth: its hours are exact, and so is their sum.
    return Held(account, units if exact else total(hours.values()), look, hours)


async def _by_hour(
    client: stripe.StripeClient, account: Account, start: datetime, end: datetime
) -> AsyncIterator[tuple[datetime, Decimal]]:
    """Stripe's hours are whole UTC hours: where the period begins or ends within one, that part is read by itself."""
    first = utc_hour(start) if start == utc_hour(start) else utc_hour(start) + HOUR
    last = utc_hour(end)
    for since, until in ((start, first), (last, end)):
        if since < until:
            async for _, value in _summaries(client, account, since, until):
                if value:
                    yield utc_hour(since), value
    if first >= last:
        return
    async for at, value in _summaries(client, account, first, last, hourly=True):
        yield at, value


async def _summaries(
    client: stripe.StripeClient, account: Account, start: datetime, end: datetime, *, hourly: bool = False
) -> AsyncIterator[tuple[datetime, Decimal]]:
    """``(start, units)`` of each summary of ``[start, end)``, page by page."""
    after: str | None = None
    while True:
        page = await _page(client, account, start, end, hourly=hourly, after=after)
        for summary in page.data:
            yield _instant(summary.start_time, start), whole(summary.aggregated_value)
        if not page.has_more or not page.data:
            return
        after = page.data[-1].id


async def _page(
    client: stripe.StripeClient, account: Account, start: datetime, end: datetime, *, hourly: bool, after: str | None
) -> stripe.ListObject[stripe.billing.MeterEventSummary]:
    params: stripe.params.billing.MeterListEventSummariesParams = {
        "customer": account.customer_id,
        "start_time": int(start.timestamp()),
        "end_time": int(end.timestamp()),
        "limit": 100,
    }
    if hourly:
        params["value_grouping_window"] = "hour"
    if after is not None:
        params["starting_after"] = after
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return await client.v1.billing.meters.event_summaries.list_async(account.meter_id, params)
        except stripe.StripeError as error:
            if attempt == ATTEMPTS or not _worth_another_try(error):
                raise
            await asyncio.sleep(random.uniform(0.5, 1) * 0.2 * 2**attempt)  # noqa: S311 -- jitter, no secret
    raise AssertionError("unreachable")


def _worth_another_try(error: stripe.StripeError) -> bool:
    status = error.http_status
    return isinstance(error, stripe.APIConnectionError) or status == 429 or (status is not None and status >= 500)


def _said(error: stripe.StripeError) -> str:
    return f"{type(error).__name__} {error.http_status or ''}: {error.user_message or 'no answer'}"


def _instant(seconds: int, since: datetime) -> datetime:
    return since + timedelta(seconds=seconds - int(since.timestamp()))


def whole(value: float | Decimal) -> Decimal:
    """Stripe's ``aggregated_value`` as the whole number that it is. Raises ValueError for one that is none.

    The answer is a JSON number that the SDK reads as a float; every whole float is an exact integer, even where the
    sum that it stands for is not (see ``EXACT_BELOW``).
    """
    units = Decimal(value)
    if units != units.to_integral_value():
        raise ValueError(f"Stripe holds {value!r} units, which is no whole number: others report to this meter too")
    return units
