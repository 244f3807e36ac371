"""A reconciled month with a bit of everything in it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline_tests.reconciliation.month import END, FINAL, NOW, PERIOD, Month, hour, small


@pytest.fixture
def month(ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    """Breaks in two currencies, a late revision, lines in quarantine and a tenant whose name is a formula."""
    month = small(Month.at(ledger_url, tmp_path))
    month.used("=cmd|' /C calc'!A0", "tokens", hour(1), 12)
    for day in range(31):
        month.used("globex", "tokens", hour(24 * day + 13), 100_000 + 13_000 * (day % 7))
    late = ("acme", "tokens", hour(5))
    month.land_usage()
    month.meter()
    month.rate()
    month.map()
    month.send(key for key in month.usage if key != late)
    month.send([late], settled_at=FINAL + timedelta(hours=2))
    month.hold()
    quantity = month.usage.pop(late)
    month.bill()
    month.usage[late] = quantity
    month.usage["globex", "tokens", hour(13)] = Decimal(100_500)
    month.land([("late", "globex", "tokens", hour(13), 500)], landed_at=END)
    month.meter(revision=2, keys=[("globex", "tokens", hour(13))])
    month.rate([("globex", "tokens", hour(13))], revision=2, at=END + timedelta(minutes=3))
    month.held("osaka", "tokens", month.totals()["osaka", "tokens"] - 66_600_000)
    month.hold_hours("osaka", "tokens", h2=0)
    month.run("UPDATE invoice_lines SET quantity = quantity - 66600000, amount = 333 WHERE tenant_id = 'osaka'")
    month.run("UPDATE invoices SET status = 'open', paid_at = NULL, amount_paid = 0 WHERE tenant_id = 'osaka'")
    month.run(
        "INSERT INTO quarantine (source, uri, place, reason, field, detail, raw, tenant_id, quarantined_at) VALUES"
        " ('logs', '-usage.jsonl', 'line 3, byte 70', 'not_a_number', 'quantity', 'mend it', '{}', 'acme', :at),"
        " ('logs', '<b>x</b>.jsonl', 'line 1, byte 0', 'not_json', '', 'mend the line', '{', NULL, :at)",
        at=END - timedelta(days=1),
    )
    reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=NOW, run_id="test")
    yield month
    month.ledger.dispose()
