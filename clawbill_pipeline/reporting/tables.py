"""The report as CSV, a file a table: for people's own tools. UTF-8, decimals in full, instants in ISO 8601 UTC."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pandas as pd

from clawbill_pipeline.money import plain
from clawbill_pipeline.reporting.harmless import harmless
from clawbill_pipeline.reporting.report import Report

WATERFALL = (
    "tenant_id", "service", "currency", "bill_by", "metered_quantity", "rated_amount", "sent", "held_by_stripe",
    "invoiced_amount", "paid_amount", "rounding", "breaks", "waiting", "witness_quantity",
)  # fmt: skip
BREAKS = (
    "tenant_id", "service", "hour", "step", "cause", "standing", "currency", "quantity", "amount", "detail",
    "first_seen", "last_seen", "closed_at",
)  # fmt: skip
WITNESSES = (
    "tenant_id", "service", "source", "starts", "ends", "said_quantity", "counted_quantity", "difference", "why",
    "said_cost", "counted_cost", "said_at",
)  # fmt: skip
MARGIN = (
    "tenant_id", "service", "currency", "quantity", "unknown_quantity", "revenue", "cost", "cost_currency", "margin",
    "percent",
)  # fmt: skip


def waterfall_csv(report: Report) -> bytes:
    return table(WATERFALL, report.steps)


def breaks_csv(report: Report) -> bytes:
    return table(BREAKS, report.breaks)


def witnesses_csv(report: Report) -> bytes:
    return table(WITNESSES, report.witnesses)


def margin_csv(report: Report) -> bytes:
    return table(MARGIN, report.margins)


def table(columns: Sequence[str], rows: Iterable[object]) -> bytes:
    """CSV of the named attributes of ``rows``, with a header."""
    return frame(columns, rows).to_csv(index=False, lineterminator="\n").encode()


def frame(columns: Sequence[str], rows: Iterable[object]) -> pd.DataFrame:
    """The named attributes of ``rows`` as cells that show all their digits: objects throughout, never floats."""
    cells = [[cell(getattr(row, name)) for name in columns] for row in rows]
    return pd.DataFrame(cells, columns=list(columns), dtype=object)


def cell(value: Any) -> str | int:
    """One CSV cell: numbers exact and without exponent, text that no spreadsheet runs."""
    match value:
        case None:
            return ""
        case Decimal():
            return plain(value)
        case datetime():
            return value.strftime("%Y-%m-%dT%H:%M:%SZ")
        case date():
            return value.isoformat()
        case int():
            return value
        case _:
            return harmless(str(value))
