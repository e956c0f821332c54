"""An operation that is done once, however often it is asked for: its idempotency key, and what came of the first time.

Asking whether a key was used, doing it and keeping the outcome are one transaction, so duplicates that come at the same
time, to whichever process, are done once. What was refused is not kept and may be asked again. Keys are of one
credential, and of the machine; they are kept for as long as those of calls (`db/ledger.py`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec

from penstock.db.ledger import Once, keep, recall
from penstock.db.program import Program
from penstock.db.records import KeptAnswer
from penstock.errors import InvalidRequest, WrongState
from penstock.operations.actor import Actor

T = TypeVar("T")

LONGEST_KEY = 255  # as of calls
AT_THE_MACHINE = "local"  # whose keys they are where nobody shows a credential


def parse_idempotency_key(key: str) -> str:
    """The key, when it can be sent in a header as it is; else InvalidRequest."""
    if not 0 < len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable() or key != key.strip():
        raise InvalidRequest(
            f"An idempotency key has 1 to {LONGEST_KEY} printable ASCII characters, blanks only inside.",
            param="idempotency_key",
        )
    return key


def done_once(
    actor: Actor, key: str | None, asked: Mapping[str, Any], program: Program[T], kind: type[T], *, id: str, now_ms: int
) -> Program[T]:
    """What `program` comes to, or came to when the actor `asked` the same with this key before. None is no key.

    `kind` is the type of the outcome, `id` names it. InvalidRequest for an impossible key; WrongState when it came with
    something else before.
    """
    if key is None:
        return (yield from program)
    once, holder = Once(parse_idempotency_key(key), _digest(asked)), actor.key or AT_THE_MACHINE
    seen = yield from recall(holder, once.key, now_ms)
    if seen is None:
        outcome = yield from program
        yield from keep(holder, once, id, KeptAnswer(201, "[]", msgspec.json.encode(outcome)), now_ms)
        return outcome
    if seen.body_digest != once.body_digest or seen.kept is None or seen.kept.body is None:
        raise WrongState("This idempotency key was used with another request.", code="idempotency_mismatch")
    return msgspec.json.decode(seen.kept.body, type=kind)


def _digest(asked: Mapping[str, Any]) -> str:
    return hashlib.sha256(msgspec.json.encode(asked, order="sorted")).hexdigest()
