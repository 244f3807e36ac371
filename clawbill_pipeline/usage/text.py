"""Text files as lines: plain, gzip or zstd; grown, finished, changed in place or cut off. Not what a line means.

Half lines. A line ends with a line feed. A last line without one is read if it is a whole JSON value, since no part
of a JSON object or array is one itself. Otherwise it waits for its writer; once the file has rested for an hour, the
half line goes to quarantine, and is read all the same should it be completed later; of text that is not JSON, no one
can tell a half line from a whole one, so the last line of a file at rest is read as it is. Where the end is known to
be the end (compressed files, ``finished``), the last line is a line like any other.

Compressed files are read as a whole or not at all: their checksum is at the end.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from json import loads as parse_json
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from clawbill_pipeline.usage.events import Fault
from clawbill_pipeline.usage.inputs import Format, InputFault, Landing, Line
from clawbill_pipeline.usage.stored import Stored

#: A longer line is set aside without being held in memory.
LONGEST_LINE = 16 * 1024 * 1024
#: A file of one JSON document (.json) is read whole.
LONGEST_DOCUMENT = 256 * 1024 * 1024
#: Bytes read at a time.
PIECE = 4 * 1024 * 1024
#: How long a file must have been at rest until its half last line is taken for cut off.
REST_SECONDS = 3600
#: Bytes of an over-long line that are kept to be looked at.
_KEPT = 4096

#: Bytes read at a time where the first line is looked for.
_FIRST = 64 * 1024

_LINE_FEED = ord("\n")
_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}


@dataclass(frozen=True, slots=True)
class Position:
    """How far a text was read. A text that was read again from its start has the next ``generation``."""

    byte: int = 0
    line: int = 0
    generation: int = 0

    def __str__(self) -> str:
        again = f", reading {self.generation}" if self.generation else ""
        return f"byte {self.byte}, line {self.line}{again}"

    @classmethod
    def parse(cls, text: str) -> Position:
        return cls(*(int(part.split()[1]) for part in text.split(", ")))


class TextBlock(NamedTuple):
    """Whole lines of a text, a document, or a piece of a line that is too long."""

    data: bytes
    start: Position
    end: Position
    kind: str = "lines"

    @classmethod
    def at(cls, start: Position, data: bytes, kind: str = "lines") -> TextBlock:
        # NumPy counts three times as fast as bytes do, once it is under way.
        feeds = int(np.count_nonzero(np.frombuffer(data, np.uint8) == _LINE_FEED))
        end = Position(start.byte + len(data), start.line + feeds, start.generation)
        return cls(data, start, end, kind)

    @property
    def position(self) -> str:
        return str(self.end)

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def whole(self) -> bool:
        return self.kind not in ("long line", "piece")

    def lines(self) -> Iterator[Line]:
        if self.kind == "document":
            yield Line(self.start.line + 1, self.start.byte, self.data)
        elif self.kind == "long line":
            yield self.line(0, 0, len(self.data))
        elif self.kind == "lines":
            begin = 0
            for index, raw in enumerate(self.data.split(b"\n")):
                if raw and not raw.isspace():
                    yield self.line(index, begin, begin + len(raw))
                begin += len(raw) + 1

    def line(self, index: int, begin: int, end: int) -> Line:
        """The line that is the ``index``th and lies in ``data[begin:end]``."""
        number, offset = self.start.line + 1 + index, self.start.byte + begin
        if end - begin <= LONGEST_LINE:
            return Line(number, offset, self.data[begin:end])
        fault = Fault(
            "line_too_long",
            "line",
            f"the line has more than {LONGEST_LINE:,} bytes; write one usage event a line, each with a line feed",
        )
        return Line(number, offset, self.data[begin : begin + _KEPT], fault)


class Text:
    """A text as an input. ``json``: its lines are JSON values, and a file named ``.json`` may be one document."""

    def __init__(self, stored: Stored, format: Format, *, json: bool = True, read_again: bool = False) -> None:
        self.uri = stored.uri
        self.format = format
        self.looks_back = True
        self._stored = stored
        self._document = json and stored.name.endswith(".json")
        self._json = json
        self.read_again = read_again

    def size(self) -> int:
        return self._stored.size()

    def stamp(self) -> list[int | str] | None:
        return self._stored.stamp()

    def blocks(self, landed: Sequence[Landing], *, finished: bool) -> Iterator[TextBlock]:
        newest = Position.parse(landed[-1].position) if landed else Position()
        with self._bytes() as (stream, compressed):
            changed = self._change(stream, landed, newest.generation)
            if changed is None:
                yield from self._new(stream, newest, finished=finished or compressed)
                return
        if not self.read_again:
            raise changed
        with self._bytes() as (stream, compressed):
            yield from self._new(stream, Position(generation=newest.generation + 1), finished=finished or compressed)

    def first_line(self) -> bytes:
        """The text's first line: the names of a CSV file."""
        data = b""
        with self._bytes() as (stream, _):
            while b"\n" not in data and len(data) < LONGEST_LINE and (piece := _read(stream, _FIRST)):
                data += piece
        return data.partition(b"\n")[0]

    def line_at(self, number: int, offset: int) -> Line:
        with self._bytes() as (stream, compressed):
            at = Position(offset, number - 1)
            skipped = 0 if compressed else stream.seek(offset)
            while skipped < offset and (piece := _read(stream, min(PIECE, offset - skipped))):
                skipped += len(piece)
            data = _read(stream, LONGEST_DOCUMENT if self._document else LONGEST_LINE)
        kind = "document" if self._document and not offset and not _is_lines(data) else "lines"
        for line in TextBlock.at(at, data, kind).lines():
            return line
        raise InputFault("gone", f"{self.uri} has no line at byte {offset} any more")

    @contextmanager
    def _bytes(self) -> Iterator[tuple[Any, bool]]:
        """The uncompressed bytes. Whatever breaks decompression is an InputFault."""
        with self._stored.open() as raw:
            head = raw.read(4)
            raw.seek(0)
            compression = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
            if compression is None:
                yield raw, False
                return
            try:
                with pa.CompressedInputStream(pa.PythonFile(raw, "r"), compression) as stream:
                    yield stream, True
            except OSError as error:
                if error.errno is not None:
                    raise
                cut_off = "truncated" in str(error).lower()
                raise InputFault(
                    "truncated_file" if cut_off else "corrupt_file",
                    f"the {compression} data {'ends too early' if cut_off else f'is damaged ({error})'}; nothing of "
                    "the file was read. Put the whole file in its place",
                ) from None

    def _change(self, stream: Any, landed: Sequence[Landing], generation: int) -> InputFault | None:
        """Reads what was landed and compares it; ``stream`` stands behind it afterwards."""
        start = 0
        for landing in landed:
            position = Position.parse(landing.position)
            if position.generation != generation:
                continue
            if _digest(stream, position.byte - start) != landing.sha256:
                return InputFault(
                    "changed_in_place",
                    f"bytes {start} to {position.byte} are not what landing {landing.id} read; nothing new of the file "
                    "was read. Put new usage into a new file, and corrections under event ids of their own",
                    place=f"bytes {start} to {position.byte} of a file of {self.size()}",
                )
            start = position.byte
        return None

    def _new(self, stream: Any, at: Position, *, finished: bool) -> Iterator[TextBlock]:
        if self._document and not at.byte:
            document = _read(stream, LONGEST_DOCUMENT)
            if not _is_lines(document):
                yield from self._end(document, at, "document", finished=finished)
                return
            stream = io.BytesIO(document)
        rest = b""
        while piece := _read(stream, PIECE):
            cut = piece.rfind(b"\n") + 1
            if cut:
                block = TextBlock.at(at, b"".join((rest, memoryview(piece)[:cut])))
                yield block
                at, rest = block.end, piece[cut:]
            else:
                rest += piece
            if len(rest) > LONGEST_LINE:
                at, rest = yield from _long_line(stream, rest, at)
        yield from self._end(rest, at, "lines", finished=finished)

    def _end(self, rest: bytes, at: Position, kind: str, *, finished: bool) -> Iterator[TextBlock]:
        """The last line, which no line feed ends, or a document."""
        if not rest or rest.isspace():
            return
        rested = self._stored.rested(REST_SECONDS)
        if finished or _is_json(rest) or (rested and not self._json):
            yield TextBlock.at(at, rest, kind)
            return
        raise InputFault(
            "cut_off_line" if rested else "waiting",
            f"the last line ends in its middle after {len(rest)} bytes; it is read once its writer completes it",
            place=f"line {at.line + 1}, byte {at.byte}",
            raw=self.format.raw(Line(at.line + 1, at.byte, rest))[:_KEPT],
            keep=True,
            passing=not rested,
        )


