"""Hours that are metered in shards: which of them are done, and the hash that shares tenants out."""

from __future__ import annotations

from alembic import op

revision = "0013"
down_revision = "0012"

_STATEMENTS = """
CREATE FUNCTION ledger.bucket(key text) RETURNS integer LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    RETURN get_byte(sha256(convert_to(key, 'UTF8')), 0);
COMMENT ON FUNCTION ledger.bucket(text) IS 'The part of all tenants, 0 to 255, that a tenant belongs to for ever.';
CREATE TABLE ledger.metered_shards (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    shards INTEGER NOT NULL,
    layout TEXT NOT NULL,
    shard INTEGER NOT NULL,
    landings BIGINT NOT NULL,
    recounts BIGINT NOT NULL,
    events BIGINT NOT NULL,
    duplicates BIGINT NOT NULL,
    conflicts BIGINT NOT NULL,
    changed BIGINT NOT NULL,
    metered_at TIMESTAMP WITH TIME ZONE NOT NULL,
    run_id TEXT NOT NULL,
    CONSTRAINT metered_shards_pkey PRIMARY KEY (hour, shards, layout, shard, landings, recounts)
);
COMMENT ON COLUMN ledger.metered_shards.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.metered_shards.shards IS 'How many the hour was shared out into.';
COMMENT ON COLUMN ledger.metered_shards.layout IS
    'Hash of who shares a customer: only shards of one layout are all tenants.';
COMMENT ON COLUMN ledger.metered_shards.shard IS 'Which of them, from 1.';
COMMENT ON COLUMN ledger.metered_shards.landings IS 'How many landings touch the hour and were counted.';
COMMENT ON COLUMN ledger.metered_shards.recounts IS 'How much of what hour_recounts asked it was metered with.';
COMMENT ON COLUMN ledger.metered_shards.events IS 'Usage events of the shard''s tenants.';
COMMENT ON COLUMN ledger.metered_shards.changed IS 'New revisions written.';
COMMENT ON COLUMN ledger.metered_shards.metered_at IS 'When it was counted.';
COMMENT ON COLUMN ledger.metered_shards.run_id IS 'Dagster run that wrote the row.';
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.metered_shards
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.metered_shards
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)
