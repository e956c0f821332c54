"""The queue before a store's writer, when the engine behind it does not answer, or not for sure."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any

import pytest

from penstock.db import groups
from penstock.db.groups import GROUP_LIMIT, Groups
from penstock.db.program import Program
from penstock.db.schema import holds, lots, usage_records
from penstock.db.sqlite import SqliteStore
from penstock.db.store import Decision
from penstock.errors import OutcomeUnknown, StoreUnavailable
from tests.ledger import HandClock, admission, furnish, granted, lot, need, rows, settlement


class Engine:
    """An engine in front of a store in memory. While it is not `answering` nothing returns; while it is `doubtful` it
    writes and cannot say so; while it is `away` it does not write."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.answering = asyncio.Event()
        self.answering.set()
        self.doubtful = False
        self.away = False
        self.begun = asyncio.Event()
        self.transactions = 0

    async def commit(self, program: Program[Any]) -> Any:
        self.begun.set()
        self.transactions += 1
        await self.answering.wait()
        if self.away:
            raise StoreUnavailable
        outcome = await self.store._commit(program)
        if self.doubtful:
            raise OutcomeUnknown
        return outcome


@pytest.fixture
async def engine(clock: HandClock) -> AsyncIterator[Engine]:
    store = SqliteStore(None, clock=clock)
    await store.write(furnish())
    await store.write(lot("lot_1", 10_000))
    yield Engine(store)
    await store.close()


@pytest.fixture
async def queue(engine: Engine, clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Groups]:
    monkeypatch.setattr(groups, "LOOK_S", 0.01)
    queue = Groups(clock, commit=engine.commit, write=engine.commit)
    yield queue
    engine.away = engine.doubtful = False
    await queue.close()


@contextmanager
def impatience() -> Iterator[None]:
    """Nobody waits long. Only around what is not answered: on a busy machine an answer may take as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "WAIT_S", 0.3)
        yield


async def told(*decisions: Decision[Any]) -> list[type]:
    """What kind of outcome each comes to."""
    return [type(outcome) for outcome in await asyncio.gather(*decisions, return_exceptions=True)]


async def test_what_comes_turn_by_turn_of_the_event_loop_is_written_together(engine: Engine, queue: Groups) -> None:
    decisions = []
    for request in "abc":
        decisions.append(queue.submit(admission(request, need(10))))
        await asyncio.sleep(0)
    assert [granted(each) for each in await asyncio.gather(*decisions)] == [10, 10, 10]
    assert engine.transactions == 1


async def test_what_comes_while_a_transaction_is_begun_goes_with_it_but_passes_no_program(
    engine: Engine, queue: Groups
) -> None:
    engine.answering.clear()
    first = queue.submit(admission("a", need(10)))
    await engine.begun.wait()
    second, program, third = (
        queue.submit(each) for each in (admission("b", need(10)), lot("lot_2", 5), admission("c", need(10)))
    )
    engine.answering.set()
    assert [granted(each) for each in await asyncio.gather(first, second)] == [10, 10]
    assert (program.done(), third.done()) == (False, False)
    assert (await program, granted(await third)) == (True, 10)
    assert engine.transactions == 3


async def test_whoever_waits_for_an_engine_that_does_not_answer_is_told_in_time(engine: Engine, queue: Groups) -> None:
    """What has been begun is in doubt, what has not been is not."""
    engine.answering.clear()
    began_s = perf_counter()
    under_way = queue.submit(admission("a", need(10)))
    await engine.begun.wait()
    waiting = queue.submit(admission("b", need(10)))
    with impatience():
        assert await told(under_way, waiting) == [OutcomeUnknown, StoreUnavailable]
    assert 0.3 <= perf_counter() - began_s < 5
    engine.answering.set()
    assert granted(await queue.submit(admission("c", need(10)))) == 10
    assert {row["request_id"] for row in await rows(engine.store, holds)} == {"a", "c"}  # to be given back: `Hold`


async def test_while_settlements_are_owed_nothing_else_is_begun(engine: Engine, queue: Groups) -> None:
    assert granted(await queue.submit(admission("a", need(10)))) == 10
    engine.doubtful = True
    posted = queue.post(settlement("a", need(0), 7))
    assert await told(queue.submit(admission("b", need(10)))) == [OutcomeUnknown]  # it went with the settlement
    for n in range(20):
        assert await told(queue.submit(admission(f"c{n}", need(10)))) == [StoreUnavailable]
    assert not posted.done()
    engine.doubtful = False
    await posted
    assert granted(await queue.submit(admission("d", need(10)))) == 10
    assert {row["request_id"] for row in await rows(engine.store, holds)} == {"b", "d"}
    assert [row["amount"] for row in await rows(engine.store, usage_records)] == [7]


async def test_a_settlement_that_nobody_waits_for_any_more_is_written_all_the_same(
    engine: Engine, queue: Groups
) -> None:
    """However long the engine takes it is refused to nobody: neither whoever gave it up nor whoever still waits."""
    for request in ("a", "b"):
        assert granted(await queue.submit(admission(request, need(10)))) == 10
    engine.answering.clear()
    given_up, awaited = (queue.post(settlement(request, need(0), 7)) for request in ("a", "b"))
    given_up.cancel()
    with impatience():
        assert await told(queue.submit(admission("c", need(10)))) == [OutcomeUnknown]  # so the watch has looked
    assert not awaited.done()
    engine.answering.set()
    await awaited
    assert [row["amount"] for row in await rows(engine.store, usage_records)] == [7, 7]


async def test_behind_any_number_of_settlements_that_are_owed_callers_are_told_and_all_are_written_in_the_end(
    engine: Engine, queue: Groups
) -> None:
    many = GROUP_LIMIT * 2 + 1
    await asyncio.gather(*(queue.submit(admission(f"a{n}", need(1))) for n in range(many)))
    engine.away = True
    for n in range(many):
        queue.post(settlement(f"a{n}", need(0), 1))
    for n in range(3):
        with pytest.raises(StoreUnavailable):
            await asyncio.wait_for(queue.submit(admission(f"b{n}", need(1))), 5)
    assert len(queue) == many
    engine.away = False
    assert granted(await queue.submit(admission("c", need(1)))) == 1
    assert len(await rows(engine.store, usage_records)) == many
    assert [(row["remaining"], row["held"]) for row in await rows(engine.store, lots)] == [(10_000 - many, 1)]


async def test_when_it_ends_whoever_still_waits_is_told(
    engine: Engine, queue: Groups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A decision cannot be cancelled, so who waits for one that never comes could not end, nor his process."""
    monkeypatch.setattr(groups, "CLOSE_S", 0.05)
    engine.answering.clear()
    under_way = queue.submit(admission("a", need(10)))
    await engine.begun.wait()
    waiting = queue.submit(admission("b", need(10)))
    await queue.close()
    assert await told(under_way, waiting, queue.submit(admission("c", need(10)))) == [
        OutcomeUnknown,
        StoreUnavailable,
        StoreUnavailable,
    ]
