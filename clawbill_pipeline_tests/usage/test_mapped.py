"""Files that were not made for clawbill: CSV, JSON and Parquet through a mapping, every quantity exact or set aside."""

import json
import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from clawbill_pipeline.catalog import CatalogError
from clawbill_pipeline.usage import bulk, parquet
from clawbill_pipeline_tests.usage.conftest import catalogue, line, quantities

DATA = Path(__file__).parents[3] / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason=f"real data is not at {DATA}")

PLAIN = {
    "event_id": "id",
    "tenant_id": "who",
    "timestamp": "at",
    "usage": [{"service": "what", "quantity": "much", "skip_zero": False}],
}


def files(pattern="**/*", **more):
    return ({"name": "logs", "kind": "files", "path": "logs", "pattern": pattern, "mapping": PLAIN, **more},)


def row(event_id="e1", **changes):
    return {"id": event_id, "who": "acme", "at": "2026-11-22T10:15:00Z", "what": "api.calls", "much": "3", **changes}


def as_csv(*rows, delimiter=",", end="\n"):
    names = list(rows[0])
    return end.join([delimiter.join(names), *(delimiter.join(str(r[name]) for name in names) for r in rows)]) + end


def test_csv_with_exact_quantities_and_broken_rows(place):
    place.sources = files("**/*.csv")
    long = "123456789012345678.123456789012"
    text = as_csv(row("e1", much=long), row("e2", much="0.1"), row("e3", much="1e-13"), row("e4", much="NaN"))
    text += 'e5,acme,2026-11-22T10:15:00Z,"api.calls",0.30\n' + "short,row\n" + 'e6,"un' + "\n"
    (place.logs / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    landed = place.land()
    assert quantities(place.events()) == {"e1": Decimal(long), "e2": Decimal("0.1"), "e5": Decimal("0.3")}
    assert [row["reason"] for row in place.quarantine()] == ["too_many_digits", "not_finite", "not_csv", "not_csv"]
    assert (landed.lines, landed.skipped) == (7, 1)


def test_csv_grows_and_its_last_line_needs_no_line_feed_once_it_rests(place):
    place.sources = files("**/*.csv", delimiter=";")
    file = place.logs / "a.csv"
    text = as_csv(row("e1"), row("e2"), delimiter=";", end="\r\n")
    file.write_text(text[:-2])
    assert (place.land().events, place.land().waiting) == (1, 1)
    os.utime(file, (0, 0))
    assert place.land().events == 1
    with file.open("a") as log:
        log.write("\r\n" + as_csv(row("e3"), delimiter=";").partition("\n")[2])
    assert place.land().events == 1
    assert [event["line"] for event in place.events()] == [2, 3, 4]


def test_json_arrays_nested_fields_constants_scale_times_and_several_usages_a_record(place):
    place.sources = files(
        "**/*.json",
        mapping={
            "event_id": "meta.request",
            "tenant_id": {"constant": "acme"},
            "timestamp": {"field": "when", "format": "%d/%m/%Y %H:%M:%S", "time_zone": "America/New_York"},
            "dimensions": {"model": "model", "provider": {"constant": "azure"}},
            "usage": [
                {"service": {"constant": "tokens.input"}, "quantity": "tokens.in"},
                {"service": {"constant": "tokens.output"}, "quantity": {"field": "tokens.out", "scale": "1000"}},
            ],
        },
    )
    entry = {
        "meta": {"request": "r1"},
        "when": "22/11/2026 05:15:00",
        "model": "m/1",
        "tokens": {"in": 7, "out": 0.123},
    }
    other = {**entry, "meta": {"request": "r2"}, "tokens": {"in": 0, "out": "0.001"}}
    (place.logs / "a.json").write_text(json.dumps([entry, other], indent=1))
    place.land()
    assert [(e["event_id"], e["service"], e["dimensions"], e["quantity"]) for e in place.events()] == [
        ("r1#tokens.input", "tokens.input", "azure/m%2F1", 7),
        ("r1#tokens.output", "tokens.output", "azure/m%2F1", 123),
        ("r2#tokens.output", "tokens.output", "azure/m%2F1", 1),
    ]
    assert {event["event_time"] for event in place.events()} == {datetime(2026, 11, 22, 10, 15, tzinfo=UTC)}


def test_records_without_an_id_are_known_by_their_place(place):
    mapping = {name: value for name, value in PLAIN.items() if name != "event_id"}
    place.sources = files(mapping=mapping)
    (place.logs / "a.csv").write_text(as_csv(row(), row()))
    (place.logs / "b.jsonl").write_text(json.dumps(row()) + "\n" + json.dumps([row(), row()]) + "\n")
    place.land()
    assert [event["event_id"] for event in place.events()] == [
        "a.csv:2",
        "a.csv:3",
        "b.jsonl:1",
        "b.jsonl:2:1",
        "b.jsonl:2:2",
    ]


@real
def test_real_csv_of_llm_calls(place):
    place.sources = (
        {
            "name": "azure",
            "kind": "files",
            "path": str(DATA / "azure_llm_2023"),
            "pattern": "*.csv",
            "mapping": {
                "tenant_id": {"constant": "azure"},
                "timestamp": "TIMESTAMP",
                "dimensions": {"provider": {"constant": "azure"}, "model": {"constant": "gpt"}},
                "usage": [
                    {"service": {"constant": "tokens.input"}, "quantity": "ContextTokens"},
                    {"service": {"constant": "tokens.output"}, "quantity": "GeneratedTokens"},
                ],
            },
        },
    )
    landed = place.land(finished=True)  # their last lines have no line feed, and a fresh copy is not yet at rest
    # They are of 2023, and the catalogue starts later: all of them are set aside, with that reason, and none is lost.
    assert (landed.lines, landed.event_lines) == (28185, 0)
    assert {row["reason"] for row in place.rows("SELECT DISTINCT reason FROM quarantine")} == {"before_start"}


# --- Parquet -------------------------------------------------------------------------------------------------------


def write(path: Path, rows: list[dict], **types) -> None:
    columns = {name: pa.array([row[name] for row in rows], types.get(name)) for name in rows[0]}
    pq.write_table(pa.table(columns), path, row_group_size=3)


EXACT = {"much": pa.decimal128(38, 12), "at": pa.timestamp("ns", tz="UTC")}


def parquet_rows(count=10):
    at = datetime(2026, 11, 22, 10, 15, tzinfo=UTC)
    return [row(f"e{n}", much=Decimal(n) / 8, at=at + timedelta(minutes=10 * n)) for n in range(count)]


@pytest.mark.parametrize("fast", [True, False])
def test_parquet_fast_and_slow(place, monkeypatch, fast):
    monkeypatch.setattr(parquet, "_ROWS", 4)
    if not fast:
        monkeypatch.setattr(bulk.Bulk, "_given", lambda *_: None)
    place.sources = files("*.parquet")
    rows = [*parquet_rows(), row("bad", much=Decimal(-1), at=datetime(2026, 11, 22, tzinfo=UTC))]
    rows += [row("none", much=None, at=datetime(2026, 11, 22, tzinfo=UTC), who=None)]
    write(place.logs / "a.parquet", rows, **EXACT)
    landed = place.land()
    assert (landed.lines, landed.events, landed.quarantined) == (12, 10, 2)
    assert quantities(place.events()) == {f"e{n}": Decimal(n) / 8 for n in range(10)}
    assert [event["line"] for event in place.events()] == list(range(1, 11))
    assert [(row["place"], row["reason"]) for row in place.quarantine()] == [
        ("line 11, byte 0", "negative"),
        ("line 12, byte 0", "missing_field"),
    ]
    assert place.land().landings == 0
    write(place.logs / "a.parquet", rows[:5], **EXACT)
    assert place.land().problems[0].startswith("logs: a.parquet: changed_in_place")
    assert len(place.events()) == 10


@pytest.mark.parametrize("fast", [True, False])
def test_parquet_rows_of_nothing_are_passed_over(place, monkeypatch, fast):
    if not fast:
        monkeypatch.setattr(bulk.Bulk, "_given", lambda *_: None)
    else:
        monkeypatch.setattr(parquet.ParquetBlock, "part", lambda _, rows: (1 / 0 for _ in rows))
    usage = [{"service": "what", "quantity": "much"}]
    place.sources = files("*.parquet", mapping={**PLAIN, "usage": usage})
    at = datetime(2026, 11, 22, tzinfo=UTC)
    nothing = [row("none", much=None, at=at), row("zero", much=Decimal(0), at=None, who=None, what="no service")]
    write(place.logs / "a.parquet", [row("e", much=Decimal(2), at=at), *nothing], **EXACT)
    landed = place.land()
    assert (landed.lines, landed.event_lines, landed.events, landed.quarantined) == (3, 3, 1, 0)
    assert quantities(place.events()) == {"e": 2}


@pytest.mark.parametrize("fast", [True, False])
def test_parquet_with_constants_and_columns_that_are_dictionaries(place, monkeypatch, fast):
    if not fast:
        monkeypatch.setattr(bulk.Bulk, "_given", lambda *_: None)
    else:
        monkeypatch.setattr(parquet.ParquetBlock, "part", lambda _, rows: (1 / 0 for _ in rows))
    constant = {"model": {"constant": "m"}, "provider": {"constant": "p"}}
    usage = [{"service": {"constant": "tokens.input"}, "quantity": "much"}]
    place.sources = files("*.parquet", mapping={**PLAIN, "dimensions": constant, "usage": usage})
    write(place.logs / "a.parquet", parquet_rows(), **EXACT, who=pa.dictionary(pa.int8(), pa.string()))
    assert place.land().events == 9  # a quantity of zero is no usage
    told = {(event["tenant_id"], event["service"], event["dimensions"]) for event in place.events()}
    assert told == {("acme", "tokens.input", "p/m")}


def test_a_parquet_column_of_numbers_names_tenants_by_their_digits(place):
    place.sources = files("*.parquet")
    write(place.logs / "a.parquet", [{**each, "who": 5} for each in parquet_rows(2)], **EXACT)
    assert (place.land().events, {event["tenant_id"] for event in place.events()}) == (2, {"5"})


def test_parquet_doubles_are_taken_only_where_their_digits_are_sure(place):
    place.sources = files("*.parquet")
    at = datetime(2026, 11, 22, tzinfo=UTC)
    values = [0.1, 1e15, 123456.789, 0.1 + 0.2, 1 / 3, float("nan"), float("inf")]
    write(place.logs / "a.parquet", [row(f"e{n}", much=value, at=at) for n, value in enumerate(values)])
    place.land()
    assert quantities(place.events()) == {"e0": Decimal("0.1"), "e1": Decimal(10**15), "e2": Decimal("123456.789")}
    assert [row["reason"] for row in place.quarantine()] == ["not_a_number", "not_a_number", "not_finite", "not_finite"]


def test_parquet_of_other_types_and_a_damaged_file(place):
    place.sources = files("*.parquet")
    write(place.logs / "a.parquet", [row("e1", much=3, at="2026-11-22T10:15:00Z"), row("e2", much=4, at="x")])
    (place.logs / "b.parquet").write_bytes((place.logs / "a.parquet").read_bytes()[:-20])
    place.land()
    assert quantities(place.events()) == {"e1": 3}
    assert [row["reason"] for row in place.quarantine()] == ["time_unreadable", "corrupt_file"]


def test_parquet_text_that_is_no_utf8_is_set_aside_and_its_neighbours_are_not(place):
    place.sources = files("*.parquet")
    write(place.logs / "a.parquet", [row(f"é{n}", what=b"api.calls" if n else b"api\x80", much=n) for n in range(3)])
    text = (place.logs / "a.parquet").read_bytes()
    table = pq.read_table(pa.BufferReader(text))
    table = table.set_column(3, "what", table["what"].combine_chunks().view(pa.string()))
    pq.write_table(table, place.logs / "a.parquet", row_group_size=2)
    landed = place.land()
    assert (landed.lines, landed.events, landed.problems) == (3, 2, ())
    assert quantities(place.events()) == {"é1": 1, "é2": 2}
    (entry,) = place.quarantine()
    assert (entry["place"], entry["reason"], entry["field"]) == ("line 1, byte 0", "broken_utf8", "what")
    assert '"id": "' in entry["raw"]


def test_parquet_without_a_column_and_with_a_time_beyond_all_calendars(place):
    place.sources = files("*.parquet")
    pq.write_table(pa.table({"id": ["e1"], "who": ["acme"], "at": ["2026-11-22T10:15:00Z"], "much": ["3"]}),
                   place.logs / "a.parquet")  # fmt: skip
    at = pa.array([1_795_342_500_000_000, 2**62], pa.timestamp("us"))
    late = {"id": ["e2", "e3"], "who": ["acme"] * 2, "at": at, "what": ["api.calls"] * 2, "much": [1, 2]}
    pq.write_table(pa.table(late), place.logs / "b.parquet")
    landed = place.land()
    assert (landed.lines, landed.problems) == (3, ())
    assert quantities(place.events()) == {"e2": 1}
    assert [(row["uri"], row["place"], row["reason"], row["field"]) for row in place.quarantine()] == [
        ("a.parquet", "line 1, byte 0", "missing_field", "what"),
        ("b.parquet", "line 2, byte 0", "time_unreadable", "at"),
    ]


# --- mistakes in the mapping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({**PLAIN, "usage": []}, "at least 1 item"),
        ({**PLAIN, "tenant_id": {"field": "a", "constant": "b"}}, "either field or constant"),
        ({**PLAIN, "timestamp": {"field": "at", "time_zone": "Mars/Base"}}, "no IANA time zone"),
        ({**PLAIN, "tenant": "x"}, "is no key"),
    ],
)
def test_a_mapping_that_makes_no_sense_is_refused(mapping, said):
    with pytest.raises((CatalogError, ValidationError), match=said):
        catalogue(*files(mapping=mapping))


