"""Mirrors clawbill_pipeline/defs."""
