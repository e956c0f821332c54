"""Tools: rules by account, turns that callers have not seen, and which tools ran for a call."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, LargeBinary, Text

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    """Make the tables and the column."""
    op.create_table(
        "tool_policies",
        Column("account_id", Text, primary_key=True),
        Column("policy", Text, nullable=False),
        Column("changed_ms", BigInteger, nullable=False),
    )
    op.create_table(
        "tool_turns",
        Column("digest", Text, primary_key=True),
        Column("turns", LargeBinary, nullable=False),
        Column("expires_ms", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("tool_turns_by_expiry", "tool_turns", ["expires_ms"])
    op.add_column("usage_records", Column("tools", Text))
