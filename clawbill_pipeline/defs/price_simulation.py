"""The job ``price_simulation``: what usage would have cost at a candidate's prices. The rating is in rating/."""

from pathlib import Path

import dagster as dg
from pydantic import Field

from clawbill_pipeline.catalog import Catalog, load
from clawbill_pipeline.catalog.periods import moment
from clawbill_pipeline.defs.presentation import FINANCE
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.rating.history import compare
from clawbill_pipeline.settings import Settings

#: Rows of a table in the UI; `clawbill simulate` writes files with all of them.
MOST_ROWS = 200


class PriceSimulation(dg.Config):
    """What to compare with the catalogue in use."""

    catalog: str = Field(description="Path of the candidate catalogue.")
    start: str = Field(description="First moment of the usage: 2026-01-01, or 2026-01-01T05:00:00Z.")
    end: str = Field(description="The moment after it.")
    as_of: str | None = Field(None, description="Rate all usage at the candidate's prices of this moment.")


@dg.op
def simulate_prices(
    context: dg.OpExecutionContext,
    config: PriceSimulation,
    catalog: dg.ResourceParam[Catalog],
    ledger: dg.ResourceParam[Ledger],
    settings: dg.ResourceParam[Settings],
) -> None:
    """Rates the ledger's metered usage with both catalogues; writes nothing and calls nobody."""
    found = compare(
        ledger,
        catalog,
        load(Path(config.catalog)),
        start=moment(config.start),
        end=moment(config.end),
        as_of=moment(config.as_of) if config.as_of else None,
        memory_limit=settings.memory_limit,
    )
    bills = [bill.as_json() for bill in found.bills]
    movements = [movement.as_json() for movement in found.movements]
    context.add_output_metadata(
        {
            "revenue": _table([revenue.as_json() for revenue in found.revenue]),
            "largest_movers": _table(bills),
            "tenants_and_services": _table(movements),
            "not_comparable_in_full": len(found.unclear),
            "in_neither_catalogue": ", ".join(found.unbilled) or "nobody",
        }
    )


def _table(rows: list[dict[str, object]]) -> dg.TableMetadataValue:
    columns = [dg.TableColumn(name) for name in (rows[0] if rows else {"nothing": None})]
    records = [dg.TableRecord({name: _cell(value) for name, value in row.items()}) for row in rows[:MOST_ROWS]]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


def _cell(value: object) -> str | int:
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return value if isinstance(value, int) else "" if value is None else str(value)


@dg.job(
    executor_def=dg.in_process_executor,
    description="Compares a candidate catalogue with the one in use over real metered history. Books nothing.",
    tags={"owner": FINANCE},
)
def price_simulation() -> None:
    simulate_prices()
