"""The ledger as first released; the statements are in the SQL file beside this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    # Whole-script execution: no parameters, so psycopg takes all statements in one go.
    raw: Any = op.get_bind().connection.dbapi_connection
    raw.execute(Path(__file__).with_suffix(".sql").read_text(encoding="utf-8"))
