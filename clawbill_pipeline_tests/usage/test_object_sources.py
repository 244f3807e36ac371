"""Usage in object storage: objects of every format, grown, replaced, forbidden, away. What lines mean is elsewhere."""

import gzip
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pydantic import ValidationError

from clawbill_pipeline import object_store
from clawbill_pipeline.catalog.sources import JsonLines, OpenClawFleet
from clawbill_pipeline.usage import text
from clawbill_pipeline.usage.replay import replay
from clawbill_pipeline_tests.usage.conftest import NOW, catalogue, check, line, quantities
from clawbill_pipeline_tests.usage.test_landing import cloud_event

MAPPING = {
    "event_id": "id",
    "tenant_id": "team",
    "timestamp": "at",
    "usage": [{"service": {"constant": "api.calls"}, "quantity": "calls"}],
}


def source(bucket, kind="json_lines", **more):
    return {"name": "logs", "kind": kind, "path": f"{bucket.address}/logs", **more}


@pytest.fixture(autouse=True)
def few_tries(monkeypatch):
    monkeypatch.setattr("clawbill_pipeline.usage.sources._TRIES", 1)


def test_objects_of_every_format_are_read_where_they_are(place, bucket):
    rows = [{"id": f"p{number}", "team": "acme", "at": "2026-11-22T10:00:00Z", "calls": "1.5"} for number in range(3)]
    table = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), table, row_group_size=2)
    csv = "id,team,at,calls\n" + "".join(f"c{row['id']},acme,{row['at']},2\n" for row in rows)
    access = '10.0.0.1 - acme [22/Nov/2026:10:00:00 +0000] "GET /a HTTP/1.1" 200 7 "-" "curl"\n'
    spend = {"request_id": "r1", "startTime": "2026-11-22T10:00:00Z", "team_id": "acme", "prompt_tokens": 3}
    spend |= {"completion_tokens": 4, "custom_llm_provider": "mock", "model": "m"}
    for key, content in {
        "plain/a.jsonl": line("j1"),
        "plain/b.jsonl.gz": gzip.compress(line("j2")),
        "plain/c.jsonl.zst": zstandard.compress(line("j3")),
        "plain/.hidden/a.jsonl": line("never"),
        "events/a.json": json.dumps([cloud_event("v1"), cloud_event("v2")]).encode(),
        "tables/a.parquet": table.getvalue(),
        "tables/a.csv": csv.encode(),
        "tables/b.csv.gz": gzip.compress(csv.replace("cp", "d").encode()),
        "tables/a.json": json.dumps([{**rows[0], "id": "m1"}]).encode(),
        "spend/a.json": json.dumps([spend]).encode(),
        "edge/access.log.1": access.encode(),
    }.items():
        bucket.put(key, content)
    at = bucket.address
    place.sources = (
        {"name": "plain", "kind": "json_lines", "path": f"{at}/plain"},
        {"name": "events", "kind": "cloudevents", "path": f"{at}/events/"},
        {"name": "tables", "kind": "files", "path": f"{at}/tables", "pattern": "*.*", "mapping": MAPPING},
        {"name": "spend", "kind": "litellm", "path": f"{at}/spend"},
        {"name": "edge", "kind": "access_log", "path": f"{at}/edge", "requests": "api.calls", "bytes": None,
         "tenants": [{"by": "user", "pattern": "(.+)"}]},
    )  # fmt: skip
    landed = place.land()
    assert (landed.problems, landed.quarantined, landed.waiting) == ((), 0, 0)
    told = {(event["source"], event["uri"]) for event in place.events()}
    assert told >= {("plain", "a.jsonl"), ("plain", "b.jsonl.gz"), ("plain", "c.jsonl.zst"), ("events", "a.json")}
    assert ("tables", "a.parquet") in told
    bought = quantities(place.events())
    assert {"j1", "j2", "j3", "p0", "p2", "cp0", "d2", "m1", "r1#tokens.input", "r1#tokens.output"} <= set(bought)
    assert (len(bought), str(bought["p1"])) == (18, "1.500000000000")
    asked = len(bucket.store.asked)
    again = place.land()
    assert (again.landings, again.events) == (0, 0)
    assert len(bucket.store.asked) - asked == len(place.sources)  # nothing but the listings


