"""``GET /reports/{period}/{name}``: a report that the ledger knows, to this machine only. Making them is elsewhere.

There is no sign-in yet, so a request must come over the loopback interface, under a loopback name (a web page
elsewhere could otherwise point its own name here), and not through a proxy.
"""

from __future__ import annotations

import hashlib
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.ledger.tables import reports

_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}
# A report may style itself; it runs no script and loads nothing.
_HTML_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Reports:
    """The endpoint over the files in ``root``."""

    def __init__(self, ledger: Ledger, root: Path) -> None:
        self._ledger = ledger
        self._root = root

    async def __call__(self, request: Request) -> Response:
        if not from_this_machine(request):
            return PlainTextResponse("reports are served to this machine only", 403)
        period, name = request.path_params["period"], request.path_params["name"]
        content = await run_in_threadpool(self._content, period, name)
        if content is None:
            return PlainTextResponse("no such report; make it with: clawbill report", 404)
        kind = _TYPES.get(Path(name).suffix, "application/octet-stream")
        if kind.startswith("text/html"):
            return Response(content, media_type=kind, headers={"Content-Security-Policy": _HTML_POLICY})
        # The name is one that we registered: it holds no quote and no line end.
        disposition = f'attachment; filename="{Path(name).name}"'
        return Response(content, media_type=kind, headers={"Content-Disposition": disposition})

    def _content(self, period: str, name: str) -> bytes | None:
        if "\0" in period + name:  # PostgreSQL takes no NUL
            return None
        registered = select(reports.c.sha256).where(reports.c.period == period, reports.c.name == name)
        with self._ledger.transaction() as connection:
            known = set(connection.scalars(registered))
        root = self._root.resolve()
        path = (root / period / name).resolve()
        if not known or not path.is_relative_to(root):
            return None
        try:
            content = path.read_bytes()
        except OSError:
            return None
        return content if hashlib.sha256(content).hexdigest() in known else None


def from_this_machine(request: Request) -> bool:
    """Whether both ends of the connection and the name it was made under are this machine's own."""
    ends = [request.client.host if request.client else "", (request.scope.get("server") or ("",))[0]]
    proxied = any(name in request.headers for name in ("forwarded", "x-forwarded-for", "via"))
    try:
        # Not request.url: where the header is no host, that falls back on the server's own address.
        name = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:
        return False
    return not proxied and all(map(_is_loopback, ends)) and is_loopback(name)


def is_loopback(host: str) -> bool:
    """Whether a host, by name or address, is this machine."""
    return host == "localhost" or _is_loopback(host)


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
