"""Recovery: what a dead process left is settled from its last progress, under review, and resolved once."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.db.credentials import insert_credential
from penstock.db.journal import verify
from penstock.db.ledger import Once, Replay
from penstock.db.recovery import (
    LEASE_MS,
    UPKEEP,
    Lease,
    Sightings,
    all_owners,
    bury,
    lease_named,
    renew,
    requests_of,
    settle_forgotten,
    settle_overdue,
    take_lease,
)
from penstock.db.schema import credentials, holds, lots, transfers, usage_records
from penstock.db.sqlite import SqliteStore
from penstock.money.books import Part, Refusal, Refused, Settled
from tests.ledger import (
    ACCOUNT,
    HOUR_MS,
    KEY,
    NOON_MS,
    OWNER,
    HandClock,
    admission,
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


async def left_open(store: SqliteStore, *, owed: int, lot_size: int = 1_000) -> None:
    """Request `a` of the process holds 300 units and owes `owed` of them when it dies."""
    await store.write(lot("lot_1", lot_size))
    await store.commit(admission("a", need(200)))
    await store.commit(extension("a", need(100)))
    await store.write(renew(OWNER, [(owed, owed // 10, "a")], NOON_MS))


async def used(store: SqliteStore) -> tuple[str, str, int, int]:
    """`(state, ended, amount, uncollected)` of the only usage record."""
    (record,) = await rows(store, usage_records)
    return record["state"], record["ended"], record["amount"], record["uncollected"]


async def balance(store: SqliteStore) -> tuple[int, int]:
    """`(remaining, held)` of the only lot."""
    (money,) = await rows(store, lots)
    return money["remaining"], money["held"]


async def test_the_calls_of_a_dead_process_are_settled_from_their_progress_under_review(store: SqliteStore) -> None:
    await left_open(store, owed=120)
    assert await store.write(bury(OWNER, NOON_MS + 5)) == 1
    assert await used(store) == ("review", "crash", 120, 0)
    assert (await balance(store), await rows(store, holds)) == ((880, 0), [])
    assert (await rows(store, credentials))[0]["held_nano"] == 0
    assert (await store.read(verify()), await store.read(all_owners())) == ([], [])


async def test_the_review_says_whose_call_it_was_and_what_was_produced(store: SqliteStore) -> None:
    await left_open(store, owed=120)
    await store.write(bury(OWNER, NOON_MS + 5))
    (record,) = await rows(store, usage_records)
    known = ("account_id", "credential_id", "surface", "dialect", "model", "provider", "lane", "asset", "price_version")
    assert [record[name] for name in known] == [ACCOUNT, KEY, "trust", "openai_chat", "m", "p", "credits", "USD", "v"]
    assert (record["input_tokens"], record["output_tokens"], record["total_tokens"]) == (3, 12, 15)
    assert (record["estimated"], record["status"], record["total_us"]) == (1, 0, 5_000)


@pytest.mark.parametrize(("renewed", "extended"), [(120, 90), (90, 120)])
async def test_the_furthest_progress_counts_whoever_noted_it(store: SqliteStore, renewed: int, extended: int) -> None:
    await store.write(lot("lot_1", 200, expires_ms=NOON_MS + HOUR_MS))
    await store.write(lot("lot_2", 200))
    await store.commit(admission("a", need(200)))
    await store.write(renew(OWNER, [(renewed, 1, "a")], NOON_MS))
    await store.commit(extension("a", need(100), progress=extended))
    await store.write(bury(OWNER, NOON_MS))
    assert await used(store) == ("review", "crash", 120, 0)


async def test_a_call_that_owed_nothing_yet_is_released_and_recorded(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    await store.commit(admission("a", need(200)))
    await store.write(bury(OWNER, NOON_MS))
    assert (await used(store), await balance(store)) == (("review", "crash", 0, 0), (1_000, 0))


async def test_a_free_call_is_buried_too(store: SqliteStore) -> None:
    await store.commit(admission("a", need(0)))
    assert await store.write(bury(OWNER, NOON_MS)) == 1
    assert (await used(store), await rows(store, holds)) == (("review", "crash", 0, 0), [])


async def test_a_process_is_buried_once_and_only_its_own_calls_with_it(store: SqliteStore) -> None:
    await left_open(store, owed=120)
    await store.commit(admission("b", need(50), owner="own_2"))
    assert [await store.write(bury(OWNER, NOON_MS)) for _ in range(2)] == [1, 0]
    assert (await balance(store), [row["request_id"] for row in await rows(store, holds)]) == ((880, 50), ["b"])


async def test_every_key_of_a_family_is_relieved_of_what_was_held(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 100, expires_ms=NOON_MS + HOUR_MS))
    await store.write(lot("lot_2", 100))
    await store.write(insert_credential(key("parent", limit=500)))
    await store.write(insert_credential(key("child", parent="parent")))
    wants = need(150, keys=("child", "parent"))
    await store.commit(admission("a", wants))
    await store.commit(extension("a", need(20, keys=("child", "parent")), progress=130))
    await store.write(bury(OWNER, NOON_MS))
    spent = {row["id"]: (row["spent_nano"], row["held_nano"]) for row in await rows(store, credentials)}
    assert (spent["child"], spent["parent"]) == ((130, 0), (130, 0))
    assert await store.read(verify()) == []


async def test_the_idempotency_key_of_a_buried_request_may_be_used_again(store: SqliteStore) -> None:
    await store.write(lot("lot_1", 1_000))
    once = Once("retry-1", "digest")
    await store.commit(admission("a", need(10), once=once))
    assert await store.commit(admission("b", need(10), once=once)) == Replay("digest", None)
    await store.write(bury(OWNER, NOON_MS))
    assert granted(await store.commit(admission("c", need(10), once=once))) == 10


async def test_a_hold_past_its_latest_end_is_settled_when_its_process_is_not_known(store: SqliteStore) -> None:
    await left_open(store, owed=120)
    assert await store.write(settle_overdue(NOON_MS + 2 * HOUR_MS)) == 0  # it lives, and knows
    await store.write(bury(OWNER, NOON_MS))
    await store.commit(admission("b", need(50)))
    assert await store.write(settle_overdue(NOON_MS + HOUR_MS - 1)) == 0
    assert await store.write(settle_overdue(NOON_MS + HOUR_MS)) == 1
    assert (await balance(store), await rows(store, holds)) == ((880, 0), [])


async def test_a_hold_that_its_own_process_knows_nothing_of_is_settled_and_no_other(store: SqliteStore) -> None:
    await left_open(store, owed=120)
    await store.commit(admission("b", need(50)))
    assert await store.read(requests_of(OWNER)) == {"a", "b"}
    assert await store.write(settle_forgotten(["a", "c"], NOON_MS)) == 1
    assert (await used(store), await balance(store)) == (("review", "crash", 120, 0), (880, 50))
    assert await store.read(requests_of(OWNER)) == {"b"}


# Buried alive: the process slept, or a clock jumped.


async def test_a_call_that_was_settled_by_others_cannot_be_extended(store: SqliteStore) -> None:
    await left_open(store, owed=120)
    await store.write(bury(OWNER, NOON_MS))
    outcome = await store.commit(extension("a", need(100)))
    assert isinstance(outcome, Refused)
    assert outcome.why is Refusal.GONE
    assert await balance(store) == (880, 0)


@pytest.mark.parametrize(
    ("owed", "amount", "uncollected"),
    [
        pytest.param(200, 200, 0, id="more than was known"),
        pytest.param(120, 120, 0, id="what was known"),
        pytest.param(1_500, 1_000, 500, id="more than there is"),
    ],
)
async def test_a_late_settlement_takes_the_place_of_the_review_once(
    store: SqliteStore, owed: int, amount: int, uncollected: int
) -> None:
    await left_open(store, owed=120)
    await store.write(bury(OWNER, NOON_MS))
    extra = (Part("lot_1", amount - 120),) if amount > 120 else ()
    assert await store.commit(settlement("a", need(0), owed)) == Settled(extra, amount - 120, uncollected)
    assert await used(store) == ("final", "answer", amount, uncollected)
    assert await store.commit(settlement("a", need(0), 5_000)) == Settled((), 0, 0)
    assert await balance(store) == (1_000 - amount, 0)
    assert sum(row["amount"] for row in await rows(store, transfers) if row["kind"] == "charge") == amount
    assert await store.read(verify()) == []


async def test_a_late_settlement_finds_what_others_have_left(store: SqliteStore) -> None:
    await left_open(store, owed=120, lot_size=300)
    await store.write(bury(OWNER, NOON_MS))
    await store.commit(admission("b", need(150), owner="own_2"))
    await store.commit(settlement("a", need(0), 300))
    assert (await used(store), await balance(store)) == (("final", "answer", 150, 150), (150, 150))


async def test_a_process_that_was_buried_alive_is_looked_after_again_once_it_renews(store: SqliteStore) -> None:
    await left_open(store, owed=120)
    await store.write(bury(OWNER, NOON_MS))
    await store.commit(admission("b", need(50)))
    await store.write(renew(OWNER, [(30, 3, "b")], NOON_MS + 1))
    (owner,) = await store.read(all_owners())
    assert (owner.id, owner.lease_until_ms) == (OWNER, NOON_MS + 1 + LEASE_MS)
    assert await store.write(bury(OWNER, NOON_MS + HOUR_MS)) == 1
    assert (await balance(store), await rows(store, holds)) == ((850, 0), [])


async def test_renewing_keeps_where_a_process_runs(store: SqliteStore) -> None:
    await store.write(renew(OWNER, [], NOON_MS + 1))
    (owner,) = await store.read(all_owners())
    assert (owner.host, owner.pid, owner.lease_until_ms) == ("host", 1, NOON_MS + 1 + LEASE_MS)


# Killed.


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    path = tmp_path / "shared.db"
    make_tables(str(path))
    return path


@asynccontextmanager
async def survivor(path: Path) -> AsyncIterator[SqliteStore]:
    """Another process's view of the file, with 20,000 units in it."""
    store = SqliteStore(str(path), clock=HandClock())
    await store.write(furnish())
    await store.write(lot("lot_1", 20_000))
    yield store
    await store.close()