def test_a_log_moved_into_a_store_is_continued_there(place, bucket):
    (place.logs / "a.jsonl").write_bytes(line("e1"))
    place.land()
    bucket.put("logs/a.jsonl", line("e1") + line("e2"))
    place.sources = (source(bucket),)
    assert place.land().events == 1
    assert [event["event_id"] for event in place.events()] == ["e1", "e2"]


def test_an_object_that_grew_is_continued_and_one_that_changed_is_flagged(place, bucket, monkeypatch):
    monkeypatch.setattr(text, "PIECE", 100)
    place.sources = (source(bucket),)
    first = b"".join(line(f"e{number}") for number in range(10))
    bucket.put("logs/a.jsonl", first)
    bucket.put("logs/b.jsonl", b"".join(line(f"f{number}") for number in range(10)))
    assert place.land().events == 20
    bucket.put("logs/a.jsonl", first + line("new"))
    bucket.put("logs/b.jsonl", line("other") + first)
    landed = place.land()
    assert (landed.events, landed.landings) == (1, 1)
    assert place.events()[-1]["byte_offset"] == len(first)
    assert not check(landed, "sources_unchanged").passed
    (entry,) = place.quarantine()
    assert (entry["uri"], entry["reason"]) == ("b.jsonl", "changed_in_place")
    (said,) = replay(catalogue(*place.sources), place.lake, place.ledger, [entry["id"]], now=NOW, run_id="replay")
    assert said.landed


def test_a_half_line_at_an_objects_end_waits(place, bucket):
    place.sources = (source(bucket),)
    bucket.put("logs/a.jsonl", line("e1") + line("e2")[:-30])
    landed = place.land()
    assert (landed.events, landed.waiting) == (1, 1)
    bucket.put("logs/a.jsonl", line("e1") + line("e2"))
    assert place.land().events == 1


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_an_object_that_is_replaced_while_it_is_read_is_never_half_read(place, bucket, monkeypatch, compress):
    monkeypatch.setattr(text, "PIECE", 200)
    monkeypatch.setattr(object_store, "_BUFFER", 200)
    old = b"".join(line(f"old{number}", salt=os.urandom(500).hex()) for number in range(200))
    bucket.put("logs/a.jsonl", compress(old))
    place.sources = (source(bucket),)
    whole = object_store.ObjectFolder.range

    def late(folder, listed, start, size):
        if start > 400 and not bucket.get("logs/a.jsonl").startswith(b"new"):
            bucket.put("logs/a.jsonl", b"new")
        return whole(folder, listed, start, size)

    monkeypatch.setattr(object_store.ObjectFolder, "range", late)
    landed = place.land()
    assert (landed.events, landed.landings, landed.waiting, landed.problems) == (0, 0, 1, ())
    assert place.events() == []
    bucket.put("logs/a.jsonl", line("new"))
    monkeypatch.setattr(object_store.ObjectFolder, "range", whole)
    assert place.land().events == 1


def test_a_parquet_object_that_is_replaced_while_it_is_read_waits_for_the_next_landing(place, bucket, monkeypatch):
    def table(name, count):
        row = {"id": name, "team": "acme", "at": "2026-11-22T10:00:00Z", "calls": "1"}
        file = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([{**row, "id": f"{name}{n}"} for n in range(count)]), file)
        return file.getvalue()

    monkeypatch.setattr(object_store, "_BUFFER", 200)
    bucket.put("logs/a.parquet", table("old", 5000))
    place.sources = (source(bucket, "files", pattern="*.parquet", mapping=MAPPING),)
    whole, new = object_store.ObjectFolder.range, table("new", 5)
    read = []

    def late(folder, listed, start, size):
        read.append(start)
        if len(read) > 1 and start < read[-2] and bucket.get("logs/a.parquet") != new:  # the digest is made, rows come
            bucket.put("logs/a.parquet", new)
        return whole(folder, listed, start, size)

    monkeypatch.setattr(object_store.ObjectFolder, "range", late)
    landed = place.land()
    assert (landed.events, landed.waiting, landed.problems, place.quarantine()) == (0, 1, (), [])
    assert place.land().events == 5


