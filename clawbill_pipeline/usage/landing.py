"""Lands what is new in the sources: one transaction an input, events by their own hour in the lake, faults aside.

Nothing here knows what a line means (formats) or what an event must be (events). A landing counts when its
transaction commits: the Parquet files are on disk before, and files that no ledger row names are never read.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection, text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.sources import Http, OpenClawFleet, Source
from clawbill_pipeline.lake import EVENT_SCHEMA, Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock_key
from clawbill_pipeline.ledger.turns import turn, whom
from clawbill_pipeline.object_store import Replaced
from clawbill_pipeline.results import Check
from clawbill_pipeline.usage.bulk import repeated
from clawbill_pipeline.usage.events import Judge
from clawbill_pipeline.usage.ingested import forget_landed
from clawbill_pipeline.usage.inputs import Input, InputFault, Landing
from clawbill_pipeline.usage.quarantine import WHOLE, Entry, masked, set_aside
from clawbill_pipeline.usage.reading import THREADS, Batch, Reader, batches
from clawbill_pipeline.usage.sources import inputs
from clawbill_pipeline.usage.unchanged import Unchanged
from clawbill_pipeline.usage.witnesses import NoAnswer, answers, keep, said

#: Tenants that a check names.
_SHOWN = 20

log = logging.getLogger(__name__)

#: Files that may wait to be written: what they hold is in memory.
BACKLOG = 16


@dataclass(frozen=True)
class Landed:
    """What landing came to. ``lines = event_lines + quarantined``; ``skipped`` lines bear no usage by their kind.

    ``waiting`` inputs end in a half line; ``problems`` says of each input that was left alone what is wrong with it;
    ``waited_for`` names runs that were landing the same.
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
    waited_for: str | None = None


def land(catalog: Catalog, lake: Lake, ledger: Ledger, *, now: datetime, run_id: str, finished: bool = False) -> Landed:
    """Lands everything new in all sources of the catalogue. Run again, it changes nothing.

    ``finished`` says that no writer is at work: a last line without its line feed is complete as it is. Workers that
    land at once wait for one another, source by source. An input that can't be read stops no other one.
    """
    total = Total()
    with _memory_at_hand(), ThreadPoolExecutor(THREADS) as readers, ThreadPoolExecutor(lake.writers) as writer:
        run = Run(lake, ledger, Judge(catalog, now), now, run_id, finished, readers, writer, total)
        for source in catalog.sources:
            run.source(source, catalog.folder)
    return total.result(catalog, _newest_landings(ledger, catalog), now)


@contextmanager
def _memory_at_hand() -> Iterator[None]:
    """Lets Arrow keep freed memory for the next block. Its usual pool gives pages back to the system at once, and to
    have them again would take more time than to read Parquet does (``benchmarks.metering``)."""
    before = pa.default_memory_pool()
    if "jemalloc" in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
    try:
        yield
    finally:
        pa.set_memory_pool(before)


# --- writing -------------------------------------------------------------------------------------------------------

_LANDED = text(
    "SELECT id, position, size, sha256 FROM landings "
    "WHERE source = :source AND uri = :uri AND position NOT LIKE 'replay of %' ORDER BY id DESC LIMIT :most"
)
_NEWEST_OF_SOURCES = text("""
    SELECT s.name, (SELECT landed_at FROM landings WHERE source = s.name ORDER BY id DESC LIMIT 1) AS landed_at
    FROM unnest(CAST(:sources AS text[])) AS s (name)
""")
_LAND = text("""
    INSERT INTO landings (source, uri, position, size, sha256, lines, event_lines, events, quarantined, skipped,
                          landed_at, run_id)
    VALUES (:source, :uri, :position, :size, :sha256, :lines, :event_lines, :events, :quarantined, :skipped,
            :now, :run_id)
    ON CONFLICT DO NOTHING RETURNING id
""")
_LAND_HOUR = text(
    "INSERT INTO landed_hours (landing_id, hour, events, file, sha256)"
    " VALUES (:landing_id, :hour, :events, :file, :sha256)"
)


