"""Months that have moved into the lake, and back."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"

_STATEMENTS = """
CREATE TABLE ledger.archived_months (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    table_name TEXT NOT NULL,
    month DATE NOT NULL,
    action TEXT NOT NULL,
    file TEXT NOT NULL,
    rows BIGINT NOT NULL,
    digest NUMERIC NOT NULL,
    sha256 TEXT NOT NULL,
    bytes BIGINT NOT NULL,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    by_whom TEXT NOT NULL,
    CONSTRAINT archived_months_pkey PRIMARY KEY (id),
    CONSTRAINT archived_months_action_check CHECK (action IN ('archived', 'restored'))
);
COMMENT ON COLUMN ledger.archived_months.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.archived_months.month IS 'First day of the UTC month.';
COMMENT ON COLUMN ledger.archived_months.action IS 'The newest one says where the month''s rows are.';
COMMENT ON COLUMN ledger.archived_months.file IS 'Relative to the lake.';
COMMENT ON COLUMN ledger.archived_months.digest IS 'Sum over the hashes of the rows.';
COMMENT ON COLUMN ledger.archived_months.sha256 IS 'Of the content.';
COMMENT ON COLUMN ledger.archived_months.bytes IS 'Size.';
COMMENT ON COLUMN ledger.archived_months.by_whom IS 'Who moved it.';
CREATE INDEX archived_months_table_name_month_idx ON ledger.archived_months (table_name, month);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.archived_months
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.archived_months
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
"""


def upgrade() -> None:
    op.execute(_STATEMENTS)
