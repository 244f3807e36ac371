"""What needs no look since it is what it was: the ledger's word counts, and it is asked for what is new alone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text

from clawbill_pipeline.usage import stored
from clawbill_pipeline.usage.text import Text
from clawbill_pipeline_tests.usage.conftest import Place, line
from clawbill_pipeline_tests.usage.test_sql import SOURCE


@pytest.fixture(autouse=True)
def no_tick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that were just written have a stamp as well."""
    monkeypatch.setattr(stored, "_TICK", 0)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were read."""
    found: list[str] = []
    blocks = Text.blocks

    def noted(self: Text, *given: Any, **more: Any) -> Any:
        found.append(self.uri)
        return blocks(self, *given, **more)

    monkeypatch.setattr(Text, "blocks", noted)
    return found


@contextmanager
def rows_of_landings(place: Place) -> Iterator[list[int]]:
    """How many rows each statement that asks for landings brings."""
    found: list[int] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if "FROM landings" in statement and statement.lstrip().startswith("SELECT"):
            found.append(cursor.rowcount)

    event.listen(place.ledger.engine, "after_cursor_execute", note)
    yield found
    event.remove(place.ledger.engine, "after_cursor_execute", note)


def cache(place: Place) -> dict[str, Any]:
    return dict(json.loads(place.lake.path("sources/logs.json").read_text()))


def landed(place: Place, uri: str, position: str = "byte 9") -> None:
    """Another worker lands something of a file."""
    with place.ledger.transaction() as connection:
        connection.execute(
            text("INSERT INTO landings (source, uri, position, size, sha256, lines, event_lines, events, quarantined,"
                 " skipped, landed_at, run_id) VALUES ('logs', :uri, :position, 9, 'x', 0, 0, 0, 0, 0, now(), 'o')"),
            {"uri": uri, "position": position},
        )  # fmt: skip


@pytest.mark.parametrize("gone", [True, False])
def test_what_is_asked_for_does_not_grow_with_the_files_of_the_past(
    place: Place, opened: list[str], gone: bool
) -> None:
    asked: list[list[int]] = []
    for hour in range(12):
        (place.logs / f"{hour:02d}.jsonl").write_bytes(line(f"e{hour}"))
        if gone and hour:
            (place.logs / f"{hour - 1:02d}.jsonl").unlink()
        with rows_of_landings(place) as rows:
            assert place.land().landings == 1
        asked.append(rows)
    assert opened == [f"{hour:02d}.jsonl" for hour in range(12)]
    assert asked[3:] == [asked[2]] * 9
    assert sum(asked[2]) <= 4


def test_a_table_is_continued_from_its_newest_landing_however_many_there_are(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{place.folder}/spend.db"
    monkeypatch.setenv("SPEND_URL", url)
    place.sources = (SOURCE,)
    engine = create_engine(url)
    asked = []
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE spend_logs (id INTEGER PRIMARY KEY, team TEXT, at TEXT, calls TEXT)"))
    for number in range(1, 8):
        with engine.begin() as connection:
            row = f"({number}, 'acme', '2026-11-22 10:15:00', '1')"
            connection.execute(text(f"INSERT INTO spend_logs VALUES {row}"))
        with rows_of_landings(place) as rows:
            assert place.land().events
        asked.append(sum(rows))
    engine.dispose()
    assert asked[1:] == [asked[1]] * 6


def test_a_landing_of_another_worker_counts_for_ever(place: Place, opened: list[str]) -> None:
    for name in "ab":
        (place.logs / f"{name}.jsonl").write_bytes(line(name))
    place.land()
    landed(place, "a.jsonl", "replay of 1")
    place.land()
    assert opened == ["a.jsonl", "b.jsonl"]
    landed(place, "a.jsonl")
    (place.logs / "a.jsonl").rename(place.folder / "a.jsonl")
    place.land()
    (place.folder / "a.jsonl").rename(place.logs / "a.jsonl")
    place.land()
    place.land()
    assert opened[2:] == ["a.jsonl", "a.jsonl"]


@pytest.mark.parametrize("change", [{"run_id": "r2"}, {"sha256": "00"}, {"id": 10**6}])
def test_a_cache_of_another_ledger_is_compared_in_full(place: Place, opened: list[str], change: dict[str, Any]) -> None:
    for name in "ab":
        (place.logs / f"{name}.jsonl").write_bytes(line(name))
        place.land()
    place.land()
    found = cache(place)
    assert found["through"]["id"] == found["stamps"]["b.jsonl"][0]
    found["through"] |= change
    found["stamps"]["a.jsonl"][0] = found["through"]["id"]
    place.lake.path("sources/logs.json").write_text(json.dumps(found))
    place.land()
    assert opened == ["a.jsonl", "b.jsonl", "a.jsonl"]


def test_an_empty_ledger_knows_nothing(place: Place, opened: list[str]) -> None:
    (place.logs / "a.jsonl").write_bytes(line("a"))
    stamp = Text(stored.DiskFile(place.logs / "a.jsonl", "a.jsonl"), None).stamp()  # type: ignore[arg-type]
    through = {"id": 7, "run_id": "r", "sha256": "00"}
    found = {"through": through, "stamps": {"a.jsonl": [7, *(stamp or ())]}}
    place.lake.path("sources/logs.json").write_text(json.dumps(found))
    assert place.land().events == 1
    assert opened == ["a.jsonl"]


def test_stamps_of_earlier_versions_are_taken_over(place: Place, opened: list[str]) -> None:
    for name in "ab":
        (place.logs / f"{name}.jsonl").write_bytes(line(name))
    place.land()
    stamps = cache(place)["stamps"]
    stamps["b.jsonl"][0] += 1
    place.lake.path("sources/logs.json").write_text(json.dumps(stamps))
    place.land()
    place.land()
    assert opened == ["a.jsonl", "b.jsonl", "b.jsonl"]
    assert cache(place)["through"]["id"] == cache(place)["stamps"]["b.jsonl"][0]
