"""What is booked of a period is on record with its last booking, which an index finds."""

from __future__ import annotations

from alembic import op

revision = "0011"
down_revision = "0010"

_STATEMENTS = (
    "ALTER TABLE ledger.rated_usage ADD COLUMN period_amount NUMERIC(38, 12)",
    "COMMENT ON COLUMN ledger.rated_usage.period_amount IS "
    "'What is booked for the period with this row: the windows'' sum.'",
    "CREATE INDEX rated_usage_tenant_id_service_period_start_booking_idx ON ledger.rated_usage "
    "(tenant_id, service, period_start, booking)",
    "DROP INDEX ledger.rated_usage_tenant_id_service_period_start_idx",
)


def upgrade() -> None:
    for statement in _STATEMENTS:
        op.execute(statement)
