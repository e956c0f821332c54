"""Workers: who has dialled in, and to which process."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, Column, Integer, Text

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "workers",
        Column("id", Text, primary_key=True),
        Column("owner_id", Text, nullable=False),
        Column("kind", Text, nullable=False),
        Column("credential_id", Text, nullable=False),
        Column("account_id", Text, nullable=False),
        Column("shared", Integer, nullable=False),
        Column("address", Text, nullable=False),
        Column("offer", Text, nullable=False),
        Column("outstanding", Integer, nullable=False),
        Column("draining", Integer, nullable=False),
        Column("beat", BigInteger, nullable=False),
        Column("connected_ms", BigInteger, nullable=False),
    )
