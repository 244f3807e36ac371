"""Whatever may be wrong with a line: it is found again by file, place and reason, with its text, secrets masked.

One case an item of the list that usage is validated by; the rules alone are in ``test_events``.
"""

import gzip
import json

import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, text

from clawbill_pipeline.cli import cli
from clawbill_pipeline.usage import text as text_module
from clawbill_pipeline_tests.usage.conftest import catalogue_text, check, line, record
from clawbill_pipeline_tests.usage.test_mapped import PLAIN, row, write
from clawbill_pipeline_tests.usage.test_openclaw import agent, database, message, put

SECRET = "sk_live_51AbCdEf"
GOOD = line("before")


def told(**changes):
    """A record with a secret in it."""
    return line("bad", note=f"key {SECRET}", **changes)


def number(written: str) -> bytes:
    return told().replace(b'"quantity": 3', b'"quantity": ' + written.encode())


BROKEN = {
    "missing field": (told(tenant_id=...), "missing_field", "tenant_id"),
    "unknown field": (told(quantiy=3), "unknown_field", "note"),
    "unknown service": (told(service="api.cals"), "unknown_service", "service"),
    "not a number": (told(quantity="many"), "not_a_number", "quantity"),
    "NaN": (number("NaN"), "not_finite", "quantity"),
    "infinity": (number("-Infinity"), "not_finite", "quantity"),
    "negative": (number("-1"), "negative", "quantity"),
    "too many digits": (number("0.1234567890123"), "too_many_digits", "quantity"),
    "too many digits before the point": (number("1" + "0" * 30), "too_many_digits", "quantity"),
    "too large for an hour": (number("1000000000000000000"), "too_large", "quantity"),
    "in the future": (told(timestamp="2026-11-24T00:00:00Z"), "in_the_future", "timestamp"),
    "before the start": (told(timestamp="2026-10-31T23:59:59Z"), "before_start", "timestamp"),
    "no time": (told(timestamp="24 Nov 2026"), "time_unreadable", "timestamp"),
    "broken UTF-8": (told().replace(b"key", b"k\xe9y"), "broken_utf8", "line"),
    "NUL bytes": (told().replace(b"key", b"k\0\0y"), "nul_byte", "line"),
    "a member twice": (told()[:-2] + b', "quantity": 4}\n', "ambiguous", "quantity"),
    "no JSON": (told()[:-3] + b"\n", "not_json", "line"),
}


def entry(place):
    (found,) = place.quarantine()
    return found


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("around", [1, 40], ids=["a few lines", "many lines"])
def test_a_broken_line_is_found_again_by_its_place_and_reason(place, case, around):
    raw, reason, field = BROKEN[case]
    if reason == "unknown_field":
        place.sources = ({**place.sources[0], "unknown_fields": "quarantine"},)
    before = b"".join(line(f"before{n}") for n in range(around))
    (place.logs / "day").mkdir()
    (place.logs / "day" / "a.jsonl").write_bytes(before + raw + line("after"))
    landed = place.land()
    assert (landed.lines, landed.events, landed.quarantined) == (around + 2, around + 1, 1)
    found = entry(place)
    assert (found["source"], found["uri"]) == ("logs", "day/a.jsonl")
    assert found["place"] == f"line {around + 1}, byte {len(before)}"
    assert (found["reason"], found["field"]) == (reason, field)
    assert SECRET not in str(found)
    assert found["raw"].startswith('{"event_id": "bad"')
    assert '"note": "k' in found["raw"]
    assert "***" in found["raw"]
    assert not check(landed, "no_quarantine").passed


def test_unknown_fields_are_ignored_unless_the_source_says_otherwise(place):
    (place.logs / "a.jsonl").write_bytes(line("e1", note="x") + line("e2", dimensions={"model": "m"}))
    assert place.land().events == 2
    place.sources = ({"name": "closed", "kind": "json_lines", "path": "logs", "unknown_fields": "quarantine"},)
    landed = place.land()
    assert (landed.events, entry(place)["field"]) == (1, "note")


def test_a_line_of_100_mb_is_passed_over_in_little_memory(place, monkeypatch):
    import tracemalloc

    head = b'{"event_id": "bad", "note": "' + SECRET.encode() + b" "
    with (place.logs / "a.jsonl").open("wb") as file:
        file.write(GOOD + head)
        for _ in range(100):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n' + line("after"))
    # Arrow's own memory is not seen here; what would hold the line is Python's.
    monkeypatch.setattr(text_module, "PIECE", 4 * 1024 * 1024)
    monkeypatch.setattr(text_module, "LONGEST_LINE", 4 * 1024 * 1024)
    tracemalloc.start()
    try:
        landed = place.land()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (landed.lines, landed.events) == (3, 2)
    found = entry(place)
    assert (found["place"], found["reason"]) == (f"line 2, byte {len(GOOD)}", "line_too_long")
    assert len(found["raw"]) == 2000
    assert SECRET not in found["raw"]
    assert peak < 100_000_000
    assert [event["line"] for event in place.events()] == [1, 3]


