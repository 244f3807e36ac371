"""``GET /metrics`` for Prometheus: what this process counts, and what the ledger says. Who may read it is told here.

Names end as Prometheus wants them (``_total``, ``_seconds``); docs/observability.md lists every one.
"""

from __future__ import annotations

import hmac
from collections import Counter as Counts
from collections.abc import Iterator

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from pydantic import SecretStr
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from clawbill_pipeline.web.local import from_this_machine

# When a counter began is nothing that Prometheus needs: it sees that it is smaller than before.
disable_created_metrics()  # type: ignore[no-untyped-call]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class WebMetrics:
    """The counters of one process, from its start on."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.ingest_requests = Counter(
            "clawbill_ingest_requests", "Requests to POST /usage, by status of the answer.", ["status"],
            registry=self.registry,
        )  # fmt: skip
        self.ingest_events = Counter(
            "clawbill_ingest_events",
            "Usage events posted: accepted, quarantined (stored, no usage) or refused (faulty, not stored).",
            ["result"],
            registry=self.registry,
        )
        for result in ("accepted", "quarantined", "refused"):
            self.ingest_events.labels(result)
        self.ingest_bytes = Counter("clawbill_ingest_bytes", "Bytes of stored requests.", registry=self.registry)
        self.ingest_seconds = Histogram(
            "clawbill_ingest_seconds", "From a request's headers to its answer.", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip


class WebhookCounts(Collector):
    """What became of webhook requests, as ``counts`` has it: landed, seen_before, or why one was refused."""

    def __init__(self, counts: Counts[str]) -> None:
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "clawbill_webhook_requests", "Requests to POST /stripe/webhook, by what became of them.", labels=["result"]
        )
        for result, count in sorted({"landed": 0, "seen_before": 0, **self._counts}.items()):
            family.add_metric([result], count)
        yield family


class Metrics:
    """The endpoint. Without a token it answers to this machine alone; with one, to whoever shows it."""

    def __init__(self, registry: CollectorRegistry, token: SecretStr | None) -> None:
        self._registry = registry
        self._token = token

    async def __call__(self, request: Request) -> Response:
        if self._token is None:
            if not from_this_machine(request):
                return PlainTextResponse("set CLAWBILL_METRICS_TOKEN to read this from another machine", 403)
        elif not self._shows(request.headers.get("authorization", ""), self._token):
            return PlainTextResponse("show the token of /metrics", 401, {"WWW-Authenticate": 'Bearer realm="metrics"'})
        text = await run_in_threadpool(generate_latest, self._registry)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    @staticmethod
    def _shows(header: str, token: SecretStr) -> bool:
        return hmac.compare_digest(header.encode(), f"Bearer {token.get_secret_value()}".encode())
