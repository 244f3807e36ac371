"""Meters: ``/v1/billing/meters``. One active meter an event name; only the display name can change later."""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, page, public
from clawbill_pipeline.sandbox.stripe.errors import ApiError, invalid
from clawbill_pipeline.sandbox.stripe.events import emit


def create(call: Call, params: Document) -> Document:
    name = params["event_name"]
    if not 0 < len(name) <= 100:
        raise invalid("`event_name` must have 1 to 100 characters.", "event_name")
    if active_meter(call, name):
        raise _taken(name)
    mapping = params.get("customer_mapping", {"event_payload_key": "stripe_customer_id", "type": "by_id"})
    meter: Document = {
        "id": call.new_id("mtr_test"),
        "object": "billing.meter",
        "created": call.now,
        "customer_mapping": mapping,
        "default_aggregation": params["default_aggregation"],
        "display_name": params["display_name"],
        "event_name": name,
        "event_time_window": params.get("event_time_window"),
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": call.now,
        "value_settings": params.get("value_settings", {"event_payload_key": "value"}),
        "_lookup": name,
    }
    call.put("meter", meter)
    emit(call, "billing.meter.created", "meter", meter)
    return public(meter)


def active_meter(call: Call, event_name: str) -> Document | None:
    """The meter that counts ``event_name`` now; not to be changed by the caller."""
    known, key = call.store.meters, (call.account, event_name)
    if key not in known:
        found = call.store.select(call.account, "meter", lookup=event_name, status="active")
        known[key] = found[0] if found else None
    return known[key]


def retrieve(call: Call, params: Document, id: str) -> Document:
    return public(call.find("meter", id))


def update(call: Call, params: Document, id: str) -> Document:
    meter = call.find("meter", id)
    before = public(meter)
    meter["display_name"] = params.get("display_name", meter["display_name"])
    meter["updated"] = call.now
    call.put("meter", meter)
    emit(call, "billing.meter.updated", "meter", meter, before)
    return public(meter)


def list_all(call: Call, params: Document) -> Document:
    return page(call, "meter", params, "/v1/billing/meters", where={"status": params.get("status")})


def deactivate(call: Call, params: Document, id: str) -> Document:
    meter = call.find("meter", id)
    if meter["status"] == "inactive":
        raise invalid(f"The meter {id} is already inactive.")
    return _turned(call, meter, "inactive", call.now, "billing.meter.deactivated")


def reactivate(call: Call, params: Document, id: str) -> Document:
    meter = call.find("meter", id)
    if meter["status"] == "active":
        raise invalid(f"The meter {id} is already active.")
    if active_meter(call, meter["event_name"]):
        raise _taken(meter["event_name"])
    return _turned(call, meter, "active", None, "billing.meter.reactivated")


def _turned(call: Call, meter: Document, status: str, at: int | None, event: str) -> Document:
    before = public(meter)
    meter["status"] = status
    meter["status_transitions"] = {"deactivated_at": at}
    meter["updated"] = call.now
    call.put("meter", meter)
    emit(call, event, "meter", meter, before)
    return public(meter)


def _taken(name: str) -> ApiError:
    message = f"An active meter already exists with event name {name}."
    return ApiError(400, message, code="resource_already_exists", param="event_name", kept=True)


_PATH = "/v1/billing/meters"
ROUTES = [
    Route(
        "POST",
        _PATH,
        Contract(
            "billing.MeterCreateParams",
            "customer_mapping default_aggregation display_name event_name event_time_window value_settings",
        ),
        create,
    ),
    Route("GET", _PATH, Contract("billing.MeterListParams", "ending_before limit starting_after status"), list_all),
    Route("GET", _PATH + "/{id}", Contract("billing.MeterRetrieveParams"), retrieve),
    Route("POST", _PATH + "/{id}", Contract("billing.MeterUpdateParams", "display_name"), update),
    Route("POST", _PATH + "/{id}/deactivate", Contract("billing.MeterDeactivateParams"), deactivate),
    Route("POST", _PATH + "/{id}/reactivate", Contract("billing.MeterReactivateParams"), reactivate),
]
