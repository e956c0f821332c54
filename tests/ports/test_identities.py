"""Whose keys are presented: many at once are one question, and each is told about its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from penstock.db.credentials import Identity, NewCredential, insert_credential
from penstock.db.identities import MOST, Identities
from penstock.db.postgres import PostgresStore
from penstock.db.program import Program
from penstock.db.sqlite import SqliteStore
from penstock.db.store import READ_S, Store
from penstock.errors import StoreUnavailable
from tests import faults
from tests.faults import Way
from tests.ledger import ACCOUNT, HandClock, furnish, make_tables
from tests.postgres import Server

T = TypeVar("T")

MANY = MOST + 100
NEW = NewCredential(
    id="key_new",
    kind="inference",
    name="new",
    display="new",
    digest="new",
    user_id=None,
    account_id=ACCOUNT,
    scopes=("inference",),
    created_ms=0,
    requests_per_minute=1_000,
)


def several(*new: NewCredential) -> Program[None]:
    for each in new:
        yield from insert_credential(each)


def key(name: str, **fields: object) -> NewCredential:
    return replace(NEW, id=f"key_{name}", digest=name, **fields)  # type: ignore[arg-type]


async def asked(identities: Identities, *digests: str) -> list[tuple[str, ...] | None]:
    """The keys behind each, itself first."""
    found = await asyncio.gather(*map(identities.of, digests))
    return [None if identity is None else identity.keys for identity in found]


async def test_each_is_told_about_its_own_key_and_nothing_of_one_that_is_no_longer_good(
    store: Store, clock: HandClock
) -> None:
    now_ms = clock.now_ms()
    await store.write(
        several(
            key("one"),
            key("two"),
            key("child", parent_id="key_one"),
            key("grandchild", parent_id="key_child"),
            key("expired", expires_ms=now_ms),
            key("orphan", parent_id="key_expired"),
            key("lasting", expires_ms=now_ms + 1),
        )
    )
    identities = Identities(store, clock)
    digests = ("one", "grandchild", "expired", "nobody", "one", "orphan", "two", "lasting", "child")
    assert await asked(identities, *digests) == [
        ("key_one",),
        ("key_grandchild", "key_child", "key_one"),
        None,
        None,
        ("key_one",),
        None,
        ("key_two",),
        ("key_lasting",),
        ("key_child", "key_one"),
    ]


async def test_who_gives_up_takes_no_answer_from_anybody_else(store: Store, clock: HandClock) -> None:
    await store.write(several(key("one"), key("two")))
    identities = Identities(store, clock)
    waiting = [asyncio.create_task(identities.of(digest)) for digest in ("one", "two", "one")]
    await asyncio.sleep(0)
    waiting[0].cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [asyncio.CancelledError, Identity, Identity]


async def test_while_the_store_is_away_all_are_told_and_afterwards_served(tmp_path: Path, clock: HandClock) -> None:
    file = tmp_path / "penstock.db"
    make_tables(str(file))
    store = SqliteStore(str(file), clock=clock)
    await store.write(furnish())
    await store.write(several(*(key(f"n{n}") for n in range(MANY))))
    identities = Identities(store, clock)
    digests = [f"n{n}" for n in range(MANY)]
    async with faults.moved_away(file):
        outcomes = await asyncio.gather(*map(identities.of, digests), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {StoreUnavailable}
    assert await asked(identities, *digests) == [(f"key_{digest}",) for digest in digests]
    await store.close()


class Slow(SqliteStore):
    """Answers no look-up before `answering` is set."""

    def __init__(self, path: str, *, clock: HandClock) -> None:
        super().__init__(path, clock=clock)
        self.asked, self.answering = asyncio.Event(), asyncio.Event()

    async def read(self, program: Program[T], *, within_s: float = READ_S) -> T:
        self.asked.set()
        await self.answering.wait()
        return await super().read(program, within_s=within_s)


async def test_who_comes_with_a_key_that_is_being_looked_up_in_vain_is_told_with_the_others(
    tmp_path: Path, clock: HandClock
) -> None:
    file = tmp_path / "penstock.db"
    make_tables(str(file))
    store = Slow(str(file), clock=clock)
    identities = Identities(store, clock)
    async with faults.moved_away(file):
        early = asyncio.create_task(identities.of("one"))
        await store.asked.wait()
        late = [asyncio.create_task(identities.of(digest)) for digest in ("one", "two")]
        await asyncio.sleep(0)  # they wait now
        store.answering.set()
        outcomes = await asyncio.gather(early, *late, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable] * 3
    await store.close()


@asynccontextmanager
async def far_away(server: Server, database: str, clock: HandClock) -> AsyncIterator[PostgresStore]:
    """A store that every question takes a while to reach, and every answer from it."""
    async with Way(server, database).laid() as way:
        store = PostgresStore(way.url, clock=clock)
        await store.read(several())
        way.delay_s = 0.02
        yield store
        await store.close()


@pytest.mark.postgres
async def test_hundreds_of_new_keys_at_once_are_not_as_many_round_trips(
    server: Server, database: str, clock: HandClock
) -> None:
    """Asked one by one over four connections, the last would have waited for many seconds, and two are the limit."""
    near = PostgresStore(database, clock=clock)
    await near.write(furnish())
    await near.write(several(*(key(f"n{n}") for n in range(MANY))))
    await near.close()
    async with far_away(server, database, clock) as store:
        digests = [f"n{n}" for n in range(MANY)]
        assert await asked(Identities(store, clock), *digests) == [(f"key_{digest}",) for digest in digests]
