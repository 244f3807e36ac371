"""Meter event adjustments: ``/v1/billing/meter_event_adjustments`` takes one event back, within a day of its receipt.

The event counts nowhere from then on; an invoice that is already final stays as it is.
"""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route
from clawbill_pipeline.sandbox.stripe.errors import invalid, missing

_CANCEL_SECONDS = 86_400


def create(call: Call, params: Document) -> Document:
    identifier = params.get("cancel", {}).get("identifier")
    if identifier is None:
        raise invalid("Missing required param: cancel[identifier].", "cancel[identifier]", "parameter_missing")
    sql = (
        "SELECT seq, received, state FROM meter_events WHERE account = ? AND identifier = ? AND event_name = ?"
        " ORDER BY seq DESC LIMIT 1"
    )
    row = call.store.db.execute(sql, (call.account, identifier, params["event_name"])).fetchone()
    if row is None:
        raise missing("meter event with identifier", identifier, "cancel[identifier]", 400)
    if row["received"] < call.now - _CANCEL_SECONDS:
        message = "Meter events can be cancelled within 24 hours of Stripe receiving them only."
        raise invalid(message, "cancel[identifier]")
    if row["state"] == "cancelled":
        raise invalid(f"The meter event {identifier} has already been cancelled.", "cancel[identifier]")
    call.store.db.execute("UPDATE meter_events SET state = 'cancelled' WHERE seq = ?", (row["seq"],))
    return {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": params["event_name"],
        "livemode": False,
        "status": "pending",
        "type": "cancel",
    }


ROUTES = [
    Route(
        "POST",
        "/v1/billing/meter_event_adjustments",
        Contract("billing.MeterEventAdjustmentCreateParams", "cancel event_name type"),
        create,
    )
]
