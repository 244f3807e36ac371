"""The fast way for many lines: Arrow reads and checks a block of JSON lines in columns. It knows no reason for a fault.

It takes only lines that are usage events beyond doubt, by the rules of ``events``; all others it hands back, to be
judged one by one. Arrow's JSON reader keeps the digits of a number until it makes a decimal of them, and refuses what
does not fit: DuckDB and pandas go through a float here. A property test holds both ways to the same answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from clawbill_pipeline.catalog.names import dimension_set
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.catalog.sources import Mapping, Value
from clawbill_pipeline.money import EXACT, SCALE
from clawbill_pipeline.usage import text
from clawbill_pipeline.usage.events import LONGEST_DIMENSION, LONGEST_ID, MOST, TENANT, Judge
from clawbill_pipeline.usage.inputs import Line
from clawbill_pipeline.usage.parquet import ParquetBlock
from clawbill_pipeline.usage.text import Position, TextBlock

if TYPE_CHECKING:
    from clawbill_pipeline.usage.uniform import Cut, Shape

#: Tenants, services and dimension sets are few and repeat.
FEW = pa.dictionary(pa.int32(), pa.string())
#: Events without what is the same for a whole landing.
COLUMNS = pa.schema(
    [
        pa.field("line", pa.int64(), nullable=False),
        pa.field("byte_offset", pa.int64(), nullable=False),
        pa.field("event_id", pa.string(), nullable=False),
        pa.field("tenant_id", FEW, nullable=False),
        pa.field("service", FEW, nullable=False),
        pa.field("dimensions", FEW, nullable=False),
        pa.field("quantity", pa.decimal128(38, 12), nullable=False),
        pa.field("event_time", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("unique_value", FEW, nullable=False),
        pa.field("cost", pa.decimal128(38, 12)),
    ]
)
_QUANTITY = pa.decimal128(38, 12)
_MOST = pa.scalar(EXACT.subtract(MOST, Decimal(1).scaleb(-SCALE)), _QUANTITY)
_LEAST = pa.scalar(_MOST.as_py().copy_negate(), _QUANTITY)
# Nine digits of a second are common in logs; they are cut to the lake's six afterwards.
_TIME = pa.timestamp("ns", tz="UTC")
_NEEDED = frozenset({"event_id", "tenant_id", "service", "quantity", "timestamp"})
_ZERO = pa.scalar(Decimal(0), _QUANTITY)
#: So few lines are judged one by one rather than looked at again in smaller parts.
_FEW_LINES = 32
_PARTS = 16
#: Blocks of fewer bytes are not looked through for lines that are alike.
_LARGE = 1024 * 1024
#: So many lines that are alike are cut together: fewer cost more than to parse them (a piece takes about a millisecond,
#: however few they are), more would fill the memory.
_LEAST_LINES, _MOST_LINES = 2_048, 32_768

Numbers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class Bulk:
    """Reads blocks for one catalogue at one moment. Safe across threads."""

    def __init__(self, judge: Judge, *, closed: bool = False) -> None:
        self._services = judge.services
        self._start = pa.scalar(judge.start, pa.timestamp("us", tz="UTC"))
        self._latest = pa.scalar(judge.latest, pa.timestamp("us", tz="UTC"))
        self._unique_by = {name: service.unique_by for name, service in judge.services.items() if service.unique_by}
        named = {name for service in judge.services.values() for name in service.dimensions}
        self._dimensions = sorted(named | set(self._unique_by.values()))
        words = dict.fromkeys(("event_id", "tenant_id", "service", *self._dimensions, "specversion"), pa.string())
        fields = {**words, "quantity": _QUANTITY, "timestamp": _TIME}
        self._words = frozenset(fields)
        self._closed = closed
        self._catalogue = pa.array([name for name in judge.tenants if TENANT.fullmatch(name)], pa.string())
        self._parse = pj.ParseOptions(
            explicit_schema=pa.schema(fields), unexpected_field_behavior="error" if closed else "ignore"
        )

    @property
    def dimensions(self) -> Sequence[str]:
        """What some service is priced by, or counts the values of."""
        return self._dimensions

    def rows(self, block: ParquetBlock, mapping: Mapping) -> tuple[list[pa.RecordBatch], Iterable[Line], int]:
        """The same of Parquet rows, where the mapping only names fields and each is of a fitting type.

        The third is how many of the rows have a quantity of nothing, which the mapping passes over.
        """
        given = self._given(block.rows, mapping)
        if given is None:
            return [], block.lines(), 0
        columns, good = self.checked(given)
        nothing = np.empty(0, np.int64)
        if mapping.usage[0].skip_zero:
            none = pc.equal(given["quantity"], _ZERO).fill_null(True).to_numpy(zero_copy_only=False)
            nothing = np.flatnonzero(none)
            some = ~none[good]
            if not some.all():
                good, columns = good[some], [column.filter(pa.array(some)) for column in columns]
        places = [pa.array(good + block.first + 1), pa.array(np.zeros(len(good), np.int64))]
        batch = pa.RecordBatch.from_arrays([*places, *columns], schema=COLUMNS)
        left = block.part(np.delete(np.arange(block.rows.num_rows), np.concatenate([good, nothing])))
        return [batch] if len(good) else [], left, len(nothing)

    def _given(self, rows: pa.RecordBatch, mapping: Mapping) -> dict[str, pa.Array] | None:
        (measure, *more) = mapping.usage
        if more or measure.quantity.scale != 1 or not mapping.timestamp.is_plain or mapping.event_id is None:
            return None
        words = {"event_id": mapping.event_id, "tenant_id": mapping.tenant_id, "service": measure.service}
        nothing = pa.nulls(rows.num_rows, pa.string())
        try:
            given = {name: _texts(rows, value) for name, value in (words | dict(mapping.dimensions)).items()}
            time, quantity = (_column(rows, value) for value in (mapping.timestamp, measure.quantity))
            if not pa.types.is_timestamp(time.type):
                return None
            if not pa.types.is_decimal(quantity.type) and not pa.types.is_integer(quantity.type):
                return None
            given |= {"timestamp": time, "quantity": quantity.cast(_QUANTITY)}
        except (KeyError, pa.ArrowInvalid):
            return None
        if any(_has_nul(given[name]) for name in given.keys() & {"event_id", *self._dimensions}):
            return None
        return given | dict.fromkeys({*self._dimensions, "specversion"} - given.keys(), nothing)

    def json_lines(self, block: TextBlock) -> tuple[list[pa.RecordBatch], Iterable[Line]]:
        """``(events as batches of COLUMNS, lines that are left over)`` of a block of whole lines."""
        batches: list[pa.RecordBatch] = []
        left: list[Line] = []
        for piece, cut in self._pieces(block):
            given = self._given_texts(cut) if cut is not None else None
            found, rest = self._cut(piece, cut, given) if cut is not None and given else self._parsed(piece)
            batches += found
            left += rest
        return batches, left

    def _pieces(self, block: TextBlock) -> Iterator[tuple[TextBlock, Cut | None]]:
        """The block in pieces: lines that are all alike and were cut, and what lies between them."""
        data, at, begin, rest, passed = block.data, block.start, 0, 0, 1
        if len(data) < _LARGE:
            yield block, None
            return
        # Numba takes half a second to be there, which small logs would not get back.
        from clawbill_pipeline.usage import uniform

        shape: uniform.Shape | None = None
        while begin < len(data):
            cut = uniform.cut_lines(data, begin, shape, _MOST_LINES, self._takes)
            if cut is None or cut.lines < _LEAST_LINES:
                # Of lines that differ from one another, ever more are passed over together.
                begin = data.find(b"\n", begin + passed) + 1 or len(data)
                passed *= 2
                continue
            if rest < begin:
                between = TextBlock.at(at, data[rest:begin])
                yield between, None
                at = between.end
            shape, passed = cut.shape, 1
            end = Position(at.byte + cut.end - begin, at.line + cut.lines, at.generation)
            yield TextBlock(data[begin : cut.end], at, end), cut  # mostly the whole block, of which this is no copy
            at, begin, rest = end, cut.end, cut.end
        if rest < len(data):
            yield TextBlock.at(at, data[rest:]), None

    def _takes(self, shape: Shape) -> bool:
        """Whether lines of that shape may be usage events: they have the members that those need, in the right form,
        and, where the source is closed, no other one."""
        is_usage = _NEEDED.issubset(shape.names) and shape.numbers & self._words <= {"quantity"}
        return is_usage and (not self._closed or shape.members <= self._words)

    def _given_texts(self, cut: Cut) -> dict[str, pa.Array] | None:
        """The members as ``checked`` takes them; None where a quantity or a time is none."""
        nothing = pa.nulls(cut.lines, pa.string())
        words = self._words - {"quantity", "timestamp"}
        given = {name: cut.texts(name) if name in cut.shape.names else nothing for name in words}
        try:
            return given | {"quantity": cut.decimals("quantity"), "timestamp": cut.times("timestamp")}
        except pa.ArrowInvalid:
            return None

    def _cut(
        self, piece: TextBlock, cut: Cut, given: dict[str, pa.Array]
    ) -> tuple[list[pa.RecordBatch], Iterable[Line]]:
        """The events of lines that were cut."""
        columns, good = self.checked(given)
        lines, offsets = np.arange(cut.lines), cut.begins
        batches: list[pa.RecordBatch] = []
        if len(good):
            places = [pa.array(lines[good] + piece.start.line + 1), pa.array(offsets[good] + piece.start.byte)]
            batches.append(pa.RecordBatch.from_arrays([*places, *columns], schema=COLUMNS))
        ends = np.append(offsets[1:], len(piece.data)) - 1
        others = np.delete(lines, good)
        return batches, [piece.line(int(line), int(offsets[line]), int(ends[line])) for line in others]

    def _parsed(self, block: TextBlock) -> tuple[list[pa.RecordBatch], Iterable[Line]]:
        """The same by Arrow's JSON reader."""
        data = block.data
        characters = np.frombuffer(data, np.uint8)
        ends = np.flatnonzero(characters == ord("\n"))
        if not data.endswith(b"\n"):
            ends = np.append(ends, len(data))
        starts = np.concatenate(([0], ends[:-1] + 1))
        whole = _whole(characters, starts, ends)
        batches: list[pa.RecordBatch] = []
        left: list[Numbers] = [np.flatnonzero(~whole)]
        pending = [np.flatnonzero(whole)]
        while pending:
            lines = pending.pop()
            found = self._columns(_text(data, starts, ends, lines), len(lines)) if len(lines) else None
            if found is not None:
                table, good = found
                if len(good) < len(lines):
                    left.append(np.delete(lines, good))
                    lines = lines[good]
                if len(lines):
                    places = [pa.array(lines + block.start.line + 1), pa.array(starts[lines] + block.start.byte)]
                    batches.append(pa.RecordBatch.from_arrays([*places, *table], schema=COLUMNS))
            elif len(lines) <= _FEW_LINES:
                left.append(lines)
            else:
                pending += np.array_split(lines, _PARTS)
        rest = np.sort(np.concatenate(left))
        lines_left = (block.line(int(number), int(starts[number]), int(ends[number])) for number in rest)
        return batches, [line for line in lines_left if line.raw and not line.raw.isspace()]

    def _columns(self, data: bytes, lines: int) -> tuple[list[pa.Array], Numbers] | None:
        """``(columns without places, numbers of the lines in them)``, or None where Arrow can't read all lines."""
        buffer = pa.py_buffer(data)
        if b"\\" in data and b"\\u0000" in data:  # to look for one character is ten times faster
            return None
        try:
            pa.Array.from_buffers(
                pa.string(), 1, [None, pa.py_buffer(np.array([0, len(data)], np.int32)), buffer]
            ).validate(full=True)
            options = pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
            table = pj.read_json(pa.BufferReader(buffer), read_options=options, parse_options=self._parse)
        except pa.ArrowInvalid:
            return None
        if table.num_rows != lines:
            return None
        return self.checked({name: _one(table[name]) for name in table.column_names})

    def checked(self, given: dict[str, pa.Array]) -> tuple[list[pa.Array], Numbers]:
        """``(columns without places of those that are usage events beyond doubt, which of them these are)``.

        ``given`` has event_id, tenant_id, service, quantity, timestamp, specversion and all ``dimensions``; texts but
        event_id may be dictionaries.
        """
        event_id, quantity = given["event_id"], given["quantity"]
        time = given["timestamp"].cast(pa.timestamp("us", tz="UTC"), safe=False)
        tenant, known_tenant = self._tenants(given["tenant_id"])
        service, known_service = _known(given["service"], self._services.__contains__)
        length = pc.binary_length(event_id)
        checks = [known_tenant, known_service]
        checks += _within(length, pa.scalar(1, length.type), pa.scalar(LONGEST_ID, length.type))
        checks += _within(quantity, _LEAST, _MOST)
        checks += _within(time, self._start, self._latest)
        if given["specversion"].null_count < len(event_id):
            checks.append(given["specversion"].is_null())
        if negative := _within(quantity, _ZERO, _MOST):
            _, gives = _known(given["service"], self._takes_back)
            checks.append(pc.or_(gives, *negative))
        dimensions, told = self._dimension_sets(given, service)
        if told is not None:
            checks.append(told)
        unique, counted = self._unique_values(given, service)
        if counted is not None:
            checks.append(counted)
        good = checks[0]
        for check in checks[1:]:
            good = pc.and_(good, check)
        columns = [event_id, tenant, service, dimensions, quantity, time, unique, pa.nulls(len(event_id), _QUANTITY)]
        numbers = np.flatnonzero(good.fill_null(False).to_numpy(zero_copy_only=False))
        if len(numbers) < len(event_id):
            columns = [column.take(pa.array(numbers)) for column in columns]
        return columns, numbers

    def _tenants(self, column: pa.Array) -> tuple[pa.DictionaryArray, pa.Array]:
        """``(tenants as dictionary, whether each may be one)``. Most are the catalogue's, and need no look."""
        if len(self._catalogue) < len(column):
            if pa.types.is_dictionary(column.type):
                indices = pc.index_in(column.dictionary, self._catalogue).take(column.indices)
            else:
                indices = pc.index_in(column, self._catalogue)
            if not indices.null_count:
                return pa.DictionaryArray.from_arrays(indices, self._catalogue), indices.is_valid()
        return _known(column, TENANT.fullmatch)

    def _takes_back(self, service: str) -> bool:
        return service in self._services and self._services[service].allow_negative

    def _dimension_sets(
        self, given: dict[str, pa.Array], service: pa.DictionaryArray
    ) -> tuple[pa.Array, pa.Array | None]:
        """``(names of dimension sets, whether they are told)``; the latter is None where no service needs any."""
        names = service.dictionary.to_pylist()
        wanted = {name: self._services[name].dimensions for name in names if name in self._services}
        if not any(wanted.values()):
            return repeated("", len(service)), None
        values = {name: _escaped(given[name]) for name in {name for names in wanted.values() for name in names}}
        sets: pa.Array = pa.array([""] * len(service))
        for number, name in enumerate(names):
            if wanted.get(name):
                joined = pc.binary_join_element_wise(*(values[dimension] for dimension in wanted[name]), "/")
                sets = pc.if_else(pc.equal(service.indices, number), joined, sets)
        return sets.dictionary_encode().cast(FEW), sets.is_valid()

    def _unique_values(
        self, given: dict[str, pa.Array], service: pa.DictionaryArray
    ) -> tuple[pa.Array, pa.Array | None]:
        """``(values that unique_count counts, whether they are told)``; the latter is None where no service does."""
        names = service.dictionary.to_pylist()
        if not any(name in self._unique_by for name in names):
            return repeated("", len(service)), None
        values: pa.Array = pa.array([""] * len(service))
        for number, name in enumerate(names):
            if name in self._unique_by:
                told = given[self._unique_by[name]].cast(pa.string())
                length = pc.utf8_length(told)
                fits = pc.and_(pc.greater(length, 0), pc.less_equal(length, LONGEST_DIMENSION))
                told = pc.if_else(fits, told, pa.scalar(None, pa.string()))
                values = pc.if_else(pc.equal(service.indices, number), told, values)
        return values.dictionary_encode().cast(FEW), values.is_valid()


