"""Responses are kept for the accounts that asked for them, to be continued and looked at again."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Text

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "responses",
        Column("account_id", Text, primary_key=True),
        Column("id", Text, primary_key=True),
        Column("previous_id", Text),
        Column("input", Text, nullable=False),
        Column("answer", Text, nullable=False),
        Column("size_bytes", BigInteger, nullable=False),
        Column("created_ms", BigInteger, nullable=False),
        Column("expires_ms", BigInteger, nullable=False),
    )
    op.create_index("responses_by_expiry", "responses", ["expires_ms"])
    op.create_index("responses_by_account", "responses", ["account_id", "created_ms", "size_bytes"])
    op.create_table(
        "response_items",
        Column("account_id", Text, primary_key=True),
        Column("item_id", Text, primary_key=True),
        Column("response_id", Text, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("response_items_by_response", "response_items", ["account_id", "response_id"])
