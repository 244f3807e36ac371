"""Landing files: once, whole, continued where they grew, flagged where they changed; faults aside with their place."""

import gzip
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
import zstandard

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock_key
from clawbill_pipeline.ledger.turns import turn
from clawbill_pipeline.usage import landing, reading, stored, text
from clawbill_pipeline_tests.usage.conftest import check, line, quantities, record


def test_lines_land_by_their_own_hour_with_their_place(place):
    first, second = line("e1"), line("e2", timestamp="2026-11-22T11:00:00+00:00", quantity="0.1")
    (place.logs / "a.jsonl").write_bytes(first + second)
    landed = place.land()
    assert (landed.lines, landed.event_lines, landed.events, landed.quarantined) == (2, 2, 2, 0)
    assert [hour.isoformat() for hour in sorted(landed.hours)] == [
        "2026-11-22T10:00:00+00:00",
        "2026-11-22T11:00:00+00:00",
    ]
    events = place.events()
    assert [(event["line"], event["byte_offset"], event["uri"], event["source"]) for event in events] == [
        (1, 0, "a.jsonl", "logs"),
        (2, len(first), "a.jsonl", "logs"),
    ]
    assert quantities(events) == {"e1": Decimal(3), "e2": Decimal("0.1")}
    (row,) = place.rows("SELECT * FROM landings")
    assert (row["lines"], row["event_lines"], row["events"], row["size"]) == (2, 2, 2, len(first + second))
    files = {row["file"]: row["sha256"] for row in place.rows("SELECT file, sha256 FROM landed_hours")}
    assert len(files) == 2
    assert place.lake.digests(list(files)) == files


def test_landing_again_changes_nothing(place):
    (place.logs / "a.jsonl").write_bytes(line("e1") + b"broken\n")
    place.land()
    before = place.rows("SELECT * FROM landings"), place.quarantine()
    again = place.land()
    assert (again.landings, again.lines, again.hours) == (0, 0, frozenset())
    assert (place.rows("SELECT * FROM landings"), place.quarantine()) == before


def test_the_same_data_in_another_folder_gives_the_same_rows(place):
    (place.logs / "day").mkdir()
    (place.logs / "day" / "a.jsonl").write_bytes(line("e1"))
    place.land()
    place.logs.rename(place.folder / "moved")
    place.sources = ({"name": "logs", "kind": "json_lines", "path": "moved"},)
    assert place.land().landings == 0
    assert [event["uri"] for event in place.events()] == ["day/a.jsonl"]


def test_a_file_that_grew_is_continued(place):
    file = place.logs / "a.jsonl"
    file.write_bytes(line("e1"))
    place.land()
    with file.open("ab") as log:
        log.write(line("e2") + line("e3"))
    landed = place.land()
    assert (landed.landings, landed.events) == (1, 2)
    events = place.events()
    assert [(event["event_id"], event["line"], event["byte_offset"]) for event in events] == [
        ("e1", 1, 0),
        ("e2", 2, len(line("e1"))),
        ("e3", 3, 2 * len(line("e1"))),
    ]


def test_a_half_line_waits_for_its_writer(place):
    file = place.logs / "a.jsonl"
    whole = line("e1") + line("e2")
    file.write_bytes(whole[:-20])
    landed = place.land()
    assert (landed.events, landed.waiting, landed.quarantined) == (1, 1, 0)
    file.write_bytes(whole)
    assert place.land().events == 1
    assert [event["event_id"] for event in place.events()] == ["e1", "e2"]
    assert place.quarantine() == []


def test_a_whole_last_line_needs_no_line_feed(place):
    file = place.logs / "a.jsonl"
    file.write_bytes(line("e1") + line("e2").rstrip())
    landed = place.land()
    assert (landed.events, landed.waiting) == (2, 0)
    with file.open("ab") as log:
        log.write(b"\n" + line("e3"))
    place.land()
    assert [(event["event_id"], event["line"]) for event in place.events()] == [("e1", 1), ("e2", 2), ("e3", 3)]


