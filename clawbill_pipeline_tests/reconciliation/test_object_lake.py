"""Reconciliation and explanation over a lake in object storage: what they say is what they say of one on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from clawbill_pipeline import lake, object_store
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.object_store import StoreError
from clawbill_pipeline.reconciliation.compare import Reconciled, reconcile
from clawbill_pipeline.reconciliation.lineage import explain
from clawbill_pipeline_tests.object_store import Bucket
from clawbill_pipeline_tests.reconciliation.month import NOW, PERIOD, Month


def moved(month: Month, bucket: Bucket) -> list[str]:
    """Moves the month's lake into the store; the names of its files there."""
    root = Path(month.lake.root)
    for path in root.rglob("*.parquet"):
        bucket.put(f"lake/{path.relative_to(root).as_posix()}", path.read_bytes())
    month.lake = Lake(f"{bucket.address}/lake")
    return bucket.names()


def compared(month: Month) -> Reconciled:
    return reconcile(month.ledger, month.catalog, month.lake, period=PERIOD, now=NOW, run_id="test")


def test_books_and_lineage_are_read_from_a_store(month: Month, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    month.clean()
    on_disk = explain(month.ledger, month.lake, month.catalog, "il_acme_tokens", limit=10)
    breaks = compared(month)
    moved(month, bucket)
    monkeypatch.setattr(lake, "PORTION", 1)
    assert explain(month.ledger, month.lake, month.catalog, "il_acme_tokens", limit=10) == on_disk
    assert compared(month).checks == breaks.checks


def test_a_file_that_went_is_told_and_a_store_that_is_away_is_no_break(
    month: Month, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    month.clean()
    names = moved(month, bucket)
    bucket.delete(next(name for name in names if "hour=2026-10-01T03" in name))
    assert compared(month).checks[1].numbers["damaged_lake_files"] == 1
    monkeypatch.setattr(object_store, "PATIENT", 0)
    month.lake = Lake(f"{bucket.address}/lake")
    monkeypatch.setattr(bucket.store, "refuse", lambda _: 503)
    with pytest.raises(StoreError, match="busy or away"):
        compared(month)
