"""An invoice line leads to its events and their lines; an event that was altered since is told."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from clawbill_pipeline.reconciliation.lineage import Lineage, UnknownLine, explain
from clawbill_pipeline_tests.reconciliation.month import FINAL, Month, hour


def run(month: Month, line: str = "il_acme_tokens", limit: int = 1000) -> Lineage:
    return explain(month.ledger, month.lake, month.catalog, line, limit=limit)


def checks(lineage: Lineage) -> dict[str, bool]:
    return {check.name: check.passed for check in lineage.checks}


def test_a_line_leads_to_its_events_with_file_and_offset(month: Month) -> None:
    month.clean()
    month.land([("acme-tokens-0101", "acme", "tokens", hour(1) + timedelta(minutes=5), 1008)])
    lineage = run(month)
    assert (lineage.line.invoice_id, lineage.line.amount, lineage.derived_amount) == (
        "in_acme", Decimal("9.17"), Decimal("9.17")
    )  # fmt: skip
    assert lineage.rated_amount == Decimal("9.1665")
    assert [window.counted_quantity for window in lineage.windows] == [1001 + 7 * n for n in range(6)]
    assert [(e.event_id, e.uri, e.line, e.byte_offset, e.counted) for e in lineage.events][:3] == [
        ("acme-tokens-0100", "usage-1.jsonl", 1, 100, True),
        ("acme-tokens-0101", "usage-1.jsonl", 4, 400, True),
        ("acme-tokens-0101", "usage-2.jsonl", 1, 100, False),
    ]
    assert (lineage.records[0].state, lineage.records[0].units) == ("delivered", Decimal(1_501_500))
    assert checks(lineage) == {"events_unaltered": True, "everything_rated": True, "amount_derived": True}


def test_no_more_events_than_asked_for(month: Month) -> None:
    month.clean()
    lineage = run(month, limit=2)
    assert (len(lineage.events), lineage.event_count) == (2, 6)
    assert checks(lineage)["events_unaltered"]


def test_an_altered_event_is_told(month: Month) -> None:
    month.clean()
    (path,) = month.lake.root.rglob("hour=2026-10-01T02/*.parquet")
    table = pq.read_table(path)
    more = pc.if_else(pc.equal(table["tenant_id"], "acme"), Decimal(1), table["quantity"])
    at = table.schema.get_field_index("quantity")
    pq.write_table(table.set_column(at, table.schema.field(at), more.cast(pa.decimal128(38, 12))), path)
    lineage = run(month)
    assert not checks(lineage)["events_unaltered"]
    assert lineage.checks[0].numbers["first"] == "2026-10-01 02:00: metered 1015, now 1"


def test_a_lost_lake_file_is_told(month: Month) -> None:
    month.clean()
    for path in month.lake.root.rglob("*.parquet"):
        path.unlink()
    lineage = run(month)
    assert (lineage.events, checks(lineage)["events_unaltered"]) == ((), False)


def test_what_came_too_late_is_not_in_the_line(month: Month) -> None:
    late = ("acme", "tokens", hour(5))
    month.land_usage()
    month.meter()
    month.rate()
    month.map()
    month.send(key for key in month.usage if key != late)
    month.send([late], settled_at=FINAL + timedelta(hours=1))
    quantity = month.usage.pop(late)
    month.bill()
    month.usage[late] = quantity
    lineage = run(month)
    assert lineage.derived_amount == lineage.line.amount == Decimal("7.61")
    assert lineage.rated_amount == Decimal("9.1665")


def test_an_amount_that_is_not_ours_is_told(month: Month) -> None:
    month.clean()
    month.run("UPDATE invoice_lines SET amount = 9.18 WHERE line_id = 'il_acme_tokens'")
    assert not checks(run(month))["amount_derived"]


def test_stripe_alone_prices_what_is_billed_by_quantity(month: Month) -> None:
    month.clean()
    lineage = run(month, "il_globex_requests")
    assert (lineage.derived_amount, checks(lineage)["amount_derived"]) == (None, True)


def test_lines_that_lead_nowhere_say_so(month: Month) -> None:
    month.clean()
    with pytest.raises(UnknownLine, match="no invoice line 'il_none'"):
        run(month, "il_none")
    month.run("UPDATE invoice_lines SET service = NULL WHERE line_id = 'il_acme_tokens'")
    with pytest.raises(UnknownLine, match="bills no tenant's service"):
        run(month)
