"""How a tenant stands: the states, what moves them, and what an open invoice says about it. Pure.

::

    trialing -> current <-> past_due -> overdue -> suspended        any -> cancelled -> trialing | current
                            (a debt that ends, by payment or voiding, leads back to current)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Literal

Standing = Literal["trialing", "current", "past_due", "overdue", "suspended", "cancelled"]
Signal = Literal["trial", "active", "failing", "overdue", "suspend", "paid", "clear", "cancel"]

_UNPAID: tuple[Standing, ...] = ("past_due", "overdue", "suspended")

#: Where each signal leads from where; a pair that is not here changes nothing. None: nothing is known of the tenant.
TRANSITIONS: Mapping[Signal, Mapping[Standing | None, Standing]] = {
    "trial": dict.fromkeys((None, "current", "cancelled"), "trialing"),
    "active": dict.fromkeys((None, "trialing", "cancelled"), "current"),
    "failing": dict.fromkeys((None, "trialing", "current"), "past_due"),
    "overdue": dict.fromkeys((None, "trialing", "current", "past_due"), "overdue"),
    "suspend": dict.fromkeys((None, "trialing", "current", "past_due", "overdue"), "suspended"),
    "paid": dict.fromkeys((None, *_UNPAID), "current"),
    "clear": dict.fromkeys(_UNPAID, "current"),
    "cancel": dict.fromkeys((None, "trialing", "current", *_UNPAID), "cancelled"),
}

_OF_SUBSCRIPTION: Mapping[str, Signal] = {
    "trialing": "trial",
    "active": "active",
    "past_due": "failing",
    "unpaid": "suspend",
    "paused": "suspend",
    "canceled": "cancel",
    "incomplete_expired": "cancel",
}


def step(standing: Standing | None, signals: Iterable[Signal]) -> Standing | None:
    """Where ``signals``, in their order, lead from ``standing``."""
    for signal in signals:
        standing = TRANSITIONS[signal].get(standing, standing)
    return standing


def of_subscription(status: str, *, in_debt: bool) -> tuple[Signal, ...]:
    """What a subscription's status says. An active one ends a suspension, unless an invoice is still owed."""
    signal = _OF_SUBSCRIPTION.get(status)
    if signal is None:  # incomplete: the first payment is under way
        return ()
    return (signal, "clear") if signal == "active" and not in_debt else (signal,)


def of_invoice(
    event_type: str, status: str, obj: Mapping[str, Any], at: datetime, *, in_debt: bool
) -> tuple[Signal, ...]:
    """What an invoice says: ``obj`` as stored, the type of the event that brought it, and whether others are owed."""
    if status in ("paid", "void", "deleted"):
        if in_debt:
            return ()
        return ("paid",) if status == "paid" and obj.get("amount_paid") else ("clear",)
    name = event_type.removeprefix("v1.")
    if status == "open" and name == "invoice.overdue":
        return ("overdue",)
    if status == "open" and name in ("invoice.payment_failed", "invoice.payment_action_required"):
        return ("failing",)
    debt = owed(status, obj, at)
    return (debt,) if debt else ()


def owed(status: str, obj: Mapping[str, Any], at: datetime) -> Literal["failing", "overdue", "suspend"] | None:
    """How an invoice is owed at ``at``: given up, due in the past, a failed attempt; None if it is not yet."""
    if status == "uncollectible":
        return "suspend"
    if status != "open" or obj.get("amount_remaining") == 0:
        return None
    due = obj.get("due_date")
    if due and due < at.timestamp():
        return "overdue"
    return "failing" if obj.get("attempted") and obj.get("collection_method") == "charge_automatically" else None
