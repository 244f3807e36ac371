"""What the code location is loaded with: the environment, and what a component's defs.yaml says beyond it.

Runs load the catalogue afresh, so a new tenant needs no reload.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache

from clawbill_pipeline.catalog import Catalog, load
from clawbill_pipeline.settings import Settings, SettingsError

_chosen: dict[str, str] = {}


def choose(values: Mapping[str, str]) -> None:
    """Settings by the name of their environment variable that stand above the environment in this process.

    Raises SettingsError where the definitions were already loaded with others: partitions follow the catalogue, and a
    process has one.
    """
    if values == _chosen:
        return
    if _chosen or catalog_at_load.cache_info().currsize:
        raise SettingsError("this process has loaded clawbill with other settings: one usage billing a code location")
    _chosen.update(values)


def settings() -> Settings:
    """The settings, as they are now."""
    return Settings.from_env({**os.environ, **_chosen})


@cache
def catalog_at_load() -> Catalog:
    """The catalogue as it was when the code location was loaded: its start decides which partitions there are."""
    return load(settings().catalog_file)
