"""From a source of the catalogue to its inputs: which reader reads what, in which folder. No reading is done here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from clawbill_pipeline.catalog.sources import CloudEvents, OpenClawFleet, Patterns, Source
from clawbill_pipeline.usage.inputs import Format, Input
from clawbill_pipeline.usage.json_formats import CloudEventRecords, JsonRecords
from clawbill_pipeline.usage.openclaw import fleet_inputs
from clawbill_pipeline.usage.text import COMPRESSED, text_file, uri_of


def inputs(source: Source, folder: Path) -> Iterator[Input]:
    """The inputs of ``source``, in a fixed order; ``folder`` is where relative paths start. Raises OSError."""
    root = folder / source.path
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder {root}; correct `path` in the catalogue, or make it")
    if isinstance(source, OpenClawFleet):
        yield from fleet_inputs(source, root)
        return
    format: Format = CloudEventRecords() if isinstance(source, CloudEvents) else JsonRecords()
    for path in files(root, source.pattern):
        yield text_file(path, uri_of(path, root), format, read_again=source.changed_files == "read_again")


def files(root: Path, patterns: Patterns) -> list[Path]:
    """The files below ``root`` whose names match a pattern with or without ``.gz`` or ``.zst`` behind, in order."""
    globs = [patterns] if isinstance(patterns, str) else patterns
    found = {
        path for glob in globs for suffix in ("", *COMPRESSED) for path in root.glob(glob + suffix) if path.is_file()
    }
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(root).parts))
