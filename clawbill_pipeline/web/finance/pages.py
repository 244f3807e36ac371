"""The finance pages: which figures a page shows. Who may see them is the door's, how they look the templates'."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from clawbill_pipeline.catalog.periods import utc_hour
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger.archive import archived_of
from clawbill_pipeline.reconciliation.lineage import UnknownLine, explain
from clawbill_pipeline.reporting.chart import days_svg, waterfall_svg
from clawbill_pipeline.reporting.page import number
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.finance import figures
from clawbill_pipeline.web.finance.catalogue import CatalogFile
from clawbill_pipeline.web.finance.door import Door, Refused, Visit
from clawbill_pipeline.web.finance.figures import Filters, Reconciled
from clawbill_pipeline.web.finance.render import page

_PERIOD = re.compile(r"\d{4}-(?:0[1-9]|1[0-2])(?:-\d{2})?", re.ASCII)
#: Usage events on a lineage page.
EVENTS = 200


class Pages:
    """The pages that only show."""

    def __init__(self, door: Door, settings: Settings, catalog: CatalogFile) -> None:
        self._door = door
        self._ledger = door.ledger
        self._settings = settings
        self._catalog = catalog
        self._tracing = threading.BoundedSemaphore(2)  # each reads a month of lake files

    def home(self, request: Request, visit: Visit) -> Response:
        """``GET /``: on to the newest period."""
        with self._ledger.transaction() as connection:
            known = figures.periods(connection)
        if known:
            return RedirectResponse(f"/periods/{known[0]}", 303)
        return page("empty.html", visit=visit)

    def chosen(self, request: Request, visit: Visit) -> Response:
        """``GET /periods?period=``: on to the period that was chosen from a list."""
        period = request.query_params.get("period", "")
        return RedirectResponse(f"/periods/{period}" if _PERIOD.fullmatch(period) else "/", 303)

    def overview(self, request: Request, visit: Visit) -> Response:
        """``GET /periods/{period}``."""
        seen, words = visit.viewer.tenants, request.query_params.get("tenant", "").strip()[:200]
        at = figures.page_number(request.query_params)
        with self._ledger.transaction() as connection:
            reconciled, frame = self._frame(connection, request, visit)
            bars = figures.waterfalls(connection, reconciled, seen)
            grown = figures.trend(connection, reconciled.period, seen)
            rated_days = figures.rated_days(connection, self._catalog.current(), reconciled, seen)
            tenants, count = figures.tenants(connection, reconciled.id, seen, words, at)
            values: dict[str, Any] = {
                "totals": figures.totals(connection, reconciled, seen),
                "months": figures.months(connection, seen),
                "causes": figures.causes(connection, reconciled.period, seen),
                "files": figures.report_files(connection, reconciled.period) if seen is None else (),
            }
        charts = []
        for currency, of_currency in bars.items():
            shown = _money(currency)
            drawn = waterfall_svg(of_currency, shown, f"From rated to paid in {currency}")
            days = rated_days.days
            what, of = ("Rated a day", days) if days else ("Rated by the end of each day", grown.rated)
            rated = days_svg(of.get(currency, ()), shown, f"{what} in {currency}")
            charts.append((currency, drawn, what, rated))
        counted = days_svg(grown.breaks, lambda value: f"{value} breaks", "Open breaks at the end of each day")
        return page(
            "overview.html", **frame, **values, charts=charts, breaks_chart=counted,
            tenants=tenants, count=count, words=words, page=at, pages=_pages(count), archived=rated_days.archived,
        )  # fmt: skip

    def breaks(self, request: Request, visit: Visit) -> Response:
        """``GET /periods/{period}/breaks``."""
        filters = Filters.of(request.query_params)
        with self._ledger.transaction() as connection:
            reconciled, frame = self._frame(connection, request, visit, "breaks")
            found, count = figures.breaks(connection, reconciled.period, filters, visit.viewer.tenants)
        return page(
            "breaks.html", **frame, breaks=found, count=count, filters=filters, page=filters.page,
            pages=_pages(count), standings=figures.STANDINGS, orders=figures.ORDERS,
        )  # fmt: skip

    def tenant(self, request: Request, visit: Visit) -> Response:
        """``GET /periods/{period}/tenant?id=``."""
        tenant_id = request.query_params.get("id", "")
        if not visit.viewer.sees(tenant_id):
            raise Refused(404, "No such tenant, or not one that you may see.")
        filters = Filters(standing="open", tenant=tenant_id)
        with self._ledger.transaction() as connection:
            reconciled, frame = self._frame(connection, request, visit, "tenant")
            catalog = self._catalog.current()
            month = figures.tenant_month(connection, catalog, reconciled, tenant_id)
            found, count = figures.breaks(connection, reconciled.period, filters, visit.viewer.tenants)
        if not (month.steps or found or month.invoices) and tenant_id not in catalog.tenants:
            raise Refused(404, "No such tenant, or not one that you may see.")
        charts = [
            (currency, days_svg(days, _money(currency), f"Rated a day in {currency}"))
            for currency, days in month.days.items()
        ]
        return page(
            "tenant.html", **frame, tenant_id=tenant_id, month=month, charts=charts, breaks=found, count=count,
            filters=filters,
        )  # fmt: skip

    def invoice(self, request: Request, visit: Visit) -> Response:
        """``GET /invoices/{invoice_id}``."""
        catalog = self._catalog.current()
        with self._ledger.transaction() as connection:
            found = figures.invoice(connection, catalog, request.path_params["invoice_id"], visit.viewer.tenants)
            known = figures.periods(connection)
        if found is None:
            raise Refused(404, "No such invoice, or not one that you may see.")
        tenant = catalog.tenants.get(found.row.tenant_id or "")
        period = tenant.period_at(found.sides[0].start).key if tenant and found.sides else None
        said = request.query_params.get("said", "")
        return page("invoice.html", visit=visit, invoice=found, said=said, period=period if period in known else None)

    def line(self, request: Request, visit: Visit) -> Response:
        """``GET /lines/{line_id}``: down to the usage events, also those of an archived month."""
        line_id = request.path_params["line_id"]
        with self._ledger.transaction() as connection:
            known, periods = figures.tenant_of_line(connection, line_id), figures.periods(connection)
        if known is None or not visit.viewer.sees(known[1]):
            raise Refused(404, "No such invoice line, or not one that you may see.")
        lake = Lake(self._settings.lake_root, self._settings.memory_limit)
        try:
            with self._tracing:
                lineage = explain(self._ledger, lake, self._catalog.current(), line_id, limit=EVENTS)
        except UnknownLine as error:
            raise Refused(404, f"Nothing to show below this line: {error}") from None
        period = lineage.line.period
        with self._ledger.transaction() as connection:
            archived = archived_of(connection, utc_hour(period.start), period.end)
        return page(
            "line.html", visit=visit, lineage=lineage, period=period.key if period.key in periods else None,
            archived=archived,
        )  # fmt: skip

    def changes(self, request: Request, visit: Visit) -> Response:
        """``GET /periods/{period}/changes?since=YYYY-MM-DD``; since this time yesterday by default."""
        now = self._door.clock()
        try:
            since = datetime.fromisoformat(request.query_params.get("since", "")).replace(tzinfo=UTC)
        except ValueError:
            since = now - timedelta(days=1)
        with self._ledger.transaction() as connection:
            reconciled, frame = self._frame(connection, request, visit, "changes")
            found = figures.changes(connection, self._catalog.current(), reconciled, since, visit.viewer.tenants)
        before = {total.currency: total for total in found.before or ()}
        return page("changes.html", **frame, changes=found, before=before, since=since)

    def reports(self, request: Request, visit: Visit) -> Response:
        """``GET /periods/{period}/reports``."""
        if visit.viewer.tenants is not None:
            raise Refused(403, "Reports cover every tenant; your account sees only some.")
        with self._ledger.transaction() as connection:
            reconciled, frame = self._frame(connection, request, visit, "reports")
            files = figures.report_files(connection, reconciled.period)
        return page("reports.html", **frame, files=files)

    def activity(self, request: Request, visit: Visit) -> Response:
        """``GET /activity``: who signed in, downloaded, held, released, accepted and rejected."""
        if visit.viewer.role == "read-only":
            raise Refused(403, "Only the roles finance and engineer may see who did what.")
        at = figures.page_number(request.query_params)
        with self._ledger.transaction() as connection:
            rows = figures.activity(connection, visit.viewer.tenants, at)
        return page(
            "activity.html", visit=visit, here="activity", rows=rows[: figures.PAGE], page=at,
            more=len(rows) > figures.PAGE,
        )  # fmt: skip

    def _frame(
        self, connection: Connection, request: Request, visit: Visit, here: str = "overview"
    ) -> tuple[Reconciled, dict[str, Any]]:
        """The period of the address, and what every page of a period shows. Raises Refused."""
        period = request.path_params["period"]
        reconciled = figures.newest(connection, period) if _PERIOD.fullmatch(period) else None
        if reconciled is None:
            raise Refused(404, "This period was never reconciled.")
        frame = {
            "visit": visit,
            "period": period,
            "periods": figures.periods(connection),
            "reconciled": reconciled,
            "now": max(self._door.clock(), reconciled.as_of),
            "here": here,
        }
        return reconciled, frame


def _pages(count: int) -> int:
    return max(-(-count // figures.PAGE), 1)


def _money(currency: str) -> Callable[[Decimal], str]:
    return lambda value: f"{number(value)} {currency}"