@dataclass
class Run:
    """One call of ``land``: what it works with, and what it has come to."""

    lake: Lake
    ledger: Ledger
    judge: Judge
    now: datetime
    run_id: str
    finished: bool
    readers: ThreadPoolExecutor
    writer: ThreadPoolExecutor
    total: Total

    def source(self, source: Source, folder: Path) -> None:
        unchanged = Unchanged(self.lake, source.name)
        with self.ledger.transaction() as connection:
            unchanged.compare(connection)
        try:
            for input in inputs(source, folder, self.ledger):
                self.total.inputs += 1
                try:
                    if not unchanged.holds(input):
                        self.input(source.name, input, unchanged)
                except Replaced:  # nothing of it was kept; the next listing has the new one
                    self.total.waiting += 1
                except (OSError, sqlite3.Error) as error:
                    self.total.problem("unreadable", source.name, input.uri, str(error))
        except OSError as error:
            self.total.problem("unreadable", source.name, "source", str(error))
        unchanged.keep()
        if isinstance(source, Http):
            forget_landed(self.ledger, source, self.now)
        if isinstance(source, OpenClawFleet) and source.witnesses is not None:
            self.witnesses(source, folder / source.witnesses)

    def witnesses(self, source: OpenClawFleet, folder: Path) -> None:
        """Keeps what the gateways say themselves; an answer that can't be read stops nothing."""
        try:
            found = answers(folder)
        except OSError as error:
            self.total.problem("unreadable", source.name, "witnesses", str(error))
            return
        for path, answer, tenant_id in found:
            try:
                rows = said(path, answer, tenant_id, source.services)
            except (NoAnswer, OSError) as error:
                self.total.problem("unreadable", source.name, path.name, str(error))
                continue
            keep(self.ledger, source.name, rows, self.now)

    def input(self, source: str, input: Input, unchanged: Unchanged) -> None:
        done: list[Batch] = []
        fault: InputFault | None = None
        stamp = input.stamp()
        unchanged.forget(input.uri)
        before: int | None = None
        newest: int | None = None
        reader = Reader(source, input, self.judge)
        try:
            with self.ledger.transaction() as connection:
                self.total.waited |= turn(
                    connection, [lock_key("usage", source)], run_id=self.run_id, work=f"landing of {source}"
                )
                given = {"source": source, "uri": input.uri, "most": None if input.looks_back else 1}
                landed = [Landing(*row) for row in connection.execute(_LANDED, given)][::-1]
                before = newest = landed[-1].id if landed else None
                files = Files()
                try:
                    for batch in batches(input, landed, reader, self.readers, self.finished):
                        landing_id = self.write(connection, source, input, batch, files)
                        if landing_id is not None:
                            newest = landing_id
                            done.append(batch)
                except InputFault as caught:
                    if not caught.keep:
                        raise
                    fault = caught
                files.land(connection)
        except InputFault as caught:
            fault, done, newest = caught, [], before
        for batch in done:
            self.total.add(batch)
        if fault is None:
            if newest is not None:
                unchanged.remember(input.uri, newest, stamp)
        elif fault.passing:
            self.total.waiting += 1
        else:
            self.total.problem(fault.reason, source, input.uri, fault.detail)
            raw = masked(fault.raw)
            entry = Entry(source, input.uri, fault.place, fault.reason, WHOLE, fault.detail, raw, None, newest)
            with self.ledger.transaction() as connection:
                set_aside(connection, [entry], self.now)

    def write(self, connection: Connection, source: str, input: Input, batch: Batch, files: Files) -> int | None:
        """Writes one landing; its id, or None where just this was landed before. Lets go of the batch's events."""
        landing_id: int | None = connection.scalar(
            _LAND,
            {
                "source": source,
                "uri": input.uri,
                "position": batch.position,
                "size": input.size(),
                "sha256": batch.digest.hexdigest(),
                "lines": batch.lines,
                "event_lines": batch.event_lines,
                "events": batch.events,
                "quarantined": len(batch.aside),
                "skipped": batch.skipped,
                "now": self.now,
                "run_id": self.run_id,
            },
        )
        if landing_id is None:
            return None
        for hour, events in sorted(batch.hours.items()):
            file = self.lake.events_file(hour, landing_id)
            row = {"landing_id": landing_id, "hour": hour, "events": sum(p.num_rows for p in events), "file": file}
            written = self.writer.submit(_write_events, self.lake, file, landing_id, source, input.uri, events)
            files.add(row, written)
        batch.hours = {hour: [] for hour in batch.hours}
        set_aside(connection, [entry._replace(landing_id=landing_id) for entry in batch.aside], self.now)
        return landing_id


