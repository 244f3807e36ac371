"""Every reader on broken bytes: no crash, and books that balance. What they make of good ones is tested elsewhere."""

from __future__ import annotations

import gzip
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clawbill_pipeline.catalog.sources import Http
from clawbill_pipeline.usage.clawrouter import EventBlock, RouterUsage, _Event
from clawbill_pipeline.usage.events import Judge
from clawbill_pipeline.usage.ingested import PostedRequests, RequestBlock
from clawbill_pipeline.usage.inputs import InputFault
from clawbill_pipeline.usage.reading import Batch, Reader, batches
from clawbill_pipeline.usage.sources import inputs
from clawbill_pipeline_tests.usage.conftest import NOW, catalogue, record
from clawbill_pipeline_tests.usage.test_access_log import SOURCE as ACCESS_LOG
from clawbill_pipeline_tests.usage.test_access_log import request
from clawbill_pipeline_tests.usage.test_landing import cloud_event
from clawbill_pipeline_tests.usage.test_mapped import PLAIN, row
from clawbill_pipeline_tests.usage.test_openclaw import database, message, put

FEW, MANY = 12, 2_000
judge = Judge(catalogue(), NOW)
relaxed = settings(deadline=None, suppress_health_check=list(HealthCheck))

# --- what is broken ------------------------------------------------------------------------------------------------


def lines(*records: Any) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in records)


def csv_file() -> bytes:
    rows = [f"e{n},acme,2026-11-22T10:15:00Z,api.calls,{n}.5" for n in range(9)]
    return "\n".join(["id,who,at,what,much", *rows, ""]).encode()


def parquet_file() -> bytes:
    rows = [row(f"e{n}", much=n, at=NOW - timedelta(minutes=n)) for n in range(9)]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=4)
    return sink.getvalue().to_pybytes()


def cell() -> bytes:
    """A database of transcripts, with an archive in it."""
    with tempfile.TemporaryDirectory() as name:
        with closing(database(Path(name))) as db:
            for number in range(6):
                put(db, "s", number, message(number), packed=number % 2 == 1)
            archive = zstandard.compress(transcript())
            db.execute("INSERT INTO session_transcript_archives VALUES ('old', 'zstd', ?, 'old.jsonl.zst')", (archive,))
        return (Path(name) / "agent" / "openclaw-agent.sqlite").read_bytes()


def transcript() -> bytes:
    return lines({"type": "session", "id": "s"}, *(message(number) for number in range(6)))


def table() -> bytes:
    with tempfile.TemporaryDirectory() as name:
        with closing(sqlite3.connect(Path(name) / "a.db", isolation_level=None)) as db:
            db.execute("CREATE TABLE spend (id INTEGER PRIMARY KEY, who TEXT, at TEXT, what TEXT, much TEXT)")
            of_rows = [(n, "acme", "2026-11-22T10:15:00Z", "api.calls", f"{n}.5") for n in range(40)]
            db.executemany("INSERT INTO spend VALUES (?, ?, ?, ?, ?)", of_rows)
        return (Path(name) / "a.db").read_bytes()


spend_log = {
    "request_id": "r", "team_id": "acme", "model": "gpt", "custom_llm_provider": "openai", "prompt_tokens": 3,
    "completion_tokens": 4, "startTime": "2026-11-22T10:15:00Z", "spend": 0.1,
}  # fmt: skip
agents = "cells/globex/agents/main"
fleet = {"name": "logs", "kind": "openclaw_fleet", "path": "cells"}
mapped = {"name": "logs", "kind": "files", "path": "logs", "pattern": "**/*", "mapping": PLAIN}
records = {"name": "logs", "kind": "json_lines", "path": "logs", "pattern": "**/*"}
cloudevents = records | {"kind": "cloudevents"}
litellm = {"name": "logs", "kind": "litellm", "path": "logs", "pattern": "**/*"}
spend = {
    "name": "logs",
    "kind": "sql_table",
    "url_env": "FUZZED_URL",
    "table": "spend",
    "order_by": "id",
    "mapping": PLAIN,
}
deleted = "s.jsonl.deleted.2026-11-22T10-00-00.000Z.zst"
usage = [record(f"e{number}") for number in range(8)]
posts = [cloud_event(f"e{number}") for number in range(8)]


