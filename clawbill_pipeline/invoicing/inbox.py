"""Applies landed events to invoices, their lines and the tenants' standing, one transaction an event.

An event and what it changes are committed together, so none is lost or handled twice, whoever crashes. What it says
is read in ``events``; which standing follows is decided in ``states``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

import stripe
from sqlalchemy import Connection, Row, Select, case, func, insert, not_, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DataError, IntegrityError

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.invoicing.events import (
    WATCHED_THIN,
    Change,
    Invoice,
    Notes,
    Reference,
    Subscription,
    UnusableEvent,
    order,
    read_change,
)
from clawbill_pipeline.invoicing.fetching import Stripe
from clawbill_pipeline.invoicing.rows import (
    debts,
    known_invoice,
    lock_inbox,
    map_late,
    move_standing,
    newest_applied,
    paid_for,
    write_invoice,
    write_lines,
)
from clawbill_pipeline.invoicing.states import Signal, of_invoice, of_subscription
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import (
    audit_trail,
    stripe_customers,
    stripe_events,
    stripe_events_handled,
    stripe_events_mark,
    tenant_standing,
)
from clawbill_pipeline.results import Check
from clawbill_pipeline.stripe_api import StripeApi

Outcome = Literal["applied", "older", "unhandled", "failed"]

_CHUNK = 500

Event = Row[*tuple[Any, ...]]


@dataclass(frozen=True)
class Applied:
    """What came of the events: how many of each outcome, rows written, and what went wrong with which."""

    applied: int
    older: int
    unhandled: int
    failed: int
    waiting: int
    invoices: int
    lines: int
    standings: int
    last_inbox_id: int | None
    problems: tuple[str, ...]
    checks: tuple[Check, ...]


def pending_events(ledger: Ledger, after: int, limit: int) -> list[tuple[int, str, str]]:
    """The next events that nobody handled: ``(inbox id, event id, type)``, at most ``limit``, ids above ``after``."""
    with ledger.transaction() as connection:
        found = connection.execute(unhandled(max(after, _mark(connection)), None, limit))
        return [(row.id, row.event_id, row.type) for row in found]


def apply_events(
    ledger: Ledger, catalog: Catalog, api: StripeApi | None, *, through: int | None, now: datetime, run_id: str
) -> Applied:
    """Handles every event of the inbox up to the id ``through`` (None: all) that nobody handled, in order.

    An event that can't be applied is recorded as failed with its reason, and the others go on. One that needs Stripe
    while Stripe is away stays unhandled (``waiting``) for the next call. Raises LedgerError.
    """
    work = _Work(ledger, catalog, api, now, run_id)
    for row in _unhandled(ledger, through):
        work.handle(row)
    work.mark()
    work.catch_up()
    return work.result()


@dataclass(frozen=True)
class FailedEvent:
    """An event that could not be applied, and why."""

    event_id: str
    type: str
    object_id: str | None
    reason: str
    handled_at: datetime


def failed_events(ledger: Ledger) -> list[FailedEvent]:
    """Every event that failed and was not applied since, in the order of landing."""
    with ledger.transaction() as connection:
        return [
            FailedEvent(row.event_id, row.type, row.object_id, row.reason, row.handled_at)
            for row in connection.execute(_failed())
        ]


def apply_failed_again(
    ledger: Ledger, catalog: Catalog, api: StripeApi | None, *, now: datetime, run_id: str
) -> Applied:
    """Tries every event that failed once more, after what it failed on was mended.

    One that is applied now is noted in the audit trail as ``stripe_event.applied_again``; its failure stays on record.
    Raises LedgerError.
    """
    with ledger.transaction() as connection:
        rows = connection.execute(_failed()).all()
    work = _Work(ledger, catalog, api, now, run_id, again=True)
    for row in rows:
        work.handle(row)
    return work.result()


def _failed() -> Select[*tuple[Any, ...]]:
    handled = stripe_events_handled.c
    return (
        select(stripe_events, handled.detail.label("reason"), handled.handled_at)
        .join(stripe_events_handled, handled.inbox_id == stripe_events.c.id)
        .where(handled.outcome == "failed", not_(_applied_again(stripe_events.c.event_id)))
        .order_by(stripe_events.c.id)
    )


def _applied_again(event_id: Any) -> Any:
    kept = audit_trail.c
    return select(kept.id).where(kept.kind == "stripe_event.applied_again", kept.subject == event_id).exists()


_not_handled = not_(
    select(stripe_events_handled.c.inbox_id).where(stripe_events_handled.c.inbox_id == stripe_events.c.id).exists()
)


def unhandled(after: int, through: int | None, limit: int) -> Select[*tuple[Any, ...]]:
    """The next events above the inbox id ``after`` that nobody handled. It reads none that are before it."""
    query = select(stripe_events).where(stripe_events.c.id > after, _not_handled)
    if through is not None:
        query = query.where(stripe_events.c.id <= through)
    return query.order_by(stripe_events.c.id).limit(limit)


def _mark(connection: Connection) -> int:
    """The inbox id up to which every event was handled: numbers are given out in the order of commits."""
    return connection.scalar(select(func.max(stripe_events_mark.c.through))) or 0


def _unhandled(ledger: Ledger, through: int | None) -> Iterator[Event]:
    with ledger.transaction() as connection:
        after = _mark(connection)
    while True:
        with ledger.transaction() as connection:
            rows = connection.execute(unhandled(after, through, _CHUNK)).all()
        if not rows:
            return
        yield from rows
        after = rows[-1].id


class _Work:
    """One call of apply_events: its way to Stripe and its counts."""

    def __init__(
        self,
        ledger: Ledger,
        catalog: Catalog,
        api: StripeApi | None,
        now: datetime,
        run_id: str,
        *,
        again: bool = False,
    ) -> None:
        self._ledger = ledger
        self._again = again
        self._stripe = Stripe(api) if api else None
        self._now = now
        self._run_id = run_id
        # A tenant whose customer is named in the catalogue is known before delivery has mapped it.
        self._named = {t.stripe_customer: tenant_id for tenant_id, t in catalog.tenants.items() if t.stripe_customer}
        self._counts: Counter[str] = Counter()
        self._problems: list[str] = []
        self._apart: dict[str, str] = {}
        self._alerts: dict[str, str] = {}
        self._last: int | None = None
        self._first_waiting: int | None = None

    def result(self) -> Applied:
        count = self._counts
        return Applied(
            applied=count["applied"],
            older=count["older"],
            unhandled=count["unhandled"],
            failed=count["failed"],
            waiting=count["waiting"],
            invoices=count["invoices"],
            lines=count["lines"],
            standings=count["standings"],
            last_inbox_id=self._last,
            problems=tuple(self._problems),
            checks=(
                Check(
                    "events_handled",
                    not count["failed"] and not count["waiting"],
                    "Every landed event was applied, or is kept as one that needs no handling.",
                    {"failed": count["failed"], "waiting": count["waiting"]},
                ),
                Check(
                    "invoice_lines_add_up",
                    not self._apart,
                    "The lines of each invoice add up to its subtotal: no page of them is missing.",
                    {"invoices": count["invoices"], **self._apart},
                ),
                Check(
                    "stripe_took_everything",
                    not self._alerts,
                    "Stripe reported no rejected usage, no deactivated meter and no invoice that can't be finalised.",
                    dict(self._alerts),
                ),
            ),
        )

    def handle(self, row: Event) -> None:
        self._last = row.id
        try:
            self._record(row, *self._completed(row, read_change(row.type, row.body)))
        except (UnusableEvent, UnicodeError, stripe.InvalidRequestError, DataError, IntegrityError) as error:
            self._record_failure(row, str(getattr(error, "orig", None) or error).partition("\n")[0])
        except stripe.StripeError as error:
            # Not recorded: the next call tries again. The message is Stripe's and holds no key.
            self._counts["waiting"] += 1
            self._first_waiting = self._first_waiting or row.id
            self._problems.append(f"{row.event_id} ({row.type}) waits for Stripe: {type(error).__name__}: {error}")

    def _completed(self, row: Event, change: Change | None) -> tuple[Change | None, Invoice | None]:
        """The change with what its event does not hold, and the invoice as it is now where that was read.

        Stripe is asked before the transaction, so that no lock waits for it.
        """
        if self._stripe is None:
            if isinstance(change, Reference):
                raise UnusableEvent("a thin event needs Stripe to tell more, and no key is set")
            return change, None
        if isinstance(change, Reference) and change.kind == "subscription":
            return self._stripe.subscription(change.object_id), None
        if isinstance(change, Reference):
            return None, self._stripe.invoice(change.object_id)
        if isinstance(change, Notes):
            if row.type in WATCHED_THIN and not change.notes[0].detail.get("reason"):
                change = self._stripe.rejections(row.event_id)
            return change, self._stripe.invoice(change.invoice_id) if change.invoice_id else None
        # Two objects of one second: only Stripe knows which of them is the last.
        if isinstance(change, Invoice):
            if self._tied_invoice(row, change):
                return None, self._stripe.invoice(change.invoice_id)
            if change.has_more:
                return replace(change, lines=self._stripe.lines(change.invoice_id), has_more=False), None
        if isinstance(change, Subscription) and self._tied_standing(row, change):
            return self._stripe.subscription(change.subscription_id), None
        return change, None

    def _tied_invoice(self, row: Event, change: Invoice) -> bool:
        with self._ledger.transaction() as connection:
            known = known_invoice(connection, change.invoice_id)
        if known is None or change.status == "deleted" or known.object == change.object:
            return False
        return order(change.status, row.created, known.status, known.as_of) == "same"

    def _tied_standing(self, row: Event, change: Subscription) -> bool:
        with self._ledger.transaction() as connection:
            last = newest_applied(connection, change.subscription_id)
        return last is not None and last.created == row.created

    def _record(self, row: Event, change: Change | None, current: Invoice | None) -> None:
        with self._ledger.transaction() as connection:
            if not self._ours(connection, row):
                return
            if isinstance(change, Notes):
                outcome, detail = self._keep_notes(connection, row, change)
                if current is not None:
                    self._apply_invoice(connection, row, current, current=True)
            elif current is not None:
                outcome, detail = self._apply_invoice(connection, row, current, current=True)
            elif isinstance(change, Invoice):
                outcome, detail = self._apply_invoice(connection, row, change, current=False)
            elif isinstance(change, Subscription):
                outcome, detail = self._apply_subscription(connection, row, change)
            else:
                outcome, detail = "unhandled", f"no handler for {row.type}"
            self._note(connection, row, outcome, detail)

    def _record_failure(self, row: Event, reason: str) -> None:
        with self._ledger.transaction() as connection:
            if self._ours(connection, row):
                self._note(connection, row, "failed", reason)
                self._problems.append(f"{row.event_id} ({row.type}) failed: {reason}")

    def _ours(self, connection: Connection, row: Event) -> bool:
        """Whether the event is still to be handled, and ours until the transaction ends."""
        lock_inbox(connection)
        if self._again:
            return not connection.scalar(select(_applied_again(row.event_id)))
        handled = stripe_events_handled.c.inbox_id
        return connection.scalar(select(handled).where(handled == row.id)) is None

    def _note(self, connection: Connection, row: Event, outcome: Outcome, detail: str) -> None:
        self._counts[outcome] += 1
        if not self._again:
            note = {"inbox_id": row.id, "outcome": outcome, "detail": detail, "handled_at": self._now}
            connection.execute(insert(stripe_events_handled).values(note | {"run_id": self._run_id}))
        elif outcome != "failed":
            said = {"outcome": outcome, "detail": detail, "run_id": self._run_id}
            note = {"at": self._now, "kind": "stripe_event.applied_again", "subject": row.event_id, "detail": said}
            connection.execute(insert(audit_trail).values(note))

    def _keep_notes(self, connection: Connection, row: Event, change: Notes) -> tuple[Outcome, str]:
        tenant_id = self._tenant(connection, change.customer_id) if change.customer_id else None
        for note in change.notes:
            kept = {"at": self._now, "tenant_id": tenant_id, "kind": note.kind, "subject": note.subject}
            connection.execute(insert(audit_trail).values(kept | {"detail": {**note.detail, "event_id": row.event_id}}))
        if row.type in WATCHED_THIN or row.type == "billing.meter.deactivated":
            self._alerts[row.event_id] = f"{row.type}: {change.notes[0].subject}"
        return "applied", f"{len(change.notes)} notes in the audit trail"

    def _apply_invoice(
        self, connection: Connection, row: Event, change: Invoice, *, current: bool
    ) -> tuple[Outcome, str]:
        known = known_invoice(connection, change.invoice_id)
        as_of = row.created if known is None else max(row.created, known.as_of)
        # What was just read from Stripe is the newest there is, whatever the event's age.
        at = as_of if current else row.created
        if known is not None and order(change.status, at, known.status, known.as_of) == "older":
            return "older", f"{change.invoice_id} is {known.status} as of {known.as_of:%Y-%m-%dT%H:%M:%SZ}"
        tenant_id = self._tenant(connection, change.customer_id)
        write_invoice(connection, change, tenant_id, as_of)
        self._counts["invoices"] += 1
        self._counts["lines"] += write_lines(connection, change, tenant_id)
        self._compare_lines(change)
        if row.type == "invoice.finalization_failed" and change.status == "draft":
            error = change.object.get("last_finalization_error") or {}
            self._alerts[change.invoice_id] = f"can't be finalised: {error.get('message') or 'Stripe gives no reason'}"
        if tenant_id is None:
            return "applied", f"{change.invoice_id} is {change.status}; no tenant is mapped to {change.customer_id}"
        in_debt = bool(debts(connection, tenant_id, row.created, but=change.invoice_id))
        signals = of_invoice(row.type, change.status, change.object, row.created, in_debt=in_debt)
        moved = self._move(connection, tenant_id, signals, row.created, row.event_id)
        return "applied", f"{change.invoice_id} is {change.status}{moved}"

    def _apply_subscription(self, connection: Connection, row: Event, change: Subscription) -> tuple[Outcome, str]:
        tenant_id = self._tenant(connection, change.customer_id)
        if tenant_id is None:
            return "unhandled", f"no tenant is mapped to {change.customer_id}"
        of_tenant = stripe_customers.c.tenant_id == tenant_id
        followed = connection.scalar(select(stripe_customers.c.subscription_id).where(of_tenant))
        if followed not in (None, change.subscription_id):
            return "unhandled", f"{tenant_id} is billed by {followed}, not by {change.subscription_id}"
        in_debt = bool(debts(connection, tenant_id, row.created))
        signals = of_subscription(change.status, in_debt=in_debt)
        last = newest_applied(connection, change.subscription_id)
        # Cancelled is for good: it counts whenever it comes, and nothing undoes it.
        if last is not None and signals != ("cancel",) and (row.created < last.created or last.ended):
            return "older", f"a newer {last.type} of {last.created:%Y-%m-%dT%H:%M:%SZ} was applied"
        moved = self._move(connection, tenant_id, signals, row.created, row.event_id)
        return "applied", f"{change.subscription_id} is {change.status}{moved}"

    def _compare_lines(self, change: Invoice) -> None:
        total = sum((line.amount for line in change.lines), start=Decimal(0))
        self._apart.pop(change.invoice_id, None)
        if total != change.subtotal and change.status != "deleted":
            self._apart[change.invoice_id] = f"lines {total}, subtotal {change.subtotal} {change.currency}"

    def _move(self, connection: Connection, tenant_id: str, signals: Sequence[Signal], at: datetime, cause: str) -> str:
        """Moves the tenant, and those whose usage is on its bill: they stand as it does."""
        told = ""
        for each in (tenant_id, *paid_for(connection, tenant_id)):
            moved = move_standing(connection, each, signals, at, cause, self._now)
            if moved is not None:
                self._counts["standings"] += 1
                told += f"; {each}: {moved[0] or 'new'} -> {moved[1]}"
        return told

    def _tenant(self, connection: Connection, customer_id: str) -> str | None:
        of_customer = (stripe_customers.c.customer_id == customer_id, stripe_customers.c.payer_id.is_(None))
        mapped = connection.scalar(select(stripe_customers.c.tenant_id).where(*of_customer))
        return mapped or self._named.get(customer_id)

    def mark(self) -> None:
        """Notes up to where every event is handled, so that the next call looks at none of them."""
        if self._last is None:
            return
        through = self._first_waiting - 1 if self._first_waiting else self._last
        with self._ledger.transaction() as connection:
            if through > _mark(connection):
                marked = upsert(stripe_events_mark).values(through=through, marked_at=self._now)
                connection.execute(marked.on_conflict_do_nothing())

    def catch_up(self) -> None:
        """Does what events could not do that came before their customer was mapped to a tenant."""
        with self._ledger.transaction() as connection:
            lock_inbox(connection)
            map_late(connection)
            for row in _subscriptions_without_standing(connection):
                status = json.loads(row.body)["data"]["object"].get("status") or ""
                owing = debts(connection, row.tenant_id, self._now)
                signals = (*of_subscription(status, in_debt=bool(owing)), *owing)
                self._move(connection, row.tenant_id, signals, row.created, f"mapped:{row.customer_id}")


def _subscriptions_without_standing(connection: Connection) -> Sequence[Event]:
    """The newest event of the subscription of each mapped tenant that has no standing yet; a deletion comes last."""
    customers, events = stripe_customers.c, stripe_events.c
    new = not_(select(tenant_standing.c.id).where(tenant_standing.c.tenant_id == customers.tenant_id).exists())
    ended = case((events.type.like("%.deleted"), 1), else_=0)
    query = (
        select(customers.tenant_id, customers.customer_id, events.created, events.type, events.body)
        .ext(distinct_on(customers.tenant_id))
        .join(stripe_events, events.object_id == customers.subscription_id)
        .where(new, customers.payer_id.is_(None), events.type.like("customer.subscription.%"))
        .order_by(customers.tenant_id, events.created.desc(), ended.desc(), events.id.desc())
    )
    return connection.execute(query).all()
