"""The catalogue as its file says now, for pages that are asked for often: read again only when the file changed."""

from __future__ import annotations

from pathlib import Path

from clawbill_pipeline.catalog import Catalog, load
from clawbill_pipeline.settings import Settings


class CatalogFile:
    """The catalogue of these settings. A thousand tenants take a fifth of a second to read and check."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: tuple[tuple[Path, int, int, int], Catalog] | None = None

    def current(self) -> Catalog:
        """Raises CatalogError."""
        path = self._settings.catalog_file
        try:
            stat = path.stat()
        except OSError:
            return load(path)  # which says what is wrong
        seen = (path, stat.st_mtime_ns, stat.st_size, stat.st_ino)
        kept = self._kept
        if kept is None or kept[0] != seen:
            self._kept = kept = (seen, load(path))
        return kept[1]
