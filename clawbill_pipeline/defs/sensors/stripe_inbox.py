"""Follows the inbox of Stripe events that the webhook landed, in small ticks."""

from collections.abc import Iterator

import dagster as dg

from clawbill_pipeline.defs.jobs import stripe_events
from clawbill_pipeline.invoicing.inbox import pending_events
from clawbill_pipeline.ledger import Ledger

#: Events a tick; the run handles them one by one, so a run an event would only cost processes.
A_TICK = 500


@dg.sensor(
    job=stripe_events, minimum_interval_seconds=15, default_status=dg.DefaultSensorStatus.RUNNING, name="stripe_inbox"
)
def stripe_inbox(
    context: dg.SensorEvaluationContext, ledger: dg.ResourceParam[Ledger]
) -> Iterator[dg.RunRequest | dg.SkipReason]:
    """One run for the events that landed since the last tick; the cursor is the newest inbox id asked for."""
    after = int(context.cursor or 0)
    pending = pending_events(ledger, after=after, limit=A_TICK)
    if not pending:
        yield dg.SkipReason(f"No event after inbox id {after}.")
        return
    through, newest, _ = pending[-1]
    yield dg.RunRequest(
        run_key=f"{pending[0][0]}-{through}-{newest}",
        run_config={"ops": {"stripe_invoices": {"config": {"through": through}}}},
        tags={"clawbill/events": str(len(pending))},
    )
    context.update_cursor(str(through))
