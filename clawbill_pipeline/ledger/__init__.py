"""PostgreSQL: tables, migrations, shared queries and the embedded server. No business rules of a single station."""

from clawbill_pipeline.ledger.database import Ledger, LedgerError, migrate, migration_state

__all__ = ["Ledger", "LedgerError", "migrate", "migration_state"]
