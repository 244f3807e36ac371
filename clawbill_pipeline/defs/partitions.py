"""Time as Dagster sees it: the hours that are metered, and the months in which billing periods start."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TypedDict

import dagster as dg

from clawbill_pipeline.defs.environment import catalog_at_load, settings

_start = catalog_at_load().start

#: Half-open UTC hours since the catalogue's start. On a clock of its own, the hour that still runs can be billed too.
hours = dg.HourlyPartitionsDefinition(start_date=_start, fmt="%Y-%m-%d-%H:%M", end_offset=1 if settings().clock else 0)
#: Billing periods by the month (in the tenant's own zone) in which they start; one tenant, one period a month.
#: Begins a month early: the period that holds the first hour may have started then.
periods = dg.MonthlyPartitionsDefinition(
    start_date=(_start.replace(day=1) - timedelta(days=1)).replace(day=1, hour=0), end_offset=1, fmt="%Y-%m"
)


class Hours(TypedDict):
    """A half-open interval of UTC hours."""

    start: datetime
    end: datetime


#: Days of UTC since the catalogue's start, for reports.
days = dg.DailyPartitionsDefinition(start_date=_start.replace(hour=0), fmt="%Y-%m-%d")


def hours_of(context: dg.AssetExecutionContext) -> Hours:
    """The hours that a run covers: one, or a whole backfill."""
    window = context.partition_time_window
    return Hours(start=window.start, end=window.end)


def hours_before(start: datetime) -> str:
    """The partition key of the hour that starts at ``start``."""
    return f"{start:%Y-%m-%d-%H:%M}"
