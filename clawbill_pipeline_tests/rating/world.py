"""A ledger with metered usage, and OpenClaw in the form of the real rating server or of a scripted one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from pydantic import SecretStr
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating.station import Rated, rate

START = datetime(2026, 11, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
NOW = datetime(2026, 11, 20, tzinfo=UTC)
TOKEN = "oc-secret-0451"

CATALOGUE = """
version: 1
start: 2026-01-01T00:00:00Z
rating: {attempts: 2}
services:
  calls: {unit: call}
  credits: {unit: credit, allow_negative: true}
  tokens: {unit: token, dimensions: [model]}
  storage: {unit: GB-hour, basis: period_to_date}
rate_cards:
  card:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: &prices
          calls: {model: per_unit, unit_amount: "0.0123"}
          credits: {model: per_unit, unit_amount: 1}
          tokens: {model: per_unit, unit_amount: 1, per: 1000000}
          tokens:large: {model: per_unit, unit_amount: 15, per: 1000000}
          storage:
            model: graduated
            tiers:
              - {up_to: 10, unit_amount: "1.5", flat_amount: 5}
              - {up_to: 100, unit_amount: "0.333333333333"}
              - {up_to: null, unit_amount: "0.1"}
  yen:
    currency: JPY
    versions: [{effective_from: 2026-01-01T00:00:00Z, prices: *prices}]
tenants:
  acme: {rate_card: card}
  globex: {rate_card: card}
  nippon: {rate_card: yen}
"""


@contextmanager
def real_openclaw(folder: Path, catalogue: str = CATALOGUE) -> Iterator[str]:
    """The URL of the rating server, in a process of its own."""
    catalog, port_file = folder / "catalog.yaml", folder / "port"
    catalog.write_text(catalogue)
    command = [sys.executable, "-m", "clawbill_pipeline.sandbox.openclaw", "--port", "0", "--port-file", str(port_file)]
    command += ["--state", str(folder / "state"), "--catalog", str(catalog), "--now", str(int(NOW.timestamp()))]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env={**os.environ, "OPENCLAW_TOKEN": TOKEN}, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while not port_file.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline, "the server did not come up in a minute"
            time.sleep(0.02)
        yield f"http://127.0.0.1:{int(port_file.read_text())}"
    finally:
        process.terminate()
        assert process.wait(30) == 0


@dataclass
class World:
    ledger: Ledger
    url: str
    catalog: Catalog = field(default_factory=lambda: parse(CATALOGUE))

    @property
    def openclaw(self) -> OpenClaw:
        return OpenClaw(self.url, SecretStr(TOKEN), timeout=5)

    def meter(
        self, hour: int, quantity: str | int, tenant: str = "acme", service: str = "calls", dimensions: str = ""
    ) -> None:
        """The next revision of a window."""
        at = START + hour * HOUR
        self.ledger.ensure_partitions([at])
        with self.ledger.transaction() as c:
            c.execute(
                text("""
                    INSERT INTO metered_usage
                    SELECT :hour, :tenant, :service, :dimensions, :hour, n + 1, :quantity, 1,
                           CASE n WHEN 0 THEN 'first' ELSE 'late' END, :now, 'r'
                    FROM (SELECT count(*) AS n FROM metered_usage WHERE hour = :hour AND tenant_id = :tenant
                          AND service = :service AND dimensions = :dimensions) held
                """),
                {"hour": at, "tenant": tenant, "service": service, "dimensions": dimensions,
                 "quantity": Decimal(quantity), "now": NOW},
            )  # fmt: skip

    def rate(self, first: int = 0, hours: int = 1, now: datetime = NOW, **more: Any) -> Rated:
        start = START + first * HOUR
        return rate(
            self.ledger, self.catalog, self.openclaw,
            start=start, end=start + hours * HOUR, now=now, run_id=more.pop("run_id", "run"), **more,
        )  # fmt: skip

    def rows(self, query: str) -> list[dict[str, Any]]:
        with self.ledger.transaction() as c:
            return [dict(row) for row in c.execute(text(query)).mappings()]

    def amounts(self, service: str = "calls", tenant: str = "acme") -> dict[int, Decimal]:
        """The newest amount by hour after START."""
        rows = self.rows("SELECT * FROM rated_usage ORDER BY revision")
        return {
            (r["hour"] - START) // HOUR: r["amount"]
            for r in rows
            if (r["service"], r["tenant_id"]) == (service, tenant)
        }

    def failures(self) -> list[tuple[str, str, int]]:
        """(tenant, kind, attempts)"""
        rows = self.rows("SELECT * FROM rating_failures ORDER BY hour, tenant_id")
        return [(row["tenant_id"], row["kind"], row["attempts"]) for row in rows]
