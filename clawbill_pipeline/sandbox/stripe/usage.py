"""What a meter holds: its events aggregated over a span of time. Read by summaries and invoices; nothing is written.

``sum`` adds values, ``count`` counts events, ``last`` takes the latest by time. In a meter with an hour or day window
only the latest event of each UTC hour or day counts ("latest" is by timestamp, then by arrival), and those are
aggregated. A cancelled or rejected event counts nowhere.
"""

from __future__ import annotations

from clawbill_pipeline.sandbox.stripe.core import Call, Document

_WINDOWS = {"hour": 3_600, "day": 86_400}


def usage_total(call: Call, meter: Document, customer: str, start: int, end: int, arrived_by: int | None = None) -> int:
    """The aggregate over ``[start, end)``; 0 without events. ``arrived_by`` leaves out what came later."""
    source = "SELECT * FROM meter_events WHERE account = ? AND event_name = ? AND customer = ? AND timestamp >= ?"
    source += " AND timestamp < ? AND state = 'accepted'"
    values: list[object] = [call.account, meter["event_name"], customer, start, end]
    if arrived_by is not None:
        source += " AND received <= ?"
        values.append(arrived_by)
    window = _WINDOWS.get(meter["event_time_window"])
    if window:
        ranked = f"row_number() OVER (PARTITION BY timestamp / {window} ORDER BY timestamp DESC, seq DESC) AS rank"
        source = f"SELECT * FROM (SELECT *, {ranked} FROM ({source})) WHERE rank = 1"  # noqa: S608 (own text)
    formula = meter["default_aggregation"]["formula"]
    if formula == "count":
        sql = f"SELECT count(*) AS high, 0 AS low FROM ({source})"  # noqa: S608 (own text)
    elif formula == "last":
        sql = f"SELECT value AS high, 0 AS low FROM ({source}) ORDER BY timestamp DESC, seq DESC LIMIT 1"  # noqa: S608
    else:
        # In two halves: the sum of many 15-digit values leaves SQLite's 64 bits.
        sql = f"SELECT sum(value / 1000000000) AS high, sum(value % 1000000000) AS low FROM ({source})"  # noqa: S608
    row = call.store.db.execute(sql, values).fetchone()
    if row is None or row["high"] is None:
        return 0
    return int(row["high"]) * (1_000_000_000 if formula == "sum" else 1) + int(row["low"])


def spans_with_events(call: Call, meter: Document, customer: str, start: int, end: int, width: int) -> list[int]:
    """Where the windows of ``width`` seconds (UTC-aligned) begin that hold an event, newest first."""
    sql = (
        "SELECT DISTINCT timestamp / ? * ? AS start FROM meter_events WHERE account = ? AND event_name = ?"
        " AND customer = ? AND timestamp >= ? AND timestamp < ? AND state = 'accepted' ORDER BY start DESC"
    )
    rows = call.store.db.execute(sql, (width, width, call.account, meter["event_name"], customer, start, end))
    return [row["start"] for row in rows]
