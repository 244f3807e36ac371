"""Posted CloudEvents in columns: the same answers as the slow way's, event by event, or none at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clawbill_pipeline.usage.event_columns import EventColumns
from clawbill_pipeline.usage.events import Fault, Judge
from clawbill_pipeline.usage.ingested import RequestBlock
from clawbill_pipeline.usage.inputs import Line
from clawbill_pipeline.usage.json_formats import CloudEventRecords
from clawbill_pipeline.usage.reading import OneByOne
from clawbill_pipeline_tests.usage.conftest import NOW, catalogue

JUDGE = Judge(catalogue({"name": "posted", "kind": "http"}), NOW)
COLUMNS = EventColumns(JUDGE)


def event(event_id: str = "e1", **changes: Any) -> dict[str, Any]:
    good = {
        "specversion": "1.0", "id": event_id, "source": "/m", "type": "tokens.input", "subject": "acme",
        "time": "2026-11-22T10:15:00Z", "data": {"quantity": 3, "provider": "mockai", "model": "mock-large"},
    }  # fmt: skip
    return {name: value for name, value in {**good, **changes}.items() if value is not ...}


def slowly(requests: list[tuple[int, bytes]]) -> tuple[list[dict[str, Any]], set[int]]:
    """``(events of requests that are good throughout, numbers of the others)``, read one by one."""
    events, left = [], set()
    for number, body in requests:
        slow = OneByOne("posted", "POST /usage", CloudEventRecords(), JUDGE)
        slow.read(Line(number, 0, body))
        if slow.aside:
            left.add(number)
        elif slow.events:
            events += slow.batch().to_pylist()
    return events, left


def quickly(requests: list[tuple[int, bytes]]) -> tuple[list[dict[str, Any]], set[int]]:
    batches, left = COLUMNS.read(requests)
    events = [row for batch in batches for row in batch.to_pylist()]
    return sorted(events, key=lambda row: row["line"]), {number for number, _ in left}


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**30), st.text(max_size=5),
    st.sampled_from(["", "acme", "1.5", "1e3", "-1", "NaN", "/a b", "/a\u2003b", "/é", "x" * 513, "no tenant", "1.0",
                     "api.calls", "tokens.input", "users", "2026-11-22", "2026-11-23T00:06:00Z",
                     "2026-11-22T10:15:00.1234567Z",
                     "2026-10-31T00:00:00Z", "2026-11-22T10:15:00+05:30", "2026-11-22t10:15:00z", "1e-13", "0.1"]),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-9, max_value=9).map(str),
)  # fmt: skip
members = st.sampled_from(
    ["specversion", "id", "source", "type", "subject", "time", "model", "provider", "user_id", "extra"]
)
changed = st.dictionaries(members, st.one_of(scalars, st.just(...)), max_size=3)
data = st.one_of(
    st.just({"quantity": 3, "provider": "p", "model": "m"}),
    st.dictionaries(st.sampled_from(["quantity", "model", "provider", "user_id", "extra"]), scalars, max_size=4),
    scalars,
)
events = st.builds(lambda changes, data: event(**{**changes, "data": data}), changed, data)
bodies = st.lists(st.one_of(events, st.builds(event)), max_size=4).map(json.dumps) | events.map(json.dumps)


@given(st.lists(bodies, max_size=4))
@example(
    [json.dumps([event("a"), event("b", type="api.calls", data={"quantity": "1.50"})]), "[]", json.dumps(event("c"))]
)
@example([json.dumps([event(model="top", data={"quantity": 1, "provider": "p"})])])
@example([json.dumps([event(model="top", data={"quantity": 1, "provider": "p", "model": None})])])
def test_what_is_taken_in_columns_is_what_is_taken_one_by_one(found: list[str]) -> None:
    requests = [(number, body.encode()) for number, body in enumerate(found, 7)]
    all_events, bad = slowly(requests)
    taken, left = quickly(requests)
    # What it hands back is judged one by one; what it takes is the same to the last digit.
    assert bad <= left
    assert taken == [row for row in all_events if row["line"] not in left]


def test_good_events_are_taken_and_only_requests_with_others_are_left() -> None:
    requests = [(n, json.dumps([event(f"{n}-{i}") for i in range(3)]).encode()) for n in range(100)]
    requests[41] = (41, json.dumps([event("41-0"), event("41-1", data={}), event("41-2")]).encode())
    requests[60] = (
        60,
        json.dumps(event("60", data={"quantity": 7, "provider": "p", "model": "m", "x": None})).encode(),
    )
    taken, left = quickly(requests)
    assert left >= {41}
    assert len(left) <= 32  # a member that is null costs its neighbours the fast way, no more
    assert {row["line"] for row in taken} == set(range(100)) - left
    assert (taken, {41}) == ([row for row in slowly(requests)[0] if row["line"] not in left], slowly(requests)[1])


@pytest.mark.parametrize("body", [b"{}]}", b'{"id": "a"}, {"id": "b"}', b'[], "requests": []', b"[", b"7", b"\xff"])
def test_a_body_cannot_reach_out_of_its_place(body: bytes) -> None:
    good = json.dumps(event()).encode()
    taken, left = quickly([(1, good), (2, body), (3, good)])
    assert left == {1, 2, 3} - {row["line"] for row in taken}
    assert 2 in left


def test_a_block_says_where_it_ends() -> None:
    block = RequestBlock([(3, b"{}"), (5, b"[]")])
    assert (block.position, block.size, [line.number for line in block.lines()]) == ("request 5", 4, [3, 5])


def test_a_dimension_of_an_attributes_name_is_left_to_the_slow_way() -> None:
    # ``source`` as a dimension is told by data or by the attribute; one by one knows which.
    services = {"x": JUDGE.services["tokens.input"].model_copy(update={"dimensions": ("source",)})}
    judge = Judge(catalogue({"name": "posted", "kind": "http"}), NOW)
    judge.services = services
    request = (1, json.dumps(event(type="x", data={"quantity": 1})).encode())
    assert EventColumns(judge).read([request]) == ([], [request])
    with pytest.raises(Fault):
        JUDGE.event(CloudEventRecords().claims(event(type="x"))[0])  # type: ignore[index]
