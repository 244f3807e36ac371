"""Makes a period's report files: reads the ledger once, renders, writes, registers. Start reading here."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from sqlalchemy import Connection, text

from clawbill_pipeline import storage
from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.reporting.focus import focus_csv
from clawbill_pipeline.reporting.page import page
from clawbill_pipeline.reporting.report import Report, read_report
from clawbill_pipeline.reporting.tables import breaks_csv, margin_csv, waterfall_csv, witnesses_csv
from clawbill_pipeline.reporting.workbook import workbook
from clawbill_pipeline.results import Check
from clawbill_pipeline.storage import Folder

#: Name of each file and what makes it.
FILES: dict[str, Callable[[Report], bytes]] = {
    "diff_report.xlsx": workbook,
    "diff_report.html": page,
    "waterfall.csv": waterfall_csv,
    "breaks.csv": breaks_csv,
}
#: Only where a source has one.
WITNESSES = "witnesses.csv"
#: Only where the cost of something is known.
MARGIN = "margin.csv"
#: Rated usage for other tools; streamed, as it has a row for every rated window.
FOCUS = "focus_1_2.csv"
_PIECE = 1024 * 1024


@dataclass(frozen=True)
class ReportFile:
    """A report file that was written; ``address`` is its path, or its address in an object store."""

    name: str
    address: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Rendered:
    """What rendering came to. ``registered`` counts files whose content the ledger had not seen."""

    period: str
    reconciliation_id: int
    files: tuple[ReportFile, ...]
    registered: int
    open_breaks: int
    checks: tuple[Check, ...]


def render(
    ledger: Ledger, catalog: Catalog, *, period: str, folder: Path | str, now: datetime, run_id: str
) -> Rendered:
    """Writes the reports of ``period`` (``YYYY-MM``) into ``folder/period`` and registers them in the ledger.

    They show the newest reconciliation. The same data gives the same bytes; a file that is as it should be is left
    alone. Files are private to their owner; ``folder`` may be an address in an object store. Raises NothingToReport
    for a period that was never reconciled.
    """
    place = storage.folder(folder)
    with ledger.transaction() as connection:
        connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        report = read_report(connection, catalog, period)
        files = [write(place, f"{period}/{name}", [make(report)]) for name, make in FILES.items()]
        if report.witnesses:
            files.append(write(place, f"{period}/{WITNESSES}", [witnesses_csv(report)]))
        if report.margins:
            files.append(write(place, f"{period}/{MARGIN}", [margin_csv(report)]))
        files.append(write(place, f"{period}/{FOCUS}", focus_csv(connection, catalog, period, report.costs)))
    with ledger.transaction() as connection:
        registered = register(connection, period, files, report.reconciliation_id, now)
    check = Check(
        "reports_written",
        all(stored(place, f"{period}/{file.name}") == file.sha256 for file in files),
        "Every report file is stored in full.",
        {"files": len(files), "bytes": sum(file.bytes for file in files), "run_id": run_id},
    )
    return Rendered(period, report.reconciliation_id, tuple(files), registered, len(report.faults), (check,))


def register(
    connection: Connection, period: str, files: Iterable[ReportFile], reconciliation_id: int, now: datetime
) -> int:
    """Notes the files in the ledger; returns how many had a content that it had not seen."""
    return sum(
        connection.execute(
            _REGISTER,
            {"period": period, "name": file.name, "sha256": file.sha256, "bytes": file.bytes,
             "reconciliation_id": reconciliation_id, "now": now},
        ).rowcount
        for file in files
    )  # fmt: skip


_REGISTER = text("""
    INSERT INTO reports (period, name, sha256, bytes, reconciliation_id, made_at)
    VALUES (:period, :name, :sha256, :bytes, :reconciliation_id, :now)
    ON CONFLICT (period, name, sha256) DO NOTHING
""")


def write(folder: Folder, name: str, parts: Iterable[bytes]) -> ReportFile:
    """Puts what ``parts`` add up to at ``name``; readers see the old file or the new one, never a part."""
    digest, size = hashlib.sha256(), 0
    with folder.made(name) as path:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
            for part in parts:
                digest.update(part)
                size += out.write(part)
        if stored(folder, name) == digest.hexdigest():
            path.unlink()
    return ReportFile(name.rpartition("/")[2], folder.address(name), digest.hexdigest(), size)


def stored(folder: Folder, name: str) -> str | None:
    """The SHA-256 of a file; None where there is none."""
    digest = hashlib.sha256()
    try:
        with folder.open(name) as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
    except FileNotFoundError:
        return None
    return digest.hexdigest()
