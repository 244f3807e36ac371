"""What /metrics says of the whole pipeline, read from the ledger when it is asked for. It counts nothing itself.

Runs are short-lived and on other machines, so Prometheus can't ask them; what they leave in the ledger, it can. Every
query goes by an index to what is open or newest, so that history costs nothing, and an answer is good for some seconds.
All web apps on a ledger say the same here: take the ``max`` over them, never the ``sum``.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from sqlalchemy import Connection, text
from sqlalchemy.exc import SQLAlchemyError

from clawbill_pipeline.catalog import Catalog, CatalogError
from clawbill_pipeline.catalog.sources import Http
from clawbill_pipeline.clock import Clock
from clawbill_pipeline.ledger import Ledger, LedgerError
from clawbill_pipeline.ledger.tables import OUTBOX_STATES
from clawbill_pipeline.ledger.tallies import BEYOND, SECONDS, SUM, read_tallies
from clawbill_pipeline.usage.ingested import waiting

log = logging.getLogger(__name__)

#: Seconds for which an answer is good, and which a query may take.
GOOD_FOR, PATIENCE = 5.0, 5
_HOUR = timedelta(hours=1)


class LedgerMetrics(Collector):
    """A collector over ``ledger``; ``catalog`` gives the catalogue. Where the ledger is away, it says just that."""

    def __init__(self, ledger: Ledger, catalog: Callable[[], Catalog], clock: Clock) -> None:
        self._ledger = ledger
        self._catalog = catalog
        self._clock = clock
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._at = -GOOD_FOR

    def collect(self) -> Iterator[Metric]:
        with self._lock:
            if time.monotonic() - self._at >= GOOD_FOR:
                self._kept = self._read()
                self._at = time.monotonic()
            kept = self._kept
        yield from kept

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not ask the ledger."""
        yield from ()

    def _read(self) -> list[Metric]:
        up = GaugeMetricFamily("clawbill_ledger_up", "1 if the ledger answered, 0 if it is away: then this is all.")
        try:
            with self._ledger.transaction() as connection:
                connection.execute(text(f"SET LOCAL statement_timeout = '{PATIENCE}s'"))
                found = [metric for read in _READERS for metric in read(connection, self._clock())]
                found += self._ingest(connection, self._clock())
        except (LedgerError, SQLAlchemyError) as error:
            log.warning("metrics: the ledger can't be read (%s)", type(error).__name__)
            up.add_metric([], 0)
            return [up]
        up.add_metric([], 1)
        return [up, *found]

    def _ingest(self, connection: Connection, now: datetime) -> Iterator[Metric]:
        try:
            sources = [source.name for source in self._catalog().sources if isinstance(source, Http)]
        except CatalogError:
            return
        for source in sources:
            requests, oldest = waiting(connection, source)
            yield _gauge("clawbill_ingest_waiting_requests", "Posted requests that are not in the lake yet.", requests)
            yield _gauge(
                "clawbill_ingest_waiting_age_seconds", "Since the oldest of them was posted.",
                _seconds(now - oldest) if oldest else 0,
            )  # fmt: skip


def _hours(connection: Connection, now: datetime) -> Iterator[Metric]:
    age = GaugeMetricFamily("clawbill_metered_hour_age_seconds", "Since the end of the newest hour that was metered.")
    newest = connection.scalar(text("SELECT max(hour) FROM metered_hours"))
    if newest is not None:
        age.add_metric([], _seconds(now - newest - _HOUR))
    yield age
    age = GaugeMetricFamily("clawbill_reconciliation_age_seconds", "Since the newest reconciliation.")
    newest = connection.scalar(text("SELECT as_of FROM reconciliations ORDER BY id DESC LIMIT 1"))
    if newest is not None:
        age.add_metric([], _seconds(now - newest))
    yield age


def _outbox(connection: Connection, now: datetime) -> Iterator[Metric]:
    rows = GaugeMetricFamily(
        "clawbill_outbox_rows", "Usage records that are not delivered; parked ones wait for a person.",
        labels=["state", "parked"],
    )  # fmt: skip
    oldest = GaugeMetricFamily(
        "clawbill_outbox_oldest_age_seconds", "Since the oldest of these records was planned.",
        labels=["state", "parked"],
    )  # fmt: skip
    found = {(row.state, row.parked): row for row in connection.execute(_OUTBOX)}
    for state in OUTBOX_STATES:
        for parked in (False, True) if state != "delivered" else ():
            row = found.get((state, parked))
            labels = [state, str(parked).lower()]
            rows.add_metric(labels, row.records if row else 0)
            oldest.add_metric(labels, _seconds(now - row.oldest) if row else 0)
    yield from (rows, oldest)


_OUTBOX = text("""
    SELECT state, parked IS NOT NULL AS parked, count(*) AS records, min(planned_at) AS oldest FROM usage_records
    WHERE state <> 'delivered' GROUP BY 1, 2
""")


