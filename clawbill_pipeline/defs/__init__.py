"""All that imports Dagster. Thin: an asset is its documentation and one call into its station."""

import warnings

from dagster import BetaWarning

# Backfill policies and their like: in use on purpose, and said once in docs/dagster.md instead of at every load.
warnings.filterwarnings("ignore", category=BetaWarning)
