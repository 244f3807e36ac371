"""Station 1: usage sources to canonical usage events in the lake. No counting, no money, no Dagster."""
