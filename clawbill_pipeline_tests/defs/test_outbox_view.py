"""The outbox in Dagster: how many records are in each state, with the reasons for which they wait."""

from __future__ import annotations

import dagster as dg
import pytest

from clawbill_pipeline.defs.assets.stripe_usage_records import stripe_usage_records
from clawbill_pipeline.defs.partitions import hours_before
from clawbill_pipeline.delivery.operations import Which, park
from clawbill_pipeline_tests.delivery.conftest import ledger, sandbox, world  # noqa: F401 -- fixtures
from clawbill_pipeline_tests.delivery.world import HOUR, T0, World


@pytest.mark.filterwarnings("ignore")  # Dagster's own, of what it does itself
def test_a_materialization_counts_records_by_state(world: World) -> None:  # noqa: F811
    world.provision()
    for hour in (T0, T0 + HOUR):
        for tenant in ("acme", "globex"):
            world.rate(tenant, "tokens", hour, "1")
    world.plan()
    park(world.ledger, Which(tenant_id="globex"), reason="disputed", now=world.now(), by="ann")
    resources = {"catalog": world.catalog, "ledger": world.ledger, "stripe": world.api, "clock": world.now}
    with dg.DagsterInstance.ephemeral() as instance:
        done = dg.materialize(
            [stripe_usage_records], resources=resources, partition_key=hours_before(T0), instance=instance
        )
    (made,) = done.get_asset_materialization_events()
    table = made.step_materialization_data.materialization.metadata["outbox"]
    assert isinstance(table, dg.TableMetadataValue)
    shown = [
        {name: record.data[name] for name in ("state", "parked", "records", "tenants")} for record in table.records
    ]
    # All that is open, and of what is delivered this hour's.
    assert shown == [
        {"state": "delivered", "parked": "", "records": 1, "tenants": 1},
        {"state": "planned", "parked": "disputed", "records": 2, "tenants": 1},
    ]