def test_a_busy_store_sets_that_input_aside_and_it_is_read_next_time(place, bucket, monkeypatch):
    for name in "abc":
        bucket.put(f"logs/{name}.jsonl", line(name))
    place.sources = (source(bucket),)
    monkeypatch.setattr(bucket.store, "refuse", lambda asked: 503 if asked.endswith("/logs/b.jsonl") else None)
    landed = place.land()
    assert [event["event_id"] for event in place.events()] == ["a", "c"]
    (problem,) = landed.problems
    assert problem.startswith(
        f"logs: b.jsonl: unreadable: {bucket.address}/logs/b.jsonl: the store is busy or away (503"
    )
    assert not check(landed, "sources_readable").passed
    monkeypatch.setattr(bucket.store, "refuse", lambda _: None)
    landed = place.land()
    assert (landed.events, landed.problems) == (1, ())


def test_a_store_that_is_away_missing_or_forbidden_stops_no_other_source(place, bucket, monkeypatch):
    (place.logs / "a.jsonl").write_bytes(line("e1"))
    bucket.put("logs/a.jsonl", line("e2"))
    place.sources = (
        {"name": "away", "kind": "json_lines", "path": "s3://bucket/logs", "endpoint": "http://127.0.0.1:9"},
        {"name": "missing", "kind": "json_lines", "path": "s3://nowhere/logs"},
        {**source(bucket), "name": "forbidden"},
        *place.sources,
    )
    monkeypatch.setattr(bucket.store, "refuse", lambda asked: 403 if bucket.name in asked else None)
    landed = place.land()
    assert [event["event_id"] for event in place.events()] == ["e1"]
    away, missing, forbidden = landed.problems
    assert "away: source: unreadable: s3://bucket/logs: the store at http://127.0.0.1:9 can't be reached" in away
    assert "there is no bucket 'nowhere'" in missing
    assert "no permission (403 AccessDenied)" in forbidden
    assert "hunter2" not in "".join(landed.problems)


def test_the_catalogue_may_name_another_server(place, bucket, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    bucket.put("logs/a.jsonl", line("e1"))
    place.sources = (source(bucket, endpoint=bucket.store.url),)
    assert place.land().events == 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"path": "s3://user:key@bucket/logs"}, "write s3://bucket/prefix"),
        ({"path": "http://server/logs"}, "write s3://bucket/prefix"),
        ({"path": "logs", "endpoint": "http://server:9000"}, "only with a path in an object store"),
        ({"path": "s3://bucket", "endpoint": "http://key:secret@server"}, "endpoint"),
    ],
)
def test_a_catalogue_with_another_address_is_refused(given, message):
    with pytest.raises(ValidationError, match=message):
        JsonLines.model_validate({"name": "logs", "kind": "json_lines", **given})


def test_cells_are_in_folders():
    with pytest.raises(ValidationError, match="path must be a folder"):
        OpenClawFleet.model_validate({"name": "fleet", "kind": "openclaw_fleet", "path": "s3://bucket/cells"})


def test_the_first_line_of_a_large_csv_costs_one_request(place, bucket):
    rows = b"".join(b"e%d,acme,2026-11-22T10:00:00Z,1\n" % number for number in range(2000))
    bucket.put("logs/a.csv", b"id,team,at,calls\n" + rows)
    place.sources = (source(bucket, "files", pattern="*.csv", mapping=MAPPING),)
    assert place.land().events == 2000
    # The names, and then the lines in one piece.
    assert sum("/a.csv" in asked for asked in bucket.store.asked) <= 4
