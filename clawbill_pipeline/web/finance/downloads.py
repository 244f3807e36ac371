"""``GET /reports/{period}/{name}``: a report that the ledger knows. Making reports is elsewhere.

Every download is a row of the audit trail (``report.downloaded``), committed before the first byte goes out.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from clawbill_pipeline.ledger.tables import reports
from clawbill_pipeline.storage import folder
from clawbill_pipeline.web.finance.door import Door, Refused, Visit, note

_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
# A report may style itself; it runs no script and loads nothing.
_HTML_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Downloads:
    """The page over the files in ``root``: a path, or an address in an object store."""

    def __init__(self, door: Door, root: Path | str) -> None:
        self._door = door
        self._folder = folder(root)

    def __call__(self, request: Request, visit: Visit) -> Response:
        if visit.viewer.tenants is not None:
            raise Refused(403, "Reports cover every tenant; your account sees only some.")
        period, name = request.path_params["period"], request.path_params["name"]
        content = self._content(period, name)
        if content is None:
            return PlainTextResponse("no such report; make it with: clawbill report", 404)
        digest = hashlib.sha256(content).hexdigest()
        with self._door.ledger.transaction() as connection:
            said = {"by": visit.viewer.name, "sha256": digest}
            note(connection, self._door.clock, "report.downloaded", f"{period}/{name}", said)
        kind = _TYPES.get(Path(name).suffix, "application/octet-stream")
        if kind.startswith("text/html"):
            return Response(content, media_type=kind, headers={"Content-Security-Policy": _HTML_POLICY})
        # The name is one that we registered: it holds no quote and no line end.
        disposition = f'attachment; filename="{Path(name).name}"'
        return Response(content, media_type=kind, headers={"Content-Disposition": disposition})

    def _content(self, period: str, name: str) -> bytes | None:
        registered = select(reports.c.sha256).where(reports.c.period == period, reports.c.name == name)
        with self._door.ledger.transaction() as connection:
            known = set(connection.scalars(registered))
        if not known or ".." in Path(name).parts:
            return None
        try:
            content = self._folder.read(f"{period}/{name}")
        except FileNotFoundError:
            return None
        return content if hashlib.sha256(content).hexdigest() in known else None
