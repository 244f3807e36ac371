"""From a source of the catalogue to its inputs: which reader reads what, in which folder. No reading is done here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from clawbill_pipeline.catalog.sources import (
    AccessLog,
    CloudEvents,
    Files,
    Http,
    LiteLlm,
    OpenClawFleet,
    Patterns,
    Source,
    SqlTable,
)
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.usage.access_log import AccessLogLines
from clawbill_pipeline.usage.ingested import PostedRequests
from clawbill_pipeline.usage.inputs import Format, Input
from clawbill_pipeline.usage.json_formats import CloudEventRecords, JsonRecords
from clawbill_pipeline.usage.mapped import Mapped, MappedCsv
from clawbill_pipeline.usage.openclaw import fleet_inputs
from clawbill_pipeline.usage.parquet import Parquet
from clawbill_pipeline.usage.sql import TableRows
from clawbill_pipeline.usage.text import COMPRESSED, text_file, uri_of


def inputs(source: Source, folder: Path, ledger: Ledger | None = None) -> Iterator[Input]:
    """The inputs of ``source``, in a fixed order; ``folder`` is where relative paths start. Raises OSError.

    ``ledger`` is where requests posted over HTTP are kept; no other source needs it.
    """
    if isinstance(source, Http):
        if ledger is not None:
            yield PostedRequests(source, ledger)
        return
    if isinstance(source, SqlTable):
        yield TableRows(source, os.environ)
        return
    root = folder / source.path
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; correct `path` in the catalogue, or make it")
    if isinstance(source, OpenClawFleet):
        yield from fleet_inputs(source, root)
        return
    for path in files(root, source.pattern):
        uri = uri_of(path, root)
        if isinstance(source, AccessLog):
            file = text_file(path, uri, JsonRecords(), json=False, read_again=source.changed_files == "read_again")
            file.format = AccessLogLines(source, file.first_line)
            yield file
        elif isinstance(source, Files | LiteLlm):
            yield _mapped_file(source, path, uri)
        else:
            format: Format = CloudEventRecords() if isinstance(source, CloudEvents) else JsonRecords()
            yield text_file(path, uri, format, read_again=source.changed_files == "read_again")


def _mapped_file(source: Files | LiteLlm, path: Path, uri: str) -> Input:
    kind, delimiter = (source.format, source.delimiter) if isinstance(source, Files) else ("auto", ",")
    if kind == "auto":
        plain = path.with_suffix("") if path.suffix in COMPRESSED else path
        kind = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}.get(plain.suffix, "json")  # type: ignore[assignment]
    if kind == "parquet":
        return Parquet(path, uri, Mapped(source.mapping, uri))
    again = source.changed_files == "read_again"
    if kind == "json":
        return text_file(path, uri, Mapped(source.mapping, uri), read_again=again)
    file = text_file(path, uri, Mapped(source.mapping, uri), json=False, read_again=again)
    file.format = MappedCsv(source.mapping, uri, file.first_line, delimiter)
    return file


def files(root: Path, patterns: Patterns) -> list[Path]:
    """The files below ``root`` whose names match a pattern with or without ``.gz`` or ``.zst`` behind, in order."""
    globs = [patterns] if isinstance(patterns, str) else patterns
    found = {
        path for glob in globs for suffix in ("", *COMPRESSED) for path in root.glob(glob + suffix) if path.is_file()
    }
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))
