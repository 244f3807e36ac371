"""The addresses of the finance pages, and who may reach each. Every one goes through the door."""

from __future__ import annotations

from starlette.routing import Route

from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.web.finance.approvals import Approvals
from clawbill_pipeline.web.finance.catalogue import CatalogFile
from clawbill_pipeline.web.finance.door import Door, Handler
from clawbill_pipeline.web.finance.downloads import Downloads
from clawbill_pipeline.web.finance.pages import Pages
from clawbill_pipeline.web.finance.render import style_sheet


def finance_routes(settings: Settings, ledger: Ledger) -> list[Route]:
    """All routes: pages and downloads for whoever is let in, decisions for the role finance alone."""
    door = Door(settings, ledger)
    catalog = CatalogFile(settings)
    pages, approvals = Pages(door, settings, catalog), Approvals(door, settings, catalog)
    shown: dict[str, Handler] = {
        "/": pages.home,
        "/periods": pages.chosen,
        "/periods/{period}": pages.overview,
        "/periods/{period}/breaks": pages.breaks,
        "/periods/{period}/tenant": pages.tenant,
        "/periods/{period}/changes": pages.changes,
        "/periods/{period}/reports": pages.reports,
        "/invoices/{invoice_id}": pages.invoice,
        "/lines/{line_id}": pages.line,
        "/approvals": approvals.waiting,
        "/activity": pages.activity,
        "/reports/{period}/{name:path}": Downloads(door, settings.reports_root),
    }
    decided: dict[str, Handler] = {
        "/invoices/{invoice_id}/decision": approvals.decide_invoice,
        "/adjustments/decision": approvals.decide_adjustment,
        "/corrections/decision": approvals.decide_correction,
    }
    return [
        *(Route(path, door.guarded(handler), methods=["GET"]) for path, handler in shown.items()),
        *(
            Route(path, door.guarded(handler, role="finance", post=True), methods=["POST"])
            for path, handler in decided.items()
        ),
        Route("/sign-in", door.sign_in_page, methods=["GET"]),
        Route("/sign-in", door.sign_in, methods=["POST"]),
        Route("/sign-out", door.sign_out, methods=["POST"]),
        Route("/static/finance.css", style_sheet, methods=["GET"]),
    ]
