"""The ASGI app: its routes and the headers of every answer. What a route does is in the module of its name."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from clawbill_pipeline.clock import clock_of
from clawbill_pipeline.invoicing import landing as inbox_row
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.stripe_api import StripeApi
from clawbill_pipeline.usage import ingested
from clawbill_pipeline.web.finance.catalogue import CatalogFile
from clawbill_pipeline.web.finance.routes import finance_routes
from clawbill_pipeline.web.health import Health, Ready, alive
from clawbill_pipeline.web.ingest import Ingest
from clawbill_pipeline.web.landing import GroupWriter
from clawbill_pipeline.web.ledger_metrics import LedgerMetrics
from clawbill_pipeline.web.metrics import Metrics, WebhookCounts, WebMetrics
from clawbill_pipeline.web.portal import Portal
from clawbill_pipeline.web.webhook import Webhook

_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def create_app(
    settings: Settings,
    ledger: Ledger,
    *,
    live: bool,
    ready: Ready | None = None,
    portal_token: SecretStr | None = None,
) -> Starlette:
    """The web app over ``ledger``. ``live``: take live events only; otherwise test events only.

    ``ready`` names further parts that health depends on; it is called in a thread. The customer portal is there once
    it has a token and a Stripe key. Counts of what the webhook took and refused are in ``app.state.counts``.
    """
    counts: Counter[str] = Counter()
    metrics = WebMetrics()
    clock, catalog = clock_of(settings.clock), CatalogFile(settings)
    inbox = GroupWriter(ledger.engine, inbox_row.INSERT, inbox_row.insert_values, counts, "Stripe events")
    webhook = Webhook(settings.stripe_webhook_secrets, inbox, counts, clock, live=live)
    requests = GroupWriter(ledger.engine, ingested.INSERT, ingested.insert_values, Counter(), "posted usage")
    ingest = Ingest(catalog, ledger, requests, metrics, clock)
    metrics.registry.register(WebhookCounts(counts))
    metrics.registry.register(LedgerMetrics(ledger, catalog.current, clock))
    health = Health(ledger, counts, ready, secret=bool(settings.stripe_webhook_secrets))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await inbox.close()
        await requests.close()
        ledger.dispose()

    routes = [
        Route("/stripe/webhook", webhook.__call__, methods=["POST"]),
        Route("/usage", ingest.__call__, methods=["POST"]),
        Route("/metrics", Metrics(metrics.registry, settings.metrics_token).__call__, methods=["GET"]),
        Route("/healthz", health.__call__, methods=["GET"]),
        Route("/livez", alive, methods=["GET"]),
        *finance_routes(settings, ledger),
    ]
    if portal_token and settings.stripe_key:
        api = StripeApi(settings.stripe_key, settings.stripe_api_base)
        portal = Portal(ledger, api, portal_token, settings.web_url)
        routes.append(Route("/tenants/{tenant_id}/portal", portal.__call__, methods=["GET"]))
    app = Starlette(
        routes=routes,
        middleware=[Middleware(SafeHeaders)],
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    app.state.counts = counts
    return app


class SafeHeaders:
    """Adds the headers that keep an answer from being sniffed, framed, cached or leaked, where it sets none itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, send_safely)
