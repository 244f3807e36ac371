"""The last hours of a period whose invoice is drafted, brought to Stripe at once: landed, metered, rated, delivered.

For the drafts' tenants alone: everybody else's hours have their own run, and a month ends for all tenants in one hour.
The stations do the work and keep their own locks, so this may run beside the hourly run. How a draft is compared, and
whether it goes out, is ``invoicing.close``'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog
from clawbill_pipeline.catalog.periods import HOUR, utc_hour
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.delivery.planning import plan
from clawbill_pipeline.delivery.sending import deliver
from clawbill_pipeline.invoicing.close import Undecided, undecided_drafts
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.metering import meter_unused
from clawbill_pipeline.metering.ahead import meter_ahead
from clawbill_pipeline.openclaw import OpenClaw
from clawbill_pipeline.rating.station import rate
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline.usage import land

#: Drafts are looked at so often: what came just before the late window ended is found by the look after it.
_LOOKS = timedelta(minutes=10)
#: What was metered before and not rated or sent is done as well, this far back from the period's end.
BACK = timedelta(hours=3)


@dataclass(frozen=True)
class LastHours:
    """What was done for drafts at once: their tenants, hours counted ahead, amounts booked, records sent."""

    tenants: int
    hours_ahead: int
    booked_ahead: int
    sent_ahead: int
    hindrances: tuple[str, ...]


def bill_last_hours(
    ledger: Ledger,
    catalog: Catalog,
    lake: Lake,
    openclaw: OpenClaw,
    api: StripeApi,
    *,
    now: Clock,
    run_id: str,
) -> LastHours:
    """Brings to Stripe what the tenants of drafts used and nobody has counted or sent yet. Safe to call again.

    Within the catalogue's late window, and once after it, usage is landed for drafts that agreed, too: it changes hours
    that were counted, which then have their own run (the sensor ``late_usage``), and Stripe counts once more when it
    finalises.

    What fails is a hindrance: the draft is compared with what there is, and the next call goes on. Raises LedgerError
    only where the drafts themselves can't be read.
    """
    drafts = undecided_drafts(ledger, catalog)
    hindrances: list[str] = []
    hours = booked = sent = 0
    if drafts or _may_change(ledger, since=now() - catalog.calendar.late_window - _LOOKS):
        try:
            land(catalog, lake, ledger, now=now(), run_id=run_id)
        except Exception as error:  # noqa: BLE001 -- whatever hinders landing, what landed before is billed
            hindrances.append(f"landing: {type(error).__name__}: {error}")
    for each in drafts:
        try:
            done = _bill(ledger, catalog, lake, openclaw, api, each, now, run_id)
        except Exception as error:  # noqa: BLE001 -- and the drafts are looked at in any case
            hindrances.append(f"hours before {each.until:%Y-%m-%dT%H:%M:%SZ}: {type(error).__name__}: {error}")
            continue
        hours, booked, sent = hours + done[0], booked + done[1], sent + done[2]
    tenants = {tenant for each in drafts for tenant in each.tenants}
    return LastHours(len(tenants), hours, booked, sent, tuple(hindrances))


def _may_change(ledger: Ledger, since: datetime) -> bool:
    """Whether there is a draft that was made ``since``: at the end of its period."""
    with ledger.transaction() as connection:
        query = "SELECT EXISTS (SELECT FROM invoices WHERE status = 'draft' AND created >= :since)"
        return bool(connection.scalar(text(query), {"since": since}))


def _bill(
    ledger: Ledger,
    catalog: Catalog,
    lake: Lake,
    openclaw: OpenClaw,
    api: StripeApi,
    drafts: Undecided,
    now: Clock,
    run_id: str,
) -> tuple[int, int, int]:
    """Hours counted, amounts booked and records sent for drafts that end at one moment."""
    tenants, until = [name for name in drafts.tenants if name in catalog.tenants], drafts.until
    if not tenants:
        return 0, 0, 0
    counted = meter_ahead(
        ledger, lake, catalog, tenants=tenants, start=drafts.start, until=until, now=now(), run_id=run_id
    )
    last = utc_hour(until - timedelta(microseconds=1)) + HOUR
    first = min([*counted, max(utc_hour(drafts.start), last - BACK)])
    theirs = catalog.model_copy(update={"tenants": {name: catalog.tenants[name] for name in tenants}})
    meter_unused(ledger, theirs, start=first, end=last, now=now(), run_id=run_id)
    rated = rate(ledger, catalog, openclaw, start=first, end=last, now=now(), run_id=run_id, tenants=tenants)
    plan(ledger, catalog, hours=(first, last), now=now(), run_id=run_id)
    delivered = deliver(ledger, catalog, api, now=now, run_id=run_id, customers=drafts.customers)
    return len(counted), rated.booked, delivered.delivered
