"""The catalogue as the server sees it: the newest one that could be read. Prices themselves are in ``catalog``."""

from __future__ import annotations

import logging
from pathlib import Path

from clawbill_pipeline.catalog import Catalog, CatalogError, load

log = logging.getLogger(__name__)

_Stamp = tuple[int, int, int]


class Rates:
    """The catalogue in a file, read again when the file changes. A broken new file is logged and the old one stays."""

    def __init__(self, path: Path) -> None:
        """Raises CatalogError: a server without any rates does not start."""
        self._path = path
        self._stamp = self._look()
        self._catalog = load(path)
        #: Why the newest file is not the one in use, or None.
        self.fault: str | None = None

    def current(self) -> Catalog:
        """The catalogue in use."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            self._reload()
        return self._catalog

    def _look(self) -> _Stamp | None:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _reload(self) -> None:
        try:
            self._catalog = load(self._path)
        except CatalogError as error:
            self.fault = str(error)
            log.error("catalogue refused, the old one stays", extra={"fields": {"error": self.fault}})
        else:
            self.fault = None
            log.info("catalogue loaded", extra={"fields": {"path": str(self._path)}})
