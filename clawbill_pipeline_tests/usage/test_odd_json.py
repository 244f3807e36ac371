"""JSON that few programs write: whatever is odd about a line, both ways through the reader say the same of it."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clawbill_pipeline.usage.json_formats import JsonRecords
from clawbill_pipeline_tests.usage.test_properties import aside, events, pool, read, small_pieces  # noqa: F401

NEEDED = ("event_id", "tenant_id", "service", "quantity", "timestamp", "provider", "model", "user")
GOOD = {
    "event_id": '"e1"',
    "tenant_id": '"acme"',
    "service": '"tokens.input"',
    "quantity": "3",
    "timestamp": '"2026-11-22T10:15:00Z"',
    "provider": '"p"',
    "model": '"m"',
}

spaces = st.sampled_from(["", "", "", " ", "\t", "  "])


@st.composite
def written(draw: st.DrawFn, text: str) -> str:
    """A JSON string, some of its characters as escapes."""
    escape = draw(st.sets(st.integers(0, max(len(text) - 1, 0)), max_size=2))
    spelled = (
        f"\\u{ord(character):04x}" if number in escape and ord(character) < 0x10000 else json.dumps(character)[1:-1]
        for number, character in enumerate(text)
    )
    return f'"{"".join(spelled)}"'


numbers = st.sampled_from(
    ["3", "0", "-0", "-1", "1.5", "1e3", "1E+3", "1e-13", "0.1e1", "00", "01", "1.", ".5", "+1", "1e999",
     "1e99999999999", "9" * 27, "123456789012345678.123456789012", "1" + "0" * 400, "NaN", "Infinity", "0x10", "1_0"]
)  # fmt: skip
texts = st.sampled_from(
    ["", "acme", "p", "m", "3", "1e3", "é", "\ud83d\ude00", "\ud800", "\x00", "\x1f", "\x7f", "\u2028", "a\\b", 'a"b']
)
scalars = st.one_of(numbers, st.sampled_from(["true", "false", "null", "nul"]), texts.flatmap(written))


def objects(values: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Objects whose members may be there twice."""
    members = st.lists(st.tuples(st.sampled_from(["a", "b", "quantity", "model"]).flatmap(written), values), max_size=3)
    return members.map(lambda pairs: "{" + ",".join(f"{name}:{value}" for name, value in pairs) + "}")


values = st.recursive(
    scalars,
    lambda inner: objects(inner) | st.lists(inner, max_size=3).map(lambda items: f"[{','.join(items)}]"),
    max_leaves=4,
)
deep = st.sampled_from(["[" * 1500 + "]" * 1500, '{"a":' * 1500 + "1" + "}" * 1500])
names = st.sampled_from([*NEEDED, "note", "other", "dimensions", "specversion", "", "é"])
changes = st.lists(st.tuples(names, values | values | values | deep), max_size=3)


@st.composite
def odd_lines(draw: st.DrawFn) -> bytes:
    """A good record with members changed, repeated, moved and written in other ways."""
    members = [*GOOD.items(), *draw(changes)]
    if draw(st.booleans()):
        members = draw(st.permutations(members))
    if draw(st.booleans()):
        # Told once more, in the same words or in others.
        members.append(draw(st.sampled_from(members)))
    parts = [
        draw(spaces) + draw(written(name)) + draw(spaces) + ":" + draw(spaces) + value + draw(spaces)
        for name, value in members
    ]
    return ("{" + ",".join(parts) + draw(st.sampled_from(["}", "}", "}", ",}", "} ", "}}", "}{}"]))).encode(
        "utf-8", "surrogatepass"
    )


def good_line(number: int) -> bytes:
    return json.dumps({**{name: json.loads(value) for name, value in GOOD.items()}, "event_id": f"g{number}"}).encode()


def same(line: bytes, pool: ThreadPoolExecutor, **options: Any) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:  # noqa: F811
    """What both ways say of a line among others. Fails where they differ."""
    data = b"\n".join([good_line(1), line, good_line(2), *(good_line(n) for n in range(3, 6)), line, b""])
    found = [read(data, JsonRecords(**options), pool, fast=fast) for fast in (True, False)]
    (fast, fast_end), (slow, slow_end) = found
    assert fast_end == slow_end
    assert aside(fast) == aside(slow)
    assert events(fast) == events(slow)
    return events(fast), aside(fast)


def member(name: str, *told: str) -> bytes:
    """A good line with members told at its end."""
    given = {**GOOD, "event_id": '"odd"'}
    return (
        "{" + ",".join([*(f'"{n}":{value}' for n, value in given.items()), *(f'"{name}":{t}' for t in told)]) + "}"
    ).encode()


@settings(deadline=None, max_examples=150)
@given(line=odd_lines(), closed=st.booleans())
@example(line=member("x", "1", "2"), closed=False)
@example(line=member("x", '{"a":1,"a":2}'), closed=False)
@example(line=member("x", "[" * 1500 + "]" * 1500), closed=False)
@example(line=member("x", "1e99999999999999999999"), closed=False)
@example(line=member("event\\u005fid", '"b"'), closed=False)
def test_both_ways_say_the_same_of_an_odd_line(pool, line, closed):  # noqa: F811
    same(line, pool, closed=closed)


@pytest.mark.parametrize("told", [("1", "2"), ("1", "1"), ('{"a":1,"a":2}',), ('[{"quantity":1,"quantity":2}]',)])
def test_what_nobody_needs_may_be_there_twice(pool, told):  # noqa: F811
    found, bad = same(member("note", *told), pool)
    assert (len(found), bad) == (7, [])


@pytest.mark.parametrize("name", ["event_id", "tenant_id", "service", "quantity", "timestamp", "model"])
@pytest.mark.parametrize("spelled", [False, True], ids=["in plain letters", "with an escape"])
def test_what_is_needed_may_not(pool, name, spelled):  # noqa: F811
    # Not even with the same value twice: its writer is broken.
    again = f"\\u{ord(name[0]):04x}{name[1:]}" if spelled else name
    found, bad = same(member(again, GOOD[name]), pool)
    assert (len(found), {(reason, field) for _, reason, field in bad}) == (5, {("ambiguous", name)})


def test_both_values_are_shown(pool):  # noqa: F811
    (batch,), _ = read(member("quantity", "4"), JsonRecords(), pool)
    (entry,) = batch.aside
    assert '"quantity": "3 or 4"' in entry.raw


@pytest.mark.parametrize("name", ["event_id", "tenant_id", "service", "model"])
@pytest.mark.parametrize("number", ["1e999999999", "-1e999999999", "1e-999999999", "1e99999999999999999999", "NaN"])
def test_a_number_that_would_fill_the_memory_is_no_text(pool, name, number):  # noqa: F811
    line = member("x", "1").replace(f'"{name}":{GOOD[name]}'.encode(), f'"{name}":{number}'.encode())
    line = line.replace(b'"event_id":"odd"', b'"event_id":%b' % number.encode()) if name == "event_id" else line
    assert {(reason, field) for _, reason, field in same(line, pool)[1]} == {("not_text", name)}
