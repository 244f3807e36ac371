"""`clawbill doctor`: looks at one part after the other and says what to do. Reads only; changes nothing anywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

import stripe
from pydantic import SecretStr

from clawbill_pipeline.catalog import Catalog, CatalogError, load
from clawbill_pipeline.catalog.sources import ClawRouter, Http, LiteLlmTable, SqlTable
from clawbill_pipeline.clock import clock_of
from clawbill_pipeline.delivery.probing import probe
from clawbill_pipeline.ledger import LedgerError, embedded, migration_state
from clawbill_pipeline.ledger.database import shown
from clawbill_pipeline.object_store import ObjectFolder, is_address
from clawbill_pipeline.openclaw import OpenClaw, OpenClawError
from clawbill_pipeline.settings import Settings, SettingsError, is_live
from clawbill_pipeline.stripe_api import StripeApi


@dataclass(frozen=True)
class Finding:
    """What was looked at, whether it is good, what was seen, and what to do where it is not, or could be better."""

    name: str
    good: bool
    text: str
    remedy: str = ""

    def as_json(self) -> dict[str, object]:
        return asdict(self)


def examine(settings: Settings) -> list[Finding]:
    """Looks at configuration, catalogue, database, migrations, OpenClaw and Stripe. One bad part hides no other."""
    catalog, findings = _catalog(settings)
    findings = [_configuration(settings), *findings]
    with _database(settings) as database:
        findings += database
    findings.append(_openclaw(settings, catalog))
    findings += _stripe(settings, catalog)
    return findings


def probed(settings: Settings, settle_seconds: int) -> list[Finding]:
    """What a Stripe test account does where Stripe's documents are silent. Sends made-up usage; needs a test key.

    Raises SettingsError without a key or for a live one.
    """
    api = StripeApi(settings.need_stripe(live_allowed=False), settings.stripe_api_base)
    try:
        answers = probe(api, now=clock_of(settings.clock)(), settle_seconds=settle_seconds)
    except stripe.StripeError as error:
        return [Finding("Stripe", False, f"{type(error).__name__}: {error.user_message or 'no answer'}", "try again")]
    surprise = "delivery relies on another answer: do not go live, and report this"
    return [Finding(each.question, each.expected, each.answer, "" if each.expected else surprise) for each in answers]


def _configuration(settings: Settings) -> Finding:
    names = {
        "OPENCLAW_URL": settings.openclaw_url,
        "OPENCLAW_TOKEN": settings.openclaw_token,
        "STRIPE_SECRET_KEY": settings.stripe_key,
        "STRIPE_WEBHOOK_SECRET": settings.stripe_webhook_secrets,
    }
    missing = [name for name, value in names.items() if not value]
    present = ", ".join(name for name in names if name not in missing) or "nothing"
    if missing:
        text = f"set: {present}; not set: {', '.join(missing)}"
        return Finding("configuration", False, text, "set what is missing; `clawbill up` needs none of it (stand-ins)")
    return Finding("configuration", True, f"set: {present}")


def _catalog(settings: Settings) -> tuple[Catalog | None, list[Finding]]:
    try:
        catalog = load(settings.catalog_file)
    except CatalogError as error:
        return None, [
            Finding("catalogue", False, str(error), "mend the line that is named; clawbill catalog check FILE")
        ]
    text = f"{settings.catalog_file}: {len(catalog.tenants)} tenants, {len(catalog.services)} services"
    findings = [Finding("catalogue", True, text)]
    findings += [Finding("calendar", True, what, remedy) for what, remedy in catalog.calendar.warnings()]
    for source in catalog.sources:
        if isinstance(source, SqlTable | LiteLlmTable | ClawRouter | Http):
            continue  # what a database or a gateway answers is the source's own affair when it is landed
        findings.append(_place(f"source {source.name}", catalog.folder, source.path, getattr(source, "endpoint", None)))
    if is_address(settings.lake_root):
        findings.append(_place("lake", Path(), str(settings.lake_root)))
    return catalog, findings


def _place(name: str, folder: Path, path: str, endpoint: str | None = None) -> Finding:
    """Whether a folder is there, or an object store lets us list it."""
    if is_address(path):
        try:
            next(ObjectFolder(path, endpoint=endpoint, tries=1).listed(), None)
        except OSError as error:
            return Finding(name, False, str(error), "see docs/sources.md, Object storage")
        return Finding(name, True, path)
    there = (folder / path).exists()
    text = f"{folder / path}{'' if there else ' is not there'}"
    return Finding(name, there, text, "" if there else "make the folder, or correct the path in the catalogue")


@contextmanager
def _database(settings: Settings) -> Iterator[list[Finding]]:
    """Looks at the database; the state folder's embedded server runs while the caller looks on."""
    folder = settings.state.resolve() / "postgres"
    if settings.database_url is not None:
        yield _migrations(settings.database_url.get_secret_value())
    elif not folder.exists():
        remedy = "set CLAWBILL_DATABASE_URL, or run `clawbill up` or `clawbill demo`, which start one"
        yield [Finding("database", False, f"no URL is set, and {settings.state} holds none", remedy)]
    else:
        try:
            with embedded.serving(folder) as server:
                yield _migrations(server.url())
        except embedded.EmbeddedServerError as error:
            yield [Finding("database", False, str(error), "see the log that is named")]


