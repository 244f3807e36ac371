"""The newest landing of a source is found at once, however many there are."""

from __future__ import annotations

from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.execute("CREATE INDEX landings_source_id_idx ON ledger.landings (source, id)")
