"""Lands what is new in the sources: one transaction an input, events by their own hour in the lake, faults aside.

Nothing here knows what a line means (formats) or what an event must be (events). A landing counts when its
transaction commits: the Parquet files are on disk before, and files that no ledger row names are never read.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.catalog.sources import Source
from clawbill_pipeline.lake import EVENT_SCHEMA, Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.results import Check
from clawbill_pipeline.usage.events import Event, Fault, Judge
from clawbill_pipeline.usage.inputs import Block, Format, Input, InputFault, Landing, Line
from clawbill_pipeline.usage.quarantine import Entry, masked, set_aside
from clawbill_pipeline.usage.sources import inputs

#: A landing ends with the block in which it has read so much.
LANDING_BYTES = 128 * 1024 * 1024


@dataclass(frozen=True)
class Landed:
    """What landing came to. ``lines = event_lines + quarantined``; ``skipped`` lines bear no usage by their kind.

    ``waiting`` inputs end in a half line; ``problems`` says of each input that was left alone what is wrong with it.
    """

    inputs: int
    landings: int
    lines: int
    event_lines: int
    events: int
    quarantined: int
    skipped: int
    waiting: int
    hours: frozenset[datetime]
    problems: tuple[str, ...]
    checks: tuple[Check, ...]


def land(catalog: Catalog, lake: Lake, ledger: Ledger, *, now: datetime, run_id: str, finished: bool = False) -> Landed:
    """Lands everything new in all sources of the catalogue. Run again, it changes nothing.

    ``finished`` says that no writer is at work: a last line without its line feed is complete as it is. Workers that
    land at once wait for one another, source by source. An input that can't be read stops no other one.
    """
    total = _Total()
    judge = Judge(catalog, now)
    for source in catalog.sources:
        _land_source(source, catalog.folder, lake, ledger, judge, now, run_id, finished, total)
    return total.result()


# --- reading -------------------------------------------------------------------------------------------------------


@dataclass
class _Batch:
    """What one landing has read: events by hour, in columns, and what was set aside."""

    source: str
    uri: str
    hours: dict[datetime, list[tuple[int, int, Event]]] = field(default_factory=dict)
    aside: list[Entry] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    position: str = ""
    event_lines: int = 0
    events: int = 0
    skipped: int = 0

    @property
    def lines(self) -> int:
        return self.event_lines + len(self.aside)

    def read(self, block: Block, format: Format, judge: Judge) -> None:
        self.digest.update(block.data)
        self.size += len(block.data)
        self.position = block.position
        for line in block.lines():
            self._read_line(line, format, judge)

    def _read_line(self, line: Line, format: Format, judge: Judge) -> None:
        try:
            if line.fault is not None:
                raise line.fault
            records = format.records(line)
        except Fault as fault:
            self._set_aside(line.place, fault, format.raw(line))
            return
        for number, record in enumerate(records, 1):
            try:
                if isinstance(record, Fault):
                    raise record
                claims = format.claims(record)
                # A line is taken whole or not at all: half of its usage would be a wrong bill.
                events = [judge.event(claim) for claim in claims or ()]
            except Fault as fault:
                alone = len(records) == 1
                place = line.place if alone else f"{line.place}, record {number}"
                self._set_aside(place, fault, _shown(format, record) if record is not fault else format.raw(line))
                continue
            if claims is None:
                self.skipped += 1
                continue
            self.event_lines += 1
            self.events += len(events)
            for event in events:
                self.hours.setdefault(utc_hour(event.event_time), []).append((line.number, line.offset, event))

    def _set_aside(self, place: str, fault: Fault, raw: bytes | str) -> None:
        self.aside.append(
            Entry(
                self.source,
                self.uri,
                place,
                fault.reason,
                fault.field,
                masked(fault.detail),
                masked(raw),
                fault.tenant_id,
                None,
            )
        )


def _shown(format: Format, record: Any) -> str:
    return json.dumps(format.shown(record), default=str, ensure_ascii=False)


def _batches(input: Input, landed: Sequence[Landing], source: str, judge: Judge, finished: bool) -> Iterator[_Batch]:
    """What is new in an input, a landing at a time. Raises InputFault as the input does, after what may be kept."""
    batch = _Batch(source, input.uri)
    try:
        for block in input.blocks(landed, finished=finished):
            batch.read(block, input.format, judge)
            if batch.size >= LANDING_BYTES and block.whole:
                yield batch
                batch = _Batch(source, input.uri)
    except InputFault as fault:
        if fault.keep and batch.position:
            yield batch
        raise
    if batch.position:
        yield batch


# --- writing -------------------------------------------------------------------------------------------------------

_LANDED = text("SELECT id, position, size, sha256 FROM landings WHERE source = :source AND uri = :uri ORDER BY id")
_NEWEST = text("""
    SELECT DISTINCT ON (uri) uri, id, size FROM landings WHERE source = :source ORDER BY uri, id DESC
