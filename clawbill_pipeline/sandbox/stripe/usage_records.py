"""Usage records, the legacy way: on items whose price has no meter, by the API version 2025-02-24.acacia alone.

``set`` puts the quantity of a moment, ``increment`` adds to it. A period's usage is the sum over its moments, and
records for an ended period count until its invoice is final.
"""

from __future__ import annotations

from typing import Literal, NotRequired

from typing_extensions import TypedDict

from clawbill_pipeline.sandbox.stripe.contract import Contract
from clawbill_pipeline.sandbox.stripe.core import LEGACY, Call, Document, Route, checked_limit, list_of
from clawbill_pipeline.sandbox.stripe.errors import invalid
from clawbill_pipeline.sandbox.stripe.store import scrambled

_FUTURE_SECONDS = 300


class UsageRecordCreateParams(TypedDict):
    """The request as the SDK typed it before 12.0.0."""

    quantity: int
    timestamp: NotRequired[Literal["now"] | int]
    action: NotRequired[Literal["increment", "set"]]
    expand: NotRequired[list[str]]


class UsageRecordSummaryListParams(TypedDict):
    """The request as the SDK typed it before 12.0.0."""

    limit: NotRequired[int]
    expand: NotRequired[list[str]]


def create(call: Call, params: Document, id: str) -> Document:
    item = _legacy_item(call, id)
    if params["quantity"] < 0:
        raise invalid("Invalid non-negative integer", "quantity")
    timestamp = call.now if params.get("timestamp", "now") == "now" else params["timestamp"]
    if not _open_since(call, item) <= timestamp <= call.now + _FUTURE_SECONDS:
        message = "Cannot create the usage record with this timestamp because it is outside of the open periods."
        raise invalid(message, "timestamp")
    adding = params.get("action", "increment") == "increment"
    sql = (
        "INSERT INTO usage_records (account, item, timestamp, quantity) VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE"
        " SET quantity = excluded.quantity + iif(?, quantity, 0) RETURNING seq, quantity"
    )
    row = call.store.db.execute(sql, (call.account, id, timestamp, params["quantity"], adding)).fetchone()
    return {
        "id": f"mbur_{scrambled(call.account, id, row['seq'])}",
        "object": "usage_record",
        "livemode": False,
        "quantity": row["quantity"],
        "subscription_item": id,
        "timestamp": timestamp,
    }


def list_summaries(call: Call, params: Document, id: str) -> Document:
    item = _legacy_item(call, id)
    start, end = call.find("subscription", item["subscription"])["_period"]
    periods: list[tuple[str | None, int, int]] = [(None, start, end)]
    for invoice in reversed(call.store.select(call.account, "invoice", parent=item["subscription"])):
        spans = [segment for segment in invoice["_segments"] if segment["item"] == id]
        periods += [(invoice["id"], span["start"], span["end"]) for span in reversed(spans)]
    limit = checked_limit(params)
    entries = [
        {
            "id": f"sis_{scrambled(call.account, id, since)}",
            "object": "usage_record_summary",
            "invoice": invoice_id,
            "livemode": False,
            "period": {"end": until, "start": since},
            "subscription_item": id,
            "total_usage": records_total(call, id, since, until),
        }
        for invoice_id, since, until in periods
    ]
    url = f"/v1/subscription_items/{id}/usage_record_summaries"
    return list_of(entries[:limit], url, len(entries) > limit)


def records_total(call: Call, item: str, start: int, end: int) -> int:
    """The item's usage in ``[start, end)``."""
    sql = (
        "SELECT coalesce(sum(quantity), 0) FROM usage_records"
        " WHERE account = ? AND item = ? AND timestamp >= ? AND timestamp < ?"
    )
    return int(call.store.db.execute(sql, (call.account, item, start, end)).fetchone()[0])


def _legacy_item(call: Call, identifier: str) -> Document:
    item = call.find("subscription_item", identifier)
    if call.find("price", item["price"])["recurring"]["meter"] is not None:
        message = "Cannot create a usage record for a price that is backed by a meter. Create meter events instead."
        raise invalid(message)
    return item


def _open_since(call: Call, item: Document) -> int:
    """The start of the earliest period of the item that no final invoice has billed."""
    starts: list[int] = [item["_from"]]
    for invoice in call.store.select(call.account, "invoice", parent=item["subscription"], status="draft"):
        starts += [segment["start"] for segment in invoice["_segments"] if segment["item"] == item["id"]]
    return min(starts)


_PATH = "/v1/subscription_items/{id}"
ROUTES = [
    Route(
        "POST",
        f"{_PATH}/usage_records",
        Contract(UsageRecordCreateParams, "action quantity timestamp"),
        create,
        only_version=LEGACY,
    ),
    Route(
        "GET",
        f"{_PATH}/usage_record_summaries",
        Contract(UsageRecordSummaryListParams, "limit"),
        list_summaries,
        only_version=LEGACY,
    ),
]