def test_a_half_line_of_a_file_at_rest_is_set_aside_and_still_read_when_completed(place):
    file = place.logs / "a.jsonl"
    whole = line("e1") + line("e2")
    file.write_bytes(whole[:-20])
    os.utime(file, (0, 0))
    landed = place.land()
    assert not check(landed, "sources_readable").passed
    (aside,) = place.quarantine()
    assert (aside["reason"], aside["place"]) == ("cut_off_line", f"line 2, byte {len(line('e1'))}")
    place.land()
    assert len(place.quarantine()) == 1
    file.write_bytes(whole)
    assert place.land().events == 1


def test_a_finished_files_half_line_is_a_line_like_any_other(place):
    (place.logs / "a.jsonl").write_bytes(line("e1")[:-20])
    landed = place.land(finished=True)
    assert (landed.lines, landed.quarantined) == (1, 1)
    assert place.quarantine()[0]["reason"] == "not_json"


@pytest.mark.parametrize("changed", [line("e9"), line("e1", quantity=4) + line("e2"), b"", line("e1")[:-5]])
def test_a_file_that_changed_in_place_is_flagged_and_left_alone(place, changed):
    file = place.logs / "a.jsonl"
    file.write_bytes(line("e1"))
    (place.logs / "b.jsonl").write_bytes(line("b1"))
    place.land()
    file.write_bytes(changed)
    (place.logs / "b.jsonl").write_bytes(line("b1") + line("b2"))
    landed = place.land()
    assert not check(landed, "sources_unchanged").passed
    assert [event["event_id"] for event in place.events()] == ["e1", "b1", "b2"]
    (aside,) = place.quarantine()
    assert (aside["reason"], aside["uri"]) == ("changed_in_place", "a.jsonl")
    assert not check(place.land(), "sources_unchanged").passed
    assert len(place.quarantine()) == 1


def test_a_change_in_the_middle_is_seen_whatever_size_and_times_say(place):
    file = place.logs / "a.jsonl"
    file.write_bytes(line("e1") + line("e2", quantity=5) + line("e3"))
    stat = file.stat()
    place.land()
    file.write_bytes(line("e1") + line("e2", quantity=6) + line("e3"))
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert not check(place.land(), "sources_unchanged").passed


def test_a_file_at_rest_is_not_opened_again(place, monkeypatch):
    file = place.logs / "a.jsonl"
    file.write_bytes(line("e1"))
    monkeypatch.setattr(stored.time, "time", lambda: file.stat().st_ctime + 60)
    place.land()
    file.chmod(0)
    monkeypatch.setattr(text.Text, "blocks", lambda *_, **__: pytest.fail("the file was read again"))
    file_stamp = json.loads(place.lake.path("sources/logs.json").read_text())["stamps"]["a.jsonl"]
    # chmod changed the change time: only the stamp as it was says that nothing else happened.
    monkeypatch.setattr(text.Text, "stamp", lambda *_: file_stamp[1:])
    assert place.land().landings == 0


def test_rotation_under_one_name_where_the_source_says_so(place):
    place.sources = ({**place.sources[0], "changed_files": "read_again"},)
    file = place.logs / "a.jsonl"
    for content in (line("e1"), line("e2"), line("e1"), line("e1") + line("e3")):
        file.write_bytes(content)
        place.land()
    assert [event["event_id"] for event in place.events()] == ["e1", "e2", "e1", "e3"]
    assert place.quarantine() == []


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress),
        ("a.jsonl", zstandard.ZstdCompressor(write_checksum=True).compress),
    ],
)
def test_compressed_files(place, name, pack):
    content = b"".join(line(f"e{number}") for number in range(5000))
    packed = pack(content)
    (place.logs / name).write_bytes(packed[:-1])
    landed = place.land()
    assert landed.events == 0
    (aside,) = place.quarantine()
    assert (aside["reason"], aside["uri"], aside["landing_id"]) == ("truncated_file", name, None)
    (place.logs / name).write_bytes(packed)
    assert place.land().events == 5000
    assert place.land().landings == 0
    (place.logs / name).write_bytes(packed + pack(line("more")))
    assert place.land().events == 1


