"""Dagster's storage in the ledger's database: its tables are made by whoever comes first, and looked for once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, event

from clawbill_pipeline.defs.storage import LedgerDatabaseStorage


@pytest.fixture
def statements() -> Iterator[list[str]]:
    """Everything that is asked of a database."""
    asked: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield asked
    event.remove(Engine, "before_cursor_execute", note)


def test_a_tick_does_not_look_for_the_tables_again(
    database_url: str, monkeypatch: pytest.MonkeyPatch, statements: list[str]
) -> None:
    monkeypatch.setenv("DAGSTER_POSTGRES_URL", database_url)
    assert LedgerDatabaseStorage().run_storage.get_runs_count() == 0
    assert any("CREATE TABLE" in statement for statement in statements)
    statements.clear()
    assert LedgerDatabaseStorage().run_storage.get_runs_count() == 0
    assert len(statements) == 1
