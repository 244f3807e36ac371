"""The reconciliation as files for people: workbook, CSV and page. How they look is in reporting/."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.assets.usage_reconciliation import usage_reconciliation
from clawbill_pipeline.defs.partitions import periods
from clawbill_pipeline.defs.presentation import FINANCE, check, materialized, specs, table
from clawbill_pipeline.ledger import Ledger, tables
from clawbill_pipeline.reporting.render import render
from clawbill_pipeline.settings import Settings


@dg.asset(
    partitions_def=periods,
    deps=[usage_reconciliation],
    group_name="reconciliation",
    kinds={"excel", "html", "csv"},
    owners=[FINANCE],
    check_specs=specs("diff_report", check("reports_written", "Every report of the period is on disk and registered.")),
    metadata=table(tables.reports),
)
def diff_report(
    context: dg.AssetExecutionContext,
    settings: dg.ResourceParam[Settings],
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """An Excel workbook, CSV files and a self-contained HTML page; the same data gives the same bytes."""
    now, month = clock(), context.partition_key
    made = {
        key: render(ledger, catalog, period=key, folder=settings.reports_root, now=now, run_id=context.run.run_id)
        for key in reversed(catalog.period_keys(month, now))
    }
    links = {
        file.name if key == month else f"{key}/{file.name}": dg.MetadataValue.url(
            f"{settings.web_url}/reports/{key}/{file.name}"
        )
        for key, result in made.items()
        for file in result.files
        if settings.web_url
    }
    return materialized(*made.values(), rows=sum(len(result.files) for result in made.values()), **links)
