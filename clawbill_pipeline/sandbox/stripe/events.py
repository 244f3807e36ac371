"""Events: written with the change they tell of, listed by ``/v1/events``, queued for every endpoint that wants them.

Snapshot events only; thin ones are in ``thin_events``. How a queued event reaches its endpoint is ``delivery``.
"""

from __future__ import annotations

import json
import random
import time
from fnmatch import fnmatchcase
from typing import Any

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import (
    CURRENT,
    Call,
    Document,
    Route,
    checked_limit,
    created_tests,
    list_of,
    shown,
)
from clawbill_pipeline.sandbox.stripe.errors import invalid, missing

#: ``/v1/events`` reaches back 30 days.
_KEPT_SECONDS = 30 * 86_400


def emit(call: Call, name: str, kind: str, obj: Document, before: Document | None = None) -> None:
    """Notes that ``name`` happened to ``obj``, and queues it. ``before`` is the object as shown before the change."""
    snapshot = shown(call, kind, obj)
    data: Document = {"object": snapshot}
    if before is not None:
        data["previous_attributes"] = {key: value for key, value in before.items() if snapshot.get(key) != value}
    event: Document = {
        "id": call.new_id("evt"),
        "object": "event",
        "api_version": CURRENT,
        "created": call.now,
        "data": data,
        "livemode": False,
        "request": {"id": call.request_id, "idempotency_key": call.idempotency_key},
        "type": name,
    }
    call.store.db.execute(
        "INSERT INTO events (account, id, type, created, object_id, thin, data) VALUES (?, ?, ?, ?, ?, 0, ?)",
        (call.account, event["id"], name, call.now, snapshot.get("id"), json.dumps(event)),
    )
    queue(call, event["id"], name, thin=False)


def queue(call: Call, event_id: str, name: str, *, thin: bool) -> None:
    """One delivery for each enabled endpoint, of the account or of all accounts, that asked for ``name``.

    Stripe promises neither order nor once: ``webhook_shuffle_seconds`` holds each back for up to that long and mixes
    those that wait, ``webhook_duplicates`` is the share that is sent twice. Both follow from the event's id.
    """
    dice = random.Random(event_id)  # noqa: S311 (the same disorder in every run)
    shuffle = call.store.setting(call.account, "webhook_shuffle_seconds", 0)
    duplicates = call.store.setting(call.account, "webhook_duplicates", 0)
    for owner in (call.account, "*"):
        for endpoint in call.store.select(owner, "webhook_endpoint", status="enabled"):
            if endpoint["_thin"] != thin or not any(fnmatchcase(name, wanted) for wanted in endpoint["enabled_events"]):
                continue
            for _ in range(2 if dice.random() < duplicates else 1):
                wait = time.time() + dice.uniform(0, shuffle) if shuffle else 0
                rank = dice.getrandbits(31) if shuffle else 0
                call.store.db.execute(
                    "INSERT INTO deliveries (account, event, endpoint, thin, state, attempts, next_at, rank)"
                    " VALUES (?, ?, ?, ?, 'pending', 0, ?, ?)",
                    (call.account, event_id, endpoint["id"], thin, wait, rank),
                )
            call.store.wake_delivery()


def event_document(call: Call, data: str) -> Document:
    """The event with the number of its deliveries that wait."""
    event: Document = json.loads(data)
    sql = "SELECT count(*) FROM deliveries WHERE event = ? AND state = 'pending'"
    event["pending_webhooks"] = call.store.db.execute(sql, (event["id"],)).fetchone()[0]
    return event


def retrieve(call: Call, params: Document, id: str) -> Document:
    sql = "SELECT data, created FROM events WHERE id = ? AND account = ? AND thin = 0"
    row = call.store.db.execute(sql, (id, call.account)).fetchone()
    if row is None or row["created"] < call.now - _KEPT_SECONDS:
        raise missing("event", id)
    return event_document(call, row["data"])


def list_all(call: Call, params: Document) -> Document:
    limit = checked_limit(params)
    if "type" in params and "types" in params:
        raise invalid("You may only specify one of these parameters: type, types.", "type")
    if len(params.get("types", [])) > 20:
        raise invalid("You may pass at most 20 types.", "types")
    tests = ["account = ?", "thin = 0", "created >= ?"]
    values: list[Any] = [call.account, call.now - _KEPT_SECONDS]
    for test, bound in created_tests(params.get("created")):
        tests.append(test)
        values.append(bound)
    if "type" in params:
        tests.append("type GLOB ?")
        values.append(params["type"])
    if "types" in params:
        tests.append(f"type IN ({', '.join('?' * len(params['types']))})")
        values += params["types"]
    if "delivery_success" in params:
        all_delivered = "NOT EXISTS (SELECT 1 FROM deliveries d WHERE d.event = events.id AND d.state != 'delivered')"
        tests.append(f"({all_delivered}) = ?")
        values.append(params["delivery_success"])
    backwards = _cursor(call, params, tests, values)
    order = "ASC" if backwards else "DESC"
    sql = f"SELECT data FROM events WHERE {' AND '.join(tests)} ORDER BY seq {order} LIMIT ?"  # noqa: S608 (own names)
    rows = call.store.db.execute(sql, (*values, limit + 1)).fetchall()
    entries = [event_document(call, row["data"]) for row in rows[:limit]]
    if backwards:
        entries.reverse()
    return list_of(entries, "/v1/events", len(rows) > limit)


def _cursor(call: Call, params: Document, tests: list[str], values: list[Any]) -> bool:
    for name, sign in (("starting_after", "<"), ("ending_before", ">")):
        if name in params:
            sql = "SELECT seq FROM events WHERE id = ? AND account = ?"
            row = call.store.db.execute(sql, (params[name], call.account)).fetchone()
            if row is None:
                raise missing("event", params[name], name, 400)
            tests.append(f"seq {sign} ?")
            values.append(row["seq"])
    return "ending_before" in params


ROUTES = [
    Route("GET", "/v1/events/{id}", Contract("EventRetrieveParams"), retrieve),
    Route(
        "GET",
        "/v1/events",
        Contract("EventListParams", "created delivery_success ending_before limit starting_after type types"),
        list_all,
    ),
]
