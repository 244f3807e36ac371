"""A worker that is told on its input which station to run, and answers on its output. By its environment alone.

``land``, ``meter``, ``used`` and ``report 2026-10``, each on a line; the answer is a line of JSON: what it came to, or
the error. With the name of a folder as argument, the database is an embedded server there, which ends with the worker.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from sqlalchemy import text

from clawbill_pipeline.catalog import Catalog, load
from clawbill_pipeline.catalog.periods import HOUR
from clawbill_pipeline.clock import clock_of
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger, embedded, migrate
from clawbill_pipeline.metering import meter
from clawbill_pipeline.reporting.render import render
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.usage import land

_USED = """
    SELECT tenant_id, trim_scale(sum(quantity)) AS quantity, max(revision) AS revisions FROM metered_usage GROUP BY 1
"""


def done(words: list[str], settings: Settings, catalog: Catalog, ledger: Ledger) -> dict[str, Any]:
    """What a station came to."""
    lake, now = Lake(settings.lake_root, settings.memory_limit), clock_of(settings.clock)()
    match words:
        case ["land"]:
            landed = land(catalog, lake, ledger, now=now, run_id="run")
            return {"events": landed.events, "problems": landed.problems}
        case ["meter"]:
            with ledger.transaction() as connection:
                first, last = connection.execute(text("SELECT min(hour), max(hour) FROM landed_hours")).one()
            metered = meter(ledger, lake, catalog, start=first, end=last + HOUR, now=now, run_id="run")
            return {"events": metered.events}
        case ["used"]:
            with ledger.transaction() as connection:
                found = connection.execute(text(_USED)).all()
            return {row.tenant_id: [str(row.quantity), row.revisions] for row in found}
        case ["report", period]:
            reports = settings.reports_root
            rendered = render(ledger, catalog, period=period, folder=reports, now=now, run_id="run")
            return {"files": {file.name: file.sha256 for file in rendered.files}}
    raise ValueError(f"nobody does {words}")


def main() -> None:
    settings = Settings.from_env()
    catalog = load(settings.catalog_file)
    with embedded.serving(Path(sys.argv[1])) if sys.argv[1:] else nullcontext() as server:
        if server is not None:
            migrate(server.url())
        ledger = Ledger(server.url() if server else settings.need_database())
        for line in sys.stdin:
            try:
                answer = done(line.split(), settings, catalog, ledger)
            except Exception as error:  # noqa: BLE001 - whatever it is, the test wants to know
                answer = {"error": type(error).__name__, "said": str(error)}
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        ledger.dispose()


if __name__ == "__main__":
    main()