async def spender(path: Path, count: int) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.spender", str(path), "own_dead", str(count), stdout=asyncio.subprocess.PIPE
    )


async def test_what_a_killed_process_held_is_settled_from_its_progress(file: Path) -> None:
    async with survivor(file) as store:
        process = await spender(file, 0)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"holding\n"
        process.kill()
        assert await process.wait() == -9
        assert await balance(store) == (20_000, 400)
        assert await store.write(bury("own_dead", NOON_MS)) == 2
        reviews = {row["request_id"]: (row["state"], row["amount"]) for row in await rows(store, usage_records)}
        assert reviews == {"halfway": ("review", 120), "begun": ("review", 0)}
        assert (await balance(store), await rows(store, holds), await store.read(verify())) == ((19_880, 0), [], [])


@pytest.mark.parametrize("after", [1, 30, 120])
async def test_a_process_killed_under_load_loses_nothing_and_leaves_nothing_held(file: Path, after: int) -> None:
    async with survivor(file) as store:
        process = await spender(file, 100_000)
        while len(await rows(store, usage_records)) < after:
            assert process.returncode is None
        process.kill()
        await process.communicate()
        await store.write(bury("own_dead", NOON_MS))
        records: list[dict[str, Any]] = await rows(store, usage_records)
        charged = sum(row["amount"] for row in records)
        assert (await balance(store), await rows(store, holds)) == ((20_000 - charged, 0), [])
        assert charged == 100 * sum(row["state"] == "final" for row in records)
        assert await store.read(verify()) == []


