"""Values that are read where they lie in a log: exact decimals, times, texts; and what is left to others."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clawbill_pipeline.usage import cutting, uniform
from clawbill_pipeline.usage.uniform import Shape

texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"], exclude_characters='"\\'), max_size=40)
plain = st.builds(lambda digits, places: Decimal(digits).scaleb(-places), st.integers(-(10**18) + 1, 10**18 - 1),
                  st.integers(0, 12))  # fmt: skip


def anything(_: Shape) -> bool:
    return True


def cut_of(lines: list[str]) -> uniform.Cut:
    data = "".join(line + "\n" for line in lines).encode()
    found = uniform.cut_lines(data, 0, None, len(lines) + 1, anything)
    assert found is not None
    return found


@given(st.lists(plain, min_size=1))
@example([Decimal(10**18 - 1), Decimal(1 - 10**18), Decimal("-1e-12"), Decimal("999999.999999999999")])
def test_a_quantity_is_exact(quantities):
    cut = cut_of([f'{{"q":"{quantity:f}","n":{quantity:f}}}' for quantity in quantities])
    limbs = np.empty((len(quantities), 2), np.uint64)
    assert cutting.decimals(cut._data, *cut._places("q"), limbs)
    assert cut.decimals("q").to_pylist() == cut.decimals("n").to_pylist() == quantities


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
times = st.integers(0, 9_214_646_399_999_999).map(lambda passed: EPOCH + timedelta(microseconds=passed))


@given(st.lists(times, min_size=1))
@example(
    [EPOCH, datetime(2000, 2, 29, tzinfo=UTC), datetime(2100, 3, 1, tzinfo=UTC), datetime(2024, 12, 31, tzinfo=UTC)]
)
def test_a_time_is_exact(moments):
    cut = cut_of([f'{{"t":"{moment.replace(tzinfo=None).isoformat()}Z"}}' for moment in moments])
    microseconds = np.empty(len(moments), np.int64)
    assert cutting.times(cut._data, *cut._places("t"), microseconds)
    assert cut.times("t").to_pylist() == moments


@given(st.lists(texts, min_size=1))
def test_a_text_is_what_it_is(values):
    cut = cut_of([f'{{"a":"x","t":"{value}"}}' for value in values])
    assert cut.texts("t").to_pylist() == values
    assert cut.lines == len(values)


@pytest.mark.parametrize("odd", ["1234567890123456789", "+1", " 1", "5.", ".5", "1e3", "-", "."])
def test_a_quantity_that_is_written_in_another_way_is_left_to_arrow(odd):
    cut = cut_of(['{"q":"1"}', f'{{"q":"{odd}"}}'])
    limbs = np.empty((2, 2), np.uint64)
    assert not cutting.decimals(cut._data, *cut._places("q"), limbs)
    try:
        found = cut.decimals("q")
    except pa.ArrowInvalid:
        return
    assert found.to_pylist() == [Decimal(1), Decimal(odd)]


def test_no_place_beyond_the_twelfth_is_lost():
    with pytest.raises(pa.ArrowInvalid):
        cut_of(['{"q":"1"}', '{"q":"0.0000000000001"}']).decimals("q")


def test_a_cut_ends_where_the_shape_does():
    data = b'{"a":"1"}\n{"a":"2"}\n{"b":"3"}\n{"a":"4"}\n'
    first = uniform.cut_lines(data, 0, None, 10, anything)
    assert first is not None
    assert (first.lines, first.end, first.texts("a").to_pylist()) == (2, 20, ["1", "2"])
    second = uniform.cut_lines(data, first.end, first.shape, 10, anything)
    assert second is not None
    assert (second.shape.names, second.lines, second.begins.tolist()) == (("b",), 1, [0])


def test_a_shape_that_is_not_wanted_is_not_cut(monkeypatch):
    monkeypatch.setattr(uniform, "cut", None)
    seen: list[Shape] = []
    assert uniform.cut_lines(b'{"a":"1"}\n{"a":"2"}\n', 0, None, 10, lambda shape: bool(seen.append(shape))) is None
    assert [shape.names for shape in seen] == [("a",)]


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b'{"a":[1]}', b'{"a":"1","a":"2"}', b'{"a":"\\n"}', b'{"a":1e3}', b'{"a":true}',
             b'{"specversion":"1.0"}', b'{"a":"1"', b'{"a":"1"}{"a":"2"}'])  # fmt: skip
def test_what_has_no_shape(line):
    assert Shape.of(line + b"\n") is None


def test_a_last_line_without_its_line_feed_is_no_line():
    assert uniform.cut_lines(b'{"a":"1"}', 0, None, 10, anything) is None
    found = uniform.cut_lines(b'{"a":"1"}\n{"a":"2"}', 0, None, 10, anything)
    assert found is not None
    assert found.lines == 1
