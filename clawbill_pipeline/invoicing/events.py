"""What a Stripe event says, as values of ours: an invoice, a subscription's status, notes for the audit trail. Pure.

Reads objects of API versions since 2025-03-31.basil, and falls back on the older names where they differ. No database,
no clock, no network: what is written is in ``inbox``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Literal

from clawbill_pipeline.money import MoneyError, currency_code, exact, from_stripe

#: Snapshot events that have a handler: what a webhook endpoint should ask for, and what a sweep lists.
WATCHED = (
    "billing.meter.created",
    "billing.meter.deactivated",
    "billing.meter.reactivated",
    "billing.meter.updated",
    "credit_note.created",
    "credit_note.updated",
    "credit_note.voided",
    "customer.subscription.created",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "customer.subscription.trial_will_end",
    "customer.subscription.updated",
    "invoice.created",
    "invoice.deleted",
    "invoice.finalization_failed",
    "invoice.finalized",
    "invoice.marked_uncollectible",
    "invoice.overdue",
    "invoice.paid",
    "invoice.payment_action_required",
    "invoice.payment_failed",
    "invoice.payment_succeeded",
    "invoice.sent",
    "invoice.updated",
    "invoice.voided",
)
#: The same for thin events: usage that Stripe took and rejected later.
WATCHED_THIN = ("v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found")

#: An invoice's states in the order in which it can meet them; ``deleted`` is a draft that was thrown away.
_RANK = {"draft": 0, "open": 1, "uncollectible": 2, "void": 3, "deleted": 3, "paid": 4}


class UnusableEvent(ValueError):
    """The event can't be applied; the message names the field. It is kept as failed."""


@dataclass(frozen=True)
class Line:
    """A line of an invoice: ``amount`` in the major unit, ``quantity`` exact, period half-open in UTC."""

    line_id: str
    subscription_item_id: str | None
    price_id: str | None
    quantity: Decimal | None
    amount: Decimal
    currency: str
    period_start: datetime
    period_end: datetime
    description: str | None
    object: Mapping[str, Any]


@dataclass(frozen=True)
class Invoice:
    """An invoice as one object shows it, amounts in the major unit. ``lines`` is all of them unless ``has_more``."""

    invoice_id: str
    customer_id: str
    subscription_id: str | None
    number: str | None
    status: str
    billing_reason: str | None
    currency: str
    subtotal: Decimal
    total: Decimal
    amount_due: Decimal
    amount_paid: Decimal
    created: datetime
    finalized_at: datetime | None
    paid_at: datetime | None
    object: Mapping[str, Any]
    lines: tuple[Line, ...]
    has_more: bool


@dataclass(frozen=True)
class Subscription:
    """A subscription's status: trialing, active, past_due, unpaid, paused, canceled, incomplete…"""

    subscription_id: str
    customer_id: str
    status: str


@dataclass(frozen=True)
class Reference:
    """A thin event of an object that must be fetched to know how it stands."""

    kind: Literal["invoice", "subscription"]
    object_id: str


@dataclass(frozen=True)
class Note:
    """A row for the audit trail."""

    kind: str
    subject: str
    detail: Mapping[str, Any]


@dataclass(frozen=True)
class Notes:
    """Something to keep in the audit trail, of a customer or of none. ``invoice_id`` is to be read again."""

    notes: tuple[Note, ...]
    customer_id: str | None = None
    invoice_id: str | None = None


Change = Invoice | Subscription | Reference | Notes
_Kind = Literal["invoice", "subscription", "credit note", "meter", "usage record"]


def read_change(event_type: str, body: str) -> Change | None:
    """What the event in ``body`` changes, or None for an event without a handler. Raises UnusableEvent."""
    kind = _kind(event_type)
    if kind is None:
        return None
    try:
        return _change(event_type, kind, json.loads(body, parse_float=Decimal))
    except (AttributeError, LookupError, TypeError) as error:
        raise UnusableEvent(f"not the shape of a Stripe {kind}: {error}") from None