async def test_an_owner_that_has_renewed_its_lease_meanwhile_is_not_buried(store: SqliteStore) -> None:
    (seen,) = await store.read(all_owners())
    await store.write(renew(OWNER, [], NOON_MS + 1))
    assert await store.write(bury(OWNER, NOON_MS + 2, lease_until_ms=seen.lease_until_ms)) is None
    assert [owner.id for owner in await store.read(all_owners())] == [OWNER]


# The lease of who does the chores for all.


async def test_of_several_that_find_a_lease_free_one_gets_it(store: SqliteStore) -> None:
    claims = [store.write(take_lease(UPKEEP, f"own_{n}", seen=None, now_ms=NOON_MS + n)) for n in range(4)]
    assert await asyncio.gather(*claims) == [True, False, False, False]
    assert await store.read(lease_named(UPKEEP)) == Lease("own_0", NOON_MS + LEASE_MS)
    assert await store.read(lease_named("another")) is None


async def test_a_lease_that_was_renewed_meanwhile_is_not_taken_from_its_holder(store: SqliteStore) -> None:
    first, renewed = Lease("own_1", NOON_MS + LEASE_MS), Lease("own_1", NOON_MS + 5 + LEASE_MS)
    await store.write(take_lease(UPKEEP, "own_1", seen=None, now_ms=NOON_MS))
    assert await store.write(take_lease(UPKEEP, "own_1", seen=first, now_ms=NOON_MS + 5))
    assert not await store.write(take_lease(UPKEEP, "own_2", seen=first, now_ms=NOON_MS + 9))
    assert await store.write(take_lease(UPKEEP, "own_2", seen=renewed, now_ms=NOON_MS + 9))
    assert await store.read(lease_named(UPKEEP)) == Lease("own_2", NOON_MS + 9 + LEASE_MS)


