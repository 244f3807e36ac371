"""Rates metered usage: what is due, what to ask OpenClaw, what to book. Prices and the engine are not here."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import groupby

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog, hours_between, openclaw_service
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import copy_rows
from clawbill_pipeline.ledger.sharding import Shard, Share, due_anew, in_share, share_of
from clawbill_pipeline.ledger.tallies import Tally, add_tally, histogram
from clawbill_pipeline.ledger.turns import hours_turn, whom
from clawbill_pipeline.money import total
from clawbill_pipeline.openclaw import Answer, OpenClaw, OpenClawError
from clawbill_pipeline.rating.asking import Asker
from clawbill_pipeline.rating.spanning import Group, Standing, lock_groups, read_standings
from clawbill_pipeline.results import Check

log = logging.getLogger(__name__)

#: Rows asked for and booked in one transaction: a crash loses at most this many answers, which are asked for again.
CHUNK = 20_000
#: Failures of a chunk that the log names; all are in ``rating_failures``.
_LOGGED = 100
#: How often a change of prices between two questions makes both be asked again.
TURNS = 3


@dataclass(frozen=True)
class Due:
    """A metered quantity that has no amount yet. ``held_*`` is what is booked for its window so far."""

    hour: datetime
    tenant_id: str
    service: str
    dimensions: str
    window_start: datetime
    metered_revision: int
    quantity: Decimal
    reason: str
    revision: int
    held_quantity: Decimal
    held_amount: Decimal
    attempts: int


@dataclass(frozen=True)
class Booking:
    """An amount for a window: ``amount`` is the whole window's; ``asked`` and ``answer`` are OpenClaw's part.

    On ``period_to_date``, ``standing`` is the period's afterwards, and ``without`` the answer for it without the
    change, where it was asked for anew.
    """

    due: Due
    basis: str
    period_start: datetime
    asked: Decimal
    amount: Decimal
    answer: Answer
    standing: Standing | None = None
    without: Answer | None = None


@dataclass(frozen=True)
class Failure:
    """A row that got no amount: ``retry`` may work later, ``refused`` is OpenClaw's final word, ``unmapped`` ours."""

    due: Due
    kind: str
    error: str
    answer: str
    wait: timedelta | None


@dataclass(frozen=True)
class Rated:
    """What rating came to. ``amounts`` is what was booked now and before for these hours, by currency."""

    hours: int
    due: int
    booked: int
    retry: int
    refused: int
    unmapped: int
    amounts: dict[str, Decimal]
    checks: tuple[Check, ...]
    #: Runs that were at the same work.
    waited_for: str | None = None


def rate(
    ledger: Ledger,
    catalog: Catalog,
    openclaw: OpenClaw,
    *,
    start: datetime,
    end: datetime,
    now: datetime,
    run_id: str,
    only_retries: bool = False,
    tenants: Collection[str] | None = None,
    shard: Shard | None = None,
) -> Rated:
    """Rates all metered usage of the UTC hours ``[start, end)`` that is not rated at its newest revision.

    A row that fails stays due, with its error on record in ``rating_failures``; the others go on. ``only_retries``
    asks for nothing but rows that failed before and whose next attempt has come; ``tenants`` for theirs alone, and
    ``shard`` for those of its tenants.
    """
    hours = list(hours_between(start, end))
    ledger.ensure_partitions(hours)
    tally = _Tally()
    after: tuple[object, ...] | None = None
    while True:
        with ledger.transaction() as connection:
            # Hours are locked for double launches; period-to-date groups for hours that are backfilled side by side.
            tally.waited |= hours_turn(connection, "rating", hours, run_id=run_id, shard=shard)
            share = share_of(connection, shard)
            due = _read_due(connection, start, end, after, now if only_retries else None, tenants, share)
            if not due:
                break
            after = (due[-1].hour, due[-1].tenant_id, due[-1].service, due[-1].dimensions, due[-1].window_start)
            bookings, failures = _rate_chunk(connection, catalog, openclaw, due)
            write_bookings(connection, bookings, now, run_id)
            _write_failures(connection, failures, now, run_id)
            add_tally(connection, _watched(bookings, failures))
        _log(failures)
        tally.add(bookings, failures)
        if len(due) < CHUNK:
            break
    with ledger.transaction() as connection:
        share = share_of(connection, shard)
        due_anew(connection, share, start, end)
        given = {"start": start, "end": end, **share.parameters}
        amounts = {row.currency: row.amount for row in connection.execute(_AMOUNTS, given)}
    return tally.result(len(hours), amounts)


