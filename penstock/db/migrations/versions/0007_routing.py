"""Routing: how an account or a key wants its calls routed."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Text

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "routing",
        Column("subject", Text, primary_key=True),
        Column("preferred", Text, nullable=False),
        Column("allowed", Text, nullable=False),
        Column("denied", Text, nullable=False),
        Column("updated_ms", BigInteger, nullable=False),
    )
