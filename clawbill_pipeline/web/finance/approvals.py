"""What a person of finance decides here: held invoices go out or stay, adjustments and corrections are made or not.

Every decision is carried out by what the command line uses too: drafts by ``invoicing.close``, adjustments by
``invoicing.adjusting``, corrections by ``correcting``. This is only their door.
"""

from __future__ import annotations

import logging
from urllib.parse import quote

from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from clawbill_pipeline import correcting
from clawbill_pipeline.invoicing import adjusting, close
from clawbill_pipeline.ledger.adjustment_log import REJECTED, Standing, read_standings
from clawbill_pipeline.ledger.database import lock
from clawbill_pipeline.money import MoneyError
from clawbill_pipeline.settings import Settings, SettingsError
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline.web.finance import figures
from clawbill_pipeline.web.finance.catalogue import CatalogFile
from clawbill_pipeline.web.finance.door import Door, Refused, Visit, note
from clawbill_pipeline.web.finance.render import page

log = logging.getLogger(__name__)

#: Longest reason that is kept.
WHY = 1000
#: What can be done about an adjustment, and in which states.
_POSSIBLE = {
    "accepted": ("open", "refused", "accepted", "sending"),
    "rejected": ("open", "refused"),
    "undone": ("done", "accepted", "undoing"),
}


class Approvals:
    """The list of what waits, and the three kinds of decisions."""

    def __init__(self, door: Door, settings: Settings, catalog: CatalogFile) -> None:
        self._door = door
        self._ledger = door.ledger
        self._settings = settings
        self._catalog = catalog
        self._kept: tuple[tuple[object, ...], list[correcting.Action]] = ((), [])

    def waiting(self, request: Request, visit: Visit) -> Response:
        """``GET /approvals``."""
        at, seen = figures.page_number(request.query_params), visit.viewer.tenants
        with self._ledger.transaction() as connection:
            drafts, draft_count = figures.drafts(connection, seen, at)
            adjustments = figures.adjustments(connection, seen, at)
        actions = self._actions(visit)
        most = max(draft_count, adjustments.count, len(actions))
        return page(
            "approvals.html", visit=visit, here="approvals", drafts=drafts, draft_count=draft_count,
            adjustments=adjustments, actions=figures.of_page(actions, at), action_count=len(actions),
            said=request.query_params.get("said", ""), page=at, pages=max(-(-most // figures.PAGE), 1),
        )  # fmt: skip

    def decide_invoice(self, request: Request, visit: Visit) -> Response:
        """``POST /invoices/{invoice_id}/decision``: ``action`` is hold or release, ``why`` is kept."""
        invoice_id, why = request.path_params["invoice_id"], _why(visit)
        action = {"hold": close.hold, "release": close.release}.get(visit.form.get("action", ""))
        if action is None:
            raise Refused(400, "Choose hold or release.")
        with self._ledger.transaction() as connection:
            if figures.invoice(connection, self._catalog.current(), invoice_id, visit.viewer.tenants) is None:
                raise Refused(404, "No such invoice, or not one that you may see.")
        try:
            refused = action(self._ledger, self._stripe(), invoice_id, why=why, by=_by(visit), now=self._door.clock())
        except close.NotADraft as error:
            raise Refused(409, str(error)) from None
        for problem in refused:
            log.warning("finance pages: %s", problem)
        said = "waits" if refused else "done"
        return RedirectResponse(f"/invoices/{quote(invoice_id, safe='')}?said={said}", 303)

    def decide_adjustment(self, request: Request, visit: Visit) -> Response:
        """``POST /adjustments/decision``: accept, reject or undo ``proposal``, which is what the person saw."""
        why, action, number = _why(visit), visit.form.get("action", ""), visit.form.get("proposal", "")
        if action not in _POSSIBLE:
            raise Refused(400, "Choose accept, reject or undo.")
        api = self._stripe() if action != "rejected" else None
        with self._ledger.transaction() as connection:
            lock(connection, "adjustments")
            found = _proposal(read_standings(connection, subject=visit.form.get("subject", "")), number)
            if found is None or not visit.viewer.sees(found.tenant_id):
                raise Refused(404, "No such adjustment, or not one that you may see.")
            if found.state not in _POSSIBLE[action]:
                raise Refused(409, f"This adjustment is {found.state} by now; load the page again.")
            if action == "rejected":
                kept = {name: value for name, value in found.said.items() if name != "run_id"}
                detail = kept | {"proposal": found.proposal, "by": _by(visit), "why": why}
                note(connection, self._door.clock, REJECTED, found.subject, detail, found.tenant_id)
        said = action
        if api is not None:
            carry_out = adjusting.undo if action == "undone" else adjusting.approve
            try:
                done = carry_out(
                    self._ledger, api, found.proposal, why=why, by=_by(visit), now=self._door.clock()
                )  # fmt: skip
            except (adjusting.NotAdjustable, MoneyError) as error:
                raise Refused(409, str(error)) from None
            for problem in done.problems:
                log.warning("finance pages: %s", problem)
            if done.problems:
                said = "sending" if done.standing.state in ("sending", "undoing") else "refused"
        return RedirectResponse(f"/approvals?said={said}", 303)

    def decide_correction(self, request: Request, visit: Visit) -> Response:
        """``POST /corrections/decision``: approves the correction whose ``mark`` the person saw."""
        why, mark = _why(visit), visit.form.get("mark", "")
        action = next((each for each in self._actions(visit) if each.mark == mark), None)
        if action is None:
            raise Refused(409, "This correction changed or was decided meanwhile; load the page again.")
        try:
            correcting.allow(
                self._ledger, self._catalog.current(), action, why=why, by=_by(visit), now=self._door.clock()
            )  # fmt: skip
        except correcting.NotCorrectable as error:
            raise Refused(409, str(error)) from None
        return RedirectResponse("/approvals?said=approved", 303)

    def _actions(self, visit: Visit) -> list[correcting.Action]:
        """The corrections that wait for a person and are about nobody whom the viewer may not see, largest first.

        Kept, since a hundred thousand breaks take seconds to judge; ``correcting.allow`` looks again.
        """
        catalog = self._catalog.current()
        with self._ledger.transaction() as connection:
            # Every reconciliation that changes a break and every decision leaves a row: without one nothing changed.
            newest = connection.execute(
                text("SELECT (SELECT max(id) FROM reconciliations), (SELECT max(id) FROM audit_trail)")
            ).one()
        seen = (*newest, id(catalog))
        if self._kept[0] != seen:
            waiting = [each for each in correcting.planned(self._ledger, catalog) if each.verdict == "waits"]
            self._kept = (seen, sorted(waiting, key=lambda action: action.worth, reverse=True))
        return [each for each in self._kept[1] if all(visit.viewer.sees(of.tenant_id) for of in each.breaks)]

    def _stripe(self) -> StripeApi:
        """The way to Stripe. Raises Refused where there is none."""
        try:
            key = self._settings.need_stripe(live_allowed=self._catalog.current().live)
        except SettingsError as error:
            raise Refused(409, f"Stripe can't be told: {error}") from None
        return StripeApi(key, self._settings.stripe_api_base)


def _proposal(standings: list[Standing], number: str) -> Standing | None:
    return next((each for each in standings if str(each.proposal) == number), None)


def _by(visit: Visit) -> str:
    return f"{visit.viewer.name} (web)"


def _why(visit: Visit) -> str:
    why = visit.form.get("why", "").strip()
    if not why or len(why) > WHY:
        raise Refused(400, f"Say why, in at most {WHY} characters: it goes into the audit trail.")
    return why