@dataclass
class _Tally:
    """What a run came to so far; of the rows themselves nothing is kept."""

    booked: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    first: str | None = None
    unmapped: set[str] = field(default_factory=set)
    waited: frozenset[str] = frozenset()

    def add(self, bookings: Sequence[Booking], failures: Sequence[Failure]) -> None:
        self.booked += len(bookings)
        self.kinds.update(failure.kind for failure in failures)
        self.first = self.first or _first_error(failures)
        self.unmapped.update(failure.due.tenant_id for failure in failures if failure.kind == "unmapped")

    def result(self, hours: int, amounts: dict[str, Decimal]) -> Rated:
        retry, refused, unmapped = (self.kinds[kind] for kind in ("retry", "refused", "unmapped"))
        return Rated(
            hours=hours,
            due=self.booked + self.kinds.total(),
            booked=self.booked,
            retry=retry,
            refused=refused,
            unmapped=unmapped,
            amounts=amounts,
            checks=(
                Check(
                    "everything_rated",
                    not retry + refused,
                    "Every metered quantity of a tenant in the catalogue has an amount.",
                    {"retry": retry, "refused": refused, "first": self.first},
                ),
                Check(
                    "everybody_mapped",
                    not unmapped,
                    "Every tenant that used something is in the catalogue.",
                    {"tenants": ", ".join(sorted(self.unmapped)[:20])},
                ),
            ),
            waited_for=whom(self.waited),
        )


_DUE = text(f"""
    SELECT m.hour, m.tenant_id, m.service, m.dimensions, m.window_start, m.revision AS metered_revision, m.quantity,
           m.reason, coalesce(r.revision, 0) + 1 AS revision, coalesce(r.quantity, 0) AS held_quantity,
           coalesce(r.amount, 0) AS held_amount, coalesce(f.attempts, 0) AS attempts
    FROM (SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) * FROM metered_usage
          WHERE hour >= :start AND hour < :end AND {in_share("tenant_id")}
            AND (CAST(:tenants AS text[]) IS NULL OR tenant_id = ANY(CAST(:tenants AS text[])))
            AND (CAST(:hour AS timestamptz) IS NULL
                 OR (hour, tenant_id, service, dimensions, window_start)
                    > (CAST(:hour AS timestamptz), CAST(:tenant AS text), CAST(:service AS text),
                       CAST(:dimensions AS text), CAST(:window AS timestamptz)))
          ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC) m
    LEFT JOIN LATERAL (SELECT revision, metered_revision, quantity, amount FROM rated_usage r
          WHERE (r.hour, r.tenant_id, r.service, r.dimensions, r.window_start)
              = (m.hour, m.tenant_id, m.service, m.dimensions, m.window_start)
          ORDER BY revision DESC LIMIT 1) r ON true
    LEFT JOIN rating_failures f
          ON (f.hour, f.tenant_id, f.service, f.dimensions, f.window_start, f.metered_revision)
           = (m.hour, m.tenant_id, m.service, m.dimensions, m.window_start, m.revision)
    WHERE (r.metered_revision IS NULL OR r.metered_revision < m.revision)
      AND (CAST(:retries_at AS timestamptz) IS NULL OR (f.kind = 'retry' AND f.next_attempt_at <= :retries_at))
    ORDER BY m.hour, m.tenant_id, m.service, m.dimensions, m.window_start LIMIT :chunk
""")  # noqa: S608 - of constants
_AMOUNTS = text(f"""
    SELECT currency, sum(amount) AS amount FROM (
        SELECT DISTINCT ON (hour, tenant_id, service, dimensions, window_start) currency, amount FROM rated_usage
        WHERE hour >= :start AND hour < :end AND {in_share("tenant_id")}
        ORDER BY hour, tenant_id, service, dimensions, window_start, revision DESC) c
    GROUP BY currency ORDER BY currency
""")  # noqa: S608 - of constants


def _read_due(
    connection: Connection,
    start: datetime,
    end: datetime,
    after: tuple[object, ...] | None,
    retries_at: datetime | None,
    tenants: Collection[str] | None,
    share: Share,
) -> list[Due]:
    hour, tenant, service, dimensions, window = after or (None,) * 5
    rows = connection.execute(
        _DUE,
        {"start": start, "end": end, "hour": hour, "tenant": tenant, "service": service,
         "dimensions": dimensions, "window": window, "chunk": CHUNK, "retries_at": retries_at,
         "tenants": None if tenants is None else list(tenants), **share.parameters},
    )  # fmt: skip
    return [Due(**row._mapping) for row in rows]


