"""What a person of finance decides here: held invoices go out or stay, adjustments are accepted or rejected.

A decision on a draft is the close's own (``invoicing.close``). One on an adjustment is a row of the audit trail,
``adjustment.accepted`` or ``adjustment.rejected``, that names the proposal it is about; it makes no invoice item.
"""

from __future__ import annotations

import logging
from urllib.parse import quote

from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from clawbill_pipeline.invoicing import close
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.ledger.tables import audit_trail
from clawbill_pipeline.settings import Settings, SettingsError
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline.web.finance import figures
from clawbill_pipeline.web.finance.catalogue import CatalogFile
from clawbill_pipeline.web.finance.door import Door, Refused, Visit, note
from clawbill_pipeline.web.finance.render import page

log = logging.getLogger(__name__)

_ADJUSTMENT = ("adjustment.proposed", "adjustment.accepted", "adjustment.rejected")
#: Longest reason that is kept.
WHY = 1000


class Approvals:
    """The list of what waits, and the two decisions."""

    def __init__(self, door: Door, settings: Settings, catalog: CatalogFile) -> None:
        self._door = door
        self._ledger = door.ledger
        self._settings = settings
        self._catalog = catalog

    def waiting(self, request: Request, visit: Visit) -> Response:
        """``GET /approvals``."""
        at, seen = figures.page_number(request.query_params), visit.viewer.tenants
        with self._ledger.transaction() as connection:
            drafts, draft_count = figures.drafts(connection, seen, at)
            adjustments, adjustment_count = figures.adjustments(connection, seen, at)
        most = max(draft_count, adjustment_count)
        return page(
            "approvals.html", visit=visit, here="approvals", drafts=drafts, draft_count=draft_count,
            adjustments=adjustments, adjustment_count=adjustment_count, said=request.query_params.get("said", ""),
            page=at, pages=max(-(-most // figures.PAGE), 1),
        )  # fmt: skip

    def decide_invoice(self, request: Request, visit: Visit) -> Response:
        """``POST /invoices/{invoice_id}/decision``: ``action`` is hold or release, ``why`` is kept."""
        invoice_id, why = request.path_params["invoice_id"], _why(visit)
        action = {"hold": close.hold, "release": close.release}.get(visit.form.get("action", ""))
        if action is None:
            raise Refused(400, "Choose hold or release.")
        catalog = self._catalog.current()
        with self._ledger.transaction() as connection:
            if figures.invoice(connection, catalog, invoice_id, visit.viewer.tenants) is None:
                raise Refused(404, "No such invoice, or not one that you may see.")
        try:
            key = self._settings.need_stripe(live_allowed=catalog.live)
        except SettingsError as error:
            raise Refused(409, f"Stripe can't be told: {error}") from None
        api = StripeApi(key, self._settings.stripe_api_base)
        try:
            by = f"{visit.viewer.name} (web)"
            refused = action(self._ledger, api, invoice_id, why=why, by=by, now=self._door.clock())
        except close.NotADraft as error:
            raise Refused(409, str(error)) from None
        for problem in refused:
            log.warning("finance pages: %s", problem)
        said = "waits" if refused else "done"
        return RedirectResponse(f"/invoices/{quote(invoice_id, safe='')}?said={said}", 303)

    def decide_adjustment(self, request: Request, visit: Visit) -> Response:
        """``POST /adjustments/decision``: ``proposal`` is what the person saw; a newer one must be looked at first."""
        why, outcome = _why(visit), visit.form.get("action", "")
        if outcome not in ("accepted", "rejected"):
            raise Refused(400, "Choose accept or reject.")
        subject = visit.form.get("subject", "")
        with self._ledger.transaction() as connection:
            lock(connection, "adjustments")
            last = connection.execute(
                select(audit_trail)
                .where(audit_trail.c.subject == subject, audit_trail.c.kind.in_(_ADJUSTMENT))
                .order_by(audit_trail.c.id.desc())
                .limit(1)
            ).one_or_none()
            if last is None or not visit.viewer.sees(last.tenant_id):
                raise Refused(404, "No such adjustment, or not one that you may see.")
            if last.kind != "adjustment.proposed" or str(last.id) != visit.form.get("proposal"):
                raise Refused(409, "This adjustment was decided or changed meanwhile; load the page again.")
            kept = {name: value for name, value in last.detail.items() if name != "run_id"}
            detail = kept | {"proposal": last.id, "by": f"{visit.viewer.name} (web)", "why": why}
            note(connection, self._door.clock, f"adjustment.{outcome}", subject, detail, last.tenant_id)
        return RedirectResponse(f"/approvals?said={outcome}", 303)


def _why(visit: Visit) -> str:
    why = visit.form.get("why", "").strip()
    if not why or len(why) > WHY:
        raise Refused(400, f"Say why, in at most {WHY} characters: it goes into the audit trail.")
    return why
