"""The world of delivery, in which usage can also land, be metered, rated and reconciled."""

from clawbill_pipeline_tests.delivery.conftest import fresh_sandbox, fresh_world, ledger, sandbox, world

__all__ = ["fresh_sandbox", "fresh_world", "ledger", "sandbox", "world"]
