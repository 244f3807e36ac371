"""Meter event summaries: ``/v1/billing/meters/{id}/event_summaries``, what Stripe says it holds.

Minute-aligned; hour and day windows are UTC-aligned and only those with events are listed, newest first. Values are
floats, as in Stripe's answers, and may lag behind (setting ``summary_delay_seconds``).
"""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, checked_limit, list_of
from clawbill_pipeline.sandbox.stripe.errors import invalid, missing
from clawbill_pipeline.sandbox.stripe.store import scrambled
from clawbill_pipeline.sandbox.stripe.usage import spans_with_events, usage_total

_WIDTHS = {"hour": 3_600, "day": 86_400}


def list_all(call: Call, params: Document, id: str) -> Document:
    meter = call.find("meter", id)
    customer = call.find("customer", params["customer"], param="customer")["id"]
    start, end, grouping = params["start_time"], params["end_time"], params.get("value_grouping_window")
    width = _WIDTHS.get(grouping or "", 60)
    for name in ("start_time", "end_time"):
        if params[name] % width:
            raise invalid(f"{name} must be aligned with {grouping or 'minute'} boundaries.", name)
    if start >= end:
        raise invalid("start_time must be before end_time.", "start_time")
    limit = checked_limit(params)
    starts = spans_with_events(call, meter, customer, start, end, width) if grouping else [start]
    identifiers = {f"mtrusg_test_{scrambled(id, customer, grouping, at, start, end)}": at for at in starts}
    entries, more = _cut(list(identifiers), params, limit)
    delay = call.store.setting(call.account, "summary_delay_seconds", 0)
    arrived_by = call.now - delay if delay else None
    data = []
    for identifier in entries:
        at = identifiers[identifier]
        until = at + width if grouping else end
        data.append(
            {
                "id": identifier,
                "object": "billing.meter_event_summary",
                "aggregated_value": float(usage_total(call, meter, customer, at, until, arrived_by)),
                "end_time": until,
                "livemode": False,
                "meter": id,
                "start_time": at,
            }
        )
    return list_of(data, f"/v1/billing/meters/{id}/event_summaries", more)


def _cut(identifiers: list[str], params: Document, limit: int) -> tuple[list[str], bool]:
    for name in ("starting_after", "ending_before"):
        if name in params and params[name] not in identifiers:
            raise missing("billing meter event summary", params[name], name, 400)
    if "ending_before" in params:
        before = identifiers[: identifiers.index(params["ending_before"])]
        return before[-limit:], len(before) > limit
    first = identifiers.index(params["starting_after"]) + 1 if "starting_after" in params else 0
    return identifiers[first : first + limit], len(identifiers) > first + limit


ROUTES = [
    Route(
        "GET",
        "/v1/billing/meters/{id}/event_summaries",
        Contract(
            "billing.MeterEventSummaryListParams",
            "customer end_time ending_before limit start_time starting_after value_grouping_window",
        ),
        list_all,
    )
]
