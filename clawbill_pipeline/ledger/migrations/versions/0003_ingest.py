"""Usage posted over HTTP, the tokens it is posted with, and counts that several processes keep together."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

_STATEMENTS = """
CREATE TABLE ledger.ingest_tokens (
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    tenants TEXT[],
    services TEXT[],
    made_at TIMESTAMP WITH TIME ZONE NOT NULL,
    made_by TEXT NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT ingest_tokens_pkey PRIMARY KEY (name)
);
COMMENT ON COLUMN ledger.ingest_tokens.name IS 'Its name, which is part of the token.';
COMMENT ON COLUMN ledger.ingest_tokens.sha256 IS 'Of the whole token; the token itself is nowhere.';
COMMENT ON COLUMN ledger.ingest_tokens.tenants IS 'Whose usage it may bring; null for everybody''s.';
COMMENT ON COLUMN ledger.ingest_tokens.services IS 'Of which services; null for all.';
COMMENT ON COLUMN ledger.ingest_tokens.made_at IS 'When it was written.';
COMMENT ON COLUMN ledger.ingest_tokens.made_by IS 'Who ran the command.';
COMMENT ON COLUMN ledger.ingest_tokens.revoked_at IS 'Since when it opens nothing any more.';
CREATE TRIGGER append_only BEFORE UPDATE OF name, sha256, tenants, services, made_at, made_by OR DELETE
    ON ledger.ingest_tokens FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change('revoked_at');
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.ingest_tokens
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();

CREATE TABLE ledger.ingest_requests (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    source TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    token TEXT NOT NULL,
    events INTEGER NOT NULL,
    body BYTEA NOT NULL,
    received_at TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT ingest_requests_pkey PRIMARY KEY (id),
    CONSTRAINT ingest_requests_source_sha256_key UNIQUE (source, sha256)
);
COMMENT ON COLUMN ledger.ingest_requests.id IS 'Number in the order of writing.';
COMMENT ON COLUMN ledger.ingest_requests.source IS 'Source by its name in the catalogue.';
COMMENT ON COLUMN ledger.ingest_requests.sha256 IS 'Of what was posted: the same request again is no new row.';
COMMENT ON COLUMN ledger.ingest_requests.token IS 'Name of the token that it came with.';
COMMENT ON COLUMN ledger.ingest_requests.events IS 'Usage events in it, readable ones and others.';
COMMENT ON COLUMN ledger.ingest_requests.body IS 'One CloudEvent or an array of them, JSON, zstd.';
COMMENT ON COLUMN ledger.ingest_requests.received_at IS 'When it was posted.';
CREATE INDEX ingest_requests_received_at_idx ON ledger.ingest_requests (received_at);
-- What has been landed may go one day; what is there stays as it was posted.
ALTER TABLE ledger.ingest_requests ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE TRIGGER never_changed BEFORE UPDATE ON ledger.ingest_requests
    FOR EACH ROW EXECUTE FUNCTION ledger.refuse_change();
CREATE TRIGGER no_truncate BEFORE TRUNCATE ON ledger.ingest_requests
    FOR EACH STATEMENT EXECUTE FUNCTION ledger.refuse_change();

CREATE TABLE ledger.tallies (
    name TEXT NOT NULL,
    label TEXT NOT NULL,
    count NUMERIC(38, 12) NOT NULL,
    CONSTRAINT tallies_pkey PRIMARY KEY (name, label)
);
COMMENT ON COLUMN ledger.tallies.name IS 'What is counted.';
COMMENT ON COLUMN ledger.tallies.label IS 'Of which kind.';
COMMENT ON COLUMN ledger.tallies.count IS 'How often, or how much, since the ledger began.';
"""


def upgrade() -> None:
    for statement in _STATEMENTS.split(";\n"):
        if statement.strip():
            op.execute(statement)
