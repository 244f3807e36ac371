"""Reads lines in quarantine again, once the catalogue, the clock or the file is mended. Listing is ``quarantine``'s."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.usage.events import Fault, Judge
from clawbill_pipeline.usage.inputs import Input, InputFault
from clawbill_pipeline.usage.landing import Files, Run, Total
from clawbill_pipeline.usage.quarantine import REPLAY, WHOLE, Quarantined, entry
from clawbill_pipeline.usage.reading import Batch, read_record
from clawbill_pipeline.usage.sources import inputs
from clawbill_pipeline.usage.text import Text
from clawbill_pipeline.usage.unchanged import Unchanged

_PLACE = re.compile(r"line (\d+), byte (\d+)(?:, record (\d+))?")


@dataclass(frozen=True)
class Replayed:
    """What became of one entry. ``hours`` are those that its events fall into; metering finds them by itself."""

    id: int
    landed: bool
    said: str
    hours: frozenset[datetime] = frozenset()


def replay(
    catalog: Catalog, lake: Lake, ledger: Ledger, ids: Iterable[int], *, now: datetime, run_id: str
) -> list[Replayed]:
    """Reads the lines of these entries where they stand, by today's catalogue, and lands those that are usage now.

    A file that changed in place is read again as it is now, from its start. Replaying twice lands nothing twice.
    Raises LookupError for an id that quarantine doesn't have, before anything is read.
    """
    found = [entry(ledger, id) for id in ids]
    with ThreadPoolExecutor(1) as readers, ThreadPoolExecutor(lake.writers) as writer:
        run = Run(lake, ledger, Judge(catalog, now), now, run_id, False, readers, writer, Total())
        return [_replay(run, catalog, one) for one in found]


def _replay(run: Run, catalog: Catalog, one: Quarantined) -> Replayed:
    if one.settled:
        return Replayed(one.id, False, "it was landed before")
    place = _PLACE.fullmatch(one.place)
    if one.reason == "conflict":
        return Replayed(one.id, False, "its id was used by another event; it can't be billed under this id")
    if one.field == WHOLE and one.reason != "changed_in_place":
        return Replayed(one.id, False, "it is landed with its file, once the file is as it should be")
    input = _input(run, catalog, one)
    if input is None:
        return Replayed(one.id, False, f"{one.uri} is no longer in source {one.source!r}")
    try:
        if one.field == WHOLE or place is None:
            return _read_again(run, one, input)
        return _land_record(run, one, input, int(place[1]), int(place[2]), int(place[3] or 1))
    except (InputFault, OSError) as error:
        return Replayed(one.id, False, str(error))


def _input(run: Run, catalog: Catalog, one: Quarantined) -> Input | None:
    source = next((source for source in catalog.sources if source.name == one.source), None)
    if source is None:
        return None
    return next((input for input in inputs(source, catalog.folder, run.ledger) if input.uri == one.uri), None)


def _read_again(run: Run, one: Quarantined, input: Input) -> Replayed:
    if not isinstance(input, Text):
        return Replayed(one.id, False, "only a file can be read again")
    input.read_again = True
    before = run.total.landings
    run.input(one.source, input, Unchanged(run.lake, one.source))
    landed = run.total.landings > before
    said = "the file was read again from its start" if landed else "the file holds nothing new"
    return Replayed(one.id, landed, said, frozenset(run.total.hours))


def _land_record(run: Run, one: Quarantined, input: Input, line: int, offset: int, number: int) -> Replayed:
    try:
        batch: Batch | None = read_record(input.format, input.line_at(line, offset), number, run.judge)
    except Fault as fault:
        return Replayed(one.id, False, f"{fault.reason}: {fault.detail}")
    if batch is None:
        return Replayed(one.id, False, "it bears no usage")
    batch.position = f"{REPLAY}{one.id}"
    hours = frozenset(batch.hours)
    files = Files()
    with run.ledger.transaction() as connection:
        lock(connection, "usage", one.source)
        landing_id = run.write(connection, one.source, input, batch, files)
        files.land(connection)
    return Replayed(one.id, landing_id is not None, "landed" if landing_id else "it was landed before", hours)
