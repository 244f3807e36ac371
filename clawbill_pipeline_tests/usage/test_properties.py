"""Properties of every reader: bytes in, no crash, books that balance, and the fast way says what the slow one says."""

import gzip
import io
import json
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clawbill_pipeline.usage import bulk, text, uniform
from clawbill_pipeline.usage.events import Judge
from clawbill_pipeline.usage.inputs import InputFault
from clawbill_pipeline.usage.json_formats import CloudEventRecords, JsonRecords
from clawbill_pipeline.usage.openclaw import Transcript
from clawbill_pipeline.usage.reading import Batch, Reader, batches
from clawbill_pipeline.usage.stored import Kept
from clawbill_pipeline.usage.text import Text
from clawbill_pipeline_tests.usage.conftest import NOW, catalogue, record
from clawbill_pipeline_tests.usage.test_landing import cloud_event
from clawbill_pipeline_tests.usage.test_openclaw import message

judge = Judge(catalogue(), NOW)
formats = {
    "json": JsonRecords(),
    "cloudevents": CloudEventRecords(),
    "transcript": Transcript("globex", "main", ("tokens.input", "tokens.output", "messages")),
}
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@pytest.fixture(scope="module", autouse=True)
def small_pieces():
    """Sizes at which a few lines are many, so that every way through the readers is taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "_FEW_LINES", 1)
        patch.setattr(bulk, "_PARTS", 2)
        patch.setattr(bulk, "_LARGE", 0)
        patch.setattr(bulk, "_LEAST_LINES", 1)
        patch.setattr(bulk, "_MOST_LINES", 3)
        patch.setattr(text, "PIECE", 700)
        patch.setattr(text, "LONGEST_LINE", 2000)
        yield


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


def read(data: bytes, format, pool, *, fast=True, document=False, finished=True) -> tuple[list[Batch], str]:
    """The batches of a text, and why it ended early."""
    made = Text(Kept("a.json" if document else "a.jsonl", lambda: io.BytesIO(data), len(data)), format)
    reader = Reader("logs", made, judge)
    if not fast:
        reader._bulk = None
    found: list[Batch] = []
    try:
        for batch in batches(made, (), reader, pool, finished):
            found.append(batch)
    except InputFault as fault:
        return found if fault.keep else [], fault.reason
    return found, ""


def events(found: list[Batch]) -> list[tuple]:
    rows = []
    for batch in found:
        for hour, parts in batch.hours.items():
            for part in parts:
                for row in part.to_pylist():
                    assert row["event_time"].replace(minute=0, second=0, microsecond=0) == hour
                    rows.append(tuple(row.values()))
    return sorted(rows)


def aside(found: list[Batch]) -> list[tuple]:
    return sorted((entry.place, entry.reason, entry.field) for batch in found for entry in batch.aside)


# --- what may stand in a log ---------------------------------------------------------------------------------------

texts = st.text(max_size=8) | st.sampled_from(
    ["acme", "api.calls", "credits", "tokens.input", "e1", "\0", "é", '"', "\\", ""]
)
numbers = (
    st.integers(-(10**27), 10**27)
    | st.decimals(allow_nan=False, allow_infinity=False, places=13).map(str)
    | st.floats()
    | st.sampled_from(
        ["1e3", "-0.0", "NaN", " 1", "+1", ".5", "5.", "1_0", "00012", "0.1000000000000", "1e-12", "1e-13"]
    )
)
times = st.sampled_from([
    "2026-11-22T10:15:00Z", "2026-11-22T10:15:00", "2026-11-22 10:15:00.123456789+02:00", "2026-11-22",
    "2026-11-22T10:59:59.9999999Z", "2026-11-22T10Z", "2026-11-22T10:15:60Z", "2026-10-31T23:59:59.999999Z",
    "2026-11-01T00:00:00Z",
    "2026-11-23T00:05:00Z", "2026-11-23T00:05:00.000001Z", "2026-11-23T00:05:00.0000001Z", "9999-12-31T23:59:59Z",
    "1677-01-01T00:00:00Z", "2026-11-22T10:15:00+0530", "2026-11-22t10:15:00z", "x", 1795342500, 1795342500123.5,
])  # fmt: skip
values = st.none() | st.booleans() | texts | numbers | st.lists(st.integers(), max_size=2)
records = st.fixed_dictionaries(
    {},
    optional={
        "event_id": texts | values,
        "tenant_id": st.sampled_from(["acme", "nobody", "no tenant", "a" * 64, "a" * 65]) | values,
        "service": st.sampled_from(["api.calls", "credits", "tokens.input", "users", "nothing"]) | values,
        "quantity": numbers | values,
        "timestamp": times | values,
        "provider": texts | values,
        "model": texts | values,
        "user": texts | values,
        "specversion": st.sampled_from([None, "1.0", 1]),
        "dimensions": st.none() | st.dictionaries(st.sampled_from(["model", "provider"]), texts, max_size=2),
        "other": values,
    },
)
good = st.builds(
    record,
    event_id=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20),
    service=st.sampled_from(["api.calls", "credits", "messages", "tokens.output", "users"]),
    quantity=st.decimals(min_value=0, max_value=10**18 - 1, places=12).map(str) | st.integers(0, 10**18 - 1),
    timestamp=st.datetimes(NOW.replace(day=1, tzinfo=None), NOW.replace(tzinfo=None)).map(
        lambda t: t.isoformat() + "Z"
    ),
    provider=st.sampled_from(["p", "a/b", "100%"]),
    model=st.sampled_from(["m:1", "m2"]),
    user=st.sampled_from(["u1", "ü2"]),
)
spelled = st.sampled_from([{}, {"ensure_ascii": False}, {"separators": (",", ":")}])
written = st.builds(
    lambda value, how: json.dumps(value, **how).encode("utf-8", "surrogatepass"),
    good | good | records | values,
    spelled,
)
lines = st.lists(written | written | st.binary(max_size=40) | st.just(b"x" * 2500), max_size=12)
ends = st.sampled_from([b"\n", b"\r\n", b"\n\n", b"\r", b" \n"])
logs = st.builds(lambda lines, end: end.join(lines), lines, ends)


@relaxed
@given(logs)
def test_the_fast_way_says_what_the_slow_one_says(pool, data):
    fast, slow = read(data, formats["json"], pool), read(data, formats["json"], pool, fast=False)
    assert fast[1] == slow[1]
    assert events(fast[0]) == events(slow[0])
    assert aside(fast[0]) == aside(slow[0])


# One program's lines: written alike, but for what goes wrong in a few of them.
_ALIKE = '{"event_id": "%s", "tenant_id":"acme","service": "%s", "quantity": %s, "timestamp": "%s", "note": %s}'
_OTHER = '{"tenant_id": "acme", "quantity": %s, "note": %s, "timestamp": "%s", "event_id": "%s", "service": "%s"}'
sound = ("e", "api.calls", "1", "2026-11-22T10:15:00Z", '"n"')
odd = (
    st.sampled_from(["e", "é", "", "a\\\\", '\\"', "\t", "\x7f", "\x00", "\ud800", '", "event_id": "f', "x" * 300]),
    st.sampled_from(["api.calls", "credits", "users", "nothing", "api.call", "api.calls "]),
    st.sampled_from(
        ["0", "-0", "-1", "00", "01", "0.5", ".5", "5.", "-.5", "1.2.3", "--1", "1-", "1e3", "NaN", "null", '"2"',
         '"+2"', '" 2"', "12345678901234567.123456789012", "0.1234567890123", "999999999999999999",
         "1000000000000000000", "1 ", "[1]", '{"a": 1}', "", '"0x1"', '"1_0"', '"٣"']
    ),
    st.sampled_from(
        [
            *(f"2026-11-22T10:15:00{part}Z" for part in ("", ".", ".1", ".000001", ".123456789", ".1234567891", ",5")),
            *(f"{day}T10:15:00Z" for day in ("2026-02-29", "2026-11-31", "2026-00-22", "2026-13-22", "2026-11-00")),
            *(f"2026-11-22T{time}" for time in ("24:00:00Z", "10:60:00Z", "10:15:60Z", "1a:15:00Z", "10:15:00.5")),
            *("1969-11-22T10:15:00Z", "2300-11-22T10:15:00Z", "2026-11-22T12:15:00+02:00", "2026-11-22 10:15:00Z"),
            *("", "x", "2026-11-22", "2026-11-22T10:15:00", "2026-11-22T10:15:00z"),
        ]
    ),
    st.sampled_from(['"n"', '""', "1", "1.", "true", '"n', "n", '"n"}', '"\r"', '{"a": "b"}']),
)  # fmt: skip
wrong = st.one_of(*(st.tuples(st.just(place), of_place) for place, of_place in enumerate(odd)))


@st.composite
def alike(draw):
    """A few lines of one shape, or of two, with quantities as numbers or texts, but for one or two values."""
    rows = [list(sound) for _ in range(draw(st.integers(1, 8)))]
    for place, value in draw(st.lists(wrong, max_size=2)):
        rows[draw(st.integers(0, len(rows) - 1))][place] = value
    quoted = draw(st.booleans())
    others = draw(st.sets(st.integers(0, 7)))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    lines = []
    for number, (event_id, service, quantity, time, note) in enumerate(rows):
        told = f'"{quantity}"' if quoted and '"' not in quantity else quantity
        if number in others:
            lines.append(_OTHER % (told, note, time, event_id, service))
        else:
            lines.append(_ALIKE % (event_id, service, told, time, note))
    return "".join(line + end for line in lines).encode("utf-8", "surrogatepass")


@settings(relaxed, max_examples=300)
@given(alike() | st.builds(lambda data, at: data[:at] + b"\xff" + data[at:], alike(), st.integers(0, 400)))
def test_lines_that_are_alike_are_read_as_one_by_one(pool, data):
    fast, slow = read(data, formats["json"], pool), read(data, formats["json"], pool, fast=False)
    assert (fast[1], events(fast[0]), aside(fast[0])) == (slow[1], events(slow[0]), aside(slow[0]))


@settings(relaxed, max_examples=50)
@given(alike())
def test_lines_that_are_alike_but_have_a_member_that_is_not_known(pool, data):
    closed = JsonRecords(closed=True)
    fast, slow = read(data, closed, pool), read(data, closed, pool, fast=False)
    assert (fast[1], events(fast[0]), aside(fast[0])) == (slow[1], events(slow[0]), aside(slow[0]))
    assert not events(fast[0])


def test_lines_that_are_alike_are_not_parsed(pool, monkeypatch):
    data = b"".join(b'{"event_id": "%d", "tenant_id": "acme", "service": "api.calls", "quantity": %d.5, '
                    b'"timestamp": "2026-11-22T10:15:00Z"}\n' % (number, number) for number in range(50))  # fmt: skip
    monkeypatch.setattr(bulk.pj, "read_json", None)
    found = events(read(data, formats["json"], pool)[0])
    assert sorted(row[6] for row in found) == [number + Decimal("0.5") for number in range(50)]


@pytest.mark.parametrize(
    ("line", "closed"),
    [
        (record(note="x"), True),
        (record(event_id=7), False),
        ({name: value for name, value in record().items() if name != "event_id"}, False),
    ],
)
def test_lines_that_can_be_no_usage_are_not_cut_for_nothing(line, closed, monkeypatch):
    data = json.dumps(line).encode() + b"\n"
    monkeypatch.setattr(uniform, "Cut", None)
    made, left = bulk.Bulk(judge, closed=closed).json_lines(text.TextBlock.at(text.Position(), data * 50))
    assert (made, len(list(left))) == ([], 50)


@relaxed
@given(st.lists(good, min_size=1, max_size=20))
def test_good_lines_are_all_read_by_the_fast_way_and_every_quantity_is_exact(pool, good_records):
    data = b"".join(json.dumps(entry).encode() + b"\n" for entry in good_records)
    reader = bulk.Bulk(judge)
    made, left = reader.json_lines(text.TextBlock.at(text.Position(), data))
    assert not left
    rows = [row for batch in made for row in batch.to_pylist()]
    assert [(row["event_id"], row["quantity"]) for row in sorted(rows, key=lambda row: row["line"])] == [
        (entry["event_id"], Decimal(entry["quantity"])) for entry in good_records
    ]


packings = st.sampled_from([bytes, gzip.compress, zstandard.compress])
batches_of_events = st.lists(st.just(cloud_event("x")) | records, max_size=3)
documents = st.builds(json.dumps, batches_of_events, indent=st.sampled_from([None, 1])).map(str.encode)
transcripts = st.builds(
    json.dumps, st.builds(message, st.integers(0, 99), usage=values | st.fixed_dictionaries({"input": values}))
)
anything = st.binary(max_size=300) | logs | documents | transcripts.map(str.encode)


@relaxed
@given(
    st.lists(anything, max_size=4).map(b"\n".join),
    packings,
    st.integers(0, 40),
    st.sampled_from(sorted(formats)),
    st.booleans(),
    st.booleans(),
)
def test_no_bytes_crash_a_reader_and_the_books_balance(pool, data, pack, cut, format, document, finished):
    packed = pack(data)
    packed = packed[: max(0, len(packed) - cut)]
    found, ended = read(packed, formats[format], pool, document=document, finished=finished)
    for batch in found:
        assert batch.lines == batch.event_lines + len(batch.aside)
        assert batch.events == sum(part.num_rows for parts in batch.hours.values() for part in parts)
    if not ended and pack is bytes and not document and format == "transcript":
        whole = sum(1 for line in data[: len(packed)].split(b"\n") if line.strip())
        several = data.count(b"\r") + data.count(b"[")
        assert abs(sum(batch.lines + batch.skipped for batch in found) - whole) <= 40 * several


@relaxed
@given(st.lists(good, min_size=1, max_size=12), st.lists(st.integers(1, 400), max_size=6))
def test_a_file_that_grows_in_any_steps_gives_the_same_events(pool, good_records, steps):
    data = b"".join(json.dumps(entry).encode() + b"\n" for entry in good_records)
    once = events(read(data, formats["json"], pool)[0])
    landed, found, size, reasons = [], [], 0, set()
    for step in [*steps, len(data)]:
        size = min(len(data), size + step)
        made = Text(Kept("a.jsonl", lambda size=size: io.BytesIO(data[:size]), 0), formats["json"])
        try:
            for batch in batches(made, tuple(landed), Reader("logs", made, judge), pool, False):
                landed.append(text_landing(len(landed), batch))
                found.append(batch)
        except InputFault as fault:
            reasons.add(fault.reason)
    assert reasons <= {"waiting"}
    assert events(found) == once


def text_landing(number: int, batch: Batch):
    from clawbill_pipeline.usage.inputs import Landing

    return Landing(number, batch.position, batch.size, batch.digest.hexdigest())
