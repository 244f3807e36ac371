"""Compares a draft invoice with the ledger, and says whether it may go out. Pure: no database, no clock, no network.

Causes are those of ``ledger.causes``. A draft shows the usage there was when it was made, and Stripe counts again when
it finalises: a line that is behind while Stripe's meter holds what the ledger has is as it should be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, localcontext
from typing import Any, Literal

from clawbill_pipeline.catalog.closing import Closing
from clawbill_pipeline.ledger.waterfall import NO_SERVICE
from clawbill_pipeline.money import EXACT, exponent, from_stripe, plain

ZERO = Decimal(0)
Decision = Literal["release", "wait", "hold"]
#: A service and a half-open span of time.
Window = tuple[str, datetime, datetime]


@dataclass(frozen=True)
class DraftLine:
    """A line as ``invoice_lines`` has it; ``service`` is None for what no service of ours is billed by."""

    line_id: str
    service: str | None
    quantity: Decimal | None
    amount: Decimal
    currency: str
    period_start: datetime
    period_end: datetime
    object: Mapping[str, Any]

    @property
    def is_usage(self) -> bool:
        """Whether the line bills metered usage: a proration of a plan is about time, not usage."""
        parent = self.object.get("parent") or {}
        details = parent.get("subscription_item_details") or parent.get("invoice_item_details") or {}
        return self.service is not None and not (details.get("proration") or self.object.get("proration"))


@dataclass(frozen=True)
class Draft:
    """A draft with its lines; amounts in major units. ``finalizes_at``: when Stripe does by itself, None if held."""

    invoice_id: str
    tenant_id: str
    currency: str
    subtotal: Decimal
    total: Decimal
    finalizes_at: datetime | None
    object: Mapping[str, Any]
    lines: tuple[DraftLine, ...]
    subscription_id: str | None = None


@dataclass(frozen=True)
class Booked:
    """What the ledger has of one service in a half-open window, in Stripe's whole units and in money.

    ``planned`` is all that is to be billed, ``delivered`` what Stripe acknowledged; ``held`` what its meter says, None
    where it was not read for this window, ``held_settled`` whether it was read late enough to be believed. ``scale``
    units make one of the service's. ``open_causes`` says why what is missing is missing, ``unread`` why Stripe could
    not be asked.
    """

    service: str
    start: datetime
    end: datetime
    scale: Decimal
    planned: Decimal = ZERO
    delivered: Decimal = ZERO
    held: Decimal | None = None
    held_settled: bool = False
    rated_quantity: Decimal = ZERO
    rated_amount: Decimal = ZERO
    by_amount: bool = True
    unread: str | None = None
    open_causes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """``quantity`` in Stripe's whole units and ``amount`` in major units: the invoice less the ledger."""

    service: str
    cause: str
    quantity: Decimal
    amount: Decimal
    detail: str


@dataclass(frozen=True)
class Comparison:
    """What a draft and the ledger differ in. ``apart`` is what the invoice has beside usage: discounts, tax, credit."""

    invoice_id: str
    tenant_id: str
    differences: tuple[Difference, ...]
    apart: Mapping[str, Decimal]

    @property
    def agrees(self) -> bool:
        return not self.differences

    @property
    def only_waits(self) -> bool:
        """Whether all that differs may settle by itself."""
        return all(difference.cause in WAITING for difference in self.differences)


#: Causes that the next hour's work may mend.
WAITING = ("pending", "not_metered", "not_rated", "not_sent")


def compare_draft(draft: Draft, booked: Iterable[Booked]) -> Comparison:
    """What differs between ``draft`` and what the ledger has ``booked`` for each window that it bills.

    ``booked`` has one entry a service and window of the draft's usage lines (``windows``), and one for each other
    service of the tenant that the invoice should have billed.
    """
    with localcontext(EXACT):
        groups = windows(draft)
        differences = [*_foreign(draft), *_parts_add_up(draft)]
        for entry in booked:
            lines = groups.get((entry.service, entry.start, entry.end), ())
            differences += _compare(entry, [line for line in lines if line.currency == draft.currency], draft.currency)
        return Comparison(draft.invoice_id, draft.tenant_id, tuple(differences), _apart(draft))


def windows(draft: Draft) -> dict[Window, list[DraftLine]]:
    """The usage lines by service and window: tiers make several lines of one, a plan change makes several windows."""
    groups: dict[Window, list[DraftLine]] = {}
    for line in draft.lines:
        if line.is_usage and line.service is not None:
            groups.setdefault((line.service, line.period_start, line.period_end), []).append(line)
    return groups


def decide(draft: Draft, comparison: Comparison, now: datetime, closing: Closing) -> tuple[Decision, str]:
    """Whether the draft goes out, waits for usage under way, or is held; and why."""
    if comparison.agrees:
        return "release", "the draft and the ledger agree"
    why = "; ".join(f"{each.service}: {each.cause}: {each.detail}" for each in comparison.differences)
    if not comparison.only_waits:
        return "hold", why
    if draft.finalizes_at is None or now < draft.finalizes_at - closing.margin:
        return "wait", why
    if closing.on_undecided == "finalize":
        return "release", f"time is up and the catalogue says finalize, although {why}"
    return "hold", f"time is up: {why}"


