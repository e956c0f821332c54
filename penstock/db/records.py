"""The rows that outlive a request: a usage record, and an answer kept for its idempotency key."""

from __future__ import annotations

from typing import Any

from msgspec import Struct
from msgspec.structs import astuple


class UsageRecord(Struct, gc=False, array_like=True):
    """One request that held money: who, what, how much, how it ended. Column for column the table `usage_records`.

    `amount` (units of `asset`), `cost_nano` (what they are worth) and `uncollected` are filled in by the ledger when
    it settles. `tools` is a JSON list of the tools run for it, empty when there were none: a NULL costs SQLite's driver
    as much as ten other values.
    """

    request_id: str
    account_id: str
    credential_id: str
    surface: str
    dialect: str
    model: str
    provider: str
    attempts: int
    lane: str
    asset: str
    price_version: str
    amount: int = 0
    cost_nano: int = 0
    uncollected: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0
    estimated: int = 0
    streamed: int = 0
    status: int = 0
    ended: str = ""
    state: str = "final"
    first_byte_us: int | None = None
    total_us: int = 0
    created_ms: int = 0
    tools: str = ""

    def row(self) -> tuple[Any, ...]:
        """The values in the order of the table's columns."""
        return astuple(self)


class KeptAnswer(Struct, frozen=True, gc=False, array_like=True):
    """The answer to a request with an idempotency key, as it went out. `body` is None when it was too large."""

    status: int
    headers: str
    body: bytes | None
