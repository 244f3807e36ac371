"""Sets breaks right that have a safe remedy: what may be done, by whom, and the stations that do it, in order.

``decide`` is pure. Every action is written to the audit trail before it begins (``correction.begun``), names its break
and who allowed it, and is proved by the next reconciliation, which closes the break (``correction.proved``). A person
approves in the call, or beforehand (``correction.approved``) in the finance pages.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from itertools import groupby
from typing import Any, Literal

from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.correcting import Correcting
from clawbill_pipeline.catalog.periods import HOUR
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.delivery.operations import Which
from clawbill_pipeline.delivery.operations import retry as retry_records
from clawbill_pipeline.delivery.planning import plan as plan_records
from clawbill_pipeline.delivery.redelivery import send_lost_again
from clawbill_pipeline.delivery.sending import deliver
from clawbill_pipeline.invoicing.adjustments import propose_adjustments
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.ledger.waterfall import unit_scale
from clawbill_pipeline.metering import meter
from clawbill_pipeline.money import EXACT, plain, total
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating.station import rate
from clawbill_pipeline.results import Check
from clawbill_pipeline.stripe_api import StripeApi

#: What an action does: from a station on, its hour is done again; or records are sent again; or a proposal is written.
Remedy = Literal["meter", "rate", "plan", "redeliver", "resend", "propose"]
#: The safe remedy of a cause. Any other break is a person's: sending again would not help, or could bill twice.
REMEDIES: Mapping[str, Remedy] = {
    "not_metered": "meter",
    "not_rated": "rate",
    "not_sent": "plan",
    "pending": "redeliver",
    "parked": "redeliver",
    "rejected": "redeliver",
    "lost_after_acknowledgement": "resend",
    "late_after_finalisation": "propose",
}
#: Remedies that do a whole hour again, for everybody in it, from the first station on.
_WHOLE_HOUR: tuple[Remedy, ...] = ("meter", "rate", "plan")

Verdict = Literal["automatic", "approved", "waits"]


class NotCorrectable(LookupError):
    """An approved break is not open, or has no safe remedy."""


@dataclass(frozen=True, slots=True)
class OpenBreak:
    """An open break with a remedy. ``begun``: corrections before; ``by_hand``: a person set its records aside;
    ``approved_by``: who approved its correction beforehand, as it stands now."""

    id: int
    period: str
    tenant_id: str
    service: str
    hour: datetime | None
    cause: str
    currency: str | None
    quantity: Decimal
    amount: Decimal
    begun: int = 0
    by_hand: bool = False
    approved_by: str | None = None


@dataclass(frozen=True, slots=True)
class Action:
    """One thing to do, the breaks that it is for, and whether it may be done: ``why`` in words."""

    remedy: Remedy
    breaks: tuple[OpenBreak, ...]
    verdict: Verdict = "waits"
    why: str = ""

    @property
    def hour(self) -> datetime | None:
        return self.breaks[0].hour

    @property
    def place(self) -> str:
        """Where it is done: an hour, a tenant's service in an hour, or everywhere."""
        if self.remedy == "propose" or self.hour is None:
            return "final invoices"
        at = f"{self.hour:%Y-%m-%dT%H:%MZ}"
        first = self.breaks[0]
        return at if self.remedy in _WHOLE_HOUR else f"{first.tenant_id} {first.service} {at}"

    @property
    def mark(self) -> str:
        """Changes with what is to be done, the breaks it is for, and what they come to."""
        breaks = sorted((each.id, plain(each.quantity), plain(each.amount)) for each in self.breaks)
        return hashlib.sha256(json.dumps([self.remedy, self.place, breaks]).encode()).hexdigest()

    @property
    def worth(self) -> Decimal:
        """The largest of its sums in a currency, to sort by."""
        return max((amount for _, amount in _sums(self.breaks)), default=Decimal(0))

    @property
    def amounts(self) -> str:
        return ", ".join(f"{plain(amount)} {currency}" for currency, amount in _sums(self.breaks)) or "0"


