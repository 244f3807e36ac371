"""A small billed month for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clawbill_pipeline_tests.reconciliation.month import Month, small


@pytest.fixture
def month(ledger_url: str, tmp_path: Path) -> Iterator[Month]:
    month = small(Month.at(ledger_url, tmp_path))
    yield month
    month.ledger.dispose()