def _whole(characters: Bytes, starts: Numbers, ends: Numbers) -> npt.NDArray[np.bool_]:
    """Which lines begin with ``{`` and end with ``}``: no JSON value can go on from one such line into the next."""
    last = ends - 1
    last = np.where((last > starts) & (characters[np.maximum(last, 0)] == ord("\r")), last - 1, last)
    longer = (last > starts) & (ends - starts <= text.LONGEST_LINE)
    whole: npt.NDArray[np.bool_] = (
        longer
        & (characters[np.where(longer, starts, 0)] == ord("{"))
        & (characters[np.where(longer, last, 0)] == ord("}"))
    )
    return whole


def _text(data: bytes, starts: Numbers, ends: Numbers, lines: Numbers) -> bytes:
    """The text of some lines."""
    first, last = lines[0], lines[-1]
    if last - first + 1 == len(lines):
        return data[starts[first] : ends[last] + 1]
    return b"\n".join(data[starts[line] : ends[line]] for line in lines)


def _column(rows: pa.RecordBatch, value: Value) -> pa.Array:
    """What the rows say where ``value`` tells. Raises KeyError where they have no such column, or several of them."""
    return repeated(value.constant or "", rows.num_rows) if value.field is None else rows[value.field]


def _texts(rows: pa.RecordBatch, value: Value) -> pa.Array:
    """The same as texts, or as a dictionary of texts. Raises KeyError, or ArrowInvalid where they are none."""
    column = _column(rows, value)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.string())
    if column.type.equals(FEW):
        return column
    raise pa.ArrowInvalid(f"{column.type} is no text")


