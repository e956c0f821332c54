"""The tables, once for SQLite and PostgreSQL. Migrations live in `migrations/`; a test compares the two.
What only PostgreSQL must know (`postgresql_where` of an index) stands in the migrations alone: to name it here would
load SQLAlchemy's part for it, and with it the drivers' parts, in every process that works with SQLite.

Only integers and text (and two blobs): instants are milliseconds since 1970 (`_ms`), flags are 0 or 1, lists are JSON
text. USD is nano-USD, contract lots are tokens.

    users ─┬─ memberships ── accounts ── lots ── holds (open only)
           └─ credentials (keys, sessions)        transfers (append-only journal)
    owners (processes) ── workers (connected to them)   leases   usage_records   idempotency
    prices (every version used)   routing (what callers want of it)   fingerprints (of the secrets in use)
    tool_policies (by account)   tool_turns (what callers have not seen of their conversations)
    responses ── response_items (what callers may continue, and refer to)
"""

from __future__ import annotations

from sqlalchemy import BigInteger, CheckConstraint, Column, Index, Integer, LargeBinary, MetaData, Table, Text, text

metadata = MetaData()

users = Table(
    "users",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("personal_account_id", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("disabled_ms", BigInteger),
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),  # personal | team
    Column("name", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
)

memberships = Table(
    "memberships",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("user_id", Text, primary_key=True),
    Column("role", Text, nullable=False),  # owner | member
    Column("created_ms", BigInteger, nullable=False),
    Index("memberships_by_user", "user_id"),
)

credentials = Table(
    "credentials",
    metadata,
    Column("id", Text, primary_key=True),
    Column("kind", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("display", Text, nullable=False),  # prefix and last four characters, for people
    Column("digest", Text, unique=True),  # HMAC-SHA-256 of the key, hex; a session has none
    Column("user_id", Text),
    Column("account_id", Text),
    Column("parent_id", Text),
    Column("scopes", Text, nullable=False),  # JSON list
    Column("models", Text),  # JSON list of model ids; null allows all
    Column("environment", Text, nullable=False),  # live | test
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
    Index("credentials_by_account", "account_id"),
    Index("credentials_by_user", "user_id"),
    Index("credentials_by_parent", "parent_id"),
)

lots = Table(
    "lots",
    metadata,
    Column("id", Text, primary_key=True),
    Column("account_id", Text, nullable=False),
    Column("lane", Text, nullable=False),  # credits | contract
    Column("asset", Text, nullable=False),  # USD or a contract's id
    Column("granted", BigInteger, nullable=False),
    Column("remaining", BigInteger, nullable=False),
    Column("held", BigInteger, nullable=False),
    Column("expires_ms", BigInteger),
    Column("created_ms", BigInteger, nullable=False),
    CheckConstraint("held >= 0 AND held <= remaining AND remaining <= granted", name="lots_never_negative"),
    Index("lots_with_money", "account_id", sqlite_where=text("remaining > 0")),
    Index("lots_by_account", "account_id", "asset"),
)

holds = Table(
    "holds",
    metadata,
    Column("request_id", Text, primary_key=True),
    Column("lot_id", Text, primary_key=True),  # empty for a call that costs nothing
    Column("position", Integer, nullable=False),  # the order in which lots were drawn on
    Column("amount", BigInteger, nullable=False),
    Column("value_nano", BigInteger, nullable=False),
    Column("owner_id", Text, nullable=False),
    Column("progress", BigInteger, nullable=False),  # owed when last recorded
    Column("progress_tokens", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Column("context", Text, nullable=False),  # JSON: what recovery needs to write the usage record
    CheckConstraint("amount >= 0", name="holds_amount"),
    sqlite_with_rowid=False,
)

owners = Table(
    "owners",
    metadata,
    Column("id", Text, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("started_ms", BigInteger, nullable=False),
    Column("lease_until_ms", BigInteger, nullable=False),
)

leases = Table(
    "leases",
    metadata,
    Column("name", Text, primary_key=True),  # what one process at a time does for all: see recovery.py
    Column("holder", Text, nullable=False),  # an owner
    Column("until_ms", BigInteger, nullable=False),
)

workers = Table(
    "workers",
    metadata,
    Column("id", Text, primary_key=True),
    Column("owner_id", Text, nullable=False),  # the process that has the connection
    Column("kind", Text, nullable=False),  # worker | tools_worker
    Column("credential_id", Text, nullable=False),
    Column("account_id", Text, nullable=False),  # whose calls it takes
    Column("shared", Integer, nullable=False),  # it takes everybody's
    Column("address", Text, nullable=False),  # where other processes ask for it
    Column("offer", Text, nullable=False),  # JSON: see hub/messages.py
    Column("outstanding", Integer, nullable=False),
    Column("draining", Integer, nullable=False),
    Column("beat", BigInteger, nullable=False),  # changes as long as it is there
    Column("connected_ms", BigInteger, nullable=False),
)

transfers = Table(
    "transfers",
    metadata,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True),
    Column("source", Text, nullable=False),  # lot:<id> | grants | …
    Column("target", Text, nullable=False),  # lot:<id> | revenue | expired
    Column("asset", Text, nullable=False),
    Column("amount", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),  # grant | charge | expiry
    Column("reference", Text, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    CheckConstraint("amount > 0", name="transfers_positive"),
)

usage_records = Table(
    "usage_records",
    metadata,
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
    Column("amount", BigInteger, nullable=False),  # collected, in units of the asset
    Column("cost_nano", BigInteger, nullable=False),  # what that is worth
    Column("uncollected", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("cached_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("reasoning_tokens", BigInteger, nullable=False),
    Column("total_tokens", BigInteger, nullable=False),
    Column("estimated", Integer, nullable=False),
    Column("streamed", Integer, nullable=False),
    Column("status", Integer, nullable=False),
    Column("ended", Text, nullable=False),  # see relay/ending.py
    Column("state", Text, nullable=False),  # final | review
    Column("first_byte_us", BigInteger),
    Column("total_us", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("tools", Text),  # JSON list of the tools run for it; empty when there were none
    Index("usage_by_account", "account_id", "request_id"),
    sqlite_with_rowid=False,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("credential_id", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request_id", Text, nullable=False),
    Column("body_digest", Text, nullable=False),
    Column("state", Text, nullable=False),  # running | done | too_large
    Column("status", Integer),
    Column("headers", Text),  # JSON
    Column("answer", LargeBinary),
    Column("expires_ms", BigInteger, nullable=False),
    Index("idempotency_by_request", "request_id"),
    Index("idempotency_by_expiry", "expires_ms"),
    sqlite_with_rowid=False,
)

tool_policies = Table(
    "tool_policies",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("policy", Text, nullable=False),  # JSON: what the account has rules of its own for
    Column("changed_ms", BigInteger, nullable=False),
)

tool_turns = Table(
    "tool_turns",
    metadata,
    Column("digest", Text, primary_key=True),  # of account, message and calls: see dialects/rounds
    Column("turns", LargeBinary, nullable=False),  # JSON
    Column("expires_ms", BigInteger, nullable=False),
    Index("tool_turns_by_expiry", "expires_ms"),
    sqlite_with_rowid=False,
)

responses = Table(
    "responses",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("id", Text, primary_key=True),
    Column("previous_id", Text),  # of the same account; what it holds is part of this one's conversation
    Column("input", Text, nullable=False),  # JSON: the items that were new with this request
    Column("answer", Text, nullable=False),  # JSON: the response as its caller has it
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_ms", BigInteger, nullable=False),
    Column("expires_ms", BigInteger, nullable=False),
    Index("responses_by_expiry", "expires_ms"),
    Index("responses_by_account", "account_id", "created_ms", "size_bytes"),
)

response_items = Table(
    "response_items",
    metadata,
    Column("account_id", Text, primary_key=True),
    Column("item_id", Text, primary_key=True),
    Column("response_id", Text, nullable=False),  # in whose answer the item is
    Index("response_items_by_response", "account_id", "response_id"),
    sqlite_with_rowid=False,
)

prices = Table(
    "prices",
    metadata,
    Column("version", Text, primary_key=True),
    Column("price", Text, nullable=False),  # JSON: nano-USD per million tokens, nano-USD per request
    Column("created_ms", BigInteger, nullable=False),
)

routing = Table(
    "routing",
    metadata,
    Column("subject", Text, primary_key=True),  # an account or a key
    Column("preferred", Text, nullable=False),  # JSON lists of patterns for classes, providers and models
    Column("allowed", Text, nullable=False),
    Column("denied", Text, nullable=False),
    Column("updated_ms", BigInteger, nullable=False),
)

fingerprints = Table(
    "fingerprints",
    metadata,
    Column("secret", Text, primary_key=True),  # key_pepper | auth_secret
    Column("fingerprint", Text, nullable=False),  # an HMAC with it, hex
)