def _compare(booked: Booked, lines: list[DraftLine], currency: str) -> Iterator[Difference]:
    billed = sum((line.quantity or ZERO for line in lines), ZERO)
    amount = sum((line.amount for line in lines), ZERO)
    behind = list(_under_way(booked))
    yield from behind
    # A meter that was last read before the newest records says nothing against a line that bills all of them.
    is_news = booked.held_settled or billed != booked.planned
    if booked.held is not None and booked.held != booked.delivered and is_news:
        lost = booked.held - booked.delivered
        cause = "lost_after_acknowledgement" if lost < 0 else "unknown_usage_at_stripe"
        cause = cause if booked.held_settled else "pending"
        yield _difference(booked, cause, lost, f"Stripe acknowledged {booked.delivered} and holds {booked.held}")
    elif billed != booked.planned and booked.unread and not behind:
        detail = f"the line is behind by {plain(booked.planned - billed)} units, and Stripe's meter can't be read"
        yield _difference(booked, "pending", billed - booked.planned, f"{detail}: {booked.unread}")
    elif billed != booked.planned and booked.held != booked.planned and not behind:
        cause = "unexplained" if lines else "not_invoiced"
        detail = f"the ledger has {plain(booked.planned)}, the invoice {plain(billed) if lines else 'no line'}"
        yield _difference(booked, cause, billed - booked.planned, detail)
    elif lines and billed == booked.planned:
        # One rounding a line, and that of whole millionths where money is what is metered.
        reach = len(lines) * Decimal(1).scaleb(-exponent(currency)) / 2 + 1 / booked.scale / 2
        apart = amount - booked.rated_amount
        if abs(apart) > reach:
            detail = f"rated {plain(booked.rated_amount)}, invoiced {plain(amount)} {currency} for the same quantity"
            yield Difference(booked.service, "price_differs", ZERO, apart, detail)


def _under_way(booked: Booked) -> Iterator[Difference]:
    """What the ledger itself has not brought to Stripe yet."""
    for cause, count in booked.open_causes.items():
        yield Difference(booked.service, cause, ZERO, ZERO, f"{count} hours or records")
    rated = booked.rated_amount if booked.by_amount else booked.rated_quantity
    if abs(booked.planned / booked.scale - rated) * booked.scale >= 1 and "not_rated" not in booked.open_causes:
        detail = f"rated {plain(rated)}, planned {plain(booked.planned / booked.scale)}"
        yield _difference(booked, "not_sent", booked.planned - rated * booked.scale, detail)
    missing = booked.delivered - booked.planned
    if missing and not set(booked.open_causes) & {"pending", "parked", "rejected"}:
        yield _difference(booked, "pending", missing, f"planned {booked.planned}, acknowledged {booked.delivered}")


def _difference(booked: Booked, cause: str, units: Decimal, detail: str) -> Difference:
    price = booked.rated_amount / booked.rated_quantity if booked.rated_quantity else ZERO
    amount = units / booked.scale if booked.by_amount else units / booked.scale * price
    return Difference(booked.service, cause, units, amount, detail)


def _foreign(draft: Draft) -> Iterator[Difference]:
    for line in draft.lines:
        if line.currency != draft.currency:
            detail = f"line {line.line_id} is in {line.currency}, the invoice in {draft.currency}"
            yield Difference(line.service or NO_SERVICE, "currency", ZERO, ZERO, detail)


def _parts_add_up(draft: Draft) -> Iterator[Difference]:
    apart = _apart(draft)
    lines = sum((line.amount for line in draft.lines), ZERO)
    if lines != draft.subtotal:
        detail = f"its lines come to {plain(lines)}, its subtotal is {plain(draft.subtotal)} {draft.currency}"
        yield Difference(NO_SERVICE, "unexplained", ZERO, draft.subtotal - lines, detail)
    expected = draft.subtotal - apart["discounts"] - apart["credits"] + apart["tax"] + apart["shipping"]
    if expected != draft.total:
        detail = f"its parts come to {plain(expected)}, its total is {plain(draft.total)} {draft.currency}"
        yield Difference(NO_SERVICE, "unexplained", ZERO, draft.total - expected, detail)


def _apart(draft: Draft) -> dict[str, Decimal]:
    """What is on the invoice beside usage, in major units. Stripe lists discounts among pre-tax credits as well."""
    obj = draft.object

    def total(entries: Iterable[Mapping[str, Any]] | None) -> Decimal:
        return sum((from_stripe(Decimal(entry["amount"]), draft.currency) for entry in entries or ()), ZERO)

    credits = [entry for entry in obj.get("total_pretax_credit_amounts") or () if entry.get("type") != "discount"]
    taxes = [entry for entry in obj.get("total_taxes") or () if entry.get("tax_behavior") != "inclusive"]
    other = [line for line in draft.lines if not line.is_usage]
    return {
        "discounts": total(obj.get("total_discount_amounts")),
        "credits": total(credits),
        "tax": total(taxes),
        "shipping": from_stripe(Decimal(obj.get("amount_shipping") or 0), draft.currency),
        "other_lines": sum((line.amount for line in other), ZERO),
    }
