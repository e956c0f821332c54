"""Holds are found by request. By owner they are looked for when a process has died, among the few that are open then:
an index for that costs every call two writes."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Drop the index."""
    op.drop_index("holds_by_owner", "holds")
