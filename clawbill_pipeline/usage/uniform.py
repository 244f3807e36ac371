"""JSON lines that one program wrote: members alike in name and order, so that they can be cut without being parsed.

Only a line in which a shape begins is looked at by itself. Of every other one it is proven that it says the same but
for its values, and that these hold nothing which JSON would write in another way: so each value is just its bytes, and
no digit of a number is lost. What can't be proven is left to a real parser.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clawbill_pipeline.usage.cutting import Places, cut, decimals, gather, times

Numbers = npt.NDArray[np.int64]

DECIMAL = pa.decimal128(38, 12)
TIME = pa.timestamp("us", tz="UTC")
#: Bytes from here on are parts of longer characters.
_ASCII = 128
_MEMBER = re.compile(
    rb'[ \t]*"(?P<name>[^"\\\x00-\x1f]*)"[ \t]*:[ \t]*'
    rb'(?:(?P<text>"[^"\\]*")|(?P<number>-?\d[\d.]*)|true|false|null)[ \t]*[,}]'
)
_OPENING = re.compile(rb"[ \t]*\{")
#: Members by which a record is read in other ways.
_SPECIAL = frozenset({"specversion", "dimensions"})


class Shape(NamedTuple):
    """What lines have in common: ``texts`` with the value of one of ``names`` between each and the next one; the last
    text ends the line. ``members`` are all names, of those too whose value is a part of the text: true, false, null."""

    texts: tuple[bytes, ...]
    names: tuple[str, ...]
    numbers: frozenset[str]
    members: frozenset[str]

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
        members = frozenset(name.decode("utf-8", "replace") for name in seen)
        if not ended or not names or _SPECIAL & members:
            return None
        return cls(tuple(texts), tuple(names), frozenset(numbers), members)


def cut_lines(data: bytes, at: int, shape: Shape | None, most: int, takes: Callable[[Shape], bool]) -> Cut | None:
    """Lines of ``shape``, or else of the shape in which ``data[at:]`` begins; None where it begins in none that
    ``takes`` takes."""
    if shape is not None and (found := Cut(data, at, shape, most)).lines:
        return found
    own = Shape.of(data[at : data.find(b"\n", at) + 1])
    return Cut(data, at, own, most) if own is not None and own != shape and takes(own) else None


class Cut:
    """Lines of one shape, from ``at`` to ``end`` of ``data``, and where in it each value lies."""

    def __init__(self, data: bytes, at: int, shape: Shape, most: int) -> None:
        """Takes lines from ``data[at:]`` on, up to ``most`` of them, until one has another shape."""
        text = b"".join(shape.texts)
        is_number = np.array([name in shape.numbers for name in shape.names])
        self.shape, self._start = shape, at
        self._data = np.frombuffer(data, np.uint8, data.rfind(b"\n") + 1)
        self._begins = np.empty((len(shape.names), most), np.int32)
        self._ends = np.empty((len(shape.names), most), np.int32)
        text_ends = np.cumsum([len(part) for part in shape.texts])
        self.lines: int
        self.end: int
        self.lines, self.end, bits = cut(
            self._data, at, np.frombuffer(text, np.uint8), text_ends, is_number, self._begins, self._ends
        )
        if not (bits < _ASCII and text.isascii()) and not _is_utf8(data[at : self.end]):
            self.lines = 0

    @property
    def begins(self) -> Numbers:
        """Where each line begins, counted from the first one."""
        return self._begins[0, : self.lines].astype(np.int64) - len(self.shape.texts[0]) - self._start

    def texts(self, name: str) -> pa.StringArray:
        """The values of a member as they stand."""
        begins, ends = self._places(name)
        offsets = np.zeros(self.lines + 1, np.int32)
        np.cumsum(ends - begins, out=offsets[1:])
        values = np.empty(offsets[-1], np.uint8)
        gather(self._data, begins, offsets, values)
        return pa.Array.from_buffers(pa.string(), self.lines, [None, pa.py_buffer(offsets), pa.py_buffer(values)])

    def decimals(self, name: str) -> pa.Array:
        """The values of a member as exact decimals. Raises ArrowInvalid where one is none, or has more places."""
        limbs = np.empty((self.lines, 2), np.uint64)
        if decimals(self._data, *self._places(name), limbs):
            return pa.Array.from_buffers(DECIMAL, self.lines, [None, pa.py_buffer(limbs)])
        return self.texts(name).cast(DECIMAL)

    def times(self, name: str) -> pa.Array:
        """The values of a member as times, to the microsecond or nanosecond. Raises ArrowInvalid where one is none."""
        microseconds = np.empty(self.lines, np.int64)
        if times(self._data, *self._places(name), microseconds):
            return pa.Array.from_buffers(TIME, self.lines, [None, pa.py_buffer(microseconds)])
        return self.texts(name).cast(pa.timestamp("ns", tz="UTC"))

    def _places(self, name: str) -> tuple[Places, Places]:
        member = self.shape.names.index(name)
        return self._begins[member, : self.lines], self._ends[member, : self.lines]


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