@dataclass(frozen=True)
class Reading:
    """A reader: a source of the catalogue, the file that it reads, and that file when it is well."""

    source: dict[str, Any]
    file: str
    good: Callable[[], bytes]
    #: Every line that isn't blank must turn up in the books, whatever is in it.
    by_line: bool = field(default=False)


READERS = {
    "json lines": Reading(records, "logs/a.jsonl", lambda: lines(*usage), True),
    "json array": Reading(records, "logs/a.json", lambda: json.dumps(usage, indent=1).encode()),
    "gzip": Reading(records, "logs/a.jsonl.gz", lambda: gzip.compress(lines(*usage))),
    "zstd": Reading(records, "logs/a.jsonl.zst", lambda: zstandard.compress(lines(*usage))),
    "mapped json lines": Reading(mapped, "logs/a.jsonl", lambda: lines(*(row(f"e{n}") for n in range(8))), True),
    "csv": Reading(mapped, "logs/a.csv", csv_file, True),
    "parquet": Reading(mapped, "logs/a.parquet", parquet_file),
    "cloudevents": Reading(cloudevents, "logs/a.jsonl", lambda: lines(*posts), True),
    "cloudevents batch": Reading(cloudevents, "logs/a.json", lambda: json.dumps(posts).encode()),
    "access log": Reading(ACCESS_LOG, "logs/access.log", lambda: b"".join(request(n) for n in range(9)), True),
    "litellm": Reading(litellm, "logs/a.jsonl", lambda: lines(*[spend_log] * 6), True),
    "openclaw database": Reading(fleet, f"{agents}/agent/openclaw-agent.sqlite", cell),
    "transcript": Reading(fleet, f"{agents}/sessions/s.jsonl", transcript, True),
    "deleted transcript": Reading(fleet, f"{agents}/sessions/{deleted}", lambda: zstandard.compress(transcript())),
    "import archive": Reading(fleet, f"{agents}/session-sqlite-import-archive/s.jsonl", transcript, True),
    "sql table": Reading(spend, "a.db", table),
}


@cache
def good(name: str) -> bytes:
    return READERS[name].good()


places = st.floats(0, 1, exclude_max=True)
strange = st.binary(max_size=12) | st.sampled_from(
    [b"\n", b"\r", b"\0", b"\xff", b'"', b"{", b"}", b"[", b"\\u0000", b"1e999", b"NaN", b"-1", b"9" * 40, b"null",
     b",", b"\xef\xbb\xbf"]
)  # fmt: skip
mutations = st.lists(
    st.tuples(st.sampled_from(["put", "over", "cut", "twice", "end", "bit"]), places, st.integers(0, 200), strange),
    max_size=5,
)


def broken(data: bytes, mutated: list[tuple[str, float, int, bytes]]) -> bytes:
    for how, place, count, bytes_ in mutated:
        at = int(place * len(data))
        before, after = data[:at], data[at:]
        match how:
            case "put":
                data = before + bytes_ + after
            case "over":
                data = before + bytes_ + after[len(bytes_) :]
            case "cut":
                data = before + after[count:]
            case "twice":
                data = before + after[:count] + after
            case "end":
                data = before
            case "bit" if after:
                data = before + bytes([after[0] ^ (1 << count % 8)]) + after[1:]
    return data


# --- what must hold ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


def balanced(found: list[Batch]) -> int:
    """The lines that are accounted for: each an event line, set aside with its reason, or of a kind without usage."""
    for batch in found:
        assert batch.lines == batch.event_lines + len(batch.aside)
        assert batch.events == sum(part.num_rows for parts in batch.hours.values() for part in parts)
        assert all(entry.reason and entry.place and entry.detail for entry in batch.aside)
    return sum(batch.lines + batch.skipped for batch in found)


def check(name: str, data: bytes, pool: ThreadPoolExecutor, folder: Path) -> None:
    reading = READERS[name]
    file = folder / reading.file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    (source,) = catalogue(reading.source, folder=folder).sources
    ended = False
    accounted = 0
    for input in inputs(source, folder):
        try:
            accounted += balanced(list(batches(input, (), Reader("logs", input, judge), pool, True)))
        except (
            InputFault,
            OSError,
            sqlite3.Error,
        ):  # an input that can't be trusted, or not be read: nothing of it counts
            ended = True
    text = data.removeprefix(b"\xef\xbb\xbf")
    # A carriage return or an array makes several records of one line.
    if reading.by_line and not ended and not set(b"\r[") & set(text):
        assert accounted == sum(bool(line.strip()) for line in data.split(b"\n"))


