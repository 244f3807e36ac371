"""What people decided on usage that a final invoice lacks: an adjustment bills it, or it is let go. No difference then.

Decisions are read from the audit trail (``ledger.adjustment_log``); made they are in invoicing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from typing import Literal

from sqlalchemy import Connection

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.ledger.adjustment_log import Standing, read_standings
from clawbill_pipeline.money import EXACT, SCALE, plain, rounded
from clawbill_pipeline.reconciliation.totals import Account, Break

#: Differences that an adjustment makes up for, in the order in which it does: what is planned less what is invoiced
#: is their sum.
COVERED = (
    ("held_invoiced", "late_after_finalisation"),
    ("rated_sent", "late_after_finalisation"),
    ("rated_sent", "parked"),
    ("rated_sent", "rejected"),
    ("rated_sent", "pending"),
    ("rated_sent", "not_sent"),
    ("sent_held", "lost_after_acknowledgement"),
    ("sent_held", "pending"),
    ("held_invoiced", "unexplained"),
)


@dataclass(frozen=True, slots=True)
class Decision:
    """One proposal that was decided: ``units`` at Stripe that the invoice lacks (negative: bills too many)."""

    cause: Literal["adjusted", "waived"]
    proposal: int
    units: Decimal
    detail: str


def read_decisions(connection: Connection, catalog: Catalog, period: str) -> dict[tuple[str, str], list[Decision]]:
    """The decisions on invoices of ``period`` (``YYYY-MM``) by tenant and service, oldest first."""
    found: dict[tuple[str, str], list[Decision]] = {}
    standings = read_standings(connection)
    newest = {standing.subject: standing.proposal for standing in standings}
    for standing in standings:
        tenant = catalog.tenants.get(standing.tenant_id)
        start = datetime.fromisoformat(standing.said["period_start"])
        if tenant is None or tenant.period_at(start).key != period:
            continue
        decision = _decision(standing, is_newest=newest[standing.subject] == standing.proposal)
        if decision is not None:
            found.setdefault((standing.tenant_id, standing.said["service"]), []).append(decision)
    return found


def _decision(standing: Standing, *, is_newest: bool) -> Decision | None:
    """What counts: an adjustment that Stripe has, and the newest word on what is let go."""
    money = f"{plain(standing.amount)} {standing.said['currency']}"
    if standing.state in ("done", "undoing"):
        made = f" ({standing.stripe_id})" if standing.stripe_id else ""
        return Decision("adjusted", standing.proposal, standing.units, f"adjustment {standing.proposal}: {money}{made}")
    if standing.state == "rejected" and is_newest:
        return Decision("waived", standing.proposal, standing.units, f"adjustment {standing.proposal}: {money} let go")
    return None


def with_decisions(account: Account, breaks: Sequence[Break], decisions: Iterable[Decision]) -> list[Break]:
    """``breaks``, of which the part that was decided on is explained. What they come to stays the same."""
    now = list(breaks)
    for decision in decisions:
        left = decision.units
        order = sorted((i for i, b in enumerate(now) if (b.step, b.cause) in COVERED), key=lambda i: _order(now[i]))
        for i in order:
            missing = account.units_of(now[i])
            if missing and left and missing.is_signed() != left.is_signed():
                covered = min(left.copy_abs(), missing.copy_abs()).copy_sign(missing)
                part = _part(now[i], covered, missing)
                rest = _less(now[i], part)
                now[i] = replace(part, cause=decision.cause, detail=f"{part.detail}; {decision.detail}")
                now += [rest] if rest.quantity or rest.amount else []
                left = EXACT.add(left, covered)
        if left and decision.cause == "adjusted":
            # More was adjusted than is missing by now: one difference that is explained, and one that is not.
            over = account.found("held_invoiced", "late_after_finalisation", left, f"{decision.detail} is too much")
            now += [replace(_negative(over), cause="adjusted", detail=decision.detail), over]
    return now


def _order(found: Break) -> tuple[int, str]:
    return COVERED.index((found.step, found.cause)), found.hour.isoformat() if found.hour else ""


def _part(found: Break, covered: Decimal, units: Decimal) -> Break:
    def share(value: Decimal) -> Decimal:
        return rounded(EXACT.divide(EXACT.multiply(value, covered), units), SCALE)

    return replace(found, quantity=share(found.quantity), amount=share(found.amount))


def _less(found: Break, part: Break) -> Break:
    quantity, amount = EXACT.subtract(found.quantity, part.quantity), EXACT.subtract(found.amount, part.amount)
    return replace(found, quantity=quantity, amount=amount)


def _negative(found: Break) -> Break:
    return replace(found, quantity=found.quantity.copy_negate(), amount=found.amount.copy_negate())
