"""What assets are given: settings, catalogue, ledger, lake, and the two services. Made when a run starts.

A missing setting fails the run that needs it, with the setting's name, never the loading of the definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import dagster as dg

from clawbill_pipeline.catalog import load
from clawbill_pipeline.clock import Clock, clock_of
from clawbill_pipeline.defs import environment
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.logs import about
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.stripe_api import StripeApi


def _made(make: Callable[[Settings], object], description: str) -> dg.ResourceDefinition:
    # Settings are read when a run starts, so a changed environment needs no new code location.
    return dg.ResourceDefinition(lambda _: make(environment.settings()), description=description)


def _ledger(context: dg.InitResourceContext) -> Iterator[Ledger]:
    ledger = Ledger(environment.settings().need_database())
    try:
        with about(**_run(context)):  # whoever does something has the ledger
            yield ledger
    finally:
        ledger.dispose()


def _run(context: dg.InitResourceContext) -> dict[str, str | None]:
    """What the logs say of the run: its id, and the hour, or whatever its partition is."""
    tags = context.run.tags if context.run else {}
    partition = tags.get("dagster/partition") or tags.get("dagster/asset_partition_range_start", "")
    name = {len("2026-11-22-10:00"): "hour", len("2026-11-22"): "day"}.get(len(partition), "period")
    return {"run": context.run.run_id if context.run else None, name: partition or None}


def _openclaw(settings: Settings) -> OpenClaw:
    url, token = settings.need_openclaw()
    rating = load(settings.catalog_file).rating
    return OpenClaw(
        url, token, settings.openclaw_status_path, rating.timeout.total_seconds(), concurrency=rating.concurrency
    )


def _stripe(settings: Settings) -> StripeApi:
    live = load(settings.catalog_file).live
    return StripeApi(settings.need_stripe(live_allowed=live), settings.stripe_api_base)


def _clock(settings: Settings) -> Clock:
    return clock_of(settings.clock)


def resources(overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """All resources by name; ``overrides`` replaces some of them."""
    made: dict[str, Any] = {
        "settings": _made(lambda settings: settings, "What the environment says."),
        "catalog": _made(lambda settings: load(settings.catalog_file), "The billing catalogue, read afresh by a run."),
        "lake": _made(
            lambda settings: Lake(settings.lake_root, settings.memory_limit),
            "Usage events as Parquet files by event hour.",
        ),
        "ledger": dg.ResourceDefinition(_ledger, description="The PostgreSQL ledger."),
        "openclaw": _made(_openclaw, "OpenClaw's rating engine."),
        "stripe": _made(_stripe, "Stripe, or the stand-in."),
        "clock": _made(_clock, "What time it is."),
    }
    return made | dict(overrides or {})