def _migrations(url: str) -> list[Finding]:
    try:
        at, newest = migration_state(url)
    except LedgerError as error:
        return [
            Finding("database", False, str(error), "check the URL, the server, and that it may be reached from here")
        ]
    database = Finding("database", True, f"{shown(url)} answers")
    if at is not None and at >= newest:
        which = "the newest" if at == newest else f"of a later version than this one, which knows {newest}"
        return [database, Finding("migrations", True, f"at revision {at}, {which}")]
    return [
        database,
        Finding("migrations", False, f"at {at or 'none'}, this version needs {newest}", "clawbill migrate"),
    ]


def _openclaw(settings: Settings, catalog: Catalog | None) -> Finding:
    try:
        url, token = settings.need_openclaw()
    except SettingsError as error:
        return Finding("OpenClaw", False, str(error), "`clawbill openclaw serve` is one; `clawbill up` starts one")
    tenant, service = "clawbill-doctor", "clawbill-doctor"
    if catalog and catalog.tenants:
        tenant, service = next(iter(catalog.tenants)), next(iter(catalog.services))

    async def ask() -> str:
        async with OpenClaw(url, token, timeout=10).session() as session:
            currency = catalog.currency(tenant) if catalog and catalog.tenants else "USD"
            answer = await session.rate(tenant, service, Decimal(1), currency)
            return f"{url} rates 1 {service} of {tenant} at {answer.amount} {answer.currency}"

    try:
        return Finding("OpenClaw", True, asyncio.run(ask()))
    except OpenClawError as error:
        remedy = (
            "check OPENCLAW_URL and that it is reachable" if error.retryable else "check OPENCLAW_TOKEN and the answer"
        )
        return Finding("OpenClaw", False, f"{url}: {error}", remedy)


def _stripe(settings: Settings, catalog: Catalog | None) -> list[Finding]:
    try:
        key = settings.need_stripe(live_allowed=bool(catalog and catalog.live))
    except SettingsError as error:
        return [
            Finding("Stripe", False, str(error), "take a test key from the Stripe dashboard; `clawbill up` needs none")
        ]
    kind = "live" if is_live(key) else "test"
    try:
        client = StripeApi(key, settings.stripe_api_base, timeout=15).client()
        meters = client.v1.billing.meters.list({"status": "active", "limit": 100})
        known = {meter.event_name for meter in meters.auto_paging_iter()}
    except stripe.AuthenticationError:
        return [Finding("Stripe", False, f"the {kind} key is not accepted", "make a new key, set STRIPE_SECRET_KEY")]
    except stripe.PermissionError:
        text = f"the {kind} key may not read meters"
        return [Finding("Stripe", False, text, "give the restricted key the permissions that docs/stripe.md lists")]
    except stripe.StripeError as error:
        return [Finding("Stripe", False, f"{type(error).__name__}: {error.user_message or 'no answer'}", "try again")]
    found = [Finding("Stripe", True, f"the {kind} key is accepted; {len(known)} active meters")]
    if catalog:
        missing = sorted(catalog.meter(service) for service in catalog.services if catalog.meter(service) not in known)
        if missing:
            found.append(Finding("Stripe meters", False, f"missing: {', '.join(missing)}", "clawbill provision"))
        else:
            found.append(Finding("Stripe meters", True, "one for each service"))
    return [*found, _secrets(settings.stripe_webhook_secrets)]


def _secrets(secrets: tuple[SecretStr, ...]) -> Finding:
    good = bool(secrets) and all(secret.get_secret_value().startswith("whsec_") for secret in secrets)
    if good:
        return Finding("webhook secret", True, f"{len(secrets)} set")
    remedy = "set STRIPE_WEBHOOK_SECRET to the endpoint's signing secret (whsec_…)"
    return Finding("webhook secret", False, "not set" if not secrets else "does not begin with whsec_", remedy)
