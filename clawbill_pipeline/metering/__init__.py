"""Station 2: events in the lake to metered quantities per tenant, service and hour. No prices, no Dagster.

``counting`` computes with DuckDB, ``neighbours`` finds ids used in another hour, ``hours`` reads what to count and
writes revisions, ``ahead`` does so for tenants whose invoice goes out, ``unused`` writes the zeros of what a
subscription bills and nobody used.
"""

from clawbill_pipeline.metering.hours import Metered, late_hours, meter
from clawbill_pipeline.metering.unused import meter_unused

__all__ = ["Metered", "late_hours", "meter", "meter_unused"]