# Who has fallen silent: timed by whoever looks, whatever the clocks say.


def seen(sightings: Sightings, **leases: int) -> set[str]:
    return sightings.silent(leases)


def test_a_lease_that_does_not_change_while_it_is_looked_at_has_run_out(clock: HandClock) -> None:
    sightings = Sightings(clock)
    assert seen(sightings, a=1, b=1) == set()
    clock.seconds += LEASE_MS / 2000
    assert seen(sightings, a=1, b=2, late=7) == set()
    clock.seconds += LEASE_MS / 2000
    assert seen(sightings, a=1, b=2, late=7) == {"a"}
    assert seen(sightings, a=2, b=2, late=7) == set()
    clock.seconds += LEASE_MS / 2000
    assert seen(sightings, a=2, b=1, late=7) == {"late"}


@pytest.mark.parametrize("jump_ms", [-366 * 24 * HOUR_MS, -HOUR_MS, HOUR_MS, 366 * 24 * HOUR_MS])
def test_a_clock_that_jumps_makes_nobody_silent(clock: HandClock, jump_ms: int) -> None:
    sightings = Sightings(clock)
    assert seen(sightings, a=clock.now + LEASE_MS) == set()
    clock.now += jump_ms
    clock.seconds += 5
    assert seen(sightings, a=clock.now - jump_ms + LEASE_MS) == set()
    clock.seconds += LEASE_MS / 1000 - 1
    assert seen(sightings, a=clock.now + LEASE_MS) == set()


def test_while_the_store_is_away_nobody_falls_silent(clock: HandClock) -> None:
    sightings = Sightings(clock)
    assert seen(sightings, a=1) == set()
    clock.seconds += 600
    sightings.forget()
    assert seen(sightings, a=1) == set()
    clock.seconds += LEASE_MS / 1000
    assert seen(sightings, a=1) == {"a"}
