"""Station 2: events in the lake to metered quantities per tenant, service and hour. No prices, no Dagster.

``counting`` computes with DuckDB, ``hours`` reads what to count and writes revisions.
"""

from clawbill_pipeline.metering.hours import Metered, late_hours, meter

__all__ = ["Metered", "late_hours", "meter"]
