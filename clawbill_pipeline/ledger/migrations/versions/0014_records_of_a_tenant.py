"""A tenant's records of a service are found at once: a draft is compared without reading everybody's month."""

from __future__ import annotations

from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.execute(
        "CREATE INDEX usage_records_tenant_id_service_window_start_idx"
        " ON ledger.usage_records (tenant_id, service, window_start)"
    )
