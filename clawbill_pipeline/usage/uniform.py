"""JSON lines that one program wrote: members alike in name and order, so that quotation marks cut them into columns.

Nothing is parsed but the first line. Of every other one it is proven, in columns as well, that it says the same but
for its values, and that these hold nothing which JSON would write in another way: so each value is just its bytes, and
no digit of a number is lost. What can't be proven is left to a real parser.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Numbers = npt.NDArray[np.int64]

_QUOTE = ord('"')
_MEMBER = re.compile(
    rb'[ \t]*"(?P<name>[^"\\\x00-\x1f]*)"[ \t]*:[ \t]*'
    rb'(?:(?P<text>"[^"\\]*")|(?P<number>-?\d[\d.]*)|true|false|null)[ \t]*[,}]'
)
_OPENING = re.compile(rb"[ \t]*\{")
#: Members by which a record is read in other ways.
_SPECIAL = frozenset({"specversion", "dimensions"})


class Shape(NamedTuple):
    """What all lines have in common: ``texts`` with a value between each and the next one; the last ends the line."""

    texts: tuple[bytes, ...]
    names: tuple[str, ...]
    numbers: frozenset[str]

    @classmethod
    def of(cls, line: bytes) -> Shape | None:
        """The shape of one line, its line feed included; None where it is no flat JSON object, or not for us."""
        opening = _OPENING.match(line)
        if opening is None:
            return None
        texts: list[bytes] = []
        names: list[str] = []
        numbers: list[str] = []
        seen: set[bytes] = set()
        behind, at = 0, opening.end()
        while member := _MEMBER.match(line, at):
            at = member.end()
            name = member["name"]
            if name in seen:
                return None
            seen.add(name)
            kind = "text" if member["text"] is not None else "number"
            if member[kind] is not None:
                begin, end = member.span(kind)
                begin, end = (begin + 1, end - 1) if kind == "text" else (begin, end)
                texts.append(line[behind:begin])
                names.append(name.decode("utf-8", "replace"))
                numbers += names[-1:] if kind == "number" else []
                behind = end
            if line[at - 1 : at] == b"}":
                break
        texts.append(line[behind:])
        ended = line[at - 1 : at] == b"}" and line[at:] in (b"\n", b"\r\n")
        if not ended or not names or _SPECIAL & {name.decode("utf-8", "replace") for name in seen}:
            return None
        return cls(tuple(texts), tuple(names), frozenset(numbers))


def columns(data: bytes, wanted: Collection[str], numbers: Collection[str]) -> Mapping[str, pa.Array] | None:
    """``{name: values as strings}`` of ``wanted`` members in whole lines, and under ``""`` where each line begins.

    None where some line differs in shape from the first one, or where a member is a number that isn't in ``numbers``.
    """
    shape = Shape.of(data[: data.find(b"\n") + 1])
    if shape is None or b"\\" in data or not data.endswith(b"\n") or not shape.numbers & set(wanted) <= set(numbers):
        return None
    characters = np.frombuffer(data, np.uint8)
    marks = np.flatnonzero(characters == _QUOTE)
    counts = [text.count(b'"') for text in shape.texts]
    if len(marks) % sum(counts):
        return None
    grid = marks.reshape(-1, sum(counts))
    lines = len(grid)
    # Where each text begins: its first quotation mark tells, for the last one the beginning of the next line.
    firsts = np.cumsum([0, *counts])
    begins = [grid[:, first] - text.find(b'"') for first, text in zip(firsts, shape.texts[:-1], strict=False)]
    begins.append(np.append(begins[0][1:], len(data)) - len(shape.texts[-1]))
    if begins[0][0] != 0 or not all(_all_are(data, at, text) for at, text in zip(begins, shape.texts, strict=True)):
        return None
    # Below 32 are ASCII's controls: none may stand in a value.
    controls = sum(byte < 32 for text in shape.texts for byte in text)
    if np.count_nonzero(characters < 32) != controls * lines or not _is_utf8(data):
        return None
    found = {"": pa.array(begins[0])}
    for name, (begin, end), text in zip(shape.names, pairwise(begins), shape.texts, strict=False):
        if name not in wanted and name not in shape.numbers:
            continue
        values = _between(data, begin + len(text), end)
        if values is None or (name in shape.numbers and not _are_numbers(values)):
            return None
        found[name] = values
    return found


def _all_are(data: bytes, at: Numbers, text: bytes) -> bool:
    """Whether ``text`` stands in ``data`` at each place."""
    if at[0] < 0 or at[-1] + len(text) > len(data):
        return False
    every = np.ndarray((len(data) - len(text) + 1,), f"V{len(text)}", data, strides=(1,))
    return every[at].tobytes() == text * len(at)


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _between(data: bytes, begin: Numbers, end: Numbers) -> pa.StringArray | None:
    if (end < begin).any():
        return None
    offsets = np.empty(2 * len(begin) + 1, np.int32)
    offsets[:-1:2], offsets[1::2], offsets[-1] = begin, end, len(data)
    # Every other string is a value; what lies between two values is a string, too.
    cut = pa.Array.from_buffers(pa.string(), 2 * len(begin), [None, pa.py_buffer(offsets), pa.py_buffer(data)])
    return cut.take(pa.array(np.arange(0, 2 * len(begin), 2, dtype=np.int32)))


def _are_numbers(values: pa.StringArray) -> bool:
    """Whether all are JSON numbers without an exponent."""
    _, offsets, text = values.buffers()
    ends = np.frombuffer(offsets, np.int32, len(values) + 1)
    begins, ends = ends[:-1], ends[1:]
    if text is None or (begins == ends).any():
        return False
    characters = np.frombuffer(text, np.uint8)[: ends[-1]]
    negative = characters[begins] == ord("-")
    first = begins + negative
    if (first == ends).any():
        return False
    digits = (characters >= ord("0")) & (characters <= ord("9"))
    points = np.flatnonzero(characters == ord("."))
    zero = (characters[first] == ord("0")) & (first + 1 < ends)
    return bool(
        digits[first].all()
        and digits[ends - 1].all()
        and np.count_nonzero(digits) + len(points) + np.count_nonzero(negative) == len(characters)
        and (characters[first[zero] + 1] == ord(".")).all()
        # No two points in one value.
        and len(np.unique(np.searchsorted(ends, points, side="right"))) == len(points)
    )