def _rate_chunk(
    connection: Connection, catalog: Catalog, openclaw: OpenClaw, due: Sequence[Due]
) -> tuple[list[Booking], list[Failure]]:
    unmapped = [Failure(row, "unmapped", why, "", None) for row in due if (why := _unknown(catalog, row))]
    hourly: list[tuple[Due, datetime]] = []
    spanning: list[tuple[Due, datetime]] = []
    for row in due:
        if _unknown(catalog, row) is None:
            period = catalog.tenants[row.tenant_id].period_at(row.window_start)
            by = hourly if catalog.services[row.service].basis == "hourly" else spanning
            by.append((row, period.start))
    groups = _groups(spanning)
    lock_groups(connection, groups)
    standings = read_standings(connection, catalog, list(groups))
    results = asyncio.run(_ask_all(catalog, openclaw, hourly, groups, standings))
    return [r for r in results if isinstance(r, Booking)], [
        *unmapped,
        *(r for r in results if isinstance(r, Failure)),
    ]


def _unknown(catalog: Catalog, row: Due) -> str | None:
    """Why a row can't be asked for at all, if so."""
    if row.tenant_id not in catalog.tenants:
        return f"tenant {row.tenant_id!r} is not in the catalogue; add it, and run the hour again"
    if row.service not in catalog.services:
        return f"service {row.service!r} is not in the catalogue any more; put it back, and run the hour again"
    return None


def _groups(rows: Iterable[tuple[Due, datetime]]) -> dict[Group, list[Due]]:
    def key(item: tuple[Due, datetime]) -> Group:
        return Group(item[0].tenant_id, item[0].service, item[0].dimensions, item[1])

    return {group: [row for row, _ in items] for group, items in groupby(sorted(rows, key=key), key=key)}


async def _ask_all(
    catalog: Catalog,
    openclaw: OpenClaw,
    hourly: Sequence[tuple[Due, datetime]],
    groups: dict[Group, list[Due]],
    standings: dict[Group, Standing],
) -> list[Booking | Failure]:
    async with openclaw.session() as session:
        asker = Asker(session, attempts=catalog.rating.attempts, concurrency=catalog.rating.concurrency)

        async def by_hour(row: Due, period_start: datetime) -> list[Booking | Failure]:
            try:
                answer = await ask(asker, catalog, row, row.quantity)
            except OpenClawError as error:
                return [_failure(row, error)]
            return [Booking(row, "hourly", period_start, row.quantity, answer.amount, answer)]

        async def to_date(group: Group) -> list[Booking | Failure]:
            # Each booking is the difference that one row makes to the period's total, in order of arrival, so they
            # telescope to the rate of the whole. A row that fails is simply not part of the total yet.
            before = standings[group]
            results: list[Booking | Failure] = []
            for row in groups[group]:
                asked = total([before.quantity, row.quantity, row.held_quantity.copy_negate()])
                try:
                    answer, without = await _with_and_without(asker, catalog, row, asked, before)
                except OpenClawError as error:
                    results.append(_failure(row, error))
                    continue
                anew = without.unlimited if without else None
                after = before.with_(asked, answer, window=row.window_start, without=anew)
                amount = total([row.held_amount, after.amount, before.amount.copy_negate()])
                results.append(
                    Booking(row, "period_to_date", group.period_start, asked, amount, answer, after, without)
                )
                before = after
            return results

        parts = await asyncio.gather(*(by_hour(*item) for item in hourly), *(to_date(group) for group in groups))
    return [result for part in parts for result in part]


async def _with_and_without(
    asker: Asker, catalog: Catalog, row: Due, asked: Decimal, before: Standing
) -> tuple[Answer, Answer | None]:
    """The answers for the period with the row's change and, unless the last one booked still holds, without it."""
    if before.currency not in (None, catalog.currency(row.tenant_id)):
        raise OpenClawError(
            f"the period is booked in {before.currency} so far, and the tenant's rate card is in "
            f"{catalog.currency(row.tenant_id)} now: change currencies at the end of a period",
            retryable=False,
        )
    for _ in range(TURNS):
        answer = await ask(asker, catalog, row, asked)
        if before.terms in (None, answer.terms):
            return answer, None
        without = await ask(asker, catalog, row, before.quantity)
        if without.terms == answer.terms:
            return answer, without
    raise OpenClawError(f"OpenClaw's prices changed between two questions, {TURNS} times in a row", retryable=True)


async def ask(asker: Asker, catalog: Catalog, row: Due, quantity: Decimal) -> Answer:
    service = openclaw_service(row.service, row.dimensions)
    negative = catalog.services[row.service].allow_negative
    return await asker.rate(row.tenant_id, service, quantity, catalog.currency(row.tenant_id), negative=negative)


def _failure(row: Due, error: OpenClawError) -> Failure:
    # 1, 2, 4 … 60 minutes, a quarter of it by chance so that rows that failed together don't come back together.
    minutes = min(2 ** min(row.attempts, 6), 60) * random.uniform(0.75, 1)  # noqa: S311 - jitter
    wait = max(timedelta(minutes=minutes), timedelta(seconds=error.retry_after or 0)) if error.retryable else None
    return Failure(row, "retry" if error.retryable else "refused", str(error), error.answer, wait)


