"""Reads what Stripe's meters hold of the windows that drafts bill. Judges nothing.

A draft shows the usage there was when it was made; Stripe counts once more when it finalises. So where a line is
behind the ledger, the meter says what the invoice will bill. Reading is rationed: other lines need none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal

import stripe
from sqlalchemy import Connection, insert, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.invoicing.booked import Held, billed_windows, booked
from clawbill_pipeline.invoicing.draft import Draft, Window, windows
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import usage_summaries
from clawbill_pipeline.money import total
from clawbill_pipeline.stripe_api import StripeApi

#: Calls under way at once.
CONCURRENCY = 8
#: Above it Stripe's floats are no longer exact.
EXACT_BELOW = Decimal(2**53)
_MINUTE = timedelta(minutes=1)


@dataclass(frozen=True)
class Question:
    """A window of a draft whose lines are not what the ledger has."""

    invoice_id: str
    tenant_id: str
    customer_id: str
    meter_id: str
    meter: str
    window: Window
    whole: bool


def read_held(
    ledger: Ledger, catalog: Catalog, api: StripeApi, drafts: Sequence[Draft], *, now: datetime, run_id: str
) -> dict[str, dict[Window, Held]]:
    """By invoice and window, what Stripe's meters hold; what was read of a whole period goes into ``usage_summaries``.

    A window that can't be read has its error, and stops no other. Raises LedgerError.
    """
    with ledger.transaction() as connection:
        questions = [question for draft in drafts for question in _questions(connection, catalog, draft)]
    answers = asyncio.run(_ask_all(api, questions)) if questions else []
    found: dict[str, dict[Window, Held]] = {}
    rows = []
    for question, answer in zip(questions, answers, strict=True):
        units, error = (answer, None) if isinstance(answer, Decimal) else (None, answer)
        found.setdefault(question.invoice_id, {})[question.window] = Held(units, now, error)
        if units is not None and question.whole:
            service, start, _ = question.window
            rows.append(
                {
                    "tenant_id": question.tenant_id, "service": service, "customer_id": question.customer_id,
                    "meter": question.meter, "period_start": start, "hour": None, "units": units, "read_at": now,
                    "run_id": run_id,
                }
            )  # fmt: skip
    if rows:
        with ledger.transaction() as connection:
            connection.execute(insert(usage_summaries), rows)
    return found


def _questions(connection: Connection, catalog: Catalog, draft: Draft) -> list[Question]:
    query = """
        SELECT i.service, i.meter_id, i.meter, c.customer_id
        FROM stripe_items i JOIN stripe_customers c USING (tenant_id)
        WHERE i.tenant_id = :tenant AND i.meter_id <> ''"""
    items = {row.service: row for row in connection.execute(text(query), {"tenant": draft.tenant_id})}
    lines = windows(draft)
    period_at = catalog.tenants[draft.tenant_id].period_at if draft.tenant_id in catalog.tenants else None
    asked = []
    for window in billed_windows(connection, catalog, draft):
        service, start, end = window
        entry = booked(connection, catalog, draft.tenant_id, *window)
        billed = total(line.quantity or Decimal(0) for line in lines.get(window, ()))
        if service in items and billed != entry.planned:
            item, whole = items[service], period_at is not None and period_at(start).end == end
            asked.append(
                Question(
                    draft.invoice_id, draft.tenant_id, item.customer_id, item.meter_id, item.meter, window, whole
                )
            )  # fmt: skip
    return asked


async def _ask_all(api: StripeApi, questions: Sequence[Question]) -> list[Decimal | str]:
    turn = asyncio.Semaphore(CONCURRENCY)
    async with api.session() as client:

        async def ask(question: Question) -> Decimal | str:
            async with turn:
                try:
                    return await _ask(client, question)
                except stripe.StripeError as error:
                    return f"{type(error).__name__}: {error.user_message or 'no answer'}"

        return list(await asyncio.gather(*(ask(question) for question in questions)))


async def _ask(client: stripe.StripeClient, question: Question) -> Decimal | str:
    _, start, end = question.window
    params: stripe.params.billing.MeterListEventSummariesParams = {
        "customer": question.customer_id,
        "start_time": int(_next_minute(start).timestamp()),
        "end_time": int(_next_minute(end).timestamp()),
        "limit": 1,
    }
    page = await client.v1.billing.meters.event_summaries.list_async(question.meter_id, params)
    units = total(Decimal(summary.aggregated_value) for summary in page.data)
    return units if abs(units) < EXACT_BELOW else "its total is too large to be exact as a number of Stripe's"


def _next_minute(moment: datetime) -> datetime:
    """Stripe sums by whole minutes. A window that begins or ends within one has no record of ours in the rest of it."""
    return moment + (-(moment - moment.min.replace(tzinfo=moment.tzinfo)) % _MINUTE)
