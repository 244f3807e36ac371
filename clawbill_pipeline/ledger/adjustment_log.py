"""What the audit trail says of adjustments: each proposal, what was decided on it, and how far Stripe is. Only reads.

The rows of a proposal share its subject and name it in ``detail.proposal``: a person's word (``adjustment.accepted``,
``adjustment.rejected``, ``adjustment.undone``), the intent to call Stripe (``adjustment.sending``), and what came of it
(``adjustment.done``, ``adjustment.refused``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Literal

from sqlalchemy import Connection, Row, select

from clawbill_pipeline.ledger.tables import audit_trail

PROPOSED = "adjustment.proposed"
ACCEPTED = "adjustment.accepted"
REJECTED = "adjustment.rejected"
SENDING = "adjustment.sending"
DONE = "adjustment.done"
REFUSED = "adjustment.refused"
UNDONE = "adjustment.undone"
_KINDS = (PROPOSED, ACCEPTED, REJECTED, SENDING, DONE, REFUSED, UNDONE)

#: ``nothing``: the proposal that there is nothing to adjust any more. ``refused``: Stripe said no, so that it stands
#: open again. ``sending`` and ``undoing``: committed here, and Stripe's answer is not known yet.
State = Literal[
    "open", "nothing", "replaced", "rejected", "accepted", "sending", "refused", "done", "undoing", "undone"
]
#: States in which the amount is billed or will be, so that it must not be proposed again.
SETTLED: tuple[State, ...] = ("accepted", "sending", "done", "undoing")


@dataclass(frozen=True)
class Standing:
    """A proposal and what became of it. ``said`` is its detail: amounts in major units, as text. ``steps`` are its rows
    of the audit trail, oldest first."""

    proposal: int
    tenant_id: str
    subject: str
    said: Mapping[str, Any]
    state: State
    steps: tuple[Row[*tuple[Any, ...]], ...]

    @property
    def amount(self) -> Decimal:
        """In the currency's major unit; negative where too much was billed."""
        return Decimal(self.said["amount"])

    @property
    def units(self) -> Decimal:
        """In Stripe's whole units."""
        return Decimal(self.said["units"])

    @property
    def begun(self) -> Row[*tuple[Any, ...]] | None:
        """The newest row that something is to be done at Stripe."""
        return next((step for step in reversed(self.steps) if step.kind in (SENDING, UNDONE)), None)

    @property
    def stripe_id(self) -> str | None:
        """The invoice item or credit note that was made."""
        made = (step.detail["stripe_id"] for step in self.steps if step.kind == DONE and step.detail["stripe_id"])
        return next(made, None)


def read_standings(
    connection: Connection, *, subject: str | None = None, tenant_id: str | None = None
) -> list[Standing]:
    """Every proposal, oldest first; of one subject or tenant where one is named."""
    query = select(audit_trail).where(audit_trail.c.kind.in_(_KINDS)).order_by(audit_trail.c.id)
    if subject is not None:
        query = query.where(audit_trail.c.subject == subject)
    if tenant_id is not None:
        query = query.where(audit_trail.c.tenant_id == tenant_id)
    return standings(connection.execute(query))


def standings(rows: Iterable[Row[*tuple[Any, ...]]]) -> list[Standing]:
    """The proposals among ``rows`` of the audit trail, which come in the order of writing."""
    found: dict[int, Standing] = {}
    newest: dict[str, int] = {}
    for row in rows:
        if row.kind != PROPOSED:
            each = found[row.detail["proposal"]]
            found[each.proposal] = replace(each, state=_after(each.state, row.kind), steps=(*each.steps, row))
            continue
        before = found.get(newest.get(row.subject, 0))
        if before is not None and before.state in ("open", "refused"):
            found[before.proposal] = replace(before, state="replaced")
        state: State = "open" if Decimal(row.detail["units"]) else "nothing"
        found[row.id] = Standing(row.id, row.tenant_id, row.subject, row.detail, state, (row,))
        newest[row.subject] = row.id
    return list(found.values())


def _after(state: State, kind: str) -> State:
    if kind == DONE:
        return "undone" if state == "undoing" else "done"
    if kind == REFUSED:
        return "done" if state == "undoing" else "refused"
    steps: dict[str, State] = {ACCEPTED: "accepted", REJECTED: "rejected", SENDING: "sending", UNDONE: "undoing"}
    return steps[kind]
