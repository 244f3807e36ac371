"""A small catalogue, a lake and a ledger to land into. Nothing about a single reader."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, parse
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.usage import Landed, land

NOW = datetime(2026, 11, 23, tzinfo=UTC)

_CATALOGUE = """
version: 1
start: 2026-11-01T00:00:00Z
sources: {sources}
services:
  api.calls: {{unit: call}}
  credits: {{unit: credit, allow_negative: true}}
  tokens.input: {{unit: token, dimensions: [provider, model]}}
  tokens.output: {{unit: token, dimensions: [provider, model]}}
  tokens.cache_read: {{unit: token, dimensions: [provider, model]}}
  tokens.cache_write: {{unit: token, dimensions: [provider, model]}}
  messages: {{unit: message}}
  users: {{unit: user, aggregation: unique_count, unique_by: user}}
rate_cards:
  card:
    currency: USD
    versions:
      - effective_from: 2026-01-01T00:00:00Z
        prices: {prices}
"""
_SERVICES = (
    "api.calls", "credits", "tokens.input", "tokens.output", "tokens.cache_read", "tokens.cache_write", "messages",
    "users",
)  # fmt: skip


def catalogue_text(*sources: dict[str, Any]) -> str:
    """A catalogue of these sources as a file has it."""
    prices = {service: {"model": "per_unit", "unit_amount": "1"} for service in _SERVICES}
    return _CATALOGUE.format(sources=json.dumps(sources), prices=json.dumps(prices))


def catalogue(*sources: dict[str, Any], folder: Path = Path()) -> Catalog:
    """A catalogue of these sources; relative paths start at ``folder``."""
    return parse(catalogue_text(*sources)).at(folder)


@dataclass
class Place:
    """A folder of sources, and where they land."""

    folder: Path
    lake: Lake
    ledger: Ledger
    sources: tuple[dict[str, Any], ...] = ({"name": "logs", "kind": "json_lines", "path": "logs"},)

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def land(self, *, now: datetime = NOW, finished: bool = False, run_id: str = "run") -> Landed:
        catalog = catalogue(*self.sources, folder=self.folder)
        landed = land(catalog, self.lake, self.ledger, now=now, run_id=run_id, finished=finished)
        assert check(landed, "books_balance").passed
        return landed

    def rows(self, query: str) -> list[dict[str, Any]]:
        with self.ledger.transaction() as connection:
            return [dict(row) for row in connection.execute(text(query)).mappings()]

    def events(self) -> list[dict[str, Any]]:
        """What counts in the lake: rows of files that the ledger names, in the order in which they landed."""
        events: list[dict[str, Any]] = []
        for row in self.rows("SELECT landing_id, hour, events, file FROM landed_hours ORDER BY landing_id, hour"):
            found = pq.ParquetFile(self.lake.path(row["file"])).read().to_pylist()
            assert len(found) == row["events"]
            for event in found:
                assert event["landing_id"] == row["landing_id"]
                assert event["event_time"].replace(minute=0, second=0, microsecond=0) == row["hour"]
            events += found
        return sorted(events, key=lambda event: (event["landing_id"], event["line"]))

    def quarantine(self) -> list[dict[str, Any]]:
        return self.rows("SELECT * FROM quarantine ORDER BY id")


def check(landed: Landed, name: str) -> Any:
    return next(check for check in landed.checks if check.name == name)


def record(event_id: str = "e1", **changes: Any) -> dict[str, Any]:
    """A good record, changed; a change to ``...`` leaves the field out."""
    good = {
        "event_id": event_id,
        "tenant_id": "acme",
        "service": "api.calls",
        "quantity": 3,
        "timestamp": "2026-11-22T10:15:00Z",
    }
    return {name: value for name, value in {**good, **changes}.items() if value is not ...}


def line(event_id: str = "e1", **changes: Any) -> bytes:
    return json.dumps(record(event_id, **changes)).encode() + b"\n"


def quantities(events: list[dict[str, Any]]) -> dict[str, Decimal]:
    return {event["event_id"]: event["quantity"] for event in events}


@pytest.fixture
def place(tmp_path: Path, ledger_url: str) -> Iterator[Place]:
    (tmp_path / "logs").mkdir()
    ledger = Ledger(ledger_url)
    yield Place(tmp_path, Lake(tmp_path / "lake"), ledger)
    ledger.dispose()