def _tallied(connection: Connection, now: datetime) -> Iterator[Metric]:
    counts = read_tallies(connection)
    yield _counter(
        "clawbill_delivery_records", "Usage records, by what a delivery made of them.", "outcome",
        {name: Decimal(0) for name in ("delivered", "rejected", "unknown", "waiting", "parked")}
        | counts.get("delivery_records", {}),
    )  # fmt: skip
    calls = counts.get("delivery_calls", {})
    for name, said in (("retries", "Calls that were made again."), ("rate_limited", "Answers 429 of Stripe.")):
        counter = CounterMetricFamily(f"clawbill_delivery_{name}", said)
        counter.add_metric([], float(calls.get(name, 0)))
        yield counter
    yield _histogram("clawbill_rating_seconds", "From asking OpenClaw to its answer.", counts.get("rating_seconds", {}))
    yield _counter(
        "clawbill_rating_failures", "Quantities that got no amount when they were rated: may work later (retry), "
        "OpenClaw's no (refused), or in no rate card (unmapped).", "kind",
        {name: Decimal(0) for name in ("retry", "refused", "unmapped")} | counts.get("rating_failures", {}),
    )  # fmt: skip


def _rating(connection: Connection, now: datetime) -> Iterator[Metric]:
    rows = GaugeMetricFamily("clawbill_rating_queue_rows", "Quantities that have no amount, by why.", labels=["kind"])
    query = text("SELECT kind, count(*) AS rows FROM rating_failures GROUP BY kind")
    found = {row.kind: row.rows for row in connection.execute(query)}
    for kind in ("retry", "refused", "unmapped"):
        rows.add_metric([kind], found.get(kind, 0))
    yield rows


def _webhooks(connection: Connection, now: datetime) -> Iterator[Metric]:
    row = connection.execute(_INBOX).one()
    yield _gauge("clawbill_webhook_events_waiting", "Stripe events in the inbox that nobody handled.", row.waiting)
    yield _gauge(
        "clawbill_webhook_events_oldest_age_seconds", "Since the oldest of them came.",
        _seconds(now - row.oldest) if row.oldest else 0,
    )  # fmt: skip
    yield _gauge(
        "clawbill_webhook_events_failed", "Stripe events that could not be applied, and were not since.", row.failed
    )


_INBOX = text("""
    SELECT count(*) AS waiting, min(received_at) AS oldest, (
        SELECT count(*) FROM stripe_events_handled h JOIN stripe_events f ON f.id = h.inbox_id
        WHERE h.outcome = 'failed' AND NOT EXISTS (
            SELECT FROM audit_trail a WHERE a.kind = 'stripe_event.applied_again' AND a.subject = f.event_id)
    ) AS failed
    FROM stripe_events e
    WHERE e.id > coalesce((SELECT max(through) FROM stripe_events_mark), 0)
      AND NOT EXISTS (SELECT FROM stripe_events_handled h WHERE h.inbox_id = e.id)
""")


def _breaks(connection: Connection, now: datetime) -> Iterator[Metric]:
    counts = GaugeMetricFamily("clawbill_breaks_open", "Open breaks, by cause.", labels=["cause"])
    amounts = GaugeMetricFamily(
        "clawbill_breaks_open_amount", "Sum of their amounts without signs, in the currency's major unit.",
        labels=["cause", "currency"],
    )  # fmt: skip
    by_cause: dict[str, int] = {}
    for row in connection.execute(_BREAKS):
        by_cause[row.cause] = by_cause.get(row.cause, 0) + row.breaks
        if row.currency is not None:
            amounts.add_metric([row.cause, row.currency], float(row.amount))
    for cause, breaks in by_cause.items():
        counts.add_metric([cause], breaks)
    yield from (counts, amounts)


_BREAKS = text("""
    SELECT cause, currency, count(*) AS breaks, sum(abs(amount)) AS amount FROM breaks WHERE closed_at IS NULL
    GROUP BY cause, currency ORDER BY cause, currency
""")


def _invoices(connection: Connection, now: datetime) -> Iterator[Metric]:
    row = connection.execute(_HELD).one()
    yield _gauge("clawbill_invoices_draft", "Invoices that Stripe has not finalised.", row.drafts)
    yield _gauge("clawbill_invoices_held", "Of these: kept back until somebody decides.", row.held)


_HELD = text("""
    SELECT count(*) AS drafts, count(*) FILTER (WHERE d.kind = 'close.hold') AS held FROM invoices i
    LEFT JOIN LATERAL (
        SELECT kind FROM audit_trail WHERE subject = i.invoice_id AND kind IN ('close.hold', 'close.release')
        ORDER BY id DESC LIMIT 1) d ON true
    WHERE i.status = 'draft'
""")


_READERS: tuple[Callable[[Connection, datetime], Iterator[Metric]], ...] = (
    _hours, _outbox, _tallied, _rating, _webhooks, _breaks, _invoices,
)  # fmt: skip


def _gauge(name: str, documentation: str, value: Any) -> Metric:
    family = GaugeMetricFamily(name, documentation)
    family.add_metric([], float(value))
    return family


def _counter(name: str, documentation: str, label: str, counts: dict[str, Decimal]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, count in sorted(counts.items()):
        family.add_metric([value], float(count))
    return family


def _histogram(name: str, documentation: str, counts: dict[str, Decimal]) -> Metric:
    family = HistogramMetricFamily(name, documentation)
    buckets, so_far = [], 0.0
    for bound in (*SECONDS, BEYOND):
        so_far += float(counts.get(bound, 0))
        buckets.append((bound, so_far))
    family.add_metric([], buckets, float(counts.get(SUM, 0)))
    return family


def _seconds(age: timedelta) -> float:
    return max(age.total_seconds(), 0.0)
