"""Hours metered ahead for a tenant whose invoice goes out; and how handled webhooks are passed over at no cost."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"

_STATEMENTS = """
CREATE TABLE ledger.metered_ahead (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    tenant_id TEXT NOT NULL,
    landings BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    metered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    CONSTRAINT metered_ahead_pkey PRIMARY KEY (hour, tenant_id, landings)
);
COMMENT ON COLUMN ledger.metered_ahead.landings IS 'How many landings touch the hour and were counted.';
COMMENT ON COLUMN ledger.metered_ahead.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.metered_ahead.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.metered_ahead.metered_at IS 'When it was counted.';
COMMENT ON COLUMN ledger.metered_ahead.run_id IS 'Dagster run that wrote the row.';
COMMENT ON COLUMN ledger.metered_ahead.changed IS 'New revisions of the tenant''s quantities.';

CREATE TABLE ledger.stripe_events_mark (
    through BIGINT NOT NULL,
    marked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT stripe_events_mark_pkey PRIMARY KEY (through)
);

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.metered_ahead
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.metered_ahead
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.stripe_events_mark
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.stripe_events_mark
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();

CREATE INDEX stripe_events_handled_failed_idx ON ledger.stripe_events_handled (inbox_id) WHERE outcome = 'failed';
CREATE INDEX invoices_draft_idx ON ledger.invoices (created) WHERE status = 'draft';
CREATE INDEX invoices_unmapped_idx ON ledger.invoices (invoice_id) WHERE tenant_id IS NULL;
CREATE INDEX invoice_lines_unmapped_idx ON ledger.invoice_lines (invoice_id)
    WHERE tenant_id IS NULL OR service IS NULL;
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)
