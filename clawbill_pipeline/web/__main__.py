"""``python -m clawbill_pipeline.web``: the web app by itself, configured by the environment and the catalogue."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from clawbill_pipeline.catalog import CatalogError, load
from clawbill_pipeline.settings import Settings, SettingsError, is_live, refuse_live
from clawbill_pipeline.web.readiness import readiness
from clawbill_pipeline.web.server import serve


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=int, default=0, help="Port to listen on; 0 for a free one.")
@click.option("--port-file", type=click.Path(dir_okay=False, path_type=Path), help="Gets the port, once it answers.")
def main(host: str, port: int, port_file: Path | None) -> None:
    """Serve Stripe's webhook, health and reports."""
    try:
        settings = Settings.from_env()
        live = takes_live_events(settings)
        serve(
            host,
            port,
            settings,
            live=live,
            port_file=port_file,
            ready=readiness(os.environ),
            portal_token=settings.portal_token,
        )
    except (CatalogError, SettingsError, OSError) as error:
        sys.exit(f"clawbill web: {error}")


def takes_live_events(settings: Settings) -> bool:
    """Whether live events are taken: where the catalogue allows them, and no test key says otherwise."""
    allowed = settings.catalog is not None and load(settings.catalog).live
    if settings.stripe_key is None:
        return allowed
    refuse_live(settings.stripe_key, live_allowed=allowed)
    return is_live(settings.stripe_key)


if __name__ == "__main__":
    main()
