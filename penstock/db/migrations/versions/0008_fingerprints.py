"""Fingerprints: which secrets the database is used with."""

from __future__ import annotations

from alembic import op
from sqlalchemy import Column, Text

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "fingerprints",
        Column("secret", Text, primary_key=True),
        Column("fingerprint", Text, nullable=False),
    )
