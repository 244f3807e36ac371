"""How long each finance page takes: ``python -m clawbill_pipeline_tests.benchmarks.finance_pages``.

100,000 open breaks, 2,000 tenants, 30 reconciliations of 8,000 steps, 1.4 million rated hours; HTTP on loopback.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import httpx
from sqlalchemy import text

from clawbill_pipeline.ledger import Ledger, embedded, migrate
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.app import create_app
from clawbill_pipeline_tests.benchmarks.common import median, table, timed
from clawbill_pipeline_tests.conftest import remove_server
from clawbill_pipeline_tests.reconciliation.month import CATALOG, NOW, PERIOD, START, Month
from clawbill_pipeline_tests.web.serving import served


@dataclass(frozen=True)
class Size:
    """How much there is to show."""

    tenants: int
    breaks: int
    rounds: int


FULL, SMALL = Size(2_000, 100_000, 5), Size(20, 1_000, 1)


def pages(size: Size) -> list[str]:
    of_period = [
        "", "?tenant=t19", "/breaks", f"/breaks?page={size.breaks // 50}", "/breaks?words=99",
        "/breaks?cause=counted_twice&order=tenant&page=7", "/breaks?tenant=t7", "/tenant?id=t7", "/changes",
    ]  # fmt: skip
    return [*(f"/periods/{PERIOD}{path}" for path in of_period), "/approvals", "/activity"]


_BREAKS = """
INSERT INTO breaks (period, tenant_id, service, hour, step, cause, currency, quantity, amount, detail, first_seen,
  last_seen)
SELECT :period, 't' || n % :tenants, CASE WHEN n % 2 = 0 THEN 'tokens' ELSE 'requests' END,
  CAST(:start AS timestamptz) + (n / :tenants * 14) * interval '1 hour', 'sent_held',
  CASE WHEN n % 3 = 0 THEN 'lost_after_acknowledgement' ELSE 'counted_twice' END, 'USD', 1, (n % 977)::numeric / 7,
  'sent ' || n || ', held 0', :now, :now FROM generate_series(1, :breaks) n"""
_RATED = """
INSERT INTO rated_usage (hour, tenant_id, service, dimensions, window_start, revision, metered_revision, basis, reason,
  quantity, amount, currency, asked_quantity, answered_amount, period_start, answer, rate_card_version, latency_ms,
  rated_at, run_id)
SELECT at, 't' || t, 'tokens', '', at, 1, 1, 'hourly', 'first', 1, 0.5, 'USD', 1, 0.5, :start, '{}', 'v1', 1, at, 'r'
FROM generate_series(CAST(:start AS timestamptz), CAST(:start AS timestamptz) + interval '719 hours',
  interval '1 hour') at, generate_series(0, :tenants - 1) t"""
_RECONCILED = """
INSERT INTO reconciliations (period, sha256, waterfall, open_breaks, as_of, run_id)
SELECT :period, 'h' || d, CAST(:steps AS jsonb), :breaks, CAST(:now AS timestamptz) - (29 - d) * interval '1 day', 'r'
FROM generate_series(0, 29) d"""


def main(size: Size = FULL) -> None:
    folder = Path(tempfile.mkdtemp(prefix="clawbill-pages-"))
    server = embedded.start(folder / "postgres", durable=False)
    try:
        migrate(server.url())
        print(measure(server.url(), folder, size))  # noqa: T201
    finally:
        remove_server(folder / "postgres")
        shutil.rmtree(folder, ignore_errors=True)


def measure(url: str, folder: Path, size: Size) -> str:
    """A table of the pages: milliseconds of the first time, when caches are cold, and of later ones."""
    tenants = "".join(f"  t{number}: {{rate_card: usd}}\n" for number in range(size.tenants))
    catalog = CATALOG.split("tenants:")[0] + "tenants:\n" + tenants
    (folder / "catalog.yaml").write_text(catalog, encoding="utf-8")
    (folder / "clock").write_text((NOW + timedelta(hours=1)).isoformat(), encoding="ascii")
    month = Month.at(url, folder, catalog)
    seed(month, size)
    settings = Settings.from_env(
        {
            "CLAWBILL_STATE": str(folder / "state"),
            "CLAWBILL_DATABASE_URL": url,
            "CLAWBILL_CATALOG": str(folder / "catalog.yaml"),
            "CLAWBILL_CLOCK": str(folder / "clock"),
        }
    )
    app = create_app(settings, Ledger(url), live=False)
    with served(app) as address, httpx.Client(base_url=address, trust_env=False, timeout=120) as client:
        rows = []
        for path in pages(size):
            first = timed(lambda path=path: client.get(path).raise_for_status())
            again = [timed(lambda path=path: client.get(path)) for _ in range(size.rounds)]
            rows.append((path, f"{first.wall * 1000:,.0f}", f"{median(again).wall * 1000:,.0f}"))
    month.ledger.dispose()
    return f"{size.breaks:,} breaks\n{table(('page', 'first, ms', 'then, ms'), rows)}"


def seed(month: Month, size: Size) -> None:
    numbers = {
        "metered_quantity": "1000", "rated_amount": "12.3456", "sent": "12.3456", "held_by_stripe": "12",
        "invoiced_amount": "12.35", "paid_amount": "12.35", "rounding": "0.0044", "breaks": 13, "waiting": 0,
    }  # fmt: skip
    steps = [
        {"tenant_id": f"t{number}", "service": service, "currency": "USD", "bill_by": "amount", **numbers}
        for number in range(size.tenants)
        for service in ("images", "minutes", "requests", "tokens")
    ]
    month.run(_BREAKS, period=PERIOD, start=START, now=NOW, tenants=size.tenants, breaks=size.breaks)
    month.run(_RECONCILED, period=PERIOD, steps=json.dumps(steps), now=NOW, breaks=size.breaks)
    month.run(_RATED, start=START, tenants=size.tenants)
    with month.ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))


if __name__ == "__main__":
    main()