def test_plain_records_and_mapped_ones_may_share_a_catalogue(place):
    place.sources = (*files("*.csv"), {"name": "own", "kind": "json_lines", "path": "logs"})
    (place.logs / "a.csv").write_text(as_csv(row("e1")))
    (place.logs / "a.jsonl").write_bytes(line("e1"))
    place.land()
    assert [(event["source"], event["event_id"]) for event in place.events()] == [("logs", "e1"), ("own", "e1")]


@real
def test_litellm_spend_logs_and_payloads(place):
    payload = json.loads((DATA / "litellm" / "example_standard_logging_payload.json").read_text())
    payload |= {"startTime": 1795342500.28466, "end_user": "acme"}
    spend = {
        "request_id": "r1",
        "team_id": "globex",
        "startTime": "2026-11-22T10:15:00.123Z",
        "model": "gpt-4o",
        "custom_llm_provider": "openai",
        "prompt_tokens": 12,
        "completion_tokens": 0,
    }
    (place.logs / "payloads").mkdir()
    (place.logs / "payloads" / "a.json").write_text(json.dumps(payload, indent=2))
    (place.logs / "spend.jsonl").write_text(json.dumps(spend) + "\n" + json.dumps({**spend, "team_id": None}) + "\n")
    place.sources = (
        {"name": "payloads", "kind": "litellm", "path": "logs/payloads", "tenant": "end_user", "event_id": "id"},
        {"name": "spend", "kind": "litellm", "path": "logs", "pattern": "*.jsonl"},
    )
    place.land()
    assert [(e["tenant_id"], e["service"], e["dimensions"], e["quantity"]) for e in place.events()] == [
        ("acme", "tokens.input", "openai/gpt-4o", payload["prompt_tokens"]),
        ("acme", "tokens.output", "openai/gpt-4o", payload["completion_tokens"]),
        ("globex", "tokens.input", "openai/gpt-4o", 12),
    ]
    assert [(row["reason"], row["field"]) for row in place.quarantine()] == [("missing_field", "team_id")]
