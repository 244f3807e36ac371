"""From a source of the catalogue to its inputs: which reader reads what, and where it lies. No reading is done here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from clawbill_pipeline.catalog.sources import (
    AccessLog,
    ClawRouter,
    CloudEvents,
    Files,
    Http,
    JsonLines,
    LiteLlm,
    LiteLlmTable,
    Mapping,
    OpenClawFleet,
    Source,
    SqlTable,
)
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.object_store import ObjectFolder, is_address
from clawbill_pipeline.usage.access_log import AccessLogLines
from clawbill_pipeline.usage.clawrouter import RouterUsage
from clawbill_pipeline.usage.ingested import PostedRequests
from clawbill_pipeline.usage.inputs import Format, Input
from clawbill_pipeline.usage.json_formats import CloudEventRecords, JsonRecords
from clawbill_pipeline.usage.mapped import Mapped, MappedCsv
from clawbill_pipeline.usage.openclaw import fleet_inputs
from clawbill_pipeline.usage.parquet import Parquet
from clawbill_pipeline.usage.sql import TableRows
from clawbill_pipeline.usage.stored import DiskFile, Stored, files, objects, uri_of
from clawbill_pipeline.usage.text import Text

#: Tries before an object store that is away is left to the next landing: some seconds.
_TRIES = 5

FileSource = JsonLines | CloudEvents | Files | LiteLlm | AccessLog


def inputs(source: Source, folder: Path, ledger: Ledger | None = None) -> Iterator[Input]:
    """The inputs of ``source``, in a fixed order; ``folder`` is where relative paths start. Raises OSError.

    ``ledger`` is where requests posted over HTTP are kept; no other source needs it.
    """
    if isinstance(source, Http):
        if ledger is not None:
            yield PostedRequests(source, ledger)
    elif isinstance(source, SqlTable):
        yield TableRows(source, os.environ)
    elif isinstance(source, LiteLlmTable):
        yield TableRows(source.rows, os.environ)
    elif isinstance(source, ClawRouter):
        yield RouterUsage(source, os.environ)
    elif isinstance(source, OpenClawFleet):
        yield from fleet_inputs(source, _folder(folder / source.path))
    else:
        for stored in _stored(source, folder):
            yield _file(source, stored)


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}; correct `path` in the catalogue, or make it")
    return path


def _stored(source: FileSource, folder: Path) -> Sequence[Stored]:
    if is_address(source.path):
        return objects(ObjectFolder(source.path, endpoint=source.endpoint, tries=_TRIES), source.pattern)
    root = _folder(folder / source.path)
    return [DiskFile(path, uri_of(path, root)) for path in files(root, source.pattern)]


def _file(source: FileSource, stored: Stored) -> Input:
    again = source.changed_files == "read_again"
    if isinstance(source, AccessLog):
        log = Text(stored, JsonRecords(), json=False, read_again=again)
        log.format = AccessLogLines(source, log.first_line)
        return log
    if isinstance(source, Files | LiteLlm):
        return _mapped_file(source, stored, again)
    closed = isinstance(source, JsonLines) and source.unknown_fields == "quarantine"
    format: Format = CloudEventRecords() if isinstance(source, CloudEvents) else JsonRecords(closed=closed)
    return Text(stored, format, read_again=again)


def _repeating(mapping: Mapping) -> list[str]:
    """Fields whose values are few and come again."""
    values = [mapping.tenant_id, *(measure.service for measure in mapping.usage), *mapping.dimensions.values()]
    unique = mapping.event_id.field if mapping.event_id else None
    return [value.field for value in values if value.field and value.field != unique]


def _mapped_file(source: Files | LiteLlm, stored: Stored, again: bool) -> Input:
    kind = source.format if isinstance(source, Files) else "auto"
    if kind == "auto":
        kind = {"csv": "csv", "tsv": "csv", "parquet": "parquet"}.get(stored.name.rpartition(".")[2], "json")  # type: ignore[assignment]
    if kind == "parquet":
        return Parquet(stored, Mapped(source.mapping, stored.uri), _repeating(source.mapping))
    if kind == "json":
        return Text(stored, Mapped(source.mapping, stored.uri), read_again=again)
    file = Text(stored, Mapped(source.mapping, stored.uri), json=False, read_again=again)
    delimiter = source.delimiter if isinstance(source, Files) else ","
    file.format = MappedCsv(source.mapping, stored.uri, file.first_line, delimiter)
    return file