def _has_nul(texts: pa.Array) -> bool:
    """Whether a NUL byte is among the texts; where they are a part of more texts, in those."""
    values = (texts.dictionary if pa.types.is_dictionary(texts.type) else texts).buffers()[2]
    return values is not None and b"\0" in values.to_pybytes()


def _one(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _within(column: pa.Array, least: pa.Scalar, most: pa.Scalar) -> list[pa.Array]:
    """Whether each value is within bounds; nothing where the column's own bounds say that all are."""
    span = pc.min_max(column)
    if not column.null_count and len(column) and _is(span["min"], least) and _is(most, span["max"]):
        return []
    return [pc.and_(pc.greater_equal(column, least), pc.less_equal(column, most))]


def _is(one: pa.Scalar, at_least: pa.Scalar) -> bool:
    return bool(pc.greater_equal(one, at_least).as_py())


def _known(column: pa.Array, test: Callable[[str], object]) -> tuple[pa.DictionaryArray, pa.Array]:
    """``(column as dictionary, whether each value passes the test)``."""
    encoded = column.dictionary_encode().cast(FEW)
    passed = pa.array([bool(test(value)) for value in encoded.dictionary.to_pylist()], pa.bool_())
    return encoded, passed.take(encoded.indices)


def _escaped(column: pa.Array) -> pa.Array:
    """Dimension values as they stand in a set's name; null for what is none."""
    encoded = column.dictionary_encode()
    values = [
        dimension_set([value]) if value and len(value) <= LONGEST_DIMENSION else None
        for value in encoded.dictionary.to_pylist()
    ]
    return pa.array(values, pa.string()).take(encoded.indices)


def repeated(value: str, count: int) -> pa.DictionaryArray:
    """A column of one value."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(count, np.int32)), pa.array([value]))


def by_hour(batch: pa.RecordBatch) -> Iterator[tuple[datetime, pa.RecordBatch]]:
    """``(hour, events of it)`` of a batch of COLUMNS, in the order of hours; lines keep their order."""
    span = pc.min_max(batch["event_time"])
    first, last = utc_hour(span["min"].as_py()), utc_hour(span["max"].as_py())
    if first == last:
        yield first, batch
        return
    numbers = batch["event_time"].cast(pa.int64()).to_numpy() // 3_600_000_000
    order = np.argsort(numbers, kind="stable")
    ordered = batch.take(pa.array(order))
    values, begins = np.unique(numbers[order], return_index=True)
    for value, begin, end in zip(values, begins, [*begins[1:], len(order)], strict=True):
        yield datetime.fromtimestamp(int(value) * 3600, UTC), ordered.slice(int(begin), int(end - begin))
