"""Parquet files as usage: whole files, in row groups. A file that changed is flagged; none is ever continued."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from clawbill_pipeline.usage.events import Fault
from clawbill_pipeline.usage.inputs import Format, InputFault, Landing, Line
from clawbill_pipeline.usage.mapped import row_text
from clawbill_pipeline.usage.stored import Stored

#: Rows read at a time: no fewer than the writers' usual row groups have.
_ROWS = 131_072


class ParquetBlock(NamedTuple):
    """Rows of a file; a line's number is its row's, from 1. ``data`` are the bytes that this landing is known by.

    ``doubtful`` names columns of text that somewhere is none, and which the rows have as bytes.
    """

    rows: pa.RecordBatch
    first: int
    data: bytes
    whole: bool = True
    doubtful: frozenset[str] = frozenset()

    @property
    def position(self) -> str:
        return f"row {self.first + self.rows.num_rows}"

    @property
    def size(self) -> int:
        return int(self.rows.nbytes)

    def lines(self) -> Iterator[Line]:
        return self.part(range(self.rows.num_rows))

    def part(self, indices: Iterable[int]) -> Iterator[Line]:
        """The rows at ``indices`` as lines of JSON."""
        wanted = [int(index) for index in indices]
        rows = self.rows.take(pa.array(wanted, pa.int64()))
        columns = [_values(column) for column in rows.columns]
        for index, *values in zip(wanted, *columns, strict=True):
            row = dict(zip(rows.schema.names, values, strict=True))
            fault = self._decode(row)
            yield Line(self.first + index + 1, 0, row_text(row), fault)

    def _decode(self, row: dict[str, Any]) -> Fault | None:
        for name in self.doubtful:
            if row[name] is not None:
                try:
                    row[name] = row[name].decode()
                except UnicodeDecodeError:
                    return Fault("broken_utf8", name, f"{name!r} is no UTF-8; write the file again")
        return None


class Parquet:
    """A Parquet file as an input. ``few`` are columns of text whose values repeat: they are read as dictionaries."""

    def __init__(self, stored: Stored, format: Format, few: Sequence[str] = ()) -> None:
        self._stored = stored
        self.uri = stored.uri
        self.format = format
        self.looks_back = True
        self._few = list(few)

    def size(self) -> int:
        return self._stored.size()

    def stamp(self) -> list[int | str] | None:
        return self._stored.stamp()

    def line_at(self, number: int, offset: int) -> Line:
        for block in self._rows(b""):
            if block.first < number <= block.first + block.rows.num_rows:
                return next(block.part([number - 1 - block.first]))
        raise InputFault("gone", f"{self.uri} has no row {number} any more")

    def blocks(self, landed: Sequence[Landing], *, finished: bool) -> Iterator[ParquetBlock]:
        with self._stored.open() as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        if landed:
            # The first landing of a file is known by the digest's own digest: later ones are of the same bytes.
            if hashlib.sha256(digest).hexdigest() != landed[0].sha256:
                raise InputFault(
                    "changed_in_place",
                    f"the file is not what landing {landed[0].id} read; it was left alone. Put new usage into a new "
                    "file, and corrections under event ids of their own",
                    place=f"a file of {self.size()} bytes",
                )
            return
        yield from self._rows(digest)

    def _rows(self, data: bytes) -> Iterator[ParquetBlock]:
        first = 0
        try:
            with pq.ParquetFile(self._stored.for_arrow()) as file:
                metadata = file.metadata
            there = {metadata.schema.column(number).path for number in range(metadata.num_columns)}
            few = [name for name in self._few if name in there]
            with pq.ParquetFile(self._stored.for_arrow(), metadata=metadata, read_dictionary=few) as file:
                for rows in file.iter_batches(_ROWS):
                    sound, doubtful = _sound(rows)
                    yield ParquetBlock(sound, first, data, doubtful=doubtful)
                    first, data = first + rows.num_rows, b""
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise InputFault(
                "corrupt_file", f"no Parquet file that can be read ({error}); put the whole file there"
            ) from None


def _sound(rows: pa.RecordBatch) -> tuple[pa.RecordBatch, frozenset[str]]:
    """``(the rows, names of columns that are not the text that they should be, and so given as bytes)``.

    Raises ArrowException for rows that are broken in another way.
    """
    try:
        rows.validate(full=True)
    except pa.ArrowInvalid:
        plain = [_plain(column) for column in rows.columns]
        texts = {name for name, column in zip(rows.schema.names, plain, strict=True) if pa.types.is_string(column.type)}
        columns = [column.cast(pa.binary()) if pa.types.is_string(column.type) else column for column in plain]
        rows = pa.RecordBatch.from_arrays(columns, rows.schema.names)
        rows.validate(full=True)
        return rows, frozenset(texts)
    return rows, frozenset()


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _values(column: pa.Array) -> list[Any]:
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):  # a time that Python has none of: as text, it is found to be none of ours
        return list(column.cast(pa.string()).to_pylist())
