"""What commands share: the --state option, and the settings, database and ledger that it leads to."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from clawbill_pipeline.settings import Settings, SettingsError

if TYPE_CHECKING:
    from clawbill_pipeline.catalog import Catalog
    from clawbill_pipeline.ledger import Ledger
    from clawbill_pipeline.openclaw import OpenClaw
    from clawbill_pipeline.stripe_api import StripeApi

HOME = Path(".clawbill")
#: Names the state folder last used, so that a look at the results needs no option.
CURRENT = HOME / "current"

F = TypeVar("F", bound=Callable[..., Any])


def state_option(command: F) -> F:
    """Adds --state: the folder of all that is kept on disk."""
    return click.option(
        "--state",
        type=click.Path(file_okay=False, path_type=Path),
        envvar="CLAWBILL_STATE",
        help="Folder for all that is kept on disk. Default: a folder in .clawbill/; for a look, the one last used.",
    )(command)


def settings_for(state: Path | None) -> Settings:
    """The environment's settings, on the state folder of --state, CLAWBILL_STATE, or the one last used."""
    settings = Settings.from_env()
    if state is None and "CLAWBILL_STATE" not in os.environ and CURRENT.exists():
        state = Path(CURRENT.read_text(encoding="utf-8").strip())
    if state is not None:
        settings = settings.model_copy(update={"state": state})
    clock = settings.state / "clock"
    if settings.clock is None and (settings.state / "demo.json").exists() and clock.exists():
        settings = settings.model_copy(update={"clock": clock})
    return settings


@contextmanager
def database(state: Path | None) -> Iterator[Settings]:
    """Settings with a database that answers: the one of the environment, or the state folder's embedded server."""
    from pydantic import SecretStr

    from clawbill_pipeline.ledger import embedded

    settings = settings_for(state)
    if settings.database_url is not None:
        yield settings
        return
    folder = settings.state.resolve() / "postgres"
    if not folder.exists():
        raise SettingsError(
            f"{settings.state} holds no database; run `clawbill demo` or `clawbill up` first, name another folder with "
            "--state, or set CLAWBILL_DATABASE_URL"
        )
    with embedded.serving(folder) as server:
        yield settings.model_copy(update={"database_url": SecretStr(server.url())})


def catalog_of(settings: Settings) -> Catalog:
    """The checked catalogue of these settings. Raises CatalogError."""
    from clawbill_pipeline.catalog import load

    return load(settings.catalog_file)


def stripe_of(settings: Settings) -> StripeApi:
    """The way to Stripe; a live key only where the catalogue allows it. Raises SettingsError."""
    from clawbill_pipeline.stripe_api import StripeApi

    return StripeApi(settings.need_stripe(live_allowed=catalog_of(settings).live), settings.stripe_api_base)


def openclaw_of(settings: Settings) -> OpenClaw:
    """The way to OpenClaw, asked as hard as the catalogue says. Raises SettingsError."""
    from clawbill_pipeline.openclaw import OpenClaw

    url, token = settings.need_openclaw()
    rating = catalog_of(settings).rating
    timeout = rating.timeout.total_seconds()
    return OpenClaw(url, token, settings.openclaw_status_path, timeout, concurrency=rating.concurrency)


def now_of(settings: Settings) -> datetime:
    """What time it is for these settings."""
    from clawbill_pipeline.clock import clock_of

    return clock_of(settings.clock)()


def who() -> str:
    """The name that goes into the audit trail."""
    return f"{getpass.getuser()} (clawbill)"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A text table, columns as wide as they need to be."""
    cells = [tuple("-" if cell is None else str(cell) for cell in row) for row in rows]
    widths = [max(len(row[column]) for row in (tuple(head), *cells)) for column in range(len(head))]
    lines = (head, tuple("-" * width for width in widths), *cells)
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)


@contextmanager
def opened(state: Path | None) -> Iterator[tuple[Settings, Ledger]]:
    """As ``database``, with the ledger in it."""
    from clawbill_pipeline.ledger import Ledger

    with database(state) as settings:
        ledger = Ledger(settings.need_database())
        try:
            yield settings, ledger
        finally:
            ledger.dispose()
