"""What a period's amount is before its minimum and maximum, and what was asked anew when its prices changed."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"

_STATEMENTS = (
    "ALTER TABLE ledger.rated_usage ADD COLUMN unlimited_amount NUMERIC(38, 12), "
    "ADD COLUMN period_unlimited NUMERIC(38, 12), ADD COLUMN without_answer JSONB",
    "COMMENT ON COLUMN ledger.rated_usage.unlimited_amount IS "
    "'period_to_date: answered_amount before maximum and minimum.'",
    "COMMENT ON COLUMN ledger.rated_usage.period_unlimited IS "
    "'The period so far before them, over all terms it was rated.'",
    "COMMENT ON COLUMN ledger.rated_usage.without_answer IS "
    "'For the period without this row, where asked anew: terms had changed.'",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
