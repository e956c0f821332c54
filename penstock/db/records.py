"""The rows that outlive a request: a usage record, and an answer kept for its idempotency key."""

from __future__ import annotations

from operator import attrgetter
from typing import Any

from msgspec import Struct

from penstock.db.schema import usage_records


class UsageRecord(Struct, gc=False):
    """One request that held money: who, what, how much, how it ended. Column for column the table `usage_records`.

    `amount` (units of `asset`), `cost_nano` (what they are worth) and `uncollected` are filled in by the ledger when
    it settles.
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
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int
    total_tokens: int
    estimated: int
    streamed: int
    status: int
    ended: str
    created_ms: int
    first_byte_us: int | None
    total_us: int
    state: str = "final"
    amount: int = 0
    cost_nano: int = 0
    uncollected: int = 0

    def row(self) -> tuple[Any, ...]:
        """The values in the order of the table's columns."""
        values: tuple[Any, ...] = _in_column_order(self)
        return values


_in_column_order = attrgetter(*(column.name for column in usage_records.columns))


class KeptAnswer(Struct, frozen=True, gc=False):
    """The answer to a request with an idempotency key, as it went out. `body` is None when it was too large."""

    status: int
    headers: str
    body: bytes | None
