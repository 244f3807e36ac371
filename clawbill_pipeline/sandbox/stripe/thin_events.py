"""Thin events: ``/v2/core/events``. A webhook gets the notification alone; the data is fetched here."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Any, NotRequired

from stripe.params.v2.core import EventListParams

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import Call, Document, Route, checked_limit, created_tests, rfc3339, unix
from clawbill_pipeline.sandbox.stripe.errors import invalid, missing
from clawbill_pipeline.sandbox.stripe.events import queue

_KEPT_SECONDS = 30 * 86_400


class _Listing(EventListParams):
    page: NotRequired[str]


def emit_thin(call: Call, name: str, data: Document, related: Document | None) -> None:
    """Notes the event with its data, and queues the notification without it."""
    event: Document = {
        "id": call.new_id("evt_test"),
        "object": "v2.core.event",
        "context": None,
        "created": rfc3339(call.now),
        "data": data,
        "livemode": False,
        "reason": None,
        "type": name,
    }
    if related is not None:
        event["related_object"] = related
    call.store.db.execute(
        "INSERT INTO events (account, id, type, created, object_id, thin, data) VALUES (?, ?, ?, ?, ?, 1, ?)",
        (call.account, event["id"], name, call.now, related and related["id"], json.dumps(event)),
    )
    queue(call, event["id"], name, thin=True)


def notification(data: str) -> str:
    """The body that a webhook gets of a kept thin event."""
    event = json.loads(data)
    del event["data"]
    return json.dumps(event)


def retrieve(call: Call, params: Document, id: str) -> Document:
    sql = "SELECT data, created FROM events WHERE id = ? AND account = ? AND thin = 1"
    row = call.store.db.execute(sql, (id, call.account)).fetchone()
    if row is None or row["created"] < call.now - _KEPT_SECONDS:
        raise missing("event", id)
    event: Document = json.loads(row["data"])
    return event


def list_all(call: Call, params: Document) -> Document:
    if "page" in params:
        params = _of_page(params["page"])
    limit = checked_limit(params)
    tests = ["account = ?", "thin = 1", "created >= ?"]
    values: list[Any] = [call.account, call.now - _KEPT_SECONDS]
    bounds = {name: unix(text) for name, text in params.get("created", {}).items()}
    for name, bound in bounds.items():
        if bound is None:
            raise invalid(f"Invalid timestamp: created[{name}] must be an RFC 3339 time.", f"created[{name}]")
    for test, bound in created_tests({name: bound for name, bound in bounds.items() if bound is not None}):
        tests.append(test)
        values.append(bound)
    if "object_id" in params:
        tests.append("object_id = ?")
        values.append(params["object_id"])
    if "types" in params:
        tests.append(f"type IN ({', '.join('?' * len(params['types']))})")
        values += params["types"]
    if "before" in params:
        tests.append("seq < ?")
        values.append(params["before"])
    sql = f"SELECT seq, data FROM events WHERE {' AND '.join(tests)} ORDER BY seq DESC LIMIT ?"  # noqa: S608 (own text)
    rows = call.store.db.execute(sql, (*values, limit + 1)).fetchall()
    kept = rows[:limit]
    more = None
    if len(rows) > limit:
        token = json.dumps({**params, "before": kept[-1]["seq"]})
        more = f"/v2/core/events?page={urlsafe_b64encode(token.encode()).decode()}"
    return {"data": [json.loads(row["data"]) for row in kept], "next_page_url": more, "previous_page_url": None}


def _of_page(token: str) -> Document:
    """What a page's token holds: the filters of the list, and where the page begins."""
    try:
        params: Document = json.loads(urlsafe_b64decode(token))
    except ValueError:
        raise invalid("Invalid page token.", "page") from None
    return params


ROUTES = [
    Route("GET", "/v2/core/events/{id}", Contract("v2.core.EventRetrieveParams"), retrieve),
    Route("GET", "/v2/core/events", Contract(_Listing, "created limit object_id page types"), list_all),
]