def test_a_damaged_gzip_file_is_not_read_in_part(place):
    packed = bytearray(gzip.compress(b"".join(line(f"e{number}") for number in range(5000))))
    packed[-6] ^= 1
    (place.logs / "a.jsonl.gz").write_bytes(packed)
    place.land()
    assert place.events() == []
    assert place.quarantine()[0]["reason"] == "corrupt_file"


def test_large_inputs_land_in_parts_each_with_its_own_books(place, monkeypatch):
    monkeypatch.setattr(text, "PIECE", 1000)
    monkeypatch.setattr(reading, "BATCH_BYTES", 5000)
    file = place.logs / "a.jsonl"
    file.write_bytes(b"".join(line(f"e{number}") for number in range(200)))
    landed = place.land()
    assert landed.landings > 3
    events = place.events()
    assert [event["event_id"] for event in events] == [f"e{number}" for number in range(200)]
    assert [event["line"] for event in events] == list(range(1, 201))
    with file.open("ab") as log:
        log.write(line("more"))
    assert place.land().events == 1


def test_every_broken_line_is_set_aside_with_its_place_and_stops_no_other(place, monkeypatch):
    monkeypatch.setattr(text, "LONGEST_LINE", 2000)
    monkeypatch.setattr(text, "PIECE", 1000)
    broken = [
        (b'{"event_id": "x"', "not_json"),
        (b"[1", "not_json"),
        (b"7", "not_an_object"),
        (b'"text"', "not_an_object"),
        (line().rstrip() + b"}", "not_json"),
        (b'{"event_id": "caf\xe9"}', "broken_utf8"),
        (b"\0\0\0", "nul_byte"),
        (b"[" * 1500, "not_json"),
        (b'{"event_id": "' + b"x" * 9000 + b'"}', "line_too_long"),
        (b'{"event_id": "' + b"x" * 2500 + b'"}', "line_too_long"),
        (line(tenant_id=...).rstrip(), "missing_field"),
        (line(quantity="many").rstrip(), "not_a_number"),
        (b'{"event_id": "n", "tenant_id": "acme", "service": "api.calls", "quantity": NaN}', "not_finite"),
        (
            b'{"event_id": "n", "tenant_id": "acme", "service": "api.calls", "quantity": 1e999999999999}',
            "too_many_digits",
        ),
        (line(service="nothing").rstrip(), "unknown_service"),
    ]
    content, places = b"", []
    for number, (raw, _) in enumerate(broken):
        places.append(f"line {2 * number + 1}, byte {len(content)}")
        content += raw + b"\n" + line(f"good{number}")
    (place.logs / "a.jsonl").write_bytes(content)
    landed = place.land()
    assert (landed.lines, landed.events, landed.quarantined) == (2 * len(broken), len(broken), len(broken))
    assert [(row["reason"], row["place"]) for row in place.quarantine()] == [
        (reason, where) for (_, reason), where in zip(broken, places, strict=True)
    ]
    assert [event["event_id"] for event in place.events()] == [f"good{number}" for number in range(len(broken))]
    assert not check(landed, "no_quarantine").passed


def test_bom_mixed_line_ends_and_empty_lines(place):
    content = (
        b"\xef\xbb\xbf" + line("e1") + b"\r\n   \n" + line("e2").replace(b"\n", b"\r\n") + b"\xef\xbb\xbf" + line("e3")
    )
    content += line("e4").replace(b"\n", b"\r") + line("e5").replace(b"\n", b"\r") + b"oops\r" + line("e6")
    (place.logs / "a.jsonl").write_bytes(content)
    landed = place.land()
    assert [event["event_id"] for event in place.events()] == ["e1", "e2", "e3", "e4", "e5", "e6"]
    assert (landed.quarantined, place.quarantine()[0]["place"][-8:]) == (1, "record 3")


def test_json_numbers_are_exact(place):
    long = "123456789012345678.123456789012"  # twice the digits that a double keeps
    raw = (
        line("number").replace(b": 3", b": " + long.encode())
        + line("text", quantity=long)
        + line("small", quantity=0.1)
    )
    raw += line("more").replace(b": 3", b": 0.1000000000000000000001")
    (place.logs / "a.jsonl").write_bytes(raw)
    landed = place.land()
    assert quantities(place.events()) == {"number": Decimal(long), "text": Decimal(long), "small": Decimal("0.1")}
    assert landed.quarantined == 1


