"""Reads what is new in an input into columns of events, in parallel, and what must be set aside. No ledger, no lake."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pyarrow as pa

from clawbill_pipeline.usage.bulk import COLUMNS, Bulk, by_hour
from clawbill_pipeline.usage.event_columns import EventColumns
from clawbill_pipeline.usage.events import Event, Fault, Judge
from clawbill_pipeline.usage.ingested import RequestBlock
from clawbill_pipeline.usage.inputs import Block, Format, Input, InputFault, Landing, Line
from clawbill_pipeline.usage.json_formats import JsonRecords
from clawbill_pipeline.usage.mapped import Mapped
from clawbill_pipeline.usage.parquet import ParquetBlock
from clawbill_pipeline.usage.quarantine import Entry, masked
from clawbill_pipeline.usage.text import TextBlock

#: A batch ends with the block in which it has read so much.
BATCH_BYTES = 128 * 1024 * 1024
#: Blocks that are read at a time.
THREADS = min(os.cpu_count() or 1, 4)


@dataclass(frozen=True)
class _Part:
    """What a block says: events in columns, and what was set aside."""

    block: Block
    batches: Sequence[pa.RecordBatch]
    aside: Sequence[Entry]
    event_lines: int
    skipped: int


class Reader:
    """Reads the blocks of one input. Safe across threads."""

    def __init__(self, source: str, input: Input, judge: Judge) -> None:
        self._source = source
        self._uri = input.uri
        self._format = input.format
        self._judge = judge
        closed = isinstance(self._format, JsonRecords) and self._format.closed
        self._bulk: Bulk | None = Bulk(judge, closed=closed)

    def read(self, block: Block) -> _Part:
        batches: list[pa.RecordBatch] = []
        lines: Iterable[Line] = block.lines()
        passed = 0
        if self._bulk is not None:
            if isinstance(self._format, JsonRecords) and isinstance(block, TextBlock) and block.kind == "lines":
                batches, lines = self._bulk.json_lines(block)
            elif isinstance(self._format, Mapped) and isinstance(block, ParquetBlock):
                batches, lines, passed = self._bulk.rows(block, self._format.mapping)
            elif isinstance(block, RequestBlock):
                batches, left = EventColumns(self._judge).read(block.requests)
                lines = [Line(number, 0, body) for number, body in left]
        taken = passed + sum(batch.num_rows for batch in batches)
        slow = OneByOne(self._source, self._uri, self._format, self._judge)
        for line in lines:
            slow.read(line)
        if slow.events:
            batches.append(slow.batch())
        return _Part(block, batches, slow.aside, taken + slow.event_lines, slow.skipped)


class OneByOne:
    """Reads line by line: the authority on what a line says, and the only place that knows why one says nothing."""

    def __init__(self, source: str, uri: str, format: Format, judge: Judge) -> None:
        self._source = source
        self._uri = uri
        self._format = format
        self._judge = judge
        self.events: list[tuple[int, int, *Event]] = []
        self.aside: list[Entry] = []
        self.event_lines = 0
        self.skipped = 0

    def read(self, line: Line) -> None:
        try:
            if line.fault is not None:
                raise line.fault
            records = self._format.records(line)
        except Fault as fault:
            self._set_aside(line.place, fault, self._format.raw(line))
            return
        for number, record in enumerate(records, 1):
            try:
                if isinstance(record, Fault):
                    raise record
                claims = self._format.claims(record)
                # A line is taken whole or not at all: half of its usage would be a wrong bill.
                events = [self._judge.event(claim) for claim in claims or ()]
            except Fault as fault:
                place = line.place if len(records) == 1 else f"{line.place}, record {number}"
                raw = self._format.raw(line) if record is fault else _text(self._format.shown(record))
                self._set_aside(place, fault, raw)
                continue
            self.event_lines += claims is not None
            self.skipped += claims is None
            self.events += [(line.number, line.offset, *event) for event in events]

    def batch(self) -> pa.RecordBatch:
        columns = [
            pa.array(values, field.type) for values, field in zip(zip(*self.events, strict=True), COLUMNS, strict=True)
        ]
        return pa.RecordBatch.from_arrays(columns, schema=COLUMNS)

    def _set_aside(self, place: str, fault: Fault, raw: bytes | str) -> None:
        entry = Entry(
            self._source,
            self._uri,
            place,
            fault.reason,
            fault.field,
            masked(fault.detail),
            masked(raw),
            fault.tenant_id,
            None,
        )
        self.aside.append(entry)


def read_record(format: Format, line: Line, number: int, judge: Judge) -> Batch | None:
    """The ``number``th record of a line, by itself; None where it bears no usage. Raises Fault."""
    if line.fault is not None:
        raise line.fault
    records = format.records(line)
    if number > len(records):
        raise Fault("gone", "line", f"the line has {len(records)} records now")
    record = records[number - 1]
    if isinstance(record, Fault):
        raise record
    claims = format.claims(record)
    if claims is None:
        return None
    one = OneByOne("", "", format, judge)
    one.events = [(line.number, line.offset, *judge.event(claim)) for claim in claims]
    batch = Batch()
    batch.take([one.batch()] if one.events else [], [], 1, 0)
    batch.digest.update(line.raw)
    batch.size = len(line.raw)
    return batch


def _text(record: Any) -> str:
    return json.dumps(record, default=str, ensure_ascii=False)


class Batch:
    """What one landing has read: events by hour, and what was set aside."""

    def __init__(self) -> None:
        self.hours: dict[datetime, list[pa.RecordBatch]] = {}
        self._named: list[pa.Array] = []
        self.aside: list[Entry] = []
        self.digest = hashlib.sha256()
        self.size = 0
        self.position = ""
        self.event_lines = 0
        self.events = 0
        self.skipped = 0

    @property
    def lines(self) -> int:
        return self.event_lines + len(self.aside)

    @property
    def tenants(self) -> set[str]:
        return set(pa.concat_arrays(self._named).unique().to_pylist()) if self._named else set()

    def add(self, part: _Part) -> None:
        self.digest.update(part.block.data)
        self.size += part.block.size
        self.position = part.block.position
        self.take(part.batches, part.aside, part.event_lines, part.skipped)

    def take(self, batches: Sequence[pa.RecordBatch], aside: Sequence[Entry], event_lines: int, skipped: int) -> None:
        self.aside += aside
        self.event_lines += event_lines
        self.skipped += skipped
        for batch in batches:
            self.events += batch.num_rows
            tenants = batch["tenant_id"]  # a dictionary, of which it need not use all
            self._named.append(tenants.dictionary.take(tenants.indices.unique()))
            for hour, events in by_hour(batch):
                self.hours.setdefault(hour, []).append(events)


def batches(
    input: Input, landed: Sequence[Landing], reader: Reader, pool: ThreadPoolExecutor, finished: bool
) -> Iterator[Batch]:
    """What is new in an input, a landing at a time. Raises InputFault as the input does, after what may be kept."""
    batch = Batch()
    caught: InputFault | None = None
    try:
        for part in _ahead(input.blocks(landed, finished=finished), reader, pool):
            batch.add(part)
            if batch.size >= BATCH_BYTES and part.block.whole:
                yield batch
                batch = Batch()
    except InputFault as fault:
        if not fault.keep:
            raise
        caught = fault
    if batch.position:
        yield batch
    if caught is not None:
        raise caught


def _ahead(blocks: Iterator[Block], reader: Reader, pool: ThreadPoolExecutor) -> Iterator[_Part]:
    """The blocks as read, in their order, while the next ones are read already."""
    waiting: deque[Future[_Part]] = deque()
    caught: InputFault | None = None
    try:
        for block in blocks:
            waiting.append(pool.submit(reader.read, block))
            if len(waiting) > THREADS:
                yield waiting.popleft().result()
    except InputFault as fault:
        caught = fault
    while waiting:
        yield waiting.popleft().result()
    if caught is not None:
        raise caught
