"""What grows by the hour is partitioned by month, and can leave the database: what became of usage records, witnesses.

What the audit trail has of usage records moves into a table of its own; whoever writes to the tables waits until then.
What a version before this one still writes of usage records meanwhile stays in the audit trail.
"""

from __future__ import annotations

from alembic import op

revision = "0016"
down_revision = "0015"

_MADE = """
CREATE TABLE ledger.usage_record_trail (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    identifier TEXT NOT NULL,
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    at TIMESTAMP WITH TIME ZONE NOT NULL,
    kind TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    detail JSONB NOT NULL,
    CONSTRAINT usage_record_trail_pkey PRIMARY KEY (hour, identifier, id)
)
PARTITION BY RANGE (hour);
COMMENT ON COLUMN ledger.usage_record_trail.hour IS 'Of the usage record.';
COMMENT ON COLUMN ledger.usage_record_trail.identifier IS 'Of the usage record.';
COMMENT ON COLUMN ledger.usage_record_trail.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.usage_record_trail.kind IS 'For example usage_record.created.';
COMMENT ON COLUMN ledger.usage_record_trail.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.usage_record_trail.detail IS 'What the record itself doesn''t say: who, why, which run.';
COMMENT ON COLUMN ledger.audit_trail.kind IS 'For example close.hold.';

ALTER TABLE ledger.witnessed_usage RENAME TO witnessed_usage_before;
ALTER TABLE ledger.witnessed_usage_before RENAME CONSTRAINT witnessed_usage_pkey TO witnessed_usage_before_pkey;
CREATE TABLE ledger.witnessed_usage (
    LIKE ledger.witnessed_usage_before INCLUDING COMMENTS,
    CONSTRAINT witnessed_usage_pkey PRIMARY KEY (hour, source, tenant_id, service, landings)
)
PARTITION BY RANGE (hour);

ALTER TABLE ledger.usage_witnesses RENAME TO usage_witnesses_before;
ALTER TABLE ledger.usage_witnesses_before RENAME CONSTRAINT usage_witnesses_pkey TO usage_witnesses_before_pkey;
ALTER TABLE ledger.usage_witnesses_before DROP COLUMN id;
CREATE TABLE ledger.usage_witnesses (
    LIKE ledger.usage_witnesses_before INCLUDING COMMENTS,
    CONSTRAINT usage_witnesses_pkey PRIMARY KEY (source, tenant_id, starts, ends, service, said_at)
)
PARTITION BY RANGE (starts);
"""

_CLOSED = """
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.{table}
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.{table}
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
"""

_PARTITIONS = """
CREATE TEMP VIEW moved AS
SELECT date_trunc('hour', to_timestamp(left(subject, 15), 'YYYYMMDD"T"HH24MISS')) AS hour, *
FROM ledger.audit_trail
WHERE tenant_id IS NOT NULL AND subject ~ '^[0-9]{8}T[0-9]{6}Z:' AND kind IN
    ('usage_record.created', 'usage_record.lost', 'usage_record.parked', 'usage_record.retried');
DO $$
DECLARE parent text; part text; month timestamptz;
BEGIN
    FOR parent, month IN
        SELECT DISTINCT 'usage_record_trail', date_trunc('month', hour) FROM moved
        UNION SELECT DISTINCT 'witnessed_usage', date_trunc('month', hour) FROM ledger.witnessed_usage_before
        UNION SELECT DISTINCT 'usage_witnesses', date_trunc('month', starts) FROM ledger.usage_witnesses_before
    LOOP
        part := parent || to_char(month, '_YYYY_MM');
        EXECUTE format('CREATE TABLE ledger.%I PARTITION OF ledger.%I FOR VALUES FROM (%L) TO (%L)',
                       part, parent, month, month + interval '1 month');
        EXECUTE format('CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.%I '
                       'FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change()', part);
    END LOOP;
END $$
"""

_MOVED = """
INSERT INTO ledger.usage_record_trail (hour, identifier, at, kind, tenant_id, detail)
SELECT hour, subject, at, kind, tenant_id, detail FROM moved ORDER BY id;
ALTER TABLE ledger.audit_trail DISABLE TRIGGER append_only;
DELETE FROM ledger.audit_trail WHERE id IN (SELECT id FROM moved);
ALTER TABLE ledger.audit_trail ENABLE TRIGGER append_only;
DROP VIEW moved;
INSERT INTO ledger.witnessed_usage SELECT * FROM ledger.witnessed_usage_before;
DROP TABLE ledger.witnessed_usage_before;
INSERT INTO ledger.usage_witnesses (source, uri, tenant_id, service, starts, ends, quantity, cost, said_at, read_at)
SELECT source, uri, tenant_id, service, starts, ends, quantity, cost, said_at, read_at
FROM ledger.usage_witnesses_before;
DROP TABLE ledger.usage_witnesses_before;
"""


def upgrade() -> None:
    op.execute(_MADE)
    for table in ("usage_record_trail", "witnessed_usage", "usage_witnesses"):
        op.execute(_CLOSED.format(table=table))
    op.execute(_PARTITIONS)
    op.execute(_MOVED)
