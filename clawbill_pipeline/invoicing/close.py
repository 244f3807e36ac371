"""The close: drafts are compared with the ledger, held at Stripe where they are wrong, and let go when they are right.

Each comparison that says something new and each decision is a row of the audit trail (``close.compared``,
``close.hold``, ``close.release``), committed before Stripe is asked; ``close.done`` says that Stripe did it. What a
person decided stands until a person decides otherwise. How a draft is judged is in ``draft``; what is held for a
difference is an open break (``draft_breaks``).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import stripe
from sqlalchemy import Connection, Row, insert, select

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.closing import Closing
from clawbill_pipeline.catalog.periods import HOUR, utc_hour
from clawbill_pipeline.invoicing.booked import booked, hours_metered, read_booked, read_drafts, sharing
from clawbill_pipeline.invoicing.draft import Comparison, Draft, compare_draft, decide
from clawbill_pipeline.invoicing.draft_breaks import breaks_of, write_draft_breaks
from clawbill_pipeline.invoicing.held import read_held
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.ledger.tables import audit_trail, invoices, stripe_items
from clawbill_pipeline.results import Check
from clawbill_pipeline.stripe_api import StripeApi

#: Who decides when nobody does.
ITSELF = "clawbill"
#: How long after its release a draft is finalised whose time is over.
SOON = timedelta(minutes=5)

Action = Literal["hold", "release"]


class NotADraft(LookupError):
    """The invoice is not in the ledger, or no draft any more: it can be neither held nor released."""


@dataclass(frozen=True)
class Closed:
    """What came of the drafts: how many agree and go out, wait for usage under way, and are held; and why.

    ``breaks_opened`` and ``breaks_closed`` count causes for which drafts are held.
    """

    released: int
    waiting: int
    held: int
    breaks_opened: int
    breaks_closed: int
    comparisons: tuple[Comparison, ...]
    problems: tuple[str, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class OpenPeriod:
    """How far one tenant's billing period has come. ``confirmed``: Stripe's meters hold all that was delivered;
    ``compared``: what the last comparison of its draft said, None before there is one."""

    tenant_id: str
    start: datetime
    end: datetime
    hours: int
    metered: int
    delivered: bool
    confirmed: bool
    invoice_id: str | None
    compared: Literal["agrees", "differs"] | None
    decision: Action | None
    by: str | None
    finalizes_at: datetime | None


def close_drafts(
    ledger: Ledger,
    catalog: Catalog,
    api: StripeApi,
    closing: Closing,
    *,
    now: datetime,
    run_id: str,
) -> Closed:
    """Compares every draft and acts on it: lets it go, waits, or holds it. Safe to call again at any time.

    Where a draft's lines are behind, Stripe is asked first what it will count. What can't be done at Stripe is a
    problem and is tried again next time; the other drafts go on. Raises LedgerError.
    """
    with ledger.transaction() as connection:
        known = read_drafts(connection)
    held = read_held(ledger, catalog, api, known, now=now, run_id=run_id)
    counts: Counter[str] = Counter()
    comparisons, problems, apart = [], [], []
    for each in known:
        with ledger.transaction() as connection:
            draft = _turn(connection, each.invoice_id)
            if draft is None:  # final or gone meanwhile
                continue
            comparison = compare_draft(draft, read_booked(connection, catalog, draft, held.get(draft.invoice_id)))
            comparisons.append(comparison)
            _note_comparison(connection, comparison, now, run_id)
            decision, why = decide(draft, comparison, now, closing)
            last = _last_decision(connection, draft.invoice_id)
            by_hand = last is not None and last.detail["by"] != ITSELF and last.kind.removeprefix("close.")
            # What a person let go as it is, is no break; what the policy let go unseen, is.
            if not comparison.agrees and decision != "wait" and by_hand != "release":
                apart.append((draft, comparison))
            if by_hand:
                decision = "hold" if by_hand == "hold" else "release"  # a person's word stands
            elif _is_new(last, decision, draft):
                action: Action = "hold" if decision == "hold" else "release"
                last = _write_decision(connection, draft, action, why, ITSELF, now, run_id)
        counts[decision] += 1
        if last is not None:
            problems += _carry_out(ledger, api, last, now)
    opened, closed = write_draft_breaks(ledger, breaks_of(catalog, apart), now=now)
    return Closed(
        counts["release"],
        counts["wait"],
        counts["hold"],
        opened,
        closed,
        tuple(comparisons),
        tuple(problems),
        _checks(comparisons, problems),
    )


def _is_new(last: Row[*tuple[Any, ...]] | None, decision: str, draft: Draft) -> bool:
    if decision == "wait":
        return False
    if last is None:
        # A draft that agrees goes out by itself, unless it was stopped at Stripe by someone else: not ours to undo.
        return decision == "hold" and draft.finalizes_at is not None
    return bool(last.kind != f"close.{decision}")


@dataclass(frozen=True)
class Undecided:
    """Drafts that no comparison has let go yet: whose usage they bill, at which customers, and for which span."""

    tenants: tuple[str, ...]
    customers: tuple[str, ...]
    start: datetime
    until: datetime


def undecided_drafts(ledger: Ledger, catalog: Catalog) -> list[Undecided]:
    """What is to be metered and delivered at once: drafts that bill usage and were not compared, or did not agree.

    Drafts that bill up to the same moment are one entry. Those that a person decided on are left alone.
    """
    spans: dict[datetime, list[tuple[datetime, list[str], str]]] = {}
    with ledger.transaction() as connection:
        for draft in read_drafts(connection):
            usage = [line for line in draft.lines if line.is_usage]
            if not usage and draft.object.get("billing_reason") != "subscription_cycle":
                continue
            compared = _last(connection, draft.invoice_id, ("close.compared",))
            decided = _last_decision(connection, draft.invoice_id)
            if (compared and compared.detail["agrees"]) or (decided and decided.detail["by"] != ITSELF):
                continue
            bounds = [datetime.fromtimestamp(draft.object[name], UTC) for name in ("period_start", "period_end")]
            start = min([bounds[0], *(line.period_start for line in usage)])
            until = max([bounds[1], *(line.period_end for line in usage)])
            found = (max(start, catalog.start), sharing(connection, draft.tenant_id), draft.object["customer"])
            spans.setdefault(until, []).append(found)
    return [
        Undecided(
            tuple(sorted({tenant for _, tenants, _ in each for tenant in tenants})),
            tuple(sorted({customer for _, _, customer in each})),
            min(start for start, _, _ in each),
            until,
        )
        for until, each in sorted(spans.items())
    ]


def hold(ledger: Ledger, api: StripeApi, invoice_id: str, *, why: str, by: str, now: datetime) -> tuple[str, ...]:
    """Stops the draft from going out, until ``release``. Returns what Stripe refused. Raises NotADraft, LedgerError."""
    return _by_hand(ledger, api, invoice_id, "hold", why, by, now)


def release(ledger: Ledger, api: StripeApi, invoice_id: str, *, why: str, by: str, now: datetime) -> tuple[str, ...]:
    """Lets the draft go out, whatever the comparison says. Answers and raises as ``hold`` does."""
    return _by_hand(ledger, api, invoice_id, "release", why, by, now)


def _by_hand(
    ledger: Ledger, api: StripeApi, invoice_id: str, action: Action, why: str, by: str, now: datetime
) -> tuple[str, ...]:
    with ledger.transaction() as connection:
        draft = _turn(connection, invoice_id)
        if draft is None:
            status = connection.scalar(select(invoices.c.status).where(invoices.c.invoice_id == invoice_id))
            raise NotADraft(f"invoice {invoice_id} is {status or 'not in the ledger'}, not a tenant's draft")
        written = _write_decision(connection, draft, action, why, by, now, by)
    return tuple(_carry_out(ledger, api, written, now))


def _turn(connection: Connection, invoice_id: str) -> Draft | None:
    """The draft as it is now, with nobody else deciding on it until the transaction ends."""
    lock(connection, "close", invoice_id)
    return next(iter(read_drafts(connection, invoice_id)), None)


def close_status(ledger: Ledger, catalog: Catalog, *, now: datetime, tenant_id: str | None = None) -> list[OpenPeriod]:
    """Every period that is not over: each draft's, and the one that runs, of every tenant at Stripe or of one."""
    query = select(stripe_items.c.tenant_id, stripe_items.c.service).order_by(*stripe_items.primary_key)
    services: dict[str, list[str]] = {}
    with ledger.transaction() as connection:
        for row in connection.execute(query):
            if tenant_id in (None, row.tenant_id) and row.tenant_id in catalog.tenants:
                services.setdefault(row.tenant_id, []).append(row.service)
        drafts = [draft for draft in read_drafts(connection, tenant_id=tenant_id) if draft.tenant_id in services]
        found = [_draft_status(connection, catalog, draft, services[draft.tenant_id], now) for draft in drafts]
        for tenant, of_tenant in services.items():
            period = catalog.tenant(tenant).period_at(now)
            found.append(_period_status(connection, catalog, tenant, of_tenant, (period.start, period.end), now))
    return sorted(found, key=lambda each: (each.tenant_id, each.start, each.invoice_id or ""))


