"""`clawbill up`: everything for a working day on one machine. Decides what is real and what is a stand-in; waits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from clawbill_pipeline.catalog import load
from clawbill_pipeline.clock import wall_clock
from clawbill_pipeline.delivery.provisioning import provision
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.sandbox.demo.catalogue import starter
from clawbill_pipeline.settings import STARTER, Settings, SettingsError, refuse_live
from clawbill_pipeline.stack import HOST, Stack, answers, write_catalog
from clawbill_pipeline.stripe_api import StripeApi

Say = Callable[[str], None]


def run_up(state: Path, web_port: int, dagster_port: int, catalog: Path | None, say: Say) -> None:
    """Brings all parts up and watches them until Ctrl-C or SIGTERM; then takes them down, the last one first.

    Raises SettingsError for keys that are half set or live without leave, ProcessError or EmbeddedServerError when a
    part ends by itself, and DiskFull where that is for want of room.
    """
    with Stack(state) as stack:
        _choose_catalog(stack, catalog)
        real = which_are_real(stack.settings)
        try:
            _bring_up(stack, real, web_port, dagster_port, say)
            say("Ready. Ctrl-C stops everything.")
            while True:
                stack.check()
                time.sleep(1)
        except KeyboardInterrupt:
            say("Stopping …")
    say("Stopped.")


def which_are_real(settings: Settings) -> Mapping[str, bool]:
    """Which services are the real ones: those whose keys are set. Raises SettingsError for one that is half set, or
    for a live key that the catalogue does not allow."""
    openclaw = (settings.openclaw_url is not None, settings.openclaw_token is not None)
    stripe = (settings.stripe_key is not None, bool(settings.stripe_webhook_secrets))
    if any(openclaw) and not all(openclaw):
        raise SettingsError("set both OPENCLAW_URL and OPENCLAW_TOKEN, or neither (for the stand-in)")
    if any(stripe) and not all(stripe):
        raise SettingsError("set both STRIPE_SECRET_KEY and STRIPE_WEBHOOK_SECRET, or neither (for the stand-in)")
    if settings.stripe_key is not None:
        refuse_live(settings.stripe_key, live_allowed=load(settings.catalog_file).live)
    return {"openclaw": all(openclaw), "stripe": all(stripe)}


def _choose_catalog(stack: Stack, catalog: Path | None) -> None:
    if catalog is not None:
        stack.env["CLAWBILL_CATALOG"] = str(catalog.resolve())
    elif "CLAWBILL_CATALOG" not in stack.env:
        own = stack.state / "catalog.yaml"
        if not own.exists():
            month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            write_catalog(own, starter(STARTER, start=month))
            (stack.state / "usage").mkdir(exist_ok=True)
        stack.env["CLAWBILL_CATALOG"] = str(own)
    load(stack.settings.catalog_file)


def _bring_up(stack: Stack, real: Mapping[str, bool], web_port: int, dagster_port: int, say: Say) -> None:
    catalog_file = stack.settings.catalog_file
    stack.database()
    say(f"Catalogue      {catalog_file}")
    given = "CLAWBILL_DATABASE_URL" in os.environ
    say(f"Database       {'the one of CLAWBILL_DATABASE_URL' if given else stack.state / 'postgres'}")
    if real["openclaw"]:
        say(f"OpenClaw       {stack.settings.openclaw_url}")
    else:
        say(f"OpenClaw       {stack.openclaw(catalog_file)}  (stand-in)")
    if real["stripe"]:
        say("Stripe         your account; point a webhook endpoint at <this web app>/stripe/webhook")
    else:
        say(f"Stripe         {stack.stripe()}  (stand-in)")
    dagster = f"http://{HOST}:{dagster_port}"
    stack.env["CLAWBILL_DAGSTER_URL"] = dagster
    say(f"Web app        {stack.web(web_port)}  (webhook at /stripe/webhook, health at /healthz)")
    if not real["stripe"]:
        _provision(stack, say)
    stack.dagster(dagster_port)
    say(f"Dagster        {dagster}")
    say(f"Logs           {stack.state / 'logs'}")
    address = stack.env["CLAWBILL_WEB_URL"]
    for _ in range(600):
        if answers(f"{address}/healthz"):
            return
        stack.check()
        time.sleep(0.2)
    say(f"Not everything is ready yet; see {address}/healthz")


def _provision(stack: Stack, say: Say) -> None:
    """The stand-in starts empty; a real account is provisioned by a person (`clawbill provision`)."""
    settings = stack.settings
    catalog = load(settings.catalog_file)
    ledger = Ledger(settings.need_database())
    try:
        api = StripeApi(settings.need_stripe(live_allowed=catalog.live), settings.stripe_api_base)
        done = provision(ledger, catalog, api, now=wall_clock(), run_id="clawbill up")
    finally:
        ledger.dispose()
    for failure in done.failed:
        say(f"Provisioning   {failure.kind} {failure.name}: {failure.detail}")
