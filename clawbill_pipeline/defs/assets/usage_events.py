"""The raw usage logs, made one: canonical usage events in the lake. Reading and checking lines is in usage/."""

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.defs.partitions import hours
from clawbill_pipeline.defs.presentation import DATA, check, columns, materialized, specs
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.usage import land


class Landing(dg.Config):
    """``finished``: nothing writes to the sources any more, so a last line without its line feed is complete."""

    finished: bool = False


@dg.asset(
    partitions_def=hours,
    group_name="usage",
    kinds={"parquet", "postgres"},
    owners=[DATA],
    backfill_policy=dg.BackfillPolicy.single_run(),
    check_specs=specs(
        "usage_events",
        check("books_balance", "Every line read is an event line or in quarantine; none is lost.", blocking=True),
        check("no_quarantine", "No line of this landing had to be set aside."),
        check("sources_unchanged", "No file that was landed before has changed in place."),
        check("sources_readable", "Every input could be read to its end."),
        check("sources_fresh", "Every source has brought something within the time that the catalogue gives it."),
        check("everybody_known", "Every event that landed is of a tenant of the catalogue."),
    ),
    metadata=columns(
        landing_id="bigint: The landing (ledger table landings) that brought the event",
        source="text: Source by its name in the catalogue",
        uri="text: File or database, relative to the source",
        line="bigint: Line or row in it",
        byte_offset="bigint: Where the line begins",
        event_id="text: Unique for tenant and source; what duplicates are found by",
        tenant_id="text: Who used it",
        service="text: What was used",
        dimensions="text: Priced dimension values joined by /",
        quantity="numeric(38,12): How much, in the service's unit",
        event_time="timestamptz: When it was used; decides its hour",
        unique_value="text: What a service of unique_count counts, such as a user; empty for other services",
        cost="numeric(38,12): What the provider charged in USD, as the source says; a witness, never billed",
    ),
)
def usage_events(
    context: dg.AssetExecutionContext,
    config: Landing,
    catalog: dg.ResourceParam[Catalog],
    lake: dg.ResourceParam[Lake],
    ledger: dg.ResourceParam[Ledger],
    clock: dg.ResourceParam[Clock],
) -> dg.MaterializeResult:
    """Usage events by the hour of their own time, as Parquet.

    A run lands all that is new in every source of the catalogue, whatever hour it belongs to: hours that were metered
    before and are touched again are metered again by the sensor `late_usage`. Lines that can't be read are set aside
    in the ledger's `quarantine` with file, place and reason, and stop nobody.
    """
    result = land(catalog, lake, ledger, now=clock(), run_id=context.run.run_id, finished=config.finished)
    return materialized(result, rows=result.events)
