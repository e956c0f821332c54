"""What a door understood of a request: who asks, for what, and how to read the body."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

from msgspec import Struct

from penstock.access import Caller, Surface
from penstock.db.ledger import Once
from penstock.dialects import Dialect
from penstock.relay.memory import Memory


class Said(Struct, frozen=True, gc=False):
    """What a request says besides its body. `headers` are for an upstream that speaks the same dialect."""

    authorization: str | None
    trust: str | None
    lane: str | None
    idempotency_key: str | None
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Ask(Struct, frozen=True, gc=False):
    """One request. `body` reads it (TooLarge, InvalidRequest); `id` names the request everywhere; `memory` is what it
    remembers of other calls."""

    id: str
    surface: Surface
    kind: str
    dialect: Dialect
    said: Said
    body: Callable[[], Awaitable[bytes]]
    memory: Memory | None = None


def once_of(ask: Ask, caller: Caller, body: bytes) -> Once | None:
    """What makes a request the same as an earlier one: where it went, for whom, and every byte of it."""
    if ask.said.idempotency_key is None:
        return None
    digest = hashlib.sha256(f"{ask.surface.name} {ask.dialect.NAME} {caller.account}\n".encode() + body).hexdigest()
    return Once(ask.said.idempotency_key, digest)
