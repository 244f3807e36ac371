"""The provider costs that a reconciliation found in the catalogue: its report's margin stays what it was."""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"

_STATEMENTS = (
    "ALTER TABLE ledger.reconciliations ADD COLUMN costs JSONB",
    "COMMENT ON COLUMN ledger.reconciliations.costs IS "
    "'Unit costs of providers as the catalogue had them; null where it had none.'",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
