"""Rates a whole billing period anew after a correction of prices: differences, on record, and nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog, hours_between
from clawbill_pipeline.catalog.periods import Period, utc_hour
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.archive import refuse_archived
from clawbill_pipeline.ledger.database import lock_all
from clawbill_pipeline.money import plain, total
from clawbill_pipeline.openclaw import OpenClaw, OpenClawError
from clawbill_pipeline.rating.asking import Asker
from clawbill_pipeline.rating.spanning import Group, Standing, lock_groups, read_standings
from clawbill_pipeline.rating.station import Booking, Due, ask, write_bookings


@dataclass(frozen=True)
class Rerated:
    """What a re-rating came to. ``differences`` are what it added to the amounts, by currency; ``failed`` says of each
    row that OpenClaw could not rate why: it keeps its amount, and another run asks for it again. ``hours`` changed."""

    asked: int
    changed: int
    differences: dict[str, Decimal]
    failed: tuple[str, ...]
    hours: tuple[datetime, ...]


@dataclass(frozen=True)
class _Question:
    """A quantity to ask for again: an hour's, or a period's whose difference is booked on its newest window."""

    due: Due
    asked: Decimal
    standing: Standing | None


def rerate(
    ledger: Ledger,
    catalog: Catalog,
    openclaw: OpenClaw,
    *,
    period: str,
    why: str,
    by: str,
    now: datetime,
    run_id: str,
    tenants: Collection[str] | None = None,
    services: Collection[str] | None = None,
) -> Rerated:
    """Asks OpenClaw again for all that is rated in the billing periods that start in month ``period`` (``YYYY-MM``),
    or in those with the key ``period``, where they start by the day or the week.

    A window whose amount differs gets a new revision with the reason ``rerated``; of a ``period_to_date`` service the
    whole difference, between the answer and the sum of what is booked, is one revision of its newest window. Each
    tenant is one transaction with its entry in the audit trail. Run again at the same prices, it writes nothing.
    Raises ArchiveError, before anything else, where rows of a period are in the lake alone.
    """
    asked = changed = 0
    failed: list[str] = []
    differences: dict[str, Decimal] = {}
    hours: set[datetime] = set()
    spans = list(_spans(catalog, period, now, tenants if tenants is not None else catalog.tenants))
    with ledger.transaction() as connection:
        for start, end in {(utc_hour(span.start), span.end) for _, span in spans}:
            refuse_archived(connection, start, end)
    for tenant_id, span in spans:
        with ledger.transaction() as connection:
            lock_all(
                connection, (("rating", hour.isoformat()) for hour in hours_between(utc_hour(span.start), span.end))
            )
            questions = _questions(connection, catalog, tenant_id, span, services)
            bookings, errors = asyncio.run(_ask_all(catalog, openclaw, questions, span))
            failed += errors
            asked += len(questions)
            if not bookings:
                continue
            write_bookings(connection, bookings, now, run_id)
            by_currency = _differences(bookings)
            for currency, difference in by_currency.items():
                differences[currency] = total([differences.get(currency, Decimal(0)), difference])
            detail = {
                "period": span.key, "why": why, "by": by, "run_id": run_id, "rows": len(bookings),
                "differences": {currency: plain(difference) for currency, difference in by_currency.items()},
            }  # fmt: skip
            connection.execute(
                _AUDIT, {"now": now, "tenant_id": tenant_id, "subject": span.key, "detail": json.dumps(detail)}
            )
        changed += len(bookings)
        hours.update(booking.due.hour for booking in bookings)
    return Rerated(asked, changed, differences, tuple(failed), tuple(sorted(hours)))


def _spans(catalog: Catalog, period: str, now: datetime, tenants: Iterable[str]) -> Iterator[tuple[str, Period]]:
    """The periods to be rated, tenant by tenant."""
    keys = catalog.period_keys(period, now) if len(period) == len("2026-01") else [period]
    for tenant_id in tenants:
        spans = (catalog.tenant(tenant_id).period(key) for key in keys)
        yield from ((tenant_id, span) for span in spans if not span.empty)


def _questions(
    connection: Connection, catalog: Catalog, tenant_id: str, span: Period, services: Collection[str] | None
) -> list[_Question]:
    given = {
        "tenant_id": tenant_id, "start": span.start, "end": span.end, "first_hour": utc_hour(span.start),
        "services": list(services) if services is not None else None,
    }  # fmt: skip
    # Groups are locked before they are read, so that no booking comes between.
    groups = {
        Group(tenant_id, row.service, row.dimensions, span.start)
        for row in connection.execute(_HELD, given)
        if row.basis == "period_to_date"
    }
    lock_groups(connection, groups)
    questions: list[_Question] = []
    newest: dict[tuple[str, str], Due] = {}
    for row in connection.execute(_HELD, given):
        due = Due(
            hour=row.hour, tenant_id=tenant_id, service=row.service, dimensions=row.dimensions,
            window_start=row.window_start, metered_revision=row.metered_revision, quantity=row.quantity,
            reason="rerated", revision=row.revision + 1, held_quantity=row.quantity, held_amount=row.amount, attempts=0,
        )  # fmt: skip
        if row.basis == "hourly":
            questions.append(_Question(due, row.quantity, None))
        else:
            newest[row.service, row.dimensions] = due  # rows come in order of their windows
    spanning = {Group(tenant_id, *key, span.start): due for key, due in newest.items()}
    for group, standing in read_standings(connection, catalog, list(spanning), summed=True).items():
        questions.append(_Question(spanning[group], standing.quantity, standing))
    return questions


async def _ask_all(
    catalog: Catalog, openclaw: OpenClaw, questions: Sequence[_Question], span: Period
) -> tuple[list[Booking], list[str]]:
    bookings: list[Booking] = []
    failed: list[str] = []

    async def one(asker: Asker, question: _Question) -> None:
        try:
            answer = await ask(asker, catalog, question.due, question.asked)
        except OpenClawError as error:
            failed.append(f"{question.due.tenant_id} {question.due.service} {question.due.hour.isoformat()}: {error}")
            return
        due, before = question.due, question.standing
        if before is None:
            booking = Booking(due, "hourly", span.start, question.asked, answer.amount, answer)
        else:
            after = before.anew(answer)
            amount = total([due.held_amount, after.amount, before.amount.copy_negate()])
            booking = Booking(due, "period_to_date", span.start, question.asked, amount, answer, after)
        if booking.amount != due.held_amount:
            bookings.append(booking)

    if questions:
        async with openclaw.session() as session:
            asker = Asker(session, attempts=catalog.rating.attempts, concurrency=catalog.rating.concurrency)
            await asyncio.gather(*(one(asker, question) for question in questions))
    return bookings, failed


def _differences(bookings: Iterable[Booking]) -> dict[str, Decimal]:
    found: dict[str, Decimal] = {}
    for booking in bookings:
        so_far = found.get(booking.answer.currency, Decimal(0))
        found[booking.answer.currency] = total([so_far, booking.amount, booking.due.held_amount.copy_negate()])
    return found


_HELD = text("""
    SELECT DISTINCT ON (hour, service, dimensions, window_start)
           hour, service, dimensions, window_start, revision, metered_revision, basis, quantity, amount
    FROM rated_usage
    WHERE tenant_id = :tenant_id AND hour >= :first_hour AND hour < :end
      AND window_start >= :start AND window_start < :end
      AND (CAST(:services AS text[]) IS NULL OR service = ANY(:services))
    ORDER BY hour, service, dimensions, window_start, revision DESC
""")
_AUDIT = text("""
    INSERT INTO audit_trail (at, kind, tenant_id, subject, detail)
    VALUES (:now, 'rating.rerated', :tenant_id, :subject, :detail)
""")
