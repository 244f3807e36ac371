"""A worker that lands usage, as a process of its own: by its environment alone, as soon as the others are there too."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from clawbill_pipeline.catalog import load
from clawbill_pipeline.clock import clock_of
from clawbill_pipeline.lake import Lake
from clawbill_pipeline.ledger import Ledger
from clawbill_pipeline.settings import Settings
from clawbill_pipeline.usage import land


def main(meeting: Path, name: str, workers: int) -> None:
    settings = Settings.from_env()
    catalog, lake = load(settings.catalog_file), Lake(settings.lake_root)
    ledger = Ledger(settings.need_database())
    with ledger.transaction():
        pass  # connected
    (meeting / name).touch()
    while len(list(meeting.iterdir())) < workers:
        time.sleep(0.005)
    landed = land(catalog, lake, ledger, now=clock_of(settings.clock)(), run_id=name)
    ledger.dispose()
    json.dump({"events": landed.events, "inputs": landed.inputs, "problems": landed.problems}, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
