"""What a person decides on proposed adjustments is done at Stripe: an invoice item, or a credit note, and back again.

The decision and the call's parameters are committed before Stripe is asked; a call that was lost on the way is made
again under the same idempotency key, after a look whether Stripe has it. What is read for it is in ``adjustment_log``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal, localcontext
from typing import Any, Literal

import stripe
from sqlalchemy import Connection, Row, insert, select

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.adjustment_log import (
    ACCEPTED,
    DONE,
    REFUSED,
    SENDING,
    UNDONE,
    Standing,
    read_standings,
)
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.ledger.tables import audit_trail, invoice_lines, invoices, stripe_customers
from clawbill_pipeline.money import EXACT, MoneyError, plain, stripe_exponent
from clawbill_pipeline.results import Check
from clawbill_pipeline.stripe_api import StripeApi

#: Stripe takes metadata values of at most so many characters (docs.stripe.com/api/metadata).
LONGEST = 500

Made = Literal["invoice_item", "credit_note"]


class NotAdjustable(LookupError):
    """There is no such proposal, or it is not in a state in which this can be done; the message says which."""


@dataclass(frozen=True)
class Adjusted:
    """How the proposal stands now, and what went wrong at Stripe."""

    standing: Standing
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Finished:
    """How many decisions were gone on with, and what went wrong at Stripe."""

    begun: int
    problems: tuple[str, ...]
    checks: tuple[Check, ...]


def approve(ledger: Ledger, api: StripeApi, proposal: int, *, why: str, by: str, now: datetime) -> Adjusted:
    """Bills the proposal on the tenant's next invoice, or credits it on the one it is about.

    Called again, it goes on where it stopped and does nothing twice: a proposal that was accepted already (in the
    finance pages) is carried out under that decision. Raises NotAdjustable, MoneyError, LedgerError.
    """
    with ledger.transaction() as connection:
        standing = _turn(connection, proposal)
        if standing.state == "done":
            return Adjusted(standing, ())
        again = standing.state == "sending"
        if standing.state in ("open", "refused"):
            _write(connection, ACCEPTED, standing, {**_kept(standing), "by": by, "why": why}, now)
        elif standing.state not in ("accepted", "sending"):
            raise NotAdjustable(f"adjustment {proposal} can't be approved: {_WHY_NOT[standing.state]}")
        if not again:
            _write(connection, SENDING, standing, _call(connection, standing), now)
        standing = _turn(connection, proposal)
    return _carry_out(ledger, api, standing, now, again=again)


def undo(ledger: Ledger, api: StripeApi, proposal: int, *, why: str, by: str, now: datetime) -> Adjusted:
    """Takes an approved adjustment back: deletes the invoice item, or voids the credit note, while Stripe allows it.

    Where Stripe does not, the adjustment stays done. Raises NotAdjustable, LedgerError.
    """
    with ledger.transaction() as connection:
        standing = _turn(connection, proposal)
        if standing.state == "undone":
            return Adjusted(standing, ())
        if standing.state in ("done", "accepted"):
            _write(connection, UNDONE, standing, {"by": by, "why": why, "stripe_id": standing.stripe_id}, now)
        elif standing.state == "sending":
            raise NotAdjustable(f"adjustment {proposal} is on its way to Stripe; approve it once more, then undo it")
        elif standing.state != "undoing":
            raise NotAdjustable(f"adjustment {proposal} is {standing.state}: there is nothing to undo")
        standing = _turn(connection, proposal)
    return _carry_out(ledger, api, standing, now, again=True)


def finish(ledger: Ledger, api: StripeApi, *, now: datetime) -> Finished:
    """Goes on with every decision whose call was begun and not answered. Safe to call at any time."""
    with ledger.transaction() as connection:
        begun = [each for each in read_standings(connection) if each.state in ("sending", "undoing")]
    problems = [problem for each in begun for problem in _carry_out(ledger, api, each, now, again=True).problems]
    check = Check(
        "adjustment_decisions_done",
        not problems,
        "Stripe did what was decided on adjustments.",
        {"begun": len(begun), "failed": len(problems), "first": problems[0] if problems else None},
    )
    return Finished(len(begun), tuple(problems), (check,))


_WHY_NOT = {
    "nothing": "there is nothing to adjust any more",
    "replaced": "a newer proposal replaced it; see clawbill adjustments list",
    "rejected": "it was rejected; usage that changes it brings a new proposal",
    "undoing": "it is being undone",
    "undone": "it was undone; what is still missing is proposed again",
}


def _turn(connection: Connection, proposal: int) -> Standing:
    """The proposal as it stands, with nobody else proposing or deciding until the transaction ends."""
    lock(connection, "adjustments")
    subject = connection.scalar(select(audit_trail.c.subject).where(audit_trail.c.id == proposal))
    found = read_standings(connection, subject=subject) if subject else []
    for each in found:
        if each.proposal == proposal:
            return each
    raise NotAdjustable(f"there is no adjustment {proposal}; see clawbill adjustments list")


def _kept(standing: Standing) -> dict[str, Any]:
    return {name: value for name, value in standing.said.items() if name != "run_id"}


def _write(connection: Connection, kind: str, standing: Standing, detail: Mapping[str, Any], now: datetime) -> None:
    detail = {**detail, "proposal": standing.proposal, "invoice_id": standing.said["invoice_id"]}
    row = {"at": now, "kind": kind, "tenant_id": standing.tenant_id, "subject": standing.subject, "detail": detail}
    connection.execute(insert(audit_trail).values(row))


# --- what Stripe is asked for ----------------------------------------------------------------------------------------


def _call(connection: Connection, standing: Standing) -> dict[str, Any]:
    """``make`` and ``params`` of the call for ``standing``; ``make`` is None where the amount is zero."""
    said = standing.said
    invoice = connection.execute(select(invoices).where(invoices.c.invoice_id == said["invoice_id"])).one()
    if invoice.status not in ("open", "paid", "uncollectible"):
        raise NotAdjustable(f"adjustment {standing.proposal} can't be approved: its invoice is {invoice.status}")
    of_window = (
        invoice_lines.c.invoice_id == invoice.invoice_id,
        invoice_lines.c.service == said["service"],
        invoice_lines.c.period_start == datetime.fromisoformat(said["period_start"]),
        invoice_lines.c.period_end == datetime.fromisoformat(said["period_end"]),
    )
    lines = connection.execute(select(invoice_lines).where(*of_window).order_by(invoice_lines.c.line_id)).all()
    mapped = select(stripe_customers.c.customer_id).where(stripe_customers.c.tenant_id == standing.tenant_id)
    customer = connection.scalar(mapped) or invoice.customer_id
    if standing.amount > 0:
        return {"make": "invoice_item", "params": invoice_item(standing, customer, invoice, lines)}
    if standing.amount < 0:
        return {"make": "credit_note", "params": credit_note(standing, invoice, lines)}
    return {"make": None, "params": {}}


def invoice_item(
    standing: Standing, customer: str, invoice: Row[*tuple[Any, ...]], lines: Sequence[Row[*tuple[Any, ...]]]
) -> dict[str, Any]:
    """Parameters of the invoice item that bills what ``invoice`` lacks, on the customer's next invoice."""
    said = standing.said
    start, end = (int(datetime.fromisoformat(said[name]).timestamp()) for name in ("period_start", "period_end"))
    return {
        "customer": customer,
        "amount": minor(standing.amount, said["currency"]),
        "currency": said["currency"].lower(),
        "description": _description(standing, invoice),
        "period": {"start": start, "end": end},
        "metadata": _metadata(standing, lines),
    }


