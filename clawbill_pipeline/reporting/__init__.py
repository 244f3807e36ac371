"""Station 7: renders the waterfall and the breaks as files for people. No Dagster."""
