"""Hours in which a tenant used far less or far more than it usually does: found by metering, told by alerts."""

from __future__ import annotations

from alembic import op

revision = "0015"
down_revision = "0014"

_STATEMENTS = """
CREATE TABLE ledger.unusual_volumes (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    tenant_id TEXT NOT NULL,
    service TEXT NOT NULL,
    quantity NUMERIC(38, 12) NOT NULL,
    usual NUMERIC(38, 12) NOT NULL,
    found_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT unusual_volumes_pkey PRIMARY KEY (hour, tenant_id, service)
);
COMMENT ON COLUMN ledger.unusual_volumes.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.unusual_volumes.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.unusual_volumes.service IS 'Service by its name in the catalogue.';
COMMENT ON COLUMN ledger.unusual_volumes.quantity IS 'In the service''s unit.';
COMMENT ON COLUMN ledger.unusual_volumes.usual IS 'What the tenant usually uses at that time, in the service''s unit.';
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.unusual_volumes
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.unusual_volumes
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)