def credit_note(
    standing: Standing, invoice: Row[*tuple[Any, ...]], lines: Sequence[Row[*tuple[Any, ...]]]
) -> dict[str, Any]:
    """Parameters of the credit note on ``invoice``: of its line, if there is one that is large enough.

    What was paid goes to the customer's balance, from which the next invoices are paid.
    """
    amount = minor(-standing.amount, standing.said["currency"])
    line: dict[str, Any] = {"description": _description(standing, invoice)}
    if len(lines) == 1 and minor(lines[0].amount, lines[0].currency) >= amount:
        line |= {"type": "invoice_line_item", "invoice_line_item": lines[0].line_id, "amount": amount}
    else:
        line |= {"type": "custom_line_item", "quantity": 1, "unit_amount": amount}
    params = {"invoice": invoice.invoice_id, "lines": [line], "metadata": _metadata(standing, lines)}
    return params | ({"credit_amount": amount} if invoice.status == "paid" else {})


def minor(amount: Decimal, currency: str) -> int:
    """``amount`` in the units that Stripe counts in. Raises MoneyError where it is no whole number of them."""
    with localcontext(EXACT):
        units = amount.scaleb(stripe_exponent(currency))
        if units != units.to_integral_value():
            raise MoneyError(f"{plain(amount)} {currency} is no whole number of minor units")
        return int(units)


