"""The code location: everything that Dagster loads, and the way to build it with other resources."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from clawbill_pipeline.defs import assets, environment
from clawbill_pipeline.defs.corrective_delivery import corrective_delivery
from clawbill_pipeline.defs.jobs import JOBS, LINE
from clawbill_pipeline.defs.period_rerating import period_rerating
from clawbill_pipeline.defs.price_simulation import price_simulation
from clawbill_pipeline.defs.resources import resources
from clawbill_pipeline.defs.schedules import SCHEDULES
from clawbill_pipeline.defs.sensors.after_reconciliation import after_reconciliation
from clawbill_pipeline.defs.sensors.alerts import alerts
from clawbill_pipeline.defs.sensors.approved_corrections import approved_corrections
from clawbill_pipeline.defs.sensors.failed_runs import failed_runs
from clawbill_pipeline.defs.sensors.late_usage import late_usage
from clawbill_pipeline.defs.sensors.rating_retries import rating_retries
from clawbill_pipeline.defs.sensors.stripe_inbox import stripe_inbox
from clawbill_pipeline.logs import log_as_json


def build_definitions(
    overrides: Mapping[str, Any] | None = None,
    key_prefix: Sequence[str] | None = None,
    executor: dg.ExecutorDefinition | None = dg.in_process_executor,
) -> dg.Definitions:
    """All definitions; ``overrides`` replaces resources by name, ``key_prefix`` stands before every asset's key.

    ``executor`` is that of runs without a job; None leaves it to the project that takes the definitions in.
    """
    log_as_json(environment.settings(), "clawbill_pipeline")
    loaded = dg.load_assets_from_package_module(assets, key_prefix=list(key_prefix) if key_prefix else None)
    return dg.Definitions(
        assets=dg.map_asset_specs(
            lambda spec: spec.merge_attributes(tags={LINE: ""}),
            [asset for asset in loaded if isinstance(asset, dg.AssetsDefinition)],
        ),
        jobs=[*JOBS, corrective_delivery, period_rerating, price_simulation],
        schedules=SCHEDULES,
        sensors=[
            after_reconciliation,
            alerts,
            approved_corrections,
            failed_runs,
            late_usage,
            rating_retries,
            stripe_inbox,
        ],
        resources=resources(overrides),
        executor=executor,
    )


defs = build_definitions()
