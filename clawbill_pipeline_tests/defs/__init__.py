"""Tests of what Dagster loads."""
