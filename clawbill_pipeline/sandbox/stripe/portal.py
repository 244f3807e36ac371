"""Billing portal sessions: ``POST /v1/billing_portal/sessions``."""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, public
from clawbill_pipeline.sandbox.stripe.errors import invalid
from clawbill_pipeline.sandbox.stripe.store import scrambled


def create(call: Call, params: Document) -> Document:
    if "customer" not in params:
        raise invalid("Missing required param: customer.", "customer", "parameter_missing")
    call.find("customer", params["customer"], param="customer")
    identifier = call.new_id("bps")
    session: Document = {
        "id": identifier,
        "object": "billing_portal.session",
        "configuration": f"bpc_{scrambled(call.account, 'bpc')}",
        "created": call.now,
        "customer": params["customer"],
        "flow": None,
        "livemode": False,
        "locale": params.get("locale"),
        "on_behalf_of": None,
        "return_url": params.get("return_url"),
        "url": f"https://billing.stripe.com/p/session/test_{identifier[4:]}",
    }
    return public(call.put("portal_session", session))


ROUTES = [
    Route(
        "POST",
        "/v1/billing_portal/sessions",
        Contract("billing_portal.SessionCreateParams", "customer locale return_url"),
        create,
    )
]
