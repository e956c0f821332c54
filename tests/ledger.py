"""Words for tests of the ledger: a furnished store, operations that name only what matters, and the tables as they are.

Nothing here stands in for our own code: everything goes through the real store. The clock alone is set by hand.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from typing import Any

from sqlalchemy import Table, select

from penstock.clock import Clock
from penstock.db.accounts import Account, insert_account
from penstock.db.credentials import NewCredential, insert_credential
from penstock.db.journal import grant
from penstock.db.ledger import Admission, Extension, Once, Outcome, Settlement
from penstock.db.migrate import create_tables
from penstock.db.program import Program, Statement, fetch
from penstock.db.records import KeptAnswer, UsageRecord
from penstock.db.recovery import LEASE_MS, Owner, context_of, register
from penstock.db.store import Store
from penstock.money.books import Granted, Need
from penstock.money.units import MEGA, USD

NOON_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
ACCOUNT, KEY, OWNER = "acc_1", "key_1", "own_1"


class HandClock(Clock):
    """A clock that stands still until it is set: the time of day, and the seconds of durations."""

    __slots__ = ("now", "seconds")

    def __init__(self, now_ms: int = NOON_MS) -> None:
        super().__init__()
        self.now = now_ms
        self.seconds = 0.0

    def now_ms(self) -> int:
        return self.now

    def monotonic(self) -> float:
        return self.seconds


def make_tables(path: str) -> None:
    """A new database file with the schema in it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        create_tables(connection)


def key(
    id: str = KEY, *, limit: int | None = None, parent: str | None = None, per_minute: int = 10**7
) -> NewCredential:
    return NewCredential(
        id=id,
        kind="account",
        name=id,
        display=id,
        digest=id,
        user_id=None,
        account_id=ACCOUNT,
        scopes=("inference",),
        created_ms=NOON_MS,
        requests_per_minute=per_minute,
        parent_id=parent,
        limit_nano=limit,
    )


def furnish(keys: Iterable[NewCredential] = (), owners: Iterable[str] = (OWNER,)) -> Program[None]:
    """An account, its keys (one without a limit when none is given), and serving processes."""
    yield from insert_account(Account(ACCOUNT, "team", "Test", NOON_MS))
    for each in tuple(keys) or (key(),):
        yield from insert_credential(each)
    for owner in owners:
        yield from register(Owner(owner, "host", 1, NOON_MS + LEASE_MS), NOON_MS)


def counting(program: Program[Any], asked: list[int]) -> Program[Any]:
    """The program, which counts in the last of `asked` how often it asks the database something."""
    rows: Any = None
    try:
        while True:
            query = program.send(rows)
            asked[-1] += 1
            rows = yield query
    except StopIteration as end:
        return end.value


def lot(
    id: str, amount: int, *, expires_ms: int | None = None, asset: str = USD, now_ms: int = NOON_MS
) -> Program[bool]:
    """Grant a lot to the account: credits, or the tokens of a contract."""
    lane = "credits" if asset == USD else "contract"
    return grant(
        lot_id=id, account=ACCOUNT, lane=lane, asset=asset, amount=amount, expires_ms=expires_ms, reference="test",
        now_ms=now_ms,
    )  # fmt: skip


def need(
    want: int,
    least: int | None = None,
    *,
    keys: tuple[str, ...] = (KEY,),
    asset: str = USD,
    rate: int = MEGA,
    patient: bool = False,
    again: bool = False,
) -> Need:
    """A need of exactly `want` units, unless `least` says that fewer will do."""
    lane = "credits" if asset == USD else "contract"
    return Need(ACCOUNT, keys, lane, asset, rate, want, want if least is None else least, patient, again)


def record(request: str, wants: Need, *, now_ms: int = NOON_MS, state: str = "final") -> UsageRecord:
    return UsageRecord(
        request_id=request,
        account_id=wants.account,
        credential_id=wants.keys[0],
        surface="trust",
        dialect="openai_chat",
        model="m",
        provider="p",
        attempts=1,
        lane=wants.lane,
        asset=wants.asset,
        price_version="v",
        input_tokens=3,
        cached_tokens=0,
        output_tokens=4,
        reasoning_tokens=0,
        total_tokens=7,
        estimated=0,
        streamed=1,
        status=200,
        ended="answer",
        created_ms=now_ms,
        first_byte_us=None,
        total_us=5,
        state=state,
    )


def admission(
    request: str, wants: Need, *, owner: str = OWNER, expires_ms: int = NOON_MS + HOUR_MS, once: Once | None = None
) -> Admission:
    return Admission(request, wants, owner, expires_ms, context_of(wants, record(request, wants)), once)


def extension(
    request: str,
    wants: Need,
    *,
    progress: int = 0,
    position: int = 1,
    owner: str = OWNER,
    expires_ms: int = NOON_MS + HOUR_MS,
) -> Extension:
    return Extension(request, wants, owner, expires_ms, position, progress, progress_tokens=progress // 10)


def settlement(
    request: str, wants: Need, owed: int, *, kept: KeptAnswer | None = None, once: bool = False
) -> Settlement:
    return Settlement(request, wants, owed, record(request, wants), kept, once)


def granted(outcome: Outcome) -> int:
    """How much was granted; a test that expects a grant fails on anything else."""
    assert isinstance(outcome, Granted), outcome
    return outcome.amount


def rows_of(table: Table) -> Program[list[dict[str, Any]]]:
    """The rows of a table, by column, in the order of its primary key."""
    statement = Statement(select(table).order_by(*table.primary_key.columns))
    rows = yield from fetch(statement)
    return [dict(zip((column.name for column in table.columns), row, strict=True)) for row in rows]


async def rows(store: Store, table: Table) -> list[dict[str, Any]]:
    return await store.read(rows_of(table))
