"""All that imports Dagster. Thin: an asset is its documentation and one call into its station."""