def _period_status(
    connection: Connection,
    catalog: Catalog,
    tenant_id: str,
    services: Sequence[str],
    bounds: tuple[datetime, datetime],
    now: datetime,
    **of_draft: Any,
) -> OpenPeriod:
    start, end = bounds
    known = [name for name in services if name in catalog.services]
    entries = [booked(connection, catalog, tenant_id, name, start, end) for name in known]
    first = max(utc_hour(start), catalog.start)
    hours = -((first - end) // HOUR)  # an hour that is begun counts
    metered = hours_metered(connection, first, min(end, now))
    unsent = {"not_rated", "pending", "parked", "rejected"}
    delivered = all(e.delivered == e.planned and not unsent & set(e.open_causes) for e in entries)
    confirmed = all((entry.held or 0) == entry.delivered for entry in entries)
    blank: dict[str, Any] = dict.fromkeys(("invoice_id", "compared", "decision", "by", "finalizes_at"))
    return OpenPeriod(tenant_id, start, end, hours, metered, delivered, confirmed, **{**blank, **of_draft})


def _draft_status(
    connection: Connection, catalog: Catalog, draft: Draft, services: Sequence[str], now: datetime
) -> OpenPeriod:
    bounds = [datetime.fromtimestamp(draft.object[name], UTC) for name in ("period_start", "period_end")]
    compared = _last(connection, draft.invoice_id, ("close.compared",))
    decided = _last_decision(connection, draft.invoice_id)
    return _period_status(
        connection,
        catalog,
        draft.tenant_id,
        services,
        (bounds[0], bounds[1]),
        now,
        invoice_id=draft.invoice_id,
        compared=compared and ("agrees" if compared.detail["agrees"] else "differs"),
        decision=decided and decided.kind.removeprefix("close."),
        by=decided and decided.detail["by"],
        finalizes_at=draft.finalizes_at,
    )


# --- the decision log ------------------------------------------------------------------------------------------------


def _last(connection: Connection, invoice_id: str, kinds: Sequence[str]) -> Row[*tuple[Any, ...]] | None:
    query = select(audit_trail).where(audit_trail.c.subject == invoice_id, audit_trail.c.kind.in_(kinds))
    return connection.execute(query.order_by(audit_trail.c.id.desc()).limit(1)).one_or_none()


def _last_decision(connection: Connection, invoice_id: str) -> Row[*tuple[Any, ...]] | None:
    return _last(connection, invoice_id, ("close.hold", "close.release"))


def _write(
    connection: Connection, kind: str, tenant_id: str, invoice_id: str, detail: Mapping[str, Any], now: datetime
) -> Row[*tuple[Any, ...]]:
    row = {"at": now, "kind": kind, "tenant_id": tenant_id, "subject": invoice_id, "detail": dict(detail)}
    return connection.execute(insert(audit_trail).values(row).returning(audit_trail)).one()


def _note_comparison(connection: Connection, comparison: Comparison, now: datetime, run_id: str) -> None:
    said = {
        "agrees": comparison.agrees,
        "differences": [
            {name: str(getattr(each, name)) for name in ("service", "cause", "quantity", "amount", "detail")}
            for each in comparison.differences
        ],
        "apart": {name: str(amount) for name, amount in comparison.apart.items()},
    }
    last = _last(connection, comparison.invoice_id, ("close.compared",))
    if last is None or {**last.detail, "run_id": None} != {**said, "run_id": None}:
        detail = said | {"run_id": run_id}
        _write(connection, "close.compared", comparison.tenant_id, comparison.invoice_id, detail, now)


def _write_decision(
    connection: Connection, draft: Draft, action: Action, why: str, by: str, now: datetime, run_id: str
) -> Row[*tuple[Any, ...]]:
    # When Stripe would have finalised it is put back by a release, unless that is over.
    before = _last_decision(connection, draft.invoice_id)
    planned = datetime.fromisoformat(before.detail["finalizes_at"]) if before else now
    at = max(draft.finalizes_at or planned, now + SOON if action == "release" else now)
    params: dict[str, Any] = {"auto_advance": False}
    if action == "release":
        params = {"auto_advance": True, "automatically_finalizes_at": int(at.timestamp())}
    detail = {"why": why, "by": by, "finalizes_at": at.isoformat(), "params": params, "run_id": run_id}
    return _write(connection, f"close.{action}", draft.tenant_id, draft.invoice_id, detail, now)


# --- Stripe ----------------------------------------------------------------------------------------------------------


def _carry_out(ledger: Ledger, api: StripeApi, decision: Row[*tuple[Any, ...]], now: datetime) -> list[str]:
    """Does at Stripe what was decided, once; returns what went wrong."""
    invoice_id, action = decision.subject, decision.kind.removeprefix("close.")
    with ledger.transaction() as connection:
        done = _last(connection, invoice_id, ("close.done",))
    if done is not None and done.detail["decision"] >= decision.id:
        return []
    # The key is the decision's: a call that was lost on the way is the same call again.
    options: Any = {"idempotency_key": f"clawbill-close-{invoice_id}-{decision.id}"}
    try:
        api.client().v1.invoices.update(invoice_id, decision.detail["params"], options)
    except stripe.StripeError as error:
        return [f"{invoice_id}: {action} failed: {type(error).__name__}: {error}"]
    with ledger.transaction() as connection:
        _write(connection, "close.done", decision.tenant_id, invoice_id, {"decision": decision.id}, now)
    return []


def _checks(comparisons: Sequence[Comparison], problems: Sequence[str]) -> tuple[Check, ...]:
    apart = [each for each in comparisons if not each.agrees]
    first = next((f"{each.cause}: {each.detail}" for one in apart for each in one.differences), None)
    return (
        Check(
            "drafts_agree_with_ledger",
            not apart,
            "Every draft invoice bills what the ledger has, service by service.",
            {"drafts": len(comparisons), "differ": len(apart), "first": first},
        ),
        Check("close_decisions_done", not problems, "Stripe did what was decided.", {"failed": len(problems)}),
    )
