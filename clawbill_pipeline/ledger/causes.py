"""The words of ``breaks``: steps that are compared and causes of differences. The rules are in reconciliation/."""

from __future__ import annotations

from typing import Literal

Kind = Literal["fault", "waiting", "explained"]

#: Which two steps differ, in the order of the line.
STEPS = {
    "source_landed": "Lines read against usage events landed",
    "landed_metered": "Usage events in the lake against metered quantities",
    "metered_rated": "Metered quantities against rated quantities",
    "rated_sent": "Rated usage against usage records that Stripe acknowledged",
    "sent_held": "Acknowledged usage records against what Stripe's meters hold",
    "ledger_drafted": "The ledger against a draft invoice that is about to go out",
    "held_invoiced": "What Stripe's meters hold against invoice lines",
    "invoiced_asked": "Invoice lines against what the invoice asks for",
    "invoiced_paid": "Invoice lines against payments",
}

#: Cause → (kind, what it means). A fault is open until someone or a later run mends it; what is waiting settles by
#: itself; what is explained is as it should be, and shown.
CAUSES: dict[str, tuple[Kind, str]] = {
    "quarantined": ("fault", "A line could not be used and waits in quarantine for its source to be mended."),
    "not_landed": ("fault", "Usage is metered that the lake does not hold, or a source has usage that never landed."),
    "not_metered": ("fault", "Usage events are in the lake that metering has not counted."),
    "unmapped_tenant": ("fault", "The tenant has usage but is not in the catalogue, or has no customer at Stripe."),
    "not_rated": ("fault", "Metered usage has no amount yet, or one for an older quantity."),
    "rating_refused": ("fault", "OpenClaw answered that it will not rate this usage."),
    "not_sent": ("fault", "Rated usage was not handed to delivery within the hour."),
    "pending": ("waiting", "On its way: to be sent, being settled by Stripe, or on an invoice that is still a draft."),
    "parked": ("fault", "Delivery set the usage record aside for a person to decide on."),
    "rejected": ("fault", "Stripe refused the usage record, at once or later."),
    "lost_after_acknowledgement": ("fault", "Stripe acknowledged usage records and does not hold them."),
    "counted_twice": ("fault", "The same usage is counted twice."),
    "wrong_hour": ("fault", "Usage is missing in one hour and too much by as much in another."),
    "unknown_usage_at_stripe": ("fault", "Stripe holds usage that was never sent from here."),
    "late_after_finalisation": ("fault", "Usage reached Stripe after the invoice was final: it is on no invoice."),
    "not_invoiced": ("fault", "The period is over and closed, and no invoice line bills this usage."),
    "price_differs": ("fault", "Quantities agree, yet OpenClaw's amount and Stripe's price do not."),
    "currency": ("fault", "The invoice is in another currency than the rate card."),
    "adjusted": ("explained", "An adjustment bills or credits it: it is on another invoice, or on a credit note."),
    "waived": ("explained", "A person decided to bill no adjustment for it."),
    "discount": ("explained", "A discount on the invoice."),
    "credit": ("explained", "Credit that was used on the invoice instead of money."),
    "tax": ("explained", "Tax that comes on top of the invoice lines."),
    "rounding": ("explained", "The one rounding of an invoice line to the currency's minor unit."),
    "unexplained": ("fault", "No rule explains the difference: a person has to look."),
}


#: The step that the close looks after, draft by draft; the others are reconciliation's.
CLOSE_STEP = "ledger_drafted"
#: Where a difference changes what is invoiced for what was rated.
BILLING_STEPS = ("rated_sent", "sent_held", "held_invoiced")
#: Causes that are no fault; they are counted apart.
NO_FAULT = tuple(cause for cause, (kind, _) in CAUSES.items() if kind != "fault")
