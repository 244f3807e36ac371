"""The code location: everything that Dagster loads, and the way to build it with other resources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import dagster as dg

from clawbill_pipeline.defs import assets
from clawbill_pipeline.defs.corrective_delivery import corrective_delivery
from clawbill_pipeline.defs.jobs import JOBS
from clawbill_pipeline.defs.period_rerating import period_rerating
from clawbill_pipeline.defs.price_simulation import price_simulation
from clawbill_pipeline.defs.resources import resources
from clawbill_pipeline.defs.schedules import SCHEDULES
from clawbill_pipeline.defs.sensors.after_reconciliation import after_reconciliation
from clawbill_pipeline.defs.sensors.alerts import alerts
from clawbill_pipeline.defs.sensors.failed_runs import failed_runs
from clawbill_pipeline.defs.sensors.late_usage import late_usage
from clawbill_pipeline.defs.sensors.rating_retries import rating_retries
from clawbill_pipeline.defs.sensors.stripe_inbox import stripe_inbox


def build_definitions(overrides: Mapping[str, Any] | None = None) -> dg.Definitions:
    """All definitions; ``overrides`` replaces resources by name, as tests and other projects do."""
    return dg.Definitions(
        assets=dg.load_assets_from_package_module(assets),
        jobs=[*JOBS, corrective_delivery, period_rerating, price_simulation],
        schedules=SCHEDULES,
        sensors=[after_reconciliation, alerts, failed_runs, late_usage, rating_retries, stripe_inbox],
        resources=resources(overrides),
        executor=dg.in_process_executor,
    )


defs = build_definitions()
