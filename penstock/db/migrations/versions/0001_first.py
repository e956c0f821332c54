"""The first schema. What the tables are for is told in `penstock/db/schema.py`."""

from __future__ import annotations

from alembic import op
from sqlalchemy import BigInteger, CheckConstraint, Column, Integer, LargeBinary, Text, text

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table."""
    _people()
    _credentials()
    _money()
    _records()


def _people() -> None:
    op.create_table(
        "users",
        Column("id", Text, primary_key=True),
        Column("name", Text, nullable=False),
        Column("personal_account_id", Text, nullable=False),
        Column("created_ms", BigInteger, nullable=False),
        Column("disabled_ms", BigInteger),
    )
    op.create_table(
        "accounts",
        Column("id", Text, primary_key=True),
        Column("kind", Text, nullable=False),
        Column("name", Text, nullable=False),
        Column("created_ms", BigInteger, nullable=False),
    )
    op.create_table(
        "memberships",
        Column("account_id", Text, primary_key=True),
        Column("user_id", Text, primary_key=True),
        Column("role", Text, nullable=False),
        Column("created_ms", BigInteger, nullable=False),
    )
    op.create_index("memberships_by_user", "memberships", ["user_id"])


def _credentials() -> None:
    op.create_table(
        "credentials",
        Column("id", Text, primary_key=True),
        Column("kind", Text, nullable=False),
        Column("name", Text, nullable=False),
        Column("display", Text, nullable=False),
        Column("digest", Text, unique=True),
        Column("user_id", Text),
        Column("account_id", Text),
        Column("parent_id", Text),
        Column("scopes", Text, nullable=False),
        Column("models", Text),
        Column("environment", Text, nullable=False),
        Column("requests_per_minute", Integer, nullable=False),
        Column("limit_nano", BigInteger),
        Column("spent_nano", BigInteger, nullable=False),
        Column("held_nano", BigInteger, nullable=False),
        Column("tat_us", BigInteger, nullable=False),
        Column("created_ms", BigInteger, nullable=False),
        Column("last_used_ms", BigInteger),
        Column("expires_ms", BigInteger),
        Column("revoked_ms", BigInteger),
        CheckConstraint("held_nano >= 0", name="credentials_held"),
    )
    op.create_index("credentials_by_account", "credentials", ["account_id"])
    op.create_index("credentials_by_user", "credentials", ["user_id"])
    op.create_index("credentials_by_parent", "credentials", ["parent_id"])


def _money() -> None:
    op.create_table(
        "lots",
        Column("id", Text, primary_key=True),
        Column("account_id", Text, nullable=False),
        Column("lane", Text, nullable=False),
        Column("asset", Text, nullable=False),
        Column("granted", BigInteger, nullable=False),
        Column("remaining", BigInteger, nullable=False),
        Column("held", BigInteger, nullable=False),
        Column("expires_ms", BigInteger),
        Column("created_ms", BigInteger, nullable=False),
        CheckConstraint("held >= 0 AND held <= remaining AND remaining <= granted", name="lots_never_negative"),
    )
    money = text("remaining > 0")
    op.create_index("lots_with_money", "lots", ["account_id"], sqlite_where=money, postgresql_where=money)
    op.create_index("lots_by_account", "lots", ["account_id", "asset"])
    op.create_table(
        "holds",
        Column("request_id", Text, primary_key=True),
        Column("lot_id", Text, primary_key=True),
        Column("position", Integer, nullable=False),
        Column("amount", BigInteger, nullable=False),
        Column("value_nano", BigInteger, nullable=False),
        Column("owner_id", Text, nullable=False),
        Column("progress", BigInteger, nullable=False),
        Column("progress_tokens", BigInteger, nullable=False),
        Column("expires_ms", BigInteger, nullable=False),
        Column("context", Text, nullable=False),
        CheckConstraint("amount >= 0", name="holds_amount"),
        sqlite_with_rowid=False,
    )
    op.create_index("holds_by_owner", "holds", ["owner_id"])
    op.create_table(
        "owners",
        Column("id", Text, primary_key=True),
        Column("host", Text, nullable=False),
        Column("pid", BigInteger, nullable=False),
        Column("started_ms", BigInteger, nullable=False),
        Column("lease_until_ms", BigInteger, nullable=False),
    )
    op.create_table(
        "transfers",
        Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
        Column("source", Text, nullable=False),
        Column("target", Text, nullable=False),
        Column("asset", Text, nullable=False),
        Column("amount", BigInteger, nullable=False),
        Column("kind", Text, nullable=False),
        Column("reference", Text, nullable=False),
        Column("created_ms", BigInteger, nullable=False),
        CheckConstraint("amount > 0", name="transfers_positive"),
    )


def _records() -> None:
    op.create_table(
        "usage_records",
        Column("request_id", Text, primary_key=True),
        Column("account_id", Text, nullable=False),
        Column("credential_id", Text, nullable=False),
        Column("surface", Text, nullable=False),
        Column("dialect", Text, nullable=False),
        Column("model", Text, nullable=False),
        Column("provider", Text, nullable=False),
        Column("attempts", Integer, nullable=False),
        Column("lane", Text, nullable=False),
        Column("asset", Text, nullable=False),
        Column("price_version", Text, nullable=False),
        Column("amount", BigInteger, nullable=False),
        Column("cost_nano", BigInteger, nullable=False),
        Column("uncollected", BigInteger, nullable=False),
        Column("input_tokens", BigInteger, nullable=False),
        Column("cached_tokens", BigInteger, nullable=False),
        Column("output_tokens", BigInteger, nullable=False),
        Column("reasoning_tokens", BigInteger, nullable=False),
        Column("total_tokens", BigInteger, nullable=False),
        Column("estimated", Integer, nullable=False),
        Column("streamed", Integer, nullable=False),
        Column("status", Integer, nullable=False),
        Column("ended", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("first_byte_us", BigInteger),
        Column("total_us", BigInteger, nullable=False),
        Column("created_ms", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("usage_by_account", "usage_records", ["account_id", "request_id"])
    op.create_table(
        "idempotency",
        Column("credential_id", Text, primary_key=True),
        Column("key", Text, primary_key=True),
        Column("request_id", Text, nullable=False),
        Column("body_digest", Text, nullable=False),
        Column("state", Text, nullable=False),
        Column("status", Integer),
        Column("headers", Text),
        Column("answer", LargeBinary),
        Column("expires_ms", BigInteger, nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_index("idempotency_by_request", "idempotency", ["request_id"])
    op.create_index("idempotency_by_expiry", "idempotency", ["expires_ms"])
    op.create_table(
        "prices",
        Column("version", Text, primary_key=True),
        Column("price", Text, nullable=False),
        Column("created_ms", BigInteger, nullable=False),
    )
