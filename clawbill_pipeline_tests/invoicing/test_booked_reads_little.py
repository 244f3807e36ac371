"""What a draft is compared with is found by the tenant: never by reading what everybody used in the month."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

from sqlalchemy import text

from clawbill_pipeline.catalog import parse
from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.invoicing.booked import _BOOKED
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline_tests.benchmarks.delivery import CATALOG, HOURS, NOW, T0, fill

TENANTS = 500


def scans(node: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Table and rows that each scan of a plan looked at, taken or not."""
    if table := node.get("Relation Name"):
        seen = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        yield table, round(seen * node["Actual Loops"])
    for below in node.get("Plans", ()):
        yield from scans(below)


def test_no_more_records_are_looked_at_than_the_tenant_has(ledger_url: str) -> None:
    ledger = Ledger(ledger_url)
    account: Any = SimpleNamespace(meter=lambda *_, **__: SimpleNamespace(id="mtr_1"))
    fill(ledger, account, TENANTS * HOURS, "hour_meter")
    assert plan(ledger, parse(CATALOG), hours=None, now=NOW, run_id="test").records == TENANTS * HOURS
    with ledger.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO metered_usage (hour, tenant_id, service, dimensions, window_start, revision, quantity,"
                " events, reason, metered_at, run_id) SELECT hour, tenant_id, service, dimensions, window_start,"
                " metered_revision, quantity, 1, 'first', rated_at, run_id FROM rated_usage"
            )
        )
    with ledger.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))
    end = T0 + timedelta(days=31)
    given = {
        "tenant": "000007", "tenants": ["000007"], "service": "tokens", "start": T0, "end": end, "first_hour": T0,
        "counted_from": T0, "last_hour": end - timedelta(hours=1),
    }  # fmt: skip
    with ledger.transaction() as connection:
        (found,) = connection.scalar(text(f"EXPLAIN (ANALYZE, FORMAT JSON) {_BOOKED}"), given)
        assert connection.execute(text(_BOOKED), given).one().pending == HOURS
    ledger.dispose()
    for name in ("usage_records", "metered_usage"):
        looked_at = [rows for table, rows in scans(found["Plan"]) if table.startswith(name)]
        assert looked_at
        assert max(looked_at) <= HOURS, json.dumps(found)