@dataclass(frozen=True)
class Corrected:
    """What was done and what waits for a person; ``proved`` breaks of earlier corrections are closed by now."""

    done: tuple[Action, ...]
    waiting: tuple[Action, ...]
    proved: int
    problems: tuple[str, ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        return (Check("corrections_done", not self.problems, "Every correction that was begun was carried out."),)


# --- deciding ---------------------------------------------------------------------------------------------------------


def decide(breaks: Iterable[OpenBreak], limits: Correcting, approved: Collection[int] = ()) -> list[Action]:
    """What to do about ``breaks``, in an order in which it can be done, each with its verdict.

    What nobody approved must come to less than the limit, action by action; a break runs by itself once only, and not
    at all where its worth is unknown or a person set its records aside.
    """
    found: list[Action] = []
    for _, group in groupby(sorted(breaks, key=_place), key=_place):
        members = tuple(group)
        remedies = [REMEDIES[each.cause] for each in members]
        remedy = min(remedies, key=lambda each: list(REMEDIES.values()).index(each))
        found.append(_judged(Action(remedy, members), limits, approved))
    order = list(REMEDIES.values())
    return sorted(found, key=lambda action: order.index(action.remedy))


def _place(found: OpenBreak) -> tuple[Any, ...]:
    remedy = REMEDIES[found.cause]
    hour = found.hour.isoformat() if found.hour else ""
    if remedy in _WHOLE_HOUR:
        return ("hour", hour, "", "")
    if remedy == "propose":
        return ("propose", "", "", "")
    return (remedy, hour, found.tenant_id, found.service)


def _judged(action: Action, limits: Correcting, approved: Collection[int]) -> Action:
    alone = [each for each in action.breaks if each.id not in approved and each.approved_by is None]
    if not alone:
        names = sorted({each.approved_by for each in action.breaks if each.approved_by})
        return replace(action, verdict="approved", why=" ".join(["every break of it is approved", *names]))
    if action.remedy == "propose":
        return replace(action, verdict="automatic", why="a proposal waits for a person itself")
    if any(each.by_hand for each in alone):
        return replace(action, why="a person parked it")
    if any(each.begun for each in alone):
        return replace(action, why="was corrected before, and is open still")
    if any(each.quantity and not each.amount for each in alone):
        return replace(action, why="what it is worth is not known")
    over = [(currency, amount) for currency, amount in _sums(alone) if amount >= limits.limit(currency)]
    if over:
        currency, amount = over[0]
        return replace(
            action, why=f"comes to {plain(amount)} {currency}, the limit is {plain(limits.limit(currency))}"
        )  # fmt: skip
    return replace(action, verdict="automatic", why="below the limit")


def _sums(breaks: Iterable[OpenBreak]) -> list[tuple[str, Decimal]]:
    by_currency: dict[str, list[Decimal]] = {}
    for each in breaks:
        by_currency.setdefault(each.currency or "", []).append(abs(each.amount))
    return [(currency, total(amounts)) for currency, amounts in sorted(by_currency.items())]


# --- reading ----------------------------------------------------------------------------------------------------------


def planned(
    ledger: Ledger, catalog: Catalog, approved: Collection[int] = (), period: str | None = None
) -> list[Action]:
    """What ``correct`` would do now. Raises NotCorrectable for an approved break that it can do nothing about."""
    with ledger.transaction() as connection:
        return _planned(connection, catalog, approved, period)


def _planned(connection: Connection, catalog: Catalog, approved: Collection[int], period: str | None) -> list[Action]:
    given = {"causes": list(REMEDIES), "period": period}
    breaks = [OpenBreak(**row._mapping) for row in connection.execute(_OPEN, given)]
    if unknown := sorted(set(approved) - {each.id for each in breaks}):
        raise NotCorrectable(
            f"break {', '.join(map(str, unknown))}: not open, or without a safe remedy; see clawbill correct --plan"
        )
    return decide(breaks, catalog.correcting, approved)


# Without its hour nothing can be sent again. What waits for Stripe, or for an invoice, is not ours to hurry.
# An approval is good for one attempt, and for the amount that was seen.
_OPEN = text("""
WITH begun AS (
  SELECT subject, count(*) AS times, max(id) AS last FROM audit_trail WHERE kind = 'correction.begun' GROUP BY subject),
approved AS (
  SELECT DISTINCT ON (subject) subject, id, detail FROM audit_trail WHERE kind = 'correction.approved'
  ORDER BY subject, id DESC)
SELECT b.id, b.period, b.tenant_id, b.service, b.hour, b.cause, b.currency, b.quantity, b.amount,
  coalesce(begun.times, 0) AS begun,
  CASE WHEN approved.id > coalesce(begun.last, 0) AND CAST(approved.detail ->> 'amount' AS numeric) = b.amount
    AND CAST(approved.detail ->> 'quantity' AS numeric) = b.quantity THEN approved.detail ->> 'by' END AS approved_by,
  b.cause = 'parked' AND EXISTS (
    SELECT FROM usage_records u
    WHERE u.hour = b.hour AND (u.tenant_id = b.tenant_id OR jsonb_exists(u.parts, b.tenant_id))
      AND u.service = b.service AND u.parked IS NOT NULL
      AND 'usage_record.parked' = (
        SELECT t.kind FROM usage_record_trail t
        WHERE t.hour = u.hour AND t.identifier = u.identifier
          AND t.kind IN ('usage_record.parked', 'usage_record.retried')
        ORDER BY t.id DESC LIMIT 1)) AS by_hand
FROM breaks b
LEFT JOIN begun ON begun.subject = 'break ' || b.id LEFT JOIN approved ON approved.subject = 'break ' || b.id
WHERE b.closed_at IS NULL AND b.cause = ANY(:causes) AND (CAST(:period AS text) IS NULL OR b.period = :period)
  AND (b.cause = 'late_after_finalisation' OR b.hour IS NOT NULL) AND (b.cause <> 'pending' OR b.step = 'rated_sent')
ORDER BY b.id
""")


# --- a person's word --------------------------------------------------------------------------------------------------


def allow(ledger: Ledger, catalog: Catalog, action: Action, *, why: str, by: str, now: datetime) -> None:
    """Approves ``action`` as it was seen; the next ``correct`` carries it out.

    Raises NotCorrectable where it does not wait any more, or is for other breaks or amounts by now.
    """
    with ledger.transaction() as connection:
        lock(connection, "correcting")
        waiting = {each.mark: each for each in _planned(connection, catalog, (), None) if each.verdict == "waits"}
        if action.mark not in waiting:
            raise NotCorrectable("this correction changed or was begun meanwhile; look at it again")
        _note(connection, "correction.approved", waiting[action.mark], now, by=by, approval=why)


def newest_approval(ledger: Ledger) -> int:
    """The number of the newest approval in the audit trail; 0 where there is none."""
    with ledger.transaction() as connection:
        return int(connection.scalar(text("SELECT max(id) FROM audit_trail WHERE kind = 'correction.approved'")) or 0)


# --- doing ------------------------------------------------------------------------------------------------------------


def correct(
    ledger: Ledger,
    catalog: Catalog,
    lake: Lake,
    openclaw: Callable[[], OpenClaw],
    api: Callable[[], StripeApi],
    *,
    now: Clock,
    run_id: str,
    by: str,
    approved: Collection[int] = (),
    period: str | None = None,
) -> Corrected:
    """Does what may be done about open breaks. What fails is a problem with its break, and the others go on.

    ``by`` is who asked, and so who approved. The two services are made when they are needed. Raises NotCorrectable,
    LedgerError.
    """
    with ledger.transaction() as connection:
        lock(connection, "correcting")
        proved = _prove(connection, now())
        actions = _planned(connection, catalog, approved, period)
        allowed = [action for action in actions if action.verdict != "waits" and not _proposed(action)]
        for action in allowed:
            _note(connection, "correction.begun", action, now(), by=by, run_id=run_id)
    waiting = tuple(action for action in actions if action.verdict == "waits")
    done, problems = list[Action](), list[str]()
    to_send = False
    for action in allowed:
        try:
            _do(action, ledger, catalog, lake, openclaw, now(), run_id, by)
        except Exception as error:  # noqa: BLE001 -- whatever befalls one tenant's correction, the others are made
            problem = f"{action.remedy} {action.place}: {type(error).__name__}: {error}"
            problems.append(problem)
            with ledger.transaction() as connection:
                _note(connection, "correction.failed", action, now(), error=problem, run_id=run_id)
            continue
        done.append(action)
        to_send = to_send or action.remedy != "propose"
        with ledger.transaction() as connection:
            _note(connection, "correction.done", action, now(), run_id=run_id)
    if to_send:
        sent = deliver(ledger, catalog, api(), now=now, run_id=run_id)
        problems += [f"delivery stopped: {sent.stopped}"] if sent.stopped else []
    return Corrected(tuple(done), waiting, proved, tuple(problems))


def _proposed(action: Action) -> bool:
    """A proposal is written once; a newer one comes with the sweep of final invoices, not from here."""
    return action.remedy == "propose" and action.verdict == "automatic" and all(each.begun for each in action.breaks)


def _do(
    action: Action, ledger: Ledger, catalog: Catalog, lake: Lake, openclaw: Callable[[], OpenClaw], now: datetime,
    run_id: str, by: str,
) -> None:  # fmt: skip
    if action.remedy == "propose":
        propose_adjustments(ledger, catalog, now=now, run_id=run_id)
        return
    first = action.breaks[0]
    assert first.hour is not None  # noqa: S101 -- the query leaves out breaks without one
    start, end = first.hour, first.hour + HOUR
    names = f"{by}, for break {', '.join(str(each.id) for each in action.breaks)}"
    if action.remedy == "meter":
        meter(ledger, lake, catalog, start=start, end=end, now=now, run_id=run_id)
    if action.remedy in ("meter", "rate"):
        rate(ledger, catalog, openclaw(), start=start, end=end, now=now, run_id=run_id)
    if action.remedy == "redeliver":
        with ledger.transaction() as connection:
            given = {"hour": start, "tenant_id": first.tenant_id, "service": first.service}
            identifiers = tuple(connection.scalars(_UNDELIVERED, given))
        if identifiers:
            retry_records(ledger, Which(identifiers=identifiers), now=now, by=names)
    if action.remedy == "resend":
        for each in action.breaks:
            missing = missing_units(catalog, each)
            send_lost_again(ledger, each.tenant_id, each.service, start, missing, now=now, by=names)
    plan_records(ledger, catalog, hours=(start, end), now=now, run_id=run_id)


def missing_units(catalog: Catalog, lost: OpenBreak) -> Decimal:
    """Whole units at Stripe that a break of acknowledged usage stands for, exactly."""
    service = catalog.services.get(lost.service)
    by_amount = service is None or service.bill_by == "amount"
    return EXACT.multiply(-(lost.amount if by_amount else lost.quantity), unit_scale(catalog, lost.service))


_UNDELIVERED = text("""
SELECT identifier FROM usage_records
WHERE hour = :hour AND (tenant_id = :tenant_id OR jsonb_exists(parts, :tenant_id)) AND service = :service
  AND state <> 'delivered' ORDER BY identifier
""")


# --- the audit trail --------------------------------------------------------------------------------------------------


def _note(connection: Connection, kind: str, action: Action, now: datetime, **more: str) -> None:
    rows = [
        {
            "at": now, "kind": kind, "tenant_id": each.tenant_id, "subject": f"break {each.id}",
            "detail": json.dumps(
                {
                    "break": each.id, "cause": each.cause, "amount": plain(each.amount), "currency": each.currency,
                    "quantity": plain(each.quantity), "approved_by": each.approved_by,
                    "remedy": action.remedy, "place": action.place, "verdict": action.verdict, "why": action.why,
                    **more,
                }
            ),
        }
        for each in action.breaks
    ]  # fmt: skip
    connection.execute(_NOTE, rows)


_NOTE = text("""
INSERT INTO audit_trail (at, kind, tenant_id, subject, detail)
VALUES (:at, :kind, :tenant_id, :subject, CAST(:detail AS jsonb))
""")


def prove(ledger: Ledger, *, now: datetime) -> int:
    """Notes which breaks a reconciliation closed after they were corrected; returns how many are new."""
    with ledger.transaction() as connection:
        lock(connection, "correcting")
        return _prove(connection, now)


def _prove(connection: Connection, now: datetime) -> int:
    return len(connection.execute(_PROVE, {"now": now}).all())


_PROVE = text("""
INSERT INTO audit_trail (at, kind, tenant_id, subject, detail)
SELECT :now, 'correction.proved', b.tenant_id, 'break ' || b.id, jsonb_build_object('closed_at', b.closed_at)
FROM breaks b
WHERE b.closed_at IS NOT NULL
  AND EXISTS (SELECT FROM audit_trail a WHERE a.kind = 'correction.done' AND a.subject = 'break ' || b.id)
  AND NOT EXISTS (SELECT FROM audit_trail a WHERE a.kind = 'correction.proved' AND a.subject = 'break ' || b.id)
RETURNING 1
""")


def standing(ledger: Ledger) -> Sequence[tuple[int, bool]]:
    """Breaks that were corrected, and whether a reconciliation has found them gone since, newest first."""
    with ledger.transaction() as connection:
        return [(row.id, row.gone) for row in connection.execute(_STANDING)]


_STANDING = text("""
SELECT b.id, b.closed_at IS NOT NULL AS gone FROM breaks b
WHERE EXISTS (SELECT FROM audit_trail a WHERE a.kind = 'correction.done' AND a.subject = 'break ' || b.id)
ORDER BY b.id DESC LIMIT 1000
""")