def _first_error(failed: Sequence[Failure]) -> str | None:
    first = next((f for f in failed if f.kind != "unmapped"), None)
    if first is None:
        return None
    return f"{first.due.tenant_id} {openclaw_service(first.due.service, first.due.dimensions)}: {first.error}"


_RATED_COLUMNS = (
    "hour", "tenant_id", "service", "dimensions", "window_start", "revision", "metered_revision", "basis", "reason",
    "quantity", "amount", "currency", "asked_quantity", "answered_amount", "period_start", "answer",
    "rate_card_version", "latency_ms", "rated_at", "run_id", "unlimited_amount", "period_unlimited", "period_amount",
    "without_answer",
)  # fmt: skip


def write_bookings(connection: Connection, bookings: Sequence[Booking], now: datetime, run_id: str) -> None:
    if not bookings:
        return
    copy_rows(
        connection,
        "rated_usage",
        _RATED_COLUMNS,
        (
            (
                b.due.hour, b.due.tenant_id, b.due.service, b.due.dimensions, b.due.window_start, b.due.revision,
                b.due.metered_revision, b.basis, b.due.reason, b.due.quantity, b.amount, b.answer.currency, b.asked,
                b.answer.amount, b.period_start, json.dumps(b.answer.body), b.answer.rate_card_version,
                b.answer.latency_ms, now, run_id, b.answer.unlimited if b.standing else None,
                b.standing.unlimited if b.standing else None, b.standing.amount if b.standing else None,
                json.dumps(b.without.body) if b.without else None,
            )
            for b in bookings
        ),
    )  # fmt: skip
    connection.execute(
        text("""
            DELETE FROM rating_failures f USING rated_usage r
            WHERE f.hour = r.hour AND f.tenant_id = r.tenant_id AND f.service = r.service
              AND f.dimensions = r.dimensions AND f.window_start = r.window_start
              AND f.metered_revision <= r.metered_revision AND f.hour = ANY(:hours)
        """),
        {"hours": sorted({b.due.hour for b in bookings})},
    )


def _log(failures: Sequence[Failure]) -> None:
    for failure in failures[:_LOGGED]:
        due = failure.due
        about = {"tenant": due.tenant_id, "service": due.service, "hour": due.hour}
        log.info("not rated", extra={"fields": {**about, "kind": failure.kind, "error": failure.error}})


def _watched(bookings: Sequence[Booking], failures: Sequence[Failure]) -> Tally:
    """What /metrics says of these."""
    latencies = histogram("rating_seconds", (booking.answer.latency_ms for booking in bookings))
    return {**latencies, **Counter(("rating_failures", failure.kind) for failure in failures)}


def _write_failures(connection: Connection, failures: Sequence[Failure], now: datetime, run_id: str) -> None:
    if not failures:
        return
    connection.execute(
        text("""
            INSERT INTO rating_failures AS f (hour, tenant_id, service, dimensions, window_start, metered_revision,
                                              kind, error, answer, attempts, next_attempt_at, failed_at, run_id)
            VALUES (:hour, :tenant_id, :service, :dimensions, :window_start, :metered_revision, :kind, :error, :answer,
                    1, :next_attempt_at, :now, :run_id)
            ON CONFLICT (hour, tenant_id, service, dimensions, window_start, metered_revision) DO UPDATE
            SET kind = excluded.kind, error = excluded.error, answer = excluded.answer, attempts = f.attempts + 1,
                next_attempt_at = excluded.next_attempt_at, failed_at = excluded.failed_at, run_id = excluded.run_id
            WHERE f.kind <> 'unmapped' OR excluded.kind <> 'unmapped'
        """),
        [
            {
                "hour": f.due.hour, "tenant_id": f.due.tenant_id, "service": f.due.service,
                "dimensions": f.due.dimensions, "window_start": f.due.window_start,
                "metered_revision": f.due.metered_revision, "kind": f.kind, "error": f.error, "answer": f.answer,
                "next_attempt_at": now + f.wait if f.wait else None, "now": now, "run_id": run_id,
            }
            for f in failures
        ],
    )  # fmt: skip
    # What an older revision failed with is history: the newest one is what is owed.
    connection.execute(
        text("""
            DELETE FROM rating_failures f USING rating_failures newer
            WHERE f.hour = newer.hour AND f.tenant_id = newer.tenant_id AND f.service = newer.service
              AND f.dimensions = newer.dimensions AND f.window_start = newer.window_start
              AND f.metered_revision < newer.metered_revision AND f.hour = ANY(:hours)
        """),
        {"hours": sorted({f.due.hour for f in failures})},
    )
