"""The line as a Dagster component: one ``defs.yaml`` brings it into somebody else's project. No definitions here."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import dagster as dg
from dagster.components.component_scaffolding import scaffold_component
from dagster.components.scaffold.scaffold import NoParams
from pydantic import Field

from clawbill_pipeline.settings import STARTER

#: Which environment variable an attribute stands for.
_NAMES = {
    "state": "CLAWBILL_STATE",
    "lake": "CLAWBILL_LAKE",
    "database_url": "CLAWBILL_DATABASE_URL",
    "openclaw_url": "OPENCLAW_URL",
    "openclaw_token": "OPENCLAW_TOKEN",
    "stripe_secret_key": "STRIPE_SECRET_KEY",
    "stripe_webhook_secret": "STRIPE_WEBHOOK_SECRET",
    "stripe_api_base": "CLAWBILL_STRIPE_API_BASE",
    "web_url": "CLAWBILL_WEB_URL",
    "alerts": "CLAWBILL_ALERTS",
}
_CATALOG = "catalog.yaml"


class UsageBillingScaffolder(dg.Scaffolder[NoParams]):
    """Writes a ``defs.yaml`` and, beside it, a catalogue to start from that begins with this month."""

    def scaffold(self, request: dg.ScaffoldRequest[NoParams]) -> None:
        # A project that only lists components should not have to load all of clawbill.
        from clawbill_pipeline.sandbox.demo.catalogue import starter

        scaffold_component(
            request,
            {
                "catalog": _CATALOG,
                "key_prefix": "billing",
                "database_url": "{{ env.CLAWBILL_DATABASE_URL }}",
            },
        )
        file = (request.target_path.parent if request.append else request.target_path) / _CATALOG
        if not file.exists():
            month = datetime.now(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
            file.write_text(starter(STARTER, start=month), encoding="utf-8")


@dg.scaffold_with(UsageBillingScaffolder)
class UsageBilling(dg.Component, dg.Model, dg.Resolvable):
    """Usage-based billing: raw usage logs to Stripe invoices that are proved right before they go out.

    What is left out here is taken from the environment (README, Settings). Secrets are best written as
    ``{{ env.NAME }}``. A code location has one usage billing, since its partitions begin with the catalogue's start.
    """

    catalog: Annotated[str, Field(description="The billing catalogue, relative to this file.")]
    key_prefix: Annotated[str | None, Field(description="Stands before the key of every asset; parts joined by /.")] = (
        None
    )
    state: Annotated[str | None, Field(description="The folder for all that is kept on disk.")] = None
    lake: Annotated[str | None, Field(description="The lake: a folder, or an address in object storage.")] = None
    database_url: Annotated[str | None, Field(description="PostgreSQL for the ledger.", repr=False)] = None
    openclaw_url: Annotated[str | None, Field(description="OpenClaw's rating engine.")] = None
    openclaw_token: Annotated[str | None, Field(description="Its bearer token.", repr=False)] = None
    stripe_secret_key: Annotated[str | None, Field(description="A restricted key is enough.", repr=False)] = None
    stripe_webhook_secret: Annotated[str | None, Field(description="The signing secret.", repr=False)] = None
    stripe_api_base: Annotated[str | None, Field(description="A stand-in instead of Stripe.")] = None
    web_url: Annotated[str | None, Field(description="Address of the web app in links.")] = None
    alerts: Annotated[str | None, Field(description="Who is told of breaks and failed runs.", repr=False)] = None

    def build_defs(self, context: dg.ComponentLoadContext) -> dg.Definitions:
        """All definitions, with keys under the prefix. Raises CatalogError for a catalogue that can't be read."""
        from clawbill_pipeline.catalog import CatalogError
        from clawbill_pipeline.defs import environment

        catalog = (Path(context.path) / self.catalog).resolve()
        if not catalog.is_file():
            raise CatalogError(f"{catalog}: no such file; mend `catalog` in the defs.yaml in {context.path}")
        # What is written but comes to nothing, such as a variable that is not set, is not set: nobody who names one
        # Stripe key wants to bill with another that happens to be there.
        chosen = {_NAMES[name]: getattr(self, name) or "" for name in _NAMES if name in self.model_fields_set}
        environment.choose({**chosen, "CLAWBILL_CATALOG": str(catalog)})
        # Only now, because partitions follow the catalogue.
        from clawbill_pipeline.definitions import build_definitions

        return build_definitions(key_prefix=self.key_prefix.split("/") if self.key_prefix else None, executor=None)
