"""What the usage that a witness speaks of comes to, copies told apart."""

from __future__ import annotations

from alembic import op

revision = "0009"
down_revision = "0008"

_STATEMENTS = """
CREATE TABLE ledger.witnessed_usage (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    source TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    service TEXT NOT NULL,
    landings BIGINT NOT NULL,
    quantity NUMERIC(38, 12) NOT NULL,
    cost NUMERIC(38, 12),
    forked BIGINT NOT NULL,
    forked_quantity NUMERIC(38, 12) NOT NULL,
    archived BIGINT NOT NULL,
    archived_quantity NUMERIC(38, 12) NOT NULL,
    metered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    CONSTRAINT witnessed_usage_pkey PRIMARY KEY (hour, source, tenant_id, service, landings)
);
COMMENT ON COLUMN ledger.witnessed_usage.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.witnessed_usage.source IS 'Source by its name in the catalogue.';
COMMENT ON COLUMN ledger.witnessed_usage.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.witnessed_usage.service IS 'Service by its name in the catalogue.';
COMMENT ON COLUMN ledger.witnessed_usage.landings IS 'How many landings touch the hour and were counted.';
COMMENT ON COLUMN ledger.witnessed_usage.quantity IS 'Of usage events, each counted once.';
COMMENT ON COLUMN ledger.witnessed_usage.cost IS 'Provider''s cost of them in USD as their lines say it.';
COMMENT ON COLUMN ledger.witnessed_usage.forked IS 'Copies of them in other sessions.';
COMMENT ON COLUMN ledger.witnessed_usage.forked_quantity IS 'What the copies in other sessions come to.';
COMMENT ON COLUMN ledger.witnessed_usage.archived IS 'Copies of them in archives.';
COMMENT ON COLUMN ledger.witnessed_usage.archived_quantity IS 'What the copies in archives come to.';
COMMENT ON COLUMN ledger.witnessed_usage.metered_at IS 'When it was counted.';
COMMENT ON COLUMN ledger.witnessed_usage.run_id IS 'Dagster run that wrote the row.';
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.witnessed_usage
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.witnessed_usage
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)