def _long_line(stream: Any, rest: bytes, at: Position) -> Generator[TextBlock, None, tuple[Position, bytes]]:
    """Passes over a line that is too long, in pieces; returns where it ends and what was read behind it."""
    kind = "long line"
    while b"\n" not in rest and (piece := _read(stream, PIECE)):
        block = TextBlock.at(at, rest, kind)
        yield block
        at, rest, kind = block.end, piece, "piece"
    cut = rest.find(b"\n") + 1 or len(rest)
    block = TextBlock.at(at, rest[:cut], "last piece" if kind == "piece" else kind)
    yield block
    at, rest = block.end, rest[cut:]
    if cut := rest.rfind(b"\n") + 1:
        block = TextBlock.at(at, rest[:cut])
        yield block
        at = block.end
    return at, rest[cut:]


def _read(stream: Any, size: int) -> bytes:
    # Raw files may give less than they are asked for, and Arrow's streams give their own bytes-like objects.
    data = bytes(stream.read(size))
    while data and len(data) < size and (more := stream.read(size - len(data))):
        data += more
    return data


def _digest(stream: Any, size: int) -> str:
    digest = hashlib.sha256()
    while size > 0 and (piece := _read(stream, min(size, PIECE))):
        digest.update(piece)
        size -= len(piece)
    return digest.hexdigest() if size == 0 else ""


def _is_json(data: bytes) -> bool:
    if not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"{", b"[")):
        return False
    try:
        parse_json(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return False
    return True


def _is_lines(document: bytes) -> bool:
    """Whether a ``.json`` file is JSON lines after all: its first line is a value, and there are more."""
    first, _, more = document.lstrip().partition(b"\n")
    return bool(more.strip()) and _is_json(first)
