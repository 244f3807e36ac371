"""What is set aside can be found, read and, once mended, replayed."""

import json
from datetime import timedelta

import pytest

from clawbill_pipeline.usage.quarantine import entries, entry, masked
from clawbill_pipeline.usage.replay import replay
from clawbill_pipeline_tests.usage.conftest import NOW, catalogue, line
from clawbill_pipeline_tests.usage.test_landing import cloud_event
from clawbill_pipeline_tests.usage.test_openclaw import agent, database, message, put


def replayed(place, *ids, now=NOW, sources=None):
    catalog = catalogue(*(sources or place.sources), folder=place.folder)
    return replay(catalog, place.lake, place.ledger, ids, now=now, run_id="replay")


def test_entries_are_found_by_source_tenant_and_reason(place):
    first, second = line(quantity="x"), line(tenant_id="globex", service="nothing")
    (place.logs / "a.jsonl").write_bytes(first + second + b"broken\n")
    place.land()
    assert [one.reason for one in entries(place.ledger)] == ["not_a_number", "unknown_service", "not_json"]
    assert [one.id for one in entries(place.ledger, tenant_id="globex")] == [entries(place.ledger)[1].id]
    assert [one.place for one in entries(place.ledger, reason="not_json")] == [
        f"line 3, byte {len(first) + len(second)}"
    ]
    assert entries(place.ledger, source="other") == []
    one = entries(place.ledger, limit=1)[0]
    assert entry(place.ledger, one.id) == one
    assert json.loads(one.raw)["quantity"] == "x"
    with pytest.raises(LookupError, match="no entry 999"):
        entry(place.ledger, 999)


def test_a_line_from_the_future_is_landed_when_its_time_has_come(place):
    (place.logs / "a.jsonl").write_bytes(line("now") + line("then", timestamp="2026-11-24T00:00:00Z") + line("more"))
    place.land()
    (one,) = entries(place.ledger)
    (early,) = replayed(place, one.id)
    assert not early.landed
    assert "in_the_future" in early.said
    later = NOW + timedelta(days=2)
    (done,) = replayed(place, one.id, now=later)
    assert (done.landed, [hour.day for hour in done.hours]) == (True, [24])
    assert [(event["event_id"], event["line"]) for event in place.events()] == [("now", 1), ("more", 3), ("then", 2)]
    assert entries(place.ledger) == []
    assert [one.settled for one in entries(place.ledger, settled=True)] == [True]
    assert not replayed(place, one.id, now=later)[0].landed
    assert len(place.events()) == 3
    # A replay is no part of how far the file was read.
    with (place.logs / "a.jsonl").open("ab") as log:
        log.write(line("last"))
    assert place.land().events == 1
    assert place.land().problems == ()


def test_one_record_of_a_batch_is_replayed_alone(place):
    place.sources = ({"name": "events", "kind": "cloudevents", "path": "logs"},)
    batch = [cloud_event("b1"), cloud_event("b2", time="2026-11-24T00:00:00Z"), cloud_event("b3", type="nothing")]
    (place.logs / "a.json").write_text(json.dumps(batch, indent=1))
    place.land()
    future, unknown = entries(place.ledger)
    done, still = replayed(place, future.id, unknown.id, now=NOW + timedelta(days=2))
    assert (done.landed, still.landed) == (True, False)
    assert [event["event_id"] for event in place.events()] == ["/gateway b1", "/gateway b2"]


def test_a_row_of_a_database_is_replayed(place):
    place.sources = ({"name": "fleet", "kind": "openclaw_fleet", "path": "cells"},)
    with database(agent(place)) as db:
        put(db, "s1", 0, message(1))
        put(db, "s1", 1, {**message(2), "timestamp": "2026-11-24T00:00:00Z"})
    place.land()
    (one,) = entries(place.ledger)
    (done,) = replayed(place, one.id, now=NOW + timedelta(days=2))
    assert done.landed
    assert len(place.events()) == 6
    assert place.land().landings == 0


def test_a_changed_file_is_read_again_when_it_is_replayed(place):
    file = place.logs / "a.jsonl"
    file.write_bytes(line("e1"))
    place.land()
    file.write_bytes(line("e1")[:-2] + b" }\n" + line("e2"))
    place.land()
    (one,) = entries(place.ledger)
    (done,) = replayed(place, one.id)
    assert done.landed
    assert [event["event_id"] for event in place.events()] == ["e1", "e1", "e2"]
    assert entries(place.ledger) == []
    assert place.land().problems == ()


def test_what_cannot_be_replayed_says_why(place):
    (place.logs / "a.jsonl").write_bytes(line(quantity="x"))
    (place.logs / "b.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
    place.land()
    ids = [one.id for one in entries(place.ledger)]
    said = {one.said for one in replayed(place, *ids)}
    assert "it is landed with its file, once the file is as it should be" in said
    assert any(text.startswith("not_a_number: ") for text in said)
    (place.logs / "a.jsonl").write_bytes(b"")
    assert any("no line at byte 0" in one.said for one in replayed(place, *ids))
    (place.logs / "a.jsonl").unlink()
    assert any("no longer in source" in one.said for one in replayed(place, *ids))
    with pytest.raises(LookupError):
        replayed(place, ids[0], 999)


@pytest.mark.parametrize(
    "secret",
    [
        "sk_live_abc123", "rk_test_abc123", "whsec_Zm9v+/==", "sk-proj-abcdefgh12345", "ghp_abcdefgh12345678",
        "AKIAABCDEFGHIJKLMNOP", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIi.c2ln",
    ],
)  # fmt: skip
def test_secrets_are_masked_wherever_they_stand(secret):
    for text in (secret, f'{{"note": "{secret}"}}', f"Authorization: Bearer {secret}", f"/path?x={secret}&y=1"):
        shown = masked(text.encode())
        assert secret not in shown
        assert "***" in shown
    assert secret[:20] not in masked("x" * 1990 + " " + secret)


def test_secrets_in_addresses_are_masked():
    assert masked("GET /a?token=abc&x=1&api_key=def HTTP/1.1") == "GET /a?token=***&x=1&api_key=*** HTTP/1.1"
    assert masked("postgresql://me:hunter2@host/db") == "postgresql://***@host/db"


def test_what_is_no_secret_stays():
    text = '{"event_id": "e1", "service": "tokens.input", "tokens": 5, "task": "sketch", "url": "https://a.example/b"}'
    assert masked(text) == text
