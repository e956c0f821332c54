"""The ledger on a real store: holds, extensions, settlements, idempotency, and many who spend one balance at once."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from penstock.db import sqlite
from penstock.db.credentials import insert_credential, revoke
from penstock.db.journal import EXPIRE_AT_ONCE, GRACE_MS, expire_lots, grant, verify
from penstock.db.ledger import (
    CLOSE_HOLDS,
    OPEN_HOLDS,
    WRITE_HOLD,
    Once,
    Operation,
    Outcome,
    Replay,
    forget_answers,
)
from penstock.db.program import Program, Row, Run, fetch
from penstock.db.records import KeptAnswer
from penstock.db.schema import credentials, holds, idempotency, lots, transfers, usage_records
from penstock.db.sqlite import SqliteStore
from penstock.db.store import Store
from penstock.errors import StoreUnavailable
from penstock.money.books import Granted, Part, Refusal, Refused, Settled
from tests.ledger import (
    HOUR_MS,
    KEY,
    NOON_MS,
    HandClock,
    admission,
    counting,
    extension,
    furnish,
    granted,
    key,
    lot,
    make_tables,
    need,
    rows,
    settlement,
)
from tests.spender import spend_all

ANSWER = KeptAnswer(200, "[]", b"hello")
ONCE = Once("retry-1", "digest")


async def commit(store: SqliteStore, *operations: Operation) -> list[Outcome]:
    """Submit operations together: they are committed in one group."""
    return list(await asyncio.gather(*(store.commit(each) for each in operations)))


async def only(store: SqliteStore, table: Any) -> dict[str, Any]:
    found = await rows(store, table)
    assert len(found) == 1, found
    return found[0]


def why(outcome: Outcome) -> Refusal:
    assert isinstance(outcome, Refused), outcome
    return outcome.why


# The life of a hold.


@pytest.mark.parametrize("count", [1, 2, 8, 9, 65, 513, 1_030])
async def test_as_many_holds_as_are_named_are_closed_and_no_other(store: Store, count: int) -> None:
    written = [(f"req_{n:04}", "lot_1", 0, n, n, "own_1", 0, 0, NOON_MS, "") for n in range(count + 1)]
    requests = [row[0] for row in written]

    def close_all_but_the_first() -> Program[tuple[list[Row], list[Row]]]:
        yield Run(WRITE_HOLD, written)
        closed = yield from fetch(CLOSE_HOLDS, requests[1:])
        return closed, (yield from fetch(OPEN_HOLDS, requests))

    closed, left = await store.write(close_all_but_the_first())
    assert sorted(map(tuple, closed)) == [(id, 0, "lot_1", n, n) for n, id in enumerate(requests) if n]
    assert [*map(tuple, left)] == [(requests[0],)]


async def test_a_hold_is_set_aside_extended_and_settled(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.commit(admission("a", need(300)))
    await store.commit(extension("a", need(200), progress=250))
    hold, money = await only(store, holds), await only(store, lots)
    assert (hold["amount"], hold["value_nano"], hold["progress"]) == (500, 500, 250)
    assert (money["remaining"], money["held"]) == (1_000, 500)
    assert await store.commit(settlement("a", need(0), 420)) == Settled((Part("lot_1", 420),), 420, 0)
    money, used, who = await only(store, lots), await only(store, usage_records), await only(store, credentials)
    assert (money["remaining"], money["held"], await rows(store, holds)) == (580, 0, [])
    assert (used["amount"], used["cost_nano"], used["uncollected"], used["state"]) == (420, 420, 0, "final")
    assert (who["spent_nano"], who["held_nano"]) == (420, 0)
    assert await store.read(verify()) == []


async def test_a_charge_is_entered_once_for_each_lot_it_came_from(store: SqliteStore) -> None:
    await store.write(lot("lot_2", 100))
    await store.write(lot("lot_9", 50, expires_ms=NOON_MS + 1))
    await store.commit(admission("a", need(120)))
    await store.commit(settlement("a", need(0), 90))
    entries = [(e["source"], e["target"], e["amount"]) for e in await rows(store, transfers) if e["kind"] == "charge"]
    assert entries == [("lot:lot_9", "revenue", 50), ("lot:lot_2", "revenue", 40)]
    assert await store.read(verify()) == []


async def test_lots_burn_by_expiry_then_by_age_and_those_without_expiry_last(store: SqliteStore) -> None:
    for id, expires_ms in (("c", None), ("b", None), ("e", NOON_MS + 9), ("d", NOON_MS + 9), ("f", NOON_MS + 5)):
        await store.write(lot(id, 10, expires_ms=expires_ms))
    outcome = await store.commit(admission("a", need(50)))
    assert isinstance(outcome, Granted)
    assert [part.lot for part in outcome.parts] == ["f", "d", "e", "b", "c"]


async def test_a_request_is_settled_once_however_often_it_is_tried(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.commit(admission("a", need(300)))
    outcomes = [await store.commit(settlement("a", need(0), owed)) for owed in (100, 100, 999)]
    assert outcomes[1:] == [Settled((), 0, 0)] * 2
    assert (await only(store, lots))["remaining"] == 900
    assert (await only(store, usage_records))["amount"] == 100


async def test_two_settlements_of_one_request_in_one_group_charge_once_and_harm_no_other(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await commit(store, admission("a", need(300)), admission("b", need(300)))
    twice = [settlement("a", need(0), 100), settlement("a", need(0), 100)]
    outcomes = await commit(store, *twice, settlement("b", need(0), 50))
    assert [each.value for each in outcomes if isinstance(each, Settled)] == [100, 0, 50]
    assert (await only(store, lots))["remaining"] == 850
    assert await store.read(verify()) == []


async def test_a_settled_request_cannot_be_extended(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.commit(admission("a", need(300)))
    await store.commit(settlement("a", need(0), 1))
    assert why(await store.commit(extension("a", need(10)))) is Refusal.GONE


async def test_an_extension_that_meets_its_settlement_in_one_group_is_void(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.commit(admission("a", need(300)))
    late, _ = await commit(store, extension("a", need(200)), settlement("a", need(0), 300))
    assert why(late) is Refusal.GONE
    assert ((await only(store, lots))["held"], await rows(store, holds)) == (0, [])


async def test_money_freed_in_a_group_is_there_for_the_requests_in_it(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 100))
    await store.commit(admission("a", need(100)))
    outcome, _ = await commit(store, admission("b", need(90)), settlement("a", need(0), 10))
    assert granted(outcome) == 90


async def test_a_group_never_grants_more_than_there_is(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 100))
    outcomes = await commit(store, *(admission(f"r{n}", need(30)) for n in range(5)))
    assert [isinstance(each, Granted) for each in outcomes] == [True, True, True, False, False]
    assert (await only(store, lots))["held"] == 90


async def test_a_free_call_is_held_settled_and_recorded_without_money(store: SqliteStore) -> None:
    assert await store.commit(admission("a", need(0))) == Granted((), 0)
    assert (await only(store, holds))["lot_id"] == ""
    assert await store.commit(settlement("a", need(0), 0)) == Settled((), 0, 0)
    assert (await only(store, usage_records))["amount"] == 0
    assert await store.read(verify()) == []


async def test_what_cannot_be_collected_is_on_the_usage_record(store: SqliteStore) -> None:
    await store.write(lot("tok", 100, asset="C"))
    wants = need(1_000, 1, asset="C", rate=140_000)
    await store.commit(admission("a", wants))
    await store.commit(settlement("a", wants, 250))
    used, money = await only(store, usage_records), await only(store, lots)
    assert (used["amount"], used["cost_nano"], used["uncollected"]) == (100, 14, 150)
    assert (money["remaining"], money["held"]) == (0, 0)
    assert await store.read(verify()) == []


async def test_a_lot_that_expires_during_a_call_pays_for_it_and_then_is_emptied(
    store: SqliteStore, clock: HandClock
) -> None:
    await store.write(lot("lot_1", 100, expires_ms=NOON_MS + 10))
    await store.commit(admission("a", need(60)))
    clock.now += 10
    assert await store.write(expire_lots(clock.now + GRACE_MS)) == 0
    await store.commit(settlement("a", need(0), 80))
    assert (await only(store, usage_records))["uncollected"] == 20
    assert await store.write(expire_lots(clock.now + GRACE_MS - 1)) == 0
    clock.now += GRACE_MS
    assert await store.write(expire_lots(clock.now)) == 1
    assert (await only(store, lots))["remaining"] == 0
    assert [entry["amount"] for entry in await rows(store, transfers) if entry["kind"] == "expiry"] == [40]
    assert await store.read(verify()) == []


async def test_lots_that_expire_all_at_once_are_emptied_some_hundreds_at_a_time(store: Store, clock: HandClock) -> None:
    def furnished() -> Program[None]:
        for number in range(EXPIRE_AT_ONCE + 1):
            yield from lot(f"lot_{number}", 10, expires_ms=NOON_MS + 1, asset="C")

    await store.write(furnished())
    clock.now += GRACE_MS + 1
    asked = [0]
    assert await store.write(counting(expire_lots(clock.now), asked)) == EXPIRE_AT_ONCE
    assert asked == [3]
    assert [await store.write(expire_lots(clock.now)) for _ in range(2)] == [1, 0]
    assert {row["remaining"] for row in await rows(store, lots)} == {0}
    assert await store.read(verify()) == []


async def test_a_revoked_key_is_refused_at_its_next_call_and_finishes_the_one_under_way(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.commit(admission("a", need(10)))
    await store.write(revoke([KEY], NOON_MS))
    assert why(await store.commit(admission("b", need(10)))) is Refusal.KEY_INVALID
    assert granted(await store.commit(extension("a", need(10)))) == 10
    await store.commit(settlement("a", need(0), 20))
    assert (await only(store, lots))["remaining"] == 980


async def test_a_childs_spending_counts_for_its_parent_and_the_tighter_limit_holds(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 10_000))
    await store.write(insert_credential(key("parent", limit=100)))
    await store.write(insert_credential(key("child", limit=80, parent="parent")))
    family = need(90, 1, keys=("child", "parent"))
    assert granted(await store.commit(admission("a", family))) == 80
    assert granted(await store.commit(admission("b", need(90, 1, keys=("parent",))))) == 20
    await commit(store, settlement("a", family, 75), settlement("b", need(0, keys=("parent",)), 20))
    spent = {row["id"]: (row["spent_nano"], row["held_nano"]) for row in await rows(store, credentials)}
    assert (spent["child"], spent["parent"]) == ((75, 0), (95, 0))
    assert await store.read(verify()) == []


async def test_a_rate_limit_is_kept_across_groups(store: SqliteStore, clock: HandClock) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.write(insert_credential(key("slow", per_minute=2)))
    wants = need(1, keys=("slow",))
    outcomes = [await store.commit(admission(f"r{n}", wants)) for n in range(3)]
    assert why(outcomes[2]) is Refusal.RATE_LIMITED
    clock.now += 30_000
    assert granted(await store.commit(admission("r3", wants))) == 1


async def test_money_for_nobody_and_nothing_are_not_granted(store: SqliteStore) -> None:
    wrong: dict[str, Any] = {"lane": "credits", "asset": "USD", "expires_ms": None, "reference": "", "now_ms": 0}
    assert not await store.write(grant(lot_id="x", account="nobody", amount=1, **wrong))
    for amount in (0, -5):
        with pytest.raises(sqlite3.IntegrityError):
            await store.write(grant(lot_id="x", account="acc_1", amount=amount, **wrong))
    assert (await rows(store, lots), await rows(store, transfers)) == ([], [])


# Idempotency.


async def test_a_second_request_with_the_key_sees_it_running_and_then_its_answer(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    first, second = await commit(store, *(admission(id, need(10), once=ONCE) for id in ("a", "b")))
    assert (granted(first), second) == (10, Replay("digest", None))
    assert await store.commit(admission("c", need(10), once=ONCE)) == Replay("digest", None)
    await store.commit(settlement("a", need(0), 7, kept=ANSWER, once=True))
    assert await store.commit(admission("d", need(10), once=Once("retry-1", "other"))) == Replay("digest", ANSWER)
    assert len(await rows(store, usage_records)) == 1
    assert (await only(store, lots))["remaining"] == 993


async def test_a_request_that_failed_or_was_refused_may_be_tried_again(store: SqliteStore) -> None:
    assert why(await store.commit(admission("a", need(10), once=ONCE))) is Refusal.NO_FUNDS
    await store.write(lot("lot_1", 1_000))
    assert granted(await store.commit(admission("b", need(10), once=ONCE))) == 10
    await store.commit(settlement("b", need(0), 0, once=True))
    assert granted(await store.commit(admission("c", need(10), once=ONCE))) == 10


async def test_an_answer_too_large_to_keep_is_known_to_have_been_given(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.commit(admission("a", need(10), once=ONCE))
    await store.commit(settlement("a", need(0), 1, kept=KeptAnswer(200, "[]", None), once=True))
    assert await store.commit(admission("b", need(10), once=ONCE)) == Replay("digest", KeptAnswer(200, "[]", None))


@pytest.mark.parametrize("kept", [ANSWER, None])
async def test_a_request_that_ends_in_a_group_has_ended_for_the_next_try_in_it(
    store: SqliteStore, kept: KeptAnswer | None
) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.commit(admission("a", need(10), once=ONCE))
    again, _ = await commit(
        store, admission("b", need(10), once=ONCE), settlement("a", need(0), 7, kept=kept, once=True)
    )
    assert again == (Replay("digest", kept) if kept else Granted((Part("lot_1", 10, 10),), 10))
    if kept is None:
        assert await store.commit(admission("c", need(10), once=ONCE)) == Replay("digest", None)


async def test_idempotency_keys_are_private_to_a_credential(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.write(insert_credential(key("other")))
    await store.commit(admission("a", need(10), once=ONCE))
    assert granted(await store.commit(admission("b", need(10, keys=("other",)), once=ONCE))) == 10


async def test_an_answer_is_forgotten_after_a_day(store: SqliteStore, clock: HandClock) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.commit(admission("a", need(10), once=ONCE))
    await store.commit(settlement("a", need(0), 1, kept=ANSWER, once=True))
    clock.now += 24 * HOUR_MS - 1
    assert await store.commit(admission("b", need(10), once=ONCE)) == Replay("digest", ANSWER)
    clock.now += 1
    assert granted(await store.commit(admission("c", need(10), once=ONCE))) == 10
    assert (await only(store, idempotency))["answer"] is None
    await store.write(forget_answers(clock.now + 24 * HOUR_MS))
    assert await rows(store, idempotency) == []


async def test_a_replay_is_for_a_good_key_and_counts_against_its_rate(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.write(insert_credential(key("slow", per_minute=2)))
    wants = need(10, keys=("slow",))
    await store.commit(admission("a", wants, once=ONCE))
    assert isinstance(await store.commit(admission("b", wants, once=ONCE)), Replay)
    assert why(await store.commit(admission("c", wants, once=ONCE))) is Refusal.RATE_LIMITED
    await store.write(revoke(["slow"], NOON_MS))
    assert why(await store.commit(admission("d", wants, once=ONCE))) is Refusal.KEY_INVALID


# Many at once.


async def test_many_callers_use_a_small_balance_up_and_never_more(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 20_050))
    assert await spend_all(store, "own_1", 300) == 20_050
    assert (await only(store, lots))["remaining"] == 0
    assert await store.read(verify()) == []


async def test_calls_cheaper_than_their_bound_use_at_least_99_percent(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 20_000))
    wants = need(100, patient=True)

    async def serve(worker: int) -> None:
        for number in range(50):
            request, tries = f"{worker}_{number}", 0
            while isinstance(
                no := await store.commit(admission(request, structs.replace(wants, again=tries > 0))), Refused
            ):
                tries += 1
                if no.why is not Refusal.HELD or tries > 1_000:
                    return
            store.post(settlement(request, wants, 30))

    await asyncio.gather(*(serve(worker) for worker in range(20)))
    await store.settled()
    assert 0 <= (await only(store, lots))["remaining"] < 200
    assert await store.read(verify()) == []


@asynccontextmanager
async def on_file(path: Path, clock: HandClock) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(str(path), clock=clock)
    yield store
    await store.close()


@pytest.fixture
async def file(tmp_path: Path, clock: HandClock) -> Path:
    """A database file with an account, a key and 60,000 units in it."""
    path = tmp_path / "shared.db"
    make_tables(str(path))
    async with on_file(path, clock) as store:
        await store.write(furnish())
        await store.write(lot("lot_1", 60_000))
    return path


async def test_two_stores_on_one_file_never_spend_more_than_there_is(file: Path, clock: HandClock) -> None:
    async with on_file(file, clock) as one, on_file(file, clock) as two:
        spent = await asyncio.gather(spend_all(one, "own_1", 350), spend_all(two, "own_2", 350))
        assert sum(spent) == 60_000
        assert (await only(one, lots))["remaining"] == 0
        assert await two.read(verify()) == []


async def test_four_processes_use_one_balance_up_and_never_more(file: Path, clock: HandClock) -> None:
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tests.spender", str(file), f"own_{n}x", "250", stdout=asyncio.subprocess.PIPE
        )
        for n in range(4)
    ]
    spent = [int((await process.communicate())[0]) for process in processes]
    assert sum(spent) == 60_000
    async with on_file(file, clock) as store:
        assert (await only(store, lots))["remaining"] == 0
        assert (await only(store, credentials))["spent_nano"] == 60_000
        assert sum(row["amount"] for row in await rows(store, usage_records)) == 60_000
        assert (await store.read(verify()), await rows(store, holds)) == ([], [])


# When something goes wrong.


async def test_an_operation_that_cannot_be_written_does_not_take_its_group_down(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await commit(store, admission("a", need(100)), admission("b", need(100)))
    bad = settlement("a", need(0), 10)
    bad.record.model = None  # type: ignore[assignment]
    group = [store.commit(each) for each in (bad, settlement("b", need(0), 20), admission("c", need(100)))]
    poisoned, *others = await asyncio.gather(*group, return_exceptions=True)
    assert isinstance(poisoned, sqlite3.IntegrityError)
    assert others == [Settled((Part("lot_1", 20),), 20, 0), Granted((Part("lot_1", 100, 100),), 100)]
    assert (await only(store, lots))["held"] == 200
    assert await store.read(verify()) == []


async def test_a_request_id_used_again_makes_its_hold_larger_and_loses_no_money(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await commit(store, admission("a", need(100)), admission("a", need(100)))
    assert (await only(store, holds))["amount"] == 200
    await store.commit(settlement("a", need(0), 150))
    assert ((await only(store, lots))["remaining"], (await only(store, lots))["held"]) == (850, 0)
    assert await store.read(verify()) == []


async def test_a_program_that_fails_leaves_nothing_behind_and_the_next_one_works(store: SqliteStore) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        await store.write(furnish())
    assert len(await rows(store, credentials)) == 1
    assert await store.write(lot("lot_1", 5))


async def test_a_cancelled_waiter_does_not_undo_what_it_asked_for(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 100))
    store.commit(admission("a", need(40))).cancel()
    await store.settled()
    assert (await only(store, lots))["held"] == 40


async def test_a_store_that_is_closing_takes_nothing_new_and_writes_what_was_posted(
    file: Path, clock: HandClock
) -> None:
    closing_store = SqliteStore(str(file), clock=clock)
    await closing_store.commit(admission("a", need(100)))
    closing_store.post(settlement("a", need(0), 70))
    await closing_store.close()
    with pytest.raises(StoreUnavailable):
        await closing_store.commit(admission("b", need(100)))
    async with on_file(file, clock) as store:
        assert (await only(store, usage_records))["amount"] == 70


async def test_while_the_file_is_locked_the_store_is_unavailable_and_what_was_posted_is_written_later(
    file: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_MS", 20)
    async with on_file(file, clock) as store:
        await store.commit(admission("a", need(100)))
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            store.post(settlement("a", need(0), 70))
            waiting = (store.commit(admission("b", need(100))), store.write(lot("x", 1)), store.settled())
            refused = await asyncio.gather(*waiting, return_exceptions=True)
            assert all(isinstance(each, StoreUnavailable) for each in refused)
            assert await rows(store, usage_records) == []
            other.execute("ROLLBACK")
        await store.settled()
        assert (await only(store, usage_records))["amount"] == 70
        assert [row["id"] for row in await rows(store, lots)] == ["lot_1"]
        assert await store.read(verify()) == []


async def test_waiting_for_what_was_posted_does_not_end_before_it_is_written(
    file: Path, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is let go between the group's attempt, which fails, and the waiter's turn behind it."""
    monkeypatch.setattr(sqlite, "BUSY_MS", 20)
    with closing(sqlite3.connect(file, isolation_level=None, check_same_thread=False)) as other:
        async with on_file(file, clock) as store:
            await store.commit(admission("a", need(100)))
            other.execute("BEGIN IMMEDIATE")
            let_go = logging.Handler()
            monkeypatch.setattr(let_go, "emit", lambda _: other.in_transaction and other.execute("ROLLBACK"))
            monkeypatch.setattr(logging.getLogger("penstock.store"), "handlers", [let_go])
            waiter = asyncio.create_task(store.settled())  # its turn comes before the group is handed over
            store.post(settlement("a", need(0), 70))
            (outcome,) = await asyncio.gather(waiter, return_exceptions=True)
            assert isinstance(outcome, StoreUnavailable) or await rows(store, usage_records)
