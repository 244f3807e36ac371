"""``clawbill demo --source``: real OpenClaw cells, JSON lines and CloudEvents, from the raw bytes to the invoice."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path

import pytest

from clawbill_pipeline_tests.scenarios.command import SHARED, clawbill, waterfall_of

CELLS = SHARED / "openclaw_fleet" / "cells"


@pytest.mark.skipif(not CELLS.is_dir(), reason=f"real OpenClaw cells are not there: {CELLS}")
def test_real_openclaw_cells_are_billed_to_the_token(tmp_path: Path) -> None:
    # A copy, to show that reading needs no more than the files; the originals may be read-only.
    source = shutil.copytree(CELLS, tmp_path / "cells")
    rows = waterfall_of(clawbill("demo", "--source", source, "--json", cwd=tmp_path).stdout)
    tokens: dict[str, Decimal] = defaultdict(Decimal)
    for (tenant, service), row in rows.items():
        if service.startswith("tokens."):
            tokens[tenant] += row["metered_quantity"]
        assert row["breaks"] == 0
        assert row["sent"] == row["held_by_stripe"]
        assert row["invoiced_amount"] == row["paid_amount"]
        assert row["invoiced_amount"] == row["rated_amount"].quantize(Decimal("0.01"), ROUND_HALF_UP)
    assert tokens == {"globex": 26_936, "initech": 6_424, "legacyco": 9_263}


def test_json_lines_over_a_month_boundary_are_billed_in_two_periods(tmp_path: Path) -> None:
    folder = tmp_path / "my logs"
    folder.mkdir()
    moments = ["2025-06-29T22:30:00Z", "2025-06-30T23:59:59.999Z", "2025-07-01T00:00:00Z", "2025-07-15T12:00:00+02:00"]
    lines = [
        json.dumps(
            {"event_id": f"e{n}", "tenant_id": "t-1", "service": "calls", "quantity": "1000.5", "timestamp": moment}
        )
        for n, moment in enumerate(moments)
    ]
    (folder / "a.jsonl").write_text("\n".join([*lines, lines[0]]))
    done = clawbill("demo", "--source", folder, "--json", cwd=tmp_path)
    rows = {row["period"]: row for row in json.loads(done.stdout)}
    assert {period: row["metered_quantity"] for period, row in rows.items()} == {"2025-06": "2001", "2025-07": "2001"}
    assert {row["invoiced_amount"] for row in rows.values()} == {"2"}  # 2001 × 0.001, rounded once
    assert {row["breaks"] for row in rows.values()} == {0}


def test_cloudevents_are_billed(tmp_path: Path) -> None:
    folder = tmp_path / "events"
    folder.mkdir()
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "/gateway",
        "type": "api.calls",
        "subject": "t-1",
        "time": "2025-06-10T08:00:00Z",
        "data": {"quantity": 5000},
    }
    (folder / "a.jsonl").write_text("".join(json.dumps(event | {"id": str(n)}) + "\n" for n in (1, 2, 2)))
    rows = waterfall_of(clawbill("demo", "--source", folder, "--json", cwd=tmp_path).stdout)
    assert rows["t-1", "api.calls"]["metered_quantity"] == 10_000
    assert rows["t-1", "api.calls"]["paid_amount"] == 10


def test_a_folder_without_usage_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(AssertionError, match="no usage in"):
        clawbill("demo", "--source", tmp_path, cwd=tmp_path)