""")
_LAND = text("""
    INSERT INTO landings (source, uri, position, size, sha256, lines, event_lines, events, quarantined, skipped,
                          landed_at, run_id)
    VALUES (:source, :uri, :position, :size, :sha256, :lines, :event_lines, :events, :quarantined, :skipped,
            :now, :run_id)
    ON CONFLICT DO NOTHING RETURNING id
""")
_LAND_HOUR = text(
    "INSERT INTO landed_hours (landing_id, hour, events, file) VALUES (:landing_id, :hour, :events, :file)"
)


def _land_source(
    source: Source,
    folder: Path,
    lake: Lake,
    ledger: Ledger,
    judge: Judge,
    now: datetime,
    run_id: str,
    finished: bool,
    total: _Total,
) -> None:
    unchanged = _Unchanged(lake, source.name)
    with ledger.transaction() as connection:
        newest = {row.uri: (row.id, row.size) for row in connection.execute(_NEWEST, {"source": source.name})}
    try:
        for input in inputs(source, folder):
            total.inputs += 1
            try:
                if newest.get(input.uri) and unchanged.holds(input, *newest[input.uri]):
                    continue
                _land_input(source.name, input, lake, ledger, judge, now, run_id, finished, unchanged, total)
            except (OSError, sqlite3.Error) as error:
                total.problem("unreadable", source.name, input.uri, str(error))
    except OSError as error:
        total.problem("unreadable", source.name, source.path, str(error))
    unchanged.keep()


def _land_input(
    source: str,
    input: Input,
    lake: Lake,
    ledger: Ledger,
    judge: Judge,
    now: datetime,
    run_id: str,
    finished: bool,
    unchanged: _Unchanged,
    total: _Total,
) -> None:
    done: list[_Batch] = []
    fault: InputFault | None = None
    stamp = input.stamp()
    newest: int | None = None
    try:
        with ledger.transaction() as connection:
            lock(connection, "usage", source)
            found = connection.execute(_LANDED, {"source": source, "uri": input.uri})
            landed = [Landing(*row) for row in found]
            newest = landed[-1].id if landed else None
            try:
                for batch in _batches(input, landed, source, judge, finished):
                    landing_id = _write(connection, lake, batch, input.size(), now, run_id)
                    if landing_id is not None:
                        newest = landing_id
                        done.append(batch)
            except InputFault as caught:
                if not caught.keep:
                    raise
                fault = caught
    except InputFault as caught:
        fault, done = caught, []
    for batch in done:
        total.add(batch)
    if fault is None:
        if newest is not None:
            unchanged.remember(input.uri, newest, stamp)
    elif fault.passing:
        total.waiting += 1
    else:
        total.problem(fault.reason, source, input.uri, fault.detail)
        entry = Entry(source, input.uri, fault.place, fault.reason, "file", fault.detail, masked(fault.raw), None, None)
        with ledger.transaction() as connection:
            set_aside(connection, [entry], now)


def _write(connection: Connection, lake: Lake, batch: _Batch, size: int, now: datetime, run_id: str) -> int | None:
    """Writes one landing; its id, or None where just this was landed before."""
    landing_id: int | None = connection.scalar(
        _LAND,
        {
            "source": batch.source,
            "uri": batch.uri,
            "position": batch.position,
            "size": size,
            "sha256": batch.digest.hexdigest(),
            "lines": batch.lines,
            "event_lines": batch.event_lines,
            "events": batch.events,
            "quarantined": len(batch.aside),
            "skipped": batch.skipped,
            "now": now,
            "run_id": run_id,
        },
    )
    if landing_id is None:
        return None
    rows = []
    for hour, events in sorted(batch.hours.items()):
        file = lake.events_file(hour, landing_id)
        _write_events(lake.path(file), landing_id, batch, events)
        rows.append({"landing_id": landing_id, "hour": hour, "events": len(events), "file": file})
    if rows:
        connection.execute(_LAND_HOUR, rows)
    set_aside(connection, [entry._replace(landing_id=landing_id) for entry in batch.aside], now)
    return landing_id


def _write_events(path: Path, landing_id: int, batch: _Batch, events: Sequence[tuple[int, int, Event]]) -> None:
    numbers, offsets, rows = zip(*events, strict=True)
    count = len(rows)
    columns = [
        pa.repeat(landing_id, count),
        pa.repeat(batch.source, count),
        pa.repeat(batch.uri, count),
        pa.array(numbers, pa.int64()),
        pa.array(offsets, pa.int64()),
        *(
            pa.array(values, EVENT_SCHEMA.field(name).type)
            for name, values in zip(Event._fields, zip(*rows, strict=True), strict=True)
        ),
    ]
    with path.open("wb") as file:
        pq.write_table(
            pa.Table.from_arrays(columns, schema=EVENT_SCHEMA), file, compression="zstd", compression_level=1
        )
        file.flush()
        os.fsync(file.fileno())


# --- what is known -------------------------------------------------------------------------------------------------


class _Unchanged:
    """Which inputs need no look, since they are what they were when all of them had been read. A cache, no more:

    without it every input is compared with what was landed of it, byte by byte.
    """

    def __init__(self, lake: Lake, source: str) -> None:
        self._path = lake.path(f"sources/{source}.json")
        try:
            self._stamps: dict[str, list[int]] = json.loads(self._path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            self._stamps = {}
        self._dirty = False

    def holds(self, input: Input, landing_id: int, size: int) -> bool:
        stamp = input.stamp()
        return stamp is not None and self._stamps.get(input.uri) == [landing_id, *stamp] and input.size() == size

    def remember(self, uri: str, landing_id: int, stamp: list[int] | None) -> None:
        if stamp is not None and self._stamps.get(uri) != [landing_id, *stamp]:
            self._stamps[uri] = [landing_id, *stamp]
            self._dirty = True

    def keep(self) -> None:
        if self._dirty:
            fresh = self._path.with_name(f"{self._path.name}.{os.getpid()}")
            fresh.write_text(json.dumps(self._stamps), encoding="utf-8")
            fresh.replace(self._path)


@dataclass
class _Total:
    inputs: int = 0
    landings: int = 0
    lines: int = 0
    event_lines: int = 0
    events: int = 0
    quarantined: int = 0
    skipped: int = 0
    waiting: int = 0
    hours: set[datetime] = field(default_factory=set)
    problems: list[tuple[str, str]] = field(default_factory=list)

    def add(self, batch: _Batch) -> None:
        self.landings += 1
        self.lines += batch.lines
        self.event_lines += batch.event_lines
        self.events += batch.events
        self.quarantined += len(batch.aside)
        self.skipped += batch.skipped
        self.hours.update(batch.hours)

    def problem(self, reason: str, source: str, uri: str, detail: str) -> None:
        self.problems.append((reason, f"{source}: {uri}: {reason}: {detail}"))

    def result(self) -> Landed:
        changed = sum(reason == "changed_in_place" for reason, _ in self.problems)
        return Landed(
            inputs=self.inputs,
            landings=self.landings,
            lines=self.lines,
            event_lines=self.event_lines,
            events=self.events,
            quarantined=self.quarantined,
            skipped=self.skipped,
            waiting=self.waiting,
            hours=frozenset(self.hours),
            problems=tuple(text for _, text in self.problems),
            checks=(
                Check(
                    "books_balance",
                    self.lines == self.event_lines + self.quarantined,
                    "Every line read is an event line or in quarantine; none is lost.",
                    {"lines": self.lines, "event_lines": self.event_lines, "quarantined": self.quarantined},
                ),
                Check(
                    "no_quarantine",
                    not self.quarantined,
                    "No line of this landing had to be set aside.",
                    {"quarantined": self.quarantined},
                    serious=False,
                ),
                Check(
                    "sources_unchanged",
                    not changed,
                    "No file that was landed before has changed in place.",
                    {"changed": changed},
                ),
                Check(
                    "sources_readable",
                    len(self.problems) == changed,
                    "Every input could be read to its end.",
                    {"unreadable": len(self.problems) - changed, "waiting": self.waiting},
                    serious=False,
                ),
            ),
        )
