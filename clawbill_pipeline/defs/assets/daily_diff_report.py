"""A day of the reconciliation as files for people: workbook, page and CSV. How they look is in reporting/day."""

import dagster as dg

from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.assets.usage_reconciliation import usage_reconciliation
from clawbill_pipeline.defs.partitions import days
from clawbill_pipeline.defs.presentation import FINANCE, check, materialized, specs, table
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.reporting.day import render_day
from clawbill_pipeline.settings import Settings


@dg.asset(
    partitions_def=days,
    deps=[usage_reconciliation],
    group_name="reconciliation",
    kinds={"excel", "html", "csv"},
    owners=[FINANCE],
    check_specs=specs(
        "daily_diff_report", check("day_report_written", "Every report file of the day is on disk and registered.")
    ),
    metadata=table(tables.reports),
)
def daily_diff_report(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    ledger: dg.ResourceParam[Ledger],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """Every hour of a UTC day as metered, rated, sent and held, with its breaks; the same data gives the same bytes."""
    day = context.partition_time_window.start.date()
    result = render_day(ledger, day=day, folder=settings.reports_root, now=clock())
    links = {
        file.name: dg.MetadataValue.url(f"{settings.web_url}/reports/{day:%Y-%m}/{file.name}")
        for file in result.files
        if settings.web_url
    }
    return materialized(result, rows=result.hours, **links)
