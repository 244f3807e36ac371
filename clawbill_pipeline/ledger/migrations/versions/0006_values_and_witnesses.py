"""Values that count once a period, hours to be metered again for them, how far late usage was looked for, witnesses."""

from __future__ import annotations

from alembic import op

revision = "0006"
down_revision = "0005"

_STATEMENTS = """
CREATE TABLE ledger.unique_values (
    service TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    dimensions TEXT NOT NULL,
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    value TEXT NOT NULL,
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    window_start TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT unique_values_pkey PRIMARY KEY (service, tenant_id, dimensions, period_start, value)
);
COMMENT ON COLUMN ledger.unique_values.service IS 'Service by its name in the catalogue.';
COMMENT ON COLUMN ledger.unique_values.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.unique_values.dimensions IS 'Priced dimension values joined by /; empty for none.';
COMMENT ON COLUMN ledger.unique_values.period_start IS 'Start of the billing period.';
COMMENT ON COLUMN ledger.unique_values.value IS 'What was used, such as a user.';
COMMENT ON COLUMN ledger.unique_values.hour IS 'UTC hour in which the period saw it first, as far as is known.';
COMMENT ON COLUMN ledger.unique_values.window_start IS 'The hour, or a period boundary in it.';

CREATE TABLE ledger.hour_recounts (
    hour TIMESTAMP WITH TIME ZONE NOT NULL,
    asked BIGINT NOT NULL,
    done BIGINT NOT NULL,
    CONSTRAINT hour_recounts_pkey PRIMARY KEY (hour)
);
COMMENT ON COLUMN ledger.hour_recounts.hour IS 'UTC hour, half-open, of the usage''s own time.';
COMMENT ON COLUMN ledger.hour_recounts.asked IS 'How often another hour has changed what counts in this one.';
COMMENT ON COLUMN ledger.hour_recounts.done IS 'How much of that the hour was metered with.';
CREATE INDEX hour_recounts_due_idx ON ledger.hour_recounts (hour) WHERE asked > done;

CREATE TABLE ledger.landings_mark (
    through BIGINT NOT NULL,
    marked_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT landings_mark_pkey PRIMARY KEY (through)
);
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.landings_mark
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.landings_mark
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();

CREATE TABLE ledger.usage_witnesses (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    source TEXT NOT NULL,
    uri TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    service TEXT NOT NULL,
    starts TIMESTAMP WITH TIME ZONE NOT NULL,
    ends TIMESTAMP WITH TIME ZONE NOT NULL,
    quantity NUMERIC(38, 12) NOT NULL,
    cost NUMERIC(38, 12),
    said_at TIMESTAMP WITH TIME ZONE NOT NULL,
    read_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT usage_witnesses_pkey PRIMARY KEY (id),
    CONSTRAINT usage_witnesses_key UNIQUE (source, tenant_id, starts, ends, service, said_at)
);
COMMENT ON COLUMN ledger.usage_witnesses.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.usage_witnesses.source IS 'Source by its name in the catalogue.';
COMMENT ON COLUMN ledger.usage_witnesses.uri IS 'File of the answer, below the source''s folder of witnesses.';
COMMENT ON COLUMN ledger.usage_witnesses.tenant_id IS 'Tenant by its id in the catalogue.';
COMMENT ON COLUMN ledger.usage_witnesses.service IS 'Service by its name in the catalogue.';
COMMENT ON COLUMN ledger.usage_witnesses.starts IS 'Start of the hour or UTC day that it speaks of.';
COMMENT ON COLUMN ledger.usage_witnesses.ends IS 'Its end, exclusive.';
COMMENT ON COLUMN ledger.usage_witnesses.quantity IS 'In the service''s unit.';
COMMENT ON COLUMN ledger.usage_witnesses.cost IS
    'Provider''s cost in USD as the witness has it; null where it says none.';
COMMENT ON COLUMN ledger.usage_witnesses.said_at IS 'When the witness said so; the newest counts.';
COMMENT ON COLUMN ledger.usage_witnesses.read_at IS 'When it was read.';
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON ledger.usage_witnesses
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.usage_witnesses
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)