@pytest.mark.parametrize("many", [False, True], ids=["few lines", "many lines"])
def test_a_quantity_that_no_hour_could_add_up_is_set_aside(place, many):
    """One event must not overflow an hour's sum and so stop everybody's metering."""
    most = "999999999999999999.999999999999"
    others = b"".join(line(f"o{number}") for number in range(100 * many))
    (place.logs / "a.jsonl").write_bytes(
        line("most", quantity=most)
        + others
        + line("too much").replace(b": 3", b": 1e18")
        + line("text", quantity="1e25")
    )
    landed = place.land()
    assert (landed.events, quantities(place.events())["most"]) == (1 + 100 * many, Decimal(most))
    assert [(row["reason"], row["field"], row["tenant_id"]) for row in place.quarantine()] == [
        ("too_large", "quantity", "acme")
    ] * 2
    assert "Send it in a larger unit" in place.quarantine()[0]["detail"]


def test_secrets_never_reach_quarantine(place):
    secrets = ["sk_live_51AbC", "sk_test_9x", "whsec_abc+/=", "Bearer eyJabc", "hunter2secret"]
    raw = {
        **record(quantity="no"),
        "note": secrets[:4],
        "password": secrets[4],
        "url": f"postgresql://me:{secrets[4]}@db/x",
    }
    (place.logs / "a.jsonl").write_bytes(
        json.dumps(raw).encode() + b"\n" + b"broken " + " ".join(secrets[:4]).encode() + b"\n"
    )
    place.land()
    kept = json.dumps(place.quarantine(), default=str)
    assert place.quarantine()[1]["raw"].startswith("broken ***")
    for secret in ("51AbC", "_9x", "abc+/", "eyJabc", "hunter2"):
        assert secret not in kept


def test_quarantine_keeps_the_beginning_of_a_long_line(place):
    (place.logs / "a.jsonl").write_bytes(b"x" * 10_000 + b"\n")
    place.land()
    assert len(place.quarantine()[0]["raw"]) == 2000


