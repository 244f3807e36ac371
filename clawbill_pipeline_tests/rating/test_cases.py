"""Every case of the shared rating cases: prices and amounts from the field's own test suites, each with its source."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from clawbill_pipeline_tests.rating_cases import run_case

FILE = Path(__file__).parents[2].parent / "shared" / "data" / "rating_cases.json"
CASES: list[dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else []


@pytest.mark.skipif(not CASES, reason=f"{FILE} is not there")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']}-{case['model']}")
def test_case(case: dict[str, Any]) -> None:
    assert run_case(case) == Decimal(case["expected_amount"]), case["notes"]
