"""The hash of every lake file, so that an altered one is told whatever was altered in it."""

from __future__ import annotations

from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.execute("ALTER TABLE ledger.landed_hours ADD COLUMN sha256 TEXT")
    op.execute(
        "COMMENT ON COLUMN ledger.landed_hours.sha256 IS 'Of the file; null where it was landed before this was kept.'"
    )