def _description(standing: Standing, invoice: Row[*tuple[Any, ...]]) -> str:
    start, end = (standing.said[name][:16].replace("T", " ") for name in ("period_start", "period_end"))
    billed = "too little" if standing.amount > 0 else "too much"
    return (
        f"{standing.said['service']}, {start} to {end} UTC: {billed} on invoice {invoice.number or invoice.invoice_id}"
    )


def _metadata(standing: Standing, lines: Sequence[Row[*tuple[Any, ...]]]) -> dict[str, str]:
    named = [line.line_id for line in lines]
    while len(",".join(named)) > LONGEST:
        named.pop()
    return {
        "clawbill_adjustment": str(standing.proposal),
        "clawbill_invoice": standing.said["invoice_id"],
        **({"clawbill_invoice_line": ",".join(named)} if named else {}),
        "service": standing.said["service"],
        "tenant_id": standing.tenant_id,
        "units": standing.said["units"],
    }


# --- Stripe ----------------------------------------------------------------------------------------------------------


def _carry_out(ledger: Ledger, api: StripeApi, standing: Standing, now: datetime, *, again: bool) -> Adjusted:
    """Does at Stripe what was begun. ``again``: it may have been done before."""
    begun = standing.begun
    assert begun is not None  # noqa: S101 -- the callers have just written or read it
    is_undo = begun.kind == UNDONE
    problems: tuple[str, ...] = ()
    try:
        stripe_id = (
            _unmake(api, begun.detail["stripe_id"], begun.detail["invoice_id"]) if is_undo else _make(api, begun, again)
        )
        kind, answer = DONE, {"stripe_id": stripe_id}
    except stripe.InvalidRequestError as error:
        kind, answer = REFUSED, {"error": str(error)}
        problems = (f"adjustment {standing.proposal}: Stripe refused: {error}",)
    except stripe.StripeError as error:
        what = f"{type(error).__name__}: {error}"
        return Adjusted(standing, (f"adjustment {standing.proposal}: not done yet, try again: {what}",))
    with ledger.transaction() as connection:
        now_standing = _turn(connection, standing.proposal)
        if now_standing.state == standing.state and now_standing.begun == begun:  # nobody else wrote it meanwhile
            _write(connection, kind, standing, {"decision": begun.id, **answer}, now)
            now_standing = _turn(connection, standing.proposal)
    return Adjusted(now_standing, problems)


def _make(api: StripeApi, begun: Row[*tuple[Any, ...]], again: bool) -> str | None:
    """The id of the invoice item or credit note. An idempotency key lasts a day; what was made carries its metadata."""
    make: Made | None = begun.detail["make"]
    params: Any = begun.detail["params"]
    if make is None:
        return None
    if again and (found := _find(api, make, params, begun.at)):
        return found
    options: Any = {"idempotency_key": f"clawbill-adjustment-{begun.detail['invoice_id']}-{begun.id}"}
    if make == "invoice_item":
        return api.client().v1.invoice_items.create(params, options).id
    return api.client().v1.credit_notes.create(params, options).id


def _find(api: StripeApi, make: Made, params: Mapping[str, Any], since: datetime) -> str | None:
    v1, wanted = api.client().v1, params["metadata"]
    listed: Any
    try:
        v1.invoices.retrieve(params["metadata"]["clawbill_invoice"])
        if make == "invoice_item":
            created: Any = {"gte": int((since - timedelta(days=1)).timestamp())}
            listed = v1.invoice_items.list({"customer": params["customer"], "created": created, "limit": 100})
        else:
            listed = v1.credit_notes.list({"invoice": params["invoice"], "limit": 100})
        found = (each.id for each in listed.auto_paging_iter() if each.to_dict().get("metadata") == wanted)
        return next(found, None)
    except stripe.InvalidRequestError as error:  # another account's key: it says nothing about what was made before
        raise stripe.APIError(str(error)) from error


def _unmake(api: StripeApi, stripe_id: str | None, invoice_id: str) -> str | None:
    """Deletes or voids what was made; of what is gone already, nothing."""
    v1 = api.client().v1
    if stripe_id is None:
        return None
    if stripe_id.startswith("cn_"):
        if v1.credit_notes.retrieve(stripe_id).status != "void":
            v1.credit_notes.void_credit_note(stripe_id)
        return stripe_id
    try:
        v1.invoice_items.delete(stripe_id)
    except stripe.InvalidRequestError as error:
        if error.code != "resource_missing":
            raise
        v1.invoices.retrieve(invoice_id)  # raises where the item is missing because this is another account
    return stripe_id