def _change(event_type: str, kind: _Kind, event: Mapping[str, Any]) -> Change:
    if event.get("object") == "v2.core.event":
        if kind == "invoice" or kind == "subscription":
            return Reference(kind, _need(event.get("related_object") or {}, "id", "related_object.id"))
        return read_rejections(event)
    obj = event["data"]["object"]
    if kind == "subscription":
        return read_subscription(obj)
    if kind == "credit note":
        return _read_credit_note(event_type, obj)
    if kind == "meter" or kind == "usage record":
        return Notes((Note(event_type, str(obj.get("id")), storable(obj)),))
    invoice = read_invoice(obj)
    # The event's object is the draft as it was before it was thrown away.
    return replace(invoice, status="deleted", lines=(), has_more=False) if event_type == "invoice.deleted" else invoice


_KINDS: Mapping[str, _Kind] = {
    "invoice.": "invoice",
    "customer.subscription.": "subscription",
    "credit_note.": "credit note",
    "billing.meter.": "meter",
    # Stripe never sent it; a gateway that still has usage records may.
    "usage_record.created": "usage record",
}


def _kind(event_type: str) -> _Kind | None:
    name = event_type.removeprefix("v1.")
    if name == "invoice.upcoming":  # a preview: no invoice is there yet
        return None
    return next((kind for prefix, kind in _KINDS.items() if name.startswith(prefix)), None)


def _read_credit_note(event_type: str, obj: Mapping[str, Any]) -> Notes:
    invoice_id = _id(_need(obj, "invoice"))
    currency = _currency(obj)
    detail = {
        "invoice_id": invoice_id,
        "currency": currency,
        "amount": str(_amount(obj, "amount", currency)),
        "status": obj.get("status"),
        "reason": obj.get("reason"),
    }
    return Notes((Note(event_type, _need(obj, "id"), detail),), _id(_need(obj, "customer")), invoice_id)


def read_rejections(event: Mapping[str, Any]) -> Notes:
    """What a thin event says of usage that was taken and rejected later: the report, and a note a sampled record.

    The subject of a sampled record is the identifier under which it was sent; samples are not all there is. A
    notification without ``data`` gives the report alone. Raises UnusableEvent.
    """
    kind = _need(event, "type")
    meter = (event.get("related_object") or {}).get("id") or "no meter"
    data = storable(event.get("data") or {})
    notes = [Note(kind, meter, {"event_id": _need(event, "id"), **data})]
    for error in (data.get("reason") or {}).get("error_types") or ():
        for sample in error.get("sample_errors") or ():
            detail = {"code": error.get("code"), "message": sample.get("error_message"), "meter_id": meter}
            identifier = _need(sample.get("request") or {}, "identifier", "request.identifier")
            notes.append(Note("usage_record.rejected", identifier, detail | {"event_id": event["id"]}))
    return Notes(tuple(notes))


def read_subscription(obj: Mapping[str, Any]) -> Subscription:
    """The values of a Stripe subscription. Raises UnusableEvent."""
    return Subscription(
        subscription_id=_need(obj, "id"), customer_id=_id(_need(obj, "customer")), status=_need(obj, "status")
    )


def read_invoice(obj: Mapping[str, Any]) -> Invoice:
    """The values of a Stripe invoice and of the lines embedded in it. Raises UnusableEvent."""
    currency = _currency(obj)
    moments = obj.get("status_transitions") or {}
    parent = (obj.get("parent") or {}).get("subscription_details") or {}
    subscription = parent.get("subscription") or obj.get("subscription")
    lines = obj.get("lines") or {}
    return Invoice(
        invoice_id=_need(obj, "id"),
        customer_id=_id(_need(obj, "customer")),
        subscription_id=_id(subscription) if subscription else None,
        number=obj.get("number"),
        status=_need(obj, "status"),
        billing_reason=obj.get("billing_reason"),
        currency=currency,
        subtotal=_amount(obj, "subtotal", currency),
        total=_amount(obj, "total", currency),
        amount_due=_amount(obj, "amount_due", currency),
        amount_paid=_amount(obj, "amount_paid", currency),
        created=_moment(_need(obj, "created"), "created"),
        finalized_at=_moment(moments.get("finalized_at"), "status_transitions.finalized_at", optional=True),
        paid_at=_moment(moments.get("paid_at"), "status_transitions.paid_at", optional=True),
        object=storable({name: value for name, value in obj.items() if name != "lines"}),
        lines=tuple(read_line(line) for line in lines.get("data") or ()),
        has_more=bool(lines.get("has_more")),
    )


