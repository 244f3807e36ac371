"""What the code location is loaded with. Runs load the catalogue afresh, so a new tenant needs no reload."""

from __future__ import annotations

from functools import cache

from clawbill_pipeline.catalog import Catalog, load
from clawbill_pipeline.settings import Settings


@cache
def catalog_at_load() -> Catalog:
    """The catalogue as it was when the code location was loaded: its start decides which partitions there are."""
    return load(Settings.from_env().catalog_file)
