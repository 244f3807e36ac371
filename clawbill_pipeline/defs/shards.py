"""Shards as Dagster sees them: a tag that says which part of its hours a run has, and the runs that an hour takes."""

from __future__ import annotations

from collections.abc import Iterator

import dagster as dg

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.ledger.sharding import Shard, shards

#: ``2/4`` is the second of four parts of all tenants; a run without it has all of them.
SHARD_TAG = "clawbill/shard"


def shard_of(context: dg.AssetExecutionContext) -> Shard | None:
    """The shard that a run has. Raises Failure, not to be tried again, for a tag that names none."""
    text = context.run.tags.get(SHARD_TAG)
    try:
        return Shard.parse(text) if text else None
    except ValueError as error:
        raise dg.Failure(f"the run's tag {SHARD_TAG}: {error}", allow_retries=False) from None


def runs_of_hour(catalog: Catalog, partition: str, run_key: str) -> Iterator[dg.RunRequest]:
    """What an hour takes: a run a shard, as many as the catalogue says."""
    for shard in shards(catalog.metering.shards):
        if shard is None:
            yield dg.RunRequest(run_key=run_key, partition_key=partition)
        else:
            key = f"{run_key}-{shard.number}-of-{shard.of}"
            yield dg.RunRequest(run_key=key, partition_key=partition, tags={SHARD_TAG: str(shard)})
