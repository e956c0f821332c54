"""A process that spends from a shared database file: `python -m tests.spender FILE OWNER COUNT`.

It asks for 100 units COUNT times, takes as little as 1, and settles all that it was granted. What that comes to goes
to standard output. With a COUNT of 0 it opens holds instead, notes progress, says `holding` and waits to be killed.
"""

from __future__ import annotations

import asyncio
import os
import sys

from msgspec import structs

from penstock.db.recovery import Owner, register, renew
from penstock.db.sqlite import SqliteStore
from penstock.money.books import Granted, Refusal, Refused
from tests.ledger import HandClock, admission, extension, need, settlement

PATIENCE = 2_000  # times that one request asks again while others hold the money
AT_ONCE = 16


async def spend(store: SqliteStore, request: str, owner: str) -> int:
    """One request: what it was granted, and so charged."""
    wants = need(100, 1, patient=True)
    for _ in range(PATIENCE):
        outcome = await store.commit(admission(request, wants, owner=owner))
        if isinstance(outcome, Granted):
            store.post(settlement(request, wants, outcome.amount))
            return outcome.amount
        assert isinstance(outcome, Refused), outcome
        wants = structs.replace(wants, patient=False)
        if outcome.why is not Refusal.HELD:
            return 0
    raise AssertionError("the money was held for ever")


async def spend_all(store: SqliteStore, owner: str, count: int) -> int:
    """`count` requests, some at once: what all were charged."""

    async def some(worker: int) -> int:
        return sum([await spend(store, f"{owner}_{number}", owner) for number in range(worker, count, AT_ONCE)])

    spent = sum(await asyncio.gather(*(some(worker) for worker in range(AT_ONCE))))
    await store.settled()
    return spent


async def hold(store: SqliteStore, owner: str) -> None:
    """Hold 300 units for one request and owe 120 of them; another request has only just begun."""
    await store.commit(admission("halfway", need(200), owner=owner))
    await store.commit(extension("halfway", need(100), progress=50, owner=owner))
    await store.write(renew(owner, [(120, 12, "halfway")], HandClock().now_ms()))
    await store.commit(admission("begun", need(100), owner=owner))


async def main(path: str, owner: str, count: int) -> None:
    clock = HandClock()
    store = SqliteStore(path, clock=clock)
    await store.write(register(Owner(owner, "host", os.getpid(), clock.now_ms() + 15_000), clock.now_ms()))
    if count:
        print(await spend_all(store, owner, count))  # noqa: T201 -- its only voice
    else:
        await hold(store, owner)
        print("holding", flush=True)  # noqa: T201
        await asyncio.get_running_loop().create_future()
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
