"""Tests of clawbill_pipeline.invoicing."""