def test_a_truncated_gzip_is_set_aside_whole_and_read_once_it_is_there(place):
    packed = gzip.compress(b"".join(line(f"e{n}") for n in range(1000)))
    (place.logs / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    assert place.land().events == 0
    found = entry(place)
    assert (found["uri"], found["place"], found["reason"], found["raw"]) == ("a.jsonl.gz", "file", "truncated_file", "")
    assert "Put the whole file in its place" in found["detail"]
    (place.logs / "a.jsonl.gz").write_bytes(packed)
    assert place.land().events == 1000


def test_a_byte_order_mark_and_mixed_line_ends_are_no_fault_and_places_stay_true(place):
    content = b"\xef\xbb\xbf" + line("e1").replace(b"\n", b"\r\n") + b"\r\n" + line("e2") + told(quantity="x")
    (place.logs / "a.jsonl").write_bytes(content + line("e3").replace(b"\n", b"\r\n"))
    assert place.land().events == 3
    assert entry(place)["place"] == f"line 4, byte {len(content) - len(told(quantity='x'))}"


# --- list, show, replay: on each kind of source ---------------------------------------------------------------------


@pytest.fixture
def command(place, ledger_url, monkeypatch):
    """``clawbill quarantine …`` on this place, at NOW; gives exit code and output."""
    monkeypatch.setenv("CLAWBILL_DATABASE_URL", ledger_url)
    monkeypatch.setenv("CLAWBILL_LAKE", str(place.lake.root))
    monkeypatch.setenv("CLAWBILL_STATE", str(place.folder / "state"))
    (place.folder / "clock").write_text("2026-11-23T00:00:00+00:00")
    monkeypatch.setenv("CLAWBILL_CLOCK", str(place.folder / "clock"))
    monkeypatch.setenv("CLAWBILL_CATALOG", str(place.folder / "catalog.yaml"))

    def run(*arguments: str) -> tuple[int, str]:
        (place.folder / "catalog.yaml").write_text(catalogue_text(*place.sources))
        result = CliRunner().invoke(cli, ["quarantine", *arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


FUTURE, NOW_TEXT = "2026-11-24T00:00:00Z", "2026-11-22T10:15:00Z"


def json_lines(place, time):
    (place.logs / "a.jsonl").write_text(json.dumps(record("bad", timestamp=time, note=SECRET)) + "\n")


def csv(place, time):
    place.sources = ({"name": "logs", "kind": "files", "path": "logs", "pattern": "*.csv", "mapping": PLAIN},)
    (place.logs / "a.csv").write_text(f"id,who,at,what,much,note\nbad,acme,{time},api.calls,3,{SECRET}\n")


def parquet(place, time):
    place.sources = ({"name": "logs", "kind": "files", "path": "logs", "pattern": "*.parquet", "mapping": PLAIN},)
    write(place.logs / "a.parquet", [row("bad", at=time, note=SECRET)])


def access_log(place, time):
    rules = [{"by": "path", "pattern": "^/t/", "tenant": "acme"}]
    place.sources = (
        {
            "name": "logs",
            "kind": "access_log",
            "path": "logs",
            "tenants": rules,
            "requests": "api.calls",
            "bytes": None,
        },
    )
    day = "24/Nov" if time == FUTURE else "22/Nov"
    (place.logs / "access.log").write_text(
        f'10.0.0.1 - - [{day}/2026:00:00:00 +0000] "GET /t/x?token={SECRET} HTTP/1.1" 200 5 "-" "-"\n'
    )


def sqlite(place, time):
    place.sources = ({"name": "fleet", "kind": "openclaw_fleet", "path": "cells"},)
    if not (place.folder / "cells").exists():
        with database(agent(place)) as db:
            put(db, "s1", 7, {**message(1), "timestamp": time, "note": SECRET})


def sql_table(place, time):
    place.sources = (
        {
            "name": "table", "kind": "sql_table", "url_env": "SPEND_URL", "table": "usage", "order_by": "n",
            "mapping": {**PLAIN, "event_id": "id"},
        },
    )  # fmt: skip
    engine = create_engine(f"sqlite:///{place.folder}/usage.db")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE IF NOT EXISTS usage (n INTEGER, id, who, at, what, much, note)"))
        connection.execute(text("DELETE FROM usage"))
        values = {"at": time, "note": SECRET}
        connection.execute(text("INSERT INTO usage VALUES (1, 'bad', 'acme', :at, 'api.calls', '3', :note)"), values)
    engine.dispose()


PLACES = {json_lines: "line 1, byte 0", csv: "line 2, byte 25", parquet: "line 1, byte 0",
          access_log: "line 1, byte 0", sqlite: "line 1, byte 7", sql_table: "line 1, byte 0"}  # fmt: skip


@pytest.mark.parametrize("make", PLACES, ids=lambda make: make.__name__)
def test_the_command_lists_shows_and_replays_a_line_of(place, command, monkeypatch, make):
    monkeypatch.setenv("SPEND_URL", f"sqlite:///{place.folder}/usage.db")
    make(place, FUTURE)
    place.land()
    found = entry(place)
    assert (found["place"], found["reason"]) == (PLACES[make], "in_the_future")
    code, listed = command("list")
    assert code == 0
    assert str(found["id"]) in listed
    assert found["uri"] in listed
    assert PLACES[make] in listed
    code, shown = command("show", str(found["id"]))
    assert code == 0
    assert "is more than 5 minutes ahead" in shown
    assert SECRET not in shown
    code, said = command("replay", str(found["id"]))
    assert (code, "still in quarantine" in said) == (1, True), said
    # Two days on the line is usage.
    (place.folder / "clock").write_text("2026-11-25T00:00:00+00:00")
    code, said = command("replay", str(found["id"]))
    assert (code, "landed" in said) == (0, True), said
    assert {event["tenant_id"] for event in place.events()} <= {"acme", "globex"}
    assert command("list")[1].count(PLACES[make]) == 0
    assert command("list", "--all")[1].count(PLACES[make]) == 1
    count = len(place.events())
    assert command("replay", str(found["id"]))[0] == 1
    assert len(place.events()) == count