def read_line(obj: Mapping[str, Any]) -> Line:
    """The values of a Stripe invoice line. Raises UnusableEvent."""
    currency = _currency(obj)
    period = _need(obj, "period")
    item = (obj.get("parent") or {}).get("subscription_item_details") or {}
    price = ((obj.get("pricing") or {}).get("price_details") or {}).get("price") or obj.get("price")
    return Line(
        line_id=_need(obj, "id"),
        subscription_item_id=item.get("subscription_item") or obj.get("subscription_item"),
        price_id=_id(price) if price else None,
        quantity=_quantity(obj),
        amount=_amount(obj, "amount", currency),
        currency=currency,
        period_start=_moment(_need(period, "start", "period.start"), "period.start"),
        period_end=_moment(_need(period, "end", "period.end"), "period.end"),
        description=obj.get("description"),
        object=storable(obj),
    )


def storable(value: Any) -> Any:
    """The same JSON value with decimals as strings, so that storing it changes no digit."""
    if isinstance(value, Mapping):
        return {key: storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [storable(item) for item in value]
    return str(value) if isinstance(value, Decimal) else value


def order(status: str, at: datetime, known_status: str, known_at: datetime) -> Literal["newer", "same", "older"]:
    """How an object of an invoice stands to the one that is known.

    An invoice's status only goes forward, so a later one wins whatever the times say: paid stays paid. Between equal
    ones the time of the event decides, and within one second nothing does: ``same``.
    """
    new, known = (rank(status), at), (rank(known_status), known_at)
    return "same" if new == known else ("newer" if new > known else "older")


def rank(status: str) -> int:
    """How far an invoice of this status has come; one that we do not know counts as open."""
    return _RANK.get(status, _RANK["open"])


def _need(obj: Mapping[str, Any], field: str, name: str = "") -> Any:
    value = obj.get(field)
    if value is None or value == "":
        raise UnusableEvent(f"{name or field} is missing in the {obj.get('object', 'object')}")
    return value


def _id(value: Any) -> str:
    """The id of something that may be expanded."""
    found = value.get("id") if isinstance(value, Mapping) else value
    if not isinstance(found, str):
        raise UnusableEvent(f"{found!r} is not an id")
    return found


def _currency(obj: Mapping[str, Any]) -> str:
    try:
        return currency_code(str(_need(obj, "currency")))
    except MoneyError as error:
        raise UnusableEvent(f"currency: {error}") from None


def _amount(obj: Mapping[str, Any], field: str, currency: str) -> Decimal:
    value = _need(obj, field)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UnusableEvent(f"{field} is {value!r}, not a whole number of minor units")
    try:
        return exact(from_stripe(value, currency))
    except MoneyError as error:
        raise UnusableEvent(f"{field}: {error}") from None


def _quantity(obj: Mapping[str, Any]) -> Decimal | None:
    # quantity is quantity_decimal with its fraction cut off.
    value = obj.get("quantity_decimal")
    value = obj.get("quantity") if value is None else value
    try:
        return None if value is None else exact(value)
    except MoneyError as error:
        raise UnusableEvent(f"quantity_decimal: {error}") from None


def _moment(value: Any, field: str, *, optional: bool = False) -> Any:
    if value is None and optional:
        return None
    try:
        return datetime.fromtimestamp(value, UTC)
    except (TypeError, ValueError, OverflowError, OSError):
        raise UnusableEvent(f"{field} is {value!r}, not a time in unix seconds") from None