@pytest.mark.parametrize("name", READERS)
@settings(relaxed, max_examples=FEW)
@given(mutated=mutations)
def test_broken_bytes_crash_no_reader_and_lose_no_line(name, pool, tmp_path_factory, mutated):
    run(name, pool, mutated)


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
@settings(relaxed, max_examples=MANY)
@given(mutated=mutations)
def test_broken_bytes_crash_no_reader_however_many(name, pool, mutated):
    run(name, pool, mutated)


def run(name: str, pool: ThreadPoolExecutor, mutated: list[tuple[str, float, int, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUZZED_URL", f"sqlite:///{folder}/a.db")
        check(name, broken(good(name), mutated), pool, Path(folder))


@pytest.mark.parametrize("name", READERS)
def test_good_bytes_give_events(name, pool, tmp_path, monkeypatch):
    """Else the fuzzing above would tire out nothing but the first check of a reader."""
    monkeypatch.setenv("FUZZED_URL", f"sqlite:///{tmp_path}/a.db")
    file = tmp_path / READERS[name].file
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(good(name))
    (source,) = catalogue(READERS[name].source, folder=tmp_path).sources
    found = [
        batch
        for input in inputs(source, tmp_path)
        for batch in batches(input, (), Reader("logs", input, judge), pool, True)
    ]
    assert sum(batch.events for batch in found) >= 2
    assert not [entry for batch in found for entry in batch.aside]


# What a cell of a table may hold that its column doesn't say: SQLite takes anything anywhere.
cells = (
    st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.binary(max_size=9) | st.text(max_size=9)
    | st.sampled_from(["acme", "api.calls", "2026-11-22T10:15:00Z", "1e5", "\0", "x" * 70_000])
)  # fmt: skip


@settings(relaxed, max_examples=FEW)
@given(rows=st.lists(st.tuples(cells, cells, cells, cells), max_size=8))
def test_rows_of_any_values_are_events_or_set_aside(pool, rows):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("FUZZED_URL", f"sqlite:///{folder}/a.db")
        with closing(sqlite3.connect(f"{folder}/a.db", isolation_level=None)) as db:
            db.execute("CREATE TABLE spend (id INTEGER PRIMARY KEY, who, at, what, much)")
            db.executemany("INSERT INTO spend (who, at, what, much) VALUES (?, ?, ?, ?)", rows)
        (source,) = catalogue(READERS["sql table"].source).sources
        (input,) = inputs(source, Path(folder))
        found = list(batches(input, (), Reader("logs", input, judge), pool, True))
        assert balanced(found) == len(rows)


bodies = st.builds(broken, st.just(json.dumps([cloud_event("x"), cloud_event("y")]).encode()), mutations)


@settings(relaxed, max_examples=FEW)
@given(posted=st.lists(bodies, min_size=1, max_size=3))
def test_posted_bodies_of_any_kind_are_events_or_set_aside(posted):
    source = Http(kind="http", name="logs")
    reader = Reader("logs", PostedRequests(source, None), judge)  # type: ignore[arg-type]
    batch = Batch()
    batch.add(reader.read(RequestBlock(list(enumerate(posted, 1)))))
    balanced([batch])
    assert batch.lines + batch.skipped >= sum(body.strip() not in (b"", b"[]") for body in posted)


gateway_event = {
    "id": "usage_1", "type": "clawrouter.usage.v1", "occurred_at_ms": 1_795_342_500_000, "tenant_id": "acme",
    "provider": "p", "model": "m", "input_tokens": 9, "output_tokens": 1, "actual_cost_micros": 5, "status": "success",
}  # fmt: skip
gateway_texts = st.builds(broken, st.just(json.dumps(gateway_event).encode()), mutations)


@settings(relaxed, max_examples=FEW)
@given(texts=st.lists(gateway_texts, min_size=1, max_size=3))
def test_a_gateways_events_of_any_kind_are_events_or_set_aside(texts):
    (source,) = catalogue({"name": "logs", "kind": "clawrouter", "url": "http://router"}).sources
    reader = Reader("logs", RouterUsage(source, {}), judge)
    batch = Batch()
    batch.add(reader.read(EventBlock([_Event(number, f"e{number}", text) for number, text in enumerate(texts)])))
    balanced([batch])