class Files:
    """Lake files on their way to the disk, few at a time, and the rows of ``landed_hours`` that name them."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[dict[str, object], Future[str]]] = deque()
        self._rows: list[dict[str, object]] = []

    def add(self, row: dict[str, object], written: Future[str]) -> None:
        self._waiting.append((row, written))
        while len(self._waiting) > BACKLOG:
            self._take()

    def land(self, connection: Connection) -> None:
        """Names the files in the ledger, once all are stored for good. Raises OSError where one could not be."""
        while self._waiting:
            self._take()
        if self._rows:
            connection.execute(_LAND_HOUR, self._rows)

    def _take(self) -> None:
        row, written = self._waiting.popleft()
        self._rows.append({**row, "sha256": written.result()})


def _write_events(
    lake: Lake, name: str, landing_id: int, source: str, uri: str, events: Sequence[pa.RecordBatch]
) -> str:
    """Writes a file of EVENT_SCHEMA; returns its SHA-256 when it is stored for good."""
    table = pa.Table.from_batches(events).unify_dictionaries()
    same = {
        "landing_id": pa.DictionaryArray.from_arrays(np.zeros(len(table), np.int32), [landing_id]),
        "source": repeated(source, len(table)),
        "uri": repeated(uri, len(table)),
    }
    columns = {**same, **{name: table[name] for name in table.column_names}}
    with lake.folder.made(name) as path:
        pq.write_table(
            pa.table(
                [columns[name] for name in EVENT_SCHEMA.names],
                schema=pa.schema([field.with_type(columns[field.name].type) for field in EVENT_SCHEMA]),
            ),
            path,
            use_dictionary=["landing_id", "source", "uri", "tenant_id", "service", "dimensions", "unique_value"],
            column_encoding=dict.fromkeys(("line", "byte_offset", "event_time"), "DELTA_BINARY_PACKED"),
            # Half the time of zstd for a tenth more in size: most of a file are ids, which hardly shrink.
            compression="lz4",
            write_statistics=["event_time"],
            # The file's own types are those of EVENT_SCHEMA; Arrow's dictionaries are but how they were at hand.
            store_schema=False,
        )
        with path.open("rb") as written:
            digest = hashlib.file_digest(written, "sha256").hexdigest()
    return digest


def _newest_landings(ledger: Ledger, catalog: Catalog) -> dict[str, datetime | None]:
    with ledger.transaction() as connection:
        rows = connection.execute(_NEWEST_OF_SOURCES, {"sources": [source.name for source in catalog.sources]})
        return {row.name: row.landed_at for row in rows}


# --- what it came to -----------------------------------------------------------------------------------------------


@dataclass
class Total:
    inputs: int = 0
    landings: int = 0
    lines: int = 0
    event_lines: int = 0
    events: int = 0
    quarantined: int = 0
    skipped: int = 0
    waiting: int = 0
    hours: set[datetime] = field(default_factory=set)
    tenants: set[str] = field(default_factory=set)
    unmapped: int = 0
    problems: list[tuple[str, str]] = field(default_factory=list)
    waited: frozenset[str] = frozenset()

    def add(self, batch: Batch) -> None:
        self.landings += 1
        self.lines += batch.lines
        self.event_lines += batch.event_lines
        self.events += batch.events
        self.quarantined += len(batch.aside)
        self.skipped += batch.skipped
        self.hours.update(batch.hours)
        self.tenants |= batch.tenants
        self.unmapped += sum(entry.reason == "no_tenant" for entry in batch.aside)

    def problem(self, reason: str, source: str, uri: str, detail: str) -> None:
        self.problems.append((reason, f"{source}: {uri}: {reason}: {detail}"))
        about = {"source": source, "uri": uri, "reason": reason, "detail": detail}
        log.info("not landed", extra={"fields": about})

    def result(self, catalog: Catalog, newest: Mapping[str, datetime | None], now: datetime) -> Landed:
        """``newest`` is when each source of the catalogue brought something last."""
        strangers = sorted(self.tenants - catalog.tenants.keys())
        stale = [
            f"{name} since {at:%Y-%m-%dT%H:%MZ}" if at else f"{name}, which never brought anything"
            for name, at in sorted(newest.items())
            if (at or catalog.start) + catalog.alerts.stale_after(name) < now
        ]
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
            waited_for=whom(self.waited),
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
                Check(
                    "sources_fresh",
                    not stale,
                    "Every source has brought something within the time that the catalogue gives it.",
                    {"sources": len(newest), "stale": ", ".join(stale) or None},
                    serious=False,
                ),
                Check(
                    "everybody_known",
                    not strangers and not self.unmapped,
                    "Every event that landed is of a tenant of the catalogue.",
                    {"tenants": ", ".join(strangers[:_SHOWN]) or None, "lines_of_nobody": self.unmapped},
                    serious=False,
                ),
            ),
        )
