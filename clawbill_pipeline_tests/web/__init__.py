"""Tests of clawbill_pipeline.web: over real HTTP and a real database."""
