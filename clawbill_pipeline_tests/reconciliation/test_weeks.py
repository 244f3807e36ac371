"""A tenant that is billed by the week: each week is a period of its own, and no month's."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pytest

from clawbill_pipeline.ledger.periods import periods_with_usage
from clawbill_pipeline.reconciliation.compare import reconcile
from clawbill_pipeline_tests.reconciliation.month import CATALOG, NOW, Month, hour


@pytest.fixture
def month(ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    month = Month.at(ledger_url, tmp_path, CATALOG.replace("acme: {", "acme: {interval: week, "))
    yield month
    month.ledger.dispose()


def test_every_week_is_reconciled_by_itself(month: Month) -> None:
    monday, next_monday = hour(4 * 24), hour(11 * 24)
    weeks = {"2026-10-05": [monday, hour(5 * 24)], "2026-10-12": [next_monday]}
    for at in [at for hours in weeks.values() for at in hours]:
        month.used("acme", "tokens", at, 1000)
    month.used("globex", "tokens", monday, 10)
    month.land_usage()
    month.meter()
    month.rate()
    month.map()
    month.send()

    def lost(period: str) -> set[tuple[str, str, Decimal]]:
        found = reconcile(month.ledger, month.catalog, month.lake, period=period, now=NOW, run_id="test")
        return {(b.tenant_id, b.cause, b.amount) for b in found.breaks}

    for week, hours in weeks.items():
        assert lost(week) == {("acme", "not_invoiced", Decimal("-1.5") * len(hours))}
    assert lost("2026-10") == {("globex", "not_invoiced", Decimal("-0.015"))}
    assert lost("2026-10-06") == set()
    with month.ledger.transaction() as connection:
        assert periods_with_usage(connection, month.catalog) == ["2026-10", *weeks]
    assert datetime.fromisoformat("2026-10-05T00:00:00Z") == monday
