"""`clawbill explain` on a lake that somebody laid hands on: it says so, and its exit code does."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from clawbill_pipeline.cli import cli
from clawbill_pipeline_tests.reconciliation.conftest import month  # noqa: F401 -- a fixture
from clawbill_pipeline_tests.reconciliation.month import CATALOG, Month


@pytest.fixture
def explained(
    month: Month,  # noqa: F811
    ledger_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], tuple[int, str]]:
    month.clean()
    (tmp_path / "catalog.yaml").write_text(CATALOG, encoding="utf-8")
    for name, value in {
        "CLAWBILL_STATE": str(tmp_path / "state"), "CLAWBILL_DATABASE_URL": ledger_url,
        "CLAWBILL_CATALOG": str(tmp_path / "catalog.yaml"), "CLAWBILL_LAKE": str(month.lake.root),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)

    def run() -> tuple[int, str]:
        result = CliRunner().invoke(cli, ["explain", "il_acme_tokens"])
        return result.exit_code, result.output

    return run


def altered(path: Path, column: str, was: object, now: object) -> None:
    """A lake file in which one value was replaced by another."""
    table = pq.read_table(path)
    at = table.schema.get_field_index(column)
    field = table.schema.field(at)
    plain = table[column].cast(field.type.value_type if pa.types.is_dictionary(field.type) else field.type)
    new = pc.if_else(pc.equal(plain, pa.scalar(was, plain.type)), pa.scalar(now, plain.type), plain)
    pq.write_table(table.set_column(at, field.with_type(plain.type), new), path)


def test_a_lake_as_it_was_is_explained(explained: Callable[[], tuple[int, str]]) -> None:
    code, said = explained()
    assert (code, "FAIL" in said) == (0, False), said
    assert "derived again   9.17 USD" in said
    assert "logs/usage-1.jsonl:4" in said


@pytest.mark.parametrize(
    ("column", "was", "now"),
    [
        ("quantity", Decimal(1015), Decimal("1014.999999999999")),
        ("tenant_id", "acme", "globex"),
        ("service", "tokens", "requests"),
        ("dimensions", "", "premium"),
        # Not so much as a place or a name, though it changes no quantity.
        ("event_id", "acme-tokens-0102", "acme-tokens-0199"),
        ("byte_offset", 700, 701),
    ],
)
def test_an_event_that_was_altered_is_told(
    explained: Callable[[], tuple[int, str]],
    month: Month,  # noqa: F811
    column: str,
    was: object,
    now: object,
) -> None:
    (path,) = Path(month.lake.root).rglob("hour=2026-10-01T02/*.parquet")
    altered(path, column, was, now)
    code, said = explained()
    assert code == 1
    assert (
        "FAIL  The events in the lake still come to what was metered, and every lake file is as it was written." in said
    )


def test_a_lake_file_that_was_removed_is_told(explained: Callable[[], tuple[int, str]], month: Month) -> None:  # noqa: F811
    (path,) = Path(month.lake.root).rglob("hour=2026-10-01T02/*.parquet")
    path.unlink()
    code, said = explained()
    assert (code, "FAIL" in said) == (1, True)