def test_two_workers_at_once_land_everything_once(place, ledger_url):
    for number in range(20):
        (place.logs / f"{number}.jsonl").write_bytes(b"".join(line(f"{number}-{event}") for event in range(50)))
    ledgers = [Ledger(ledger_url) for _ in range(4)]
    start = threading.Barrier(len(ledgers))
    results = []

    def work(ledger):
        start.wait()
        results.append(type(place)(place.folder, place.lake, ledger).land())

    threads = [threading.Thread(target=work, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for ledger in ledgers:
        ledger.dispose()
    assert sum(result.events for result in results) == 1000
    assert len({event["event_id"] for event in place.events()}) == len(place.events()) == 1000


def test_who_waits_for_another_landing_says_so_and_lands_what_is_left(place, ledger_url):
    (place.logs / "a.jsonl").write_bytes(line("e1"))
    other = Ledger(ledger_url)
    with ThreadPoolExecutor(1) as later:
        with other.transaction() as connection:
            turn(connection, [lock_key("usage", "logs")], run_id="first", work="landing")
            landed = later.submit(place.land, run_id="second")
            until = time.monotonic() + 1
            while time.monotonic() < until and not landed.done():
                time.sleep(0.01)
        found = landed.result(30)
    other.dispose()
    assert (found.events, found.waited_for) == (1, "run first")
    assert place.land(run_id="third").waited_for is None


def test_what_a_crash_leaves_in_the_lake_does_not_count(place, monkeypatch):
    (place.logs / "a.jsonl").write_bytes(line("e1"))
    with monkeypatch.context() as patch:
        patch.setattr(landing, "set_aside", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            place.land()
    assert place.events() == []
    assert list(place.lake.root.rglob("*.parquet"))
    place.land()
    assert [event["event_id"] for event in place.events()] == ["e1"]


def test_a_source_that_is_away_or_a_file_that_cannot_be_read_stops_no_other(place, monkeypatch):
    place.sources = ({"name": "gone", "kind": "json_lines", "path": "nowhere"}, *place.sources)
    (place.logs / "a.jsonl").write_bytes(line("e1"))
    (place.logs / "b.jsonl").symlink_to(place.logs / "a.jsonl")
    opened = type(place.logs).open

    def refuse(path, *args, **kwargs):
        if path.name == "a.jsonl":
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr(type(place.logs), "open", refuse)
    landed = place.land()
    assert landed.events == 1
    assert len(landed.problems) == 2
    assert "nowhere" in landed.problems[0]
    assert not check(landed, "sources_readable").passed


# --- CloudEvents ---------------------------------------------------------------------------------------------------


def cloud_event(event_id: str, **changes):
    event = {
        "specversion": "1.0",
        "id": event_id,
        "source": "/gateway",
        "type": "api.calls",
        "subject": "acme",
        "time": "2026-11-22T10:15:00Z",
        "data": {"quantity": "2.5"},
    }
    return {**event, **changes}


def test_cloudevents_one_a_line_in_batches_and_one_a_file(place):
    place.sources = ({"name": "events", "kind": "cloudevents", "path": "logs"},)
    batch = [cloud_event("b1"), cloud_event("b2", data={"quantity": "x"}), cloud_event("b3")]
    (place.logs / "lines.jsonl").write_text(
        json.dumps(cloud_event("l1")) + "\n" + json.dumps(batch) + "\n" + json.dumps(cloud_event("l2")) + "\n"
    )
    (place.logs / "single.json").write_text(json.dumps(cloud_event("s1"), indent=2))
    (place.logs / "array.json").write_text(
        json.dumps([cloud_event("a1"), cloud_event("a2", source="/other")], indent=2)
    )
    landed = place.land()
    assert (landed.lines, landed.events, landed.quarantined) == (8, 7, 1)
    assert {event["event_id"] for event in place.events()} == {
        "/gateway l1", "/gateway l2", "/gateway b1", "/gateway b3", "/gateway s1", "/gateway a1", "/other a2",
    }  # fmt: skip
    (aside,) = place.quarantine()
    assert aside["place"].startswith("line 2, byte ")
    assert aside["place"].endswith(", record 2")
    assert (aside["reason"], aside["field"], json.loads(aside["raw"])["id"]) == ("not_a_number", "data.quantity", "b2")


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"specversion": "0.3"}, "not_a_cloudevent", "specversion"),
        ({"id": ""}, "missing_field", "id"),
        ({"source": None}, "missing_field", "source"),
        ({"source": "a b"}, "not_a_cloudevent", "source"),
        ({"subject": None}, "missing_field", "subject"),
        ({"type": None}, "missing_field", "type"),
        ({"time": None}, "missing_field", "time"),
        ({"data": None}, "missing_field", "data"),
        ({"data": {}}, "missing_field", "data.quantity"),
    ],
)
def test_cloudevents_that_are_none(place, changes, reason, field):
    place.sources = ({"name": "events", "kind": "cloudevents", "path": "logs"},)
    (place.logs / "a.jsonl").write_text(json.dumps(cloud_event("x", **changes)) + "\n")
    place.land()
    (aside,) = place.quarantine()
    assert (aside["reason"], aside["field"]) == (reason, field)


def test_a_document_that_is_still_written_waits(place):
    place.sources = ({"name": "events", "kind": "cloudevents", "path": "logs"},)
    whole = json.dumps([cloud_event("a1")], indent=2)
    (place.logs / "a.json").write_text(whole[:-2])
    assert place.land().waiting == 1
    (place.logs / "a.json").write_text(whole)
    assert place.land().events == 1


def test_a_large_file_that_turns_out_damaged_at_its_end_leaves_nothing(place, monkeypatch):
    monkeypatch.setattr(text, "PIECE", 1000)
    monkeypatch.setattr(reading, "BATCH_BYTES", 2000)
    packed = gzip.compress(b"".join(line(f"e{number}") for number in range(500)))
    (place.logs / "a.jsonl.gz").write_bytes(packed[:-3])
    landed = place.land()
    assert (landed.landings, landed.hours, place.events()) == (0, frozenset(), [])
    assert [row["landing_id"] for row in place.quarantine()] == [None]
    (place.logs / "a.jsonl.gz").write_bytes(packed)
    assert place.land().events == 500
