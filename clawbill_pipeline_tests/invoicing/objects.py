"""Stripe objects and events in the shape of the installed API version, for tests to vary. No fixtures."""

from __future__ import annotations

import json
from typing import Any

START = 1_790_812_800  # 2026-10-01T00:00:00Z
END = 1_793_491_200  # 2026-11-01T00:00:00Z


def line(line_id: str = "il_1", item: str | None = "si_1", amount: int = 1234, **changes: Any) -> dict[str, Any]:
    details = {"subscription": "sub_1", "subscription_item": item, "proration": False, "invoice_item": None}
    return {
        "id": line_id,
        "object": "line_item",
        "amount": amount,
        "currency": "usd",
        "description": "12340000 × OpenClaw Usage",
        "parent": {"type": "subscription_item_details", "subscription_item_details": details},
        "period": {"start": START, "end": END},
        "pricing": {"type": "price_details", "price_details": {"price": "price_1", "product": "prod_1"}},
        "quantity": 12_340_000,
        "quantity_decimal": "12340000",
        "subtotal": amount,
    } | changes


def invoice(
    status: str = "draft", lines: list[dict[str, Any]] | None = None, *, has_more: bool = False, **changes: Any
) -> dict[str, Any]:
    lines = [line()] if lines is None else lines
    total = sum(entry["amount"] for entry in lines)
    paid = status == "paid"
    return {
        "id": "in_1",
        "object": "invoice",
        "amount_due": total,
        "amount_paid": total if paid else 0,
        "amount_remaining": 0 if paid else total,
        "attempted": paid,
        "billing_reason": "subscription_cycle",
        "collection_method": "charge_automatically",
        "created": END,
        "currency": "usd",
        "customer": "cus_1",
        "due_date": None,
        "lines": {"object": "list", "data": lines, "has_more": has_more, "url": "/v1/invoices/in_1/lines"},
        "number": None if status == "draft" else "ABC-0001",
        "parent": {"type": "subscription_details", "subscription_details": {"subscription": "sub_1"}},
        "status": status,
        "status_transitions": {
            "finalized_at": None if status == "draft" else END + 3600,
            "paid_at": END + 3600 if paid else None,
        },
        "subtotal": total,
        "total": total,
    } | changes


def subscription(status: str = "active", **changes: Any) -> dict[str, Any]:
    return {"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": status} | changes


def event(event_id: str, event_type: str, obj: dict[str, Any], created: int) -> str:
    return json.dumps(
        {
            "id": event_id,
            "object": "event",
            "api_version": "2026-10-28.endive",
            "created": created,
            "data": {"object": obj},
            "livemode": False,
            "type": event_type,
        }
    )
