"""Meter events that turn out invalid after their 200: reports with counts and samples, as thin events.

``v1.billing.meter.error_report_triggered`` for a meter, ``v1.billing.meter.no_meter_found`` where there is none. A
sample is known by the idempotency key of its request. Not every rejection is named: only totals find them all.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from clawbill_pipeline.sandbox.stripe.core import Call, Document, rfc3339
from clawbill_pipeline.sandbox.stripe.thin_events import emit_thin

#: How many rejections of a kind a report names.
_SAMPLES = 5
DEFAULT_DELAY_SECONDS = 60
MESSAGES = {
    "archived_meter": "The meter is archived.",
    "meter_event_customer_not_found": "The customer does not exist.",
    "meter_event_invalid_value": "The value is not a whole number.",
    "meter_event_no_customer_defined": "The payload has no customer.",
    "meter_event_value_too_many_digits": "The value has more than 15 significant digits.",
    "no_meter": "No meter has this event name.",
    "timestamp_in_future": "The timestamp is more than 5 minutes in the future.",
    "timestamp_too_far_in_past": "The timestamp is more than 35 days in the past.",
}


def schedule_report(call: Call, meter: str) -> None:
    """A report on ``meter`` (empty: on events without one) comes after the account's delay; one for all until then."""
    sql = "SELECT 1 FROM due WHERE account = ? AND kind = 'meter_report' AND ref = ?"
    if call.store.db.execute(sql, (call.account, meter)).fetchone() is None:
        delay = call.store.setting(call.account, "rejection_delay_seconds", DEFAULT_DELAY_SECONDS)
        call.store.schedule(call.now + delay, call.account, "meter_report", meter)


def report(call: Call, meter: str) -> None:
    """Tells of all rejections on ``meter`` since the last report."""
    sql = (
        "UPDATE meter_events SET reported = 1 WHERE account = ? AND meter = ? AND reported = 0"
        " RETURNING state, identifier, request, received"
    )
    rows = call.store.db.execute(sql, (call.account, meter)).fetchall()
    if not rows:
        return
    rows.sort(key=lambda row: (row["state"], row["received"]))
    types = [_error_type(code, list(group)) for code, group in groupby(rows, key=lambda row: row["state"])]
    plural = "s" if len(rows) > 1 else ""
    data: Document = {
        "developer_message_summary": f"There {'are' if plural else 'is'} {len(rows)} invalid event{plural}",
        "reason": {"error_count": len(rows), "error_types": types},
        "validation_end": rfc3339(call.now),
        "validation_start": rfc3339(min(row["received"] for row in rows)),
    }
    if meter:
        related = {"id": meter, "type": "billing.meter", "url": f"/v1/billing/meters/{meter}"}
        emit_thin(call, "v1.billing.meter.error_report_triggered", data, related)
    else:
        emit_thin(call, "v1.billing.meter.no_meter_found", data, None)


def _error_type(code: str, rows: list[Any]) -> Document:
    samples = [
        {"error_message": MESSAGES[code], "request": {"identifier": row["request"] or row["identifier"]}}
        for row in rows[:_SAMPLES]
    ]
    return {"code": code, "error_count": len(rows), "sample_errors": samples}
