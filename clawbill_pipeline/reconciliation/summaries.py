"""Reads back what Stripe's meters hold, sparingly: a total a customer and meter, hours only where it is not ours.

Reading is rationed (about 100 reads a second live). Nothing is judged here; what differs is found in ``compare``.
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

from clawbill_pipeline.catalog import Catalog, Period
from clawbill_pipeline.catalog.periods import HOUR, utc_hour
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import copy_rows, lock
from clawbill_pipeline.ledger.waterfall import Scope, scope_of
from clawbill_pipeline.money import total
from clawbill_pipeline.results import Check
from clawbill_pipeline.stripe_api import StripeApi

#: Calls under way at once; at most one a customer and meter.
CONCURRENCY = 8
#: Tries of one call before the customer's meter is given up for this run.
ATTEMPTS = 5
#: Whole numbers above it are not all exact in Stripe's floats.
EXACT_BELOW = Decimal(2**53)


@dataclass(frozen=True)
class Account:
    """A customer's meter whose total is wanted; ``sent`` are the whole units that Stripe acknowledged for it."""

    tenant_id: str
    service: str
    customer_id: str
    meter_id: str
    meter: str
    period: Period
    sent: Decimal


@dataclass(frozen=True)
class Held:
    """What Stripe says it holds, in whole units: of the period, and by hour where it was asked for hours."""

    account: Account
    units: Decimal
    hours: dict[datetime, Decimal]


@dataclass(frozen=True)
class Unread:
    """A meter that could not be read, and Stripe's words for it."""

    tenant_id: str
    service: str
    error: str


@dataclass(frozen=True)
class SummariesRead:
    """What reading came to: meters read, how many differ from what was sent, rows appended, and what failed."""

    period: str
    read: int
    differing: int
    appended: int
    unread: tuple[Unread, ...]
    checks: tuple[Check, ...]


def read_summaries(
    ledger: Ledger, catalog: Catalog, api: StripeApi, *, period: str, now: datetime, run_id: str
) -> SummariesRead:
    """Reads Stripe's totals of the billing periods that start in ``period`` (``YYYY-MM``) and have begun.

    Appends to ``usage_summaries`` what is not the newest there. A customer that fails is named in the answer and in
    the audit trail, and stops nobody else. Raises LedgerError where the database is away.
    """
    with ledger.transaction() as connection:
        accounts = _read_accounts(connection, catalog, period, now)
        recorded = _read_recorded(connection, scope_of(catalog, period))
    results = asyncio.run(_read_all(api, accounts))
    held = [result for result in results if isinstance(result, Held)]
    unread = tuple(result for result in results if isinstance(result, Unread))
    rows = [row for result in held for row in _changed(result, recorded)]
    with ledger.transaction() as connection:
        lock(connection, "usage_summaries", period)
        appended = _write(connection, rows, now, run_id)
        _write_unread(connection, unread, period, now)
    differing = sum(result.units != result.account.sent for result in held)
    return SummariesRead(period, len(held), differing, appended, unread, _checks(held, unread, differing))


def _checks(held: list[Held], unread: tuple[Unread, ...], differing: int) -> tuple[Check, ...]:
    return (
        Check(
            "every_meter_read",
            not unread,
            "Stripe answered for every customer and meter.",
            {"read": len(held), "unread": len(unread), "first": unread[0].error if unread else None},
        ),
        Check(
            "held_is_what_was_sent",
            not differing,
            "Stripe's period totals are what it acknowledged.",
            {"differing": differing},
        ),
    )


# --- the ledger ------------------------------------------------------------------------------------------------------


def _read_accounts(connection: Connection, catalog: Catalog, period: str, now: datetime) -> list[Account]:
    scope = scope_of(catalog, period)
    query = f"""
        WITH {scope.PERIODS}, sent AS (
          SELECT tenant_id, service, sum(units) AS units FROM (
            SELECT DISTINCT ON (hour, customer_id, meter, window_start) tenant_id, service, units
            {scope.rows("usage_records")} AND state = 'delivered'
            ORDER BY hour, customer_id, meter, window_start, revision DESC) newest
          GROUP BY tenant_id, service)
        SELECT tenant_id, service, customer_id, meter_id, meter, coalesce(sent.units, 0) AS sent
        FROM stripe_items JOIN stripe_customers USING (tenant_id) LEFT JOIN sent USING (tenant_id, service)
        ORDER BY tenant_id, service"""
    accounts = []
    for row in connection.execute(text(query), scope.parameters):
        if row.tenant_id in catalog.tenants:
            of = catalog.tenants[row.tenant_id].period(period)
            if of.start <= now:
                accounts.append(
                    Account(row.tenant_id, row.service, row.customer_id, row.meter_id, row.meter, of, row.sent)
                )
    return accounts


_Recorded = dict[tuple[str, str, datetime | None], Decimal]


def _read_recorded(connection: Connection, scope: Scope) -> _Recorded:
    query = (
        f"WITH {scope.PERIODS} SELECT DISTINCT ON (tenant_id, service, hour) tenant_id, service, hour, units"
        f" {scope.rows('usage_summaries', 'period_start', hourly=False)} ORDER BY tenant_id, service, hour, id DESC"
    )
    rows = connection.execute(text(query), scope.parameters)
    return {(row.tenant_id, row.service, row.hour): row.units for row in rows}


_Row = tuple[Account, datetime | None, Decimal]


def _changed(held: Held, recorded: _Recorded) -> Iterable[_Row]:
    """What is new. An hour that Stripe lists no more is empty now."""
    account = held.account
    of_account = (account.tenant_id, account.service)
    rows: list[tuple[datetime | None, Decimal]] = [(None, held.units), *sorted(held.hours.items())]
    if held.hours:
        known = [hour for (*key, hour) in recorded if tuple(key) == of_account and hour is not None]
        rows += [(hour, Decimal(0)) for hour in known if hour not in held.hours]
    for hour, units in rows:
        if recorded.get((*of_account, hour)) != units:
            yield account, hour, units


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


def _write_unread(connection: Connection, unread: tuple[Unread, ...], period: str, now: datetime) -> None:
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
    if exact and units == account.sent:
        return Held(account, units, {})
    hours = {at: value async for at, value in _by_hour(client, account)}
    # A float this large is only near the truth: its hours are exact, and so is their sum.
    return Held(account, units if exact else total(hours.values()), hours)


async def _by_hour(client: stripe.StripeClient, account: Account) -> AsyncIterator[tuple[datetime, Decimal]]:
    """Stripe's hours are whole UTC hours: where the period begins or ends within one, that part is read by itself."""
    start, end = account.period.start, account.period.end
    first = utc_hour(start) if start == utc_hour(start) else utc_hour(start) + HOUR
    last = utc_hour(end)
    for since, until in ((start, first), (last, end)):
        if since < until:
            async for _, value in _summaries(client, account, since, until):
                if value:
                    yield utc_hour(since), value
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
