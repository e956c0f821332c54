"""Rules about tools by account, and the turns of conversations that callers have not seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.dialects.sqlite import insert

from penstock.db.ledger import WRITE_USAGE
from penstock.db.program import Program, Statement, any_of, fetch, run
from penstock.db.records import UsageRecord
from penstock.db.schema import tool_policies, tool_turns

POLICY_OF = Statement(
    select(tool_policies.c.policy).where(tool_policies.c.account_id == bindparam("account")), "account"
)
_policy = insert(tool_policies)
_policy_names = tuple(column.name for column in tool_policies.columns)
WRITE_POLICY = Statement(
    _policy.values({name: bindparam(name) for name in _policy_names}).on_conflict_do_update(
        index_elements=[tool_policies.c.account_id],
        set_={"policy": _policy.excluded.policy, "changed_ms": _policy.excluded.changed_ms},
    ),
    *_policy_names,
)
TURNS_NAMED = Statement(
    select(tool_turns.c.digest, func.length(tool_turns.c.turns)).where(
        any_of(tool_turns.c.digest, "digests"), tool_turns.c.expires_ms > bindparam("now")
    ),
    "digests", "now",
)  # fmt: skip
TURNS = Statement(
    select(tool_turns.c.digest, tool_turns.c.turns).where(any_of(tool_turns.c.digest, "digests")), "digests"
)
_turn = insert(tool_turns)
_turn_names = tuple(column.name for column in tool_turns.columns)
WRITE_TURNS = Statement(
    _turn.values({name: bindparam(name) for name in _turn_names}).on_conflict_do_update(
        index_elements=[tool_turns.c.digest],
        set_={"turns": _turn.excluded.turns, "expires_ms": _turn.excluded.expires_ms},
    ),
    *_turn_names,
)
FORGET_TURNS = Statement(delete(tool_turns).where(tool_turns.c.expires_ms <= bindparam("now")), "now")


def own_policy(account: str) -> Program[dict[str, Any]]:
    """What an account has rules of its own for; empty when it has none."""
    rows = yield from fetch(POLICY_OF, account)
    return dict(msgspec.json.decode(rows[0][0])) if rows else {}


def write_policy(account: str, policy: dict[str, Any], now_ms: int) -> Program[None]:
    """Put these rules in the place of those it has."""
    yield from run(WRITE_POLICY, account, msgspec.json.encode(policy).decode(), now_ms)


def find_turns(digests: Sequence[str], now_ms: int, most_bytes: int) -> Program[dict[str, bytes]]:
    """What is kept under these digests: of more than `most_bytes` the last ones named."""
    rows = yield from fetch(TURNS_NAMED, list(digests), now_ms)
    sizes = {str(row[0]): int(row[1]) for row in rows}
    wanted: list[str] = []
    for digest in dict.fromkeys(each for each in reversed(digests) if each in sizes):
        most_bytes -= sizes[digest]
        if most_bytes < 0:
            break
        wanted.append(digest)
    return {row[0]: bytes(row[1]) for row in (yield from fetch(TURNS, wanted))} if wanted else {}


def write_turns(digest: str, turns: bytes, expires_ms: int) -> Program[None]:
    """Keep turns until then."""
    yield from run(WRITE_TURNS, digest, turns, expires_ms)


def forget_turns(now_ms: int) -> Program[None]:
    """Drop turns whose time is over."""
    yield from run(FORGET_TURNS, now_ms)


def note_use(record: UsageRecord) -> Program[None]:
    """Write the record of a request that held no money."""
    yield from run(WRITE_USAGE, *record.row())
