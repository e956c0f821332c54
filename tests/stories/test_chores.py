"""The common chores: one process does them for all, and another takes over when it is gone."""

from __future__ import annotations

import os
import signal
import time
from contextlib import AsyncExitStack
from pathlib import Path

from penstock.app import open_office
from penstock.config import Settings
from penstock.config_file import load
from penstock.db.recovery import LEASE_MS, UPKEEP, Lease, Owner, all_owners, lease_named, register, take_lease
from penstock.operations.actor import LOCAL
from penstock.operations.usage import UsageView, list_usage
from penstock.upkeep import host_identity
from tests.stories.caller import calling, eventually
from tests.stories.gateway import ROUTER, Running, running
from tests.stories.process import SECRETS, Process, configuration, serving_process, verified
from tests.upstream import Plain, ScriptedUpstream

TAKEN, BURIED = "does the common chores now", "is gone; settled 1 of its calls"
BOUND_S = 30  # promised; on one host it is the five seconds between two looks


async def test_one_process_does_them_and_when_it_is_killed_another_settles_what_it_left(
    tmp_path: Path, upstream: ScriptedUpstream, shared_store: str
) -> None:
    config = configuration(tmp_path, upstream.base_url, store=shared_store)
    async with running(load(config, SECRETS)) as gateway:
        ada = await gateway.person(usd="1")
    held = [Plain(hold=True) for _ in range(3)]
    upstream.script(*held)
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(serving_process(config, environ=SECRETS)) for _ in held]
        for number, process in enumerate(processes, 1):
            caller = await stack.enter_async_context(calling(process.url))
            await caller.ask(ROUTER, ada, model="metered")
            await upstream.arrival(number)
        (on_duty,) = [process for process in processes if said(process, TAKEN)]
        killed_s = time.monotonic()
        on_duty.signal(signal.SIGKILL)
        await on_duty.ended()
        async with open_office(load(config, SECRETS)) as office:

            async def record() -> tuple[UsageView, ...]:
                return (await list_usage(office, LOCAL, account=ada.account)).data

            (review,) = await eventually(record)
        assert (review.state, review.ended, review.amount) == ("review", "crash", 0)
        assert time.monotonic() - killed_s < BOUND_S
        others = [process for process in processes if process is not on_duty]
        assert [sum(said(process, words) for process in others) for words in (TAKEN, BURIED)] == [1, 1]
        for script in held:
            script.resume.set()
        for process in others:
            process.signal(signal.SIGTERM)
        assert [await process.ended() for process in others] == [0, 0]
    async with running(load(config, SECRETS)) as gateway:
        assert sorted(record.ended for record in await gateway.usage(ada)) == ["answer", "answer", "crash"]
    assert await verified(config, SECRETS)


async def test_they_are_left_to_a_process_on_another_host_until_its_lease_has_run_out(gateway: Running) -> None:
    store, clock = gateway.office.store, gateway.office.clock
    mine, now_ms = await on_duty_at(gateway), clock.now_ms()
    await store.write(register(Owner("own_elsewhere", "elsewhere", os.getpid(), now_ms + LEASE_MS), now_ms))
    await store.write(register(Owner("own_dead", host_identity(), unused_pid(), now_ms + LEASE_MS), now_ms))
    assert await store.write(take_lease(UPKEEP, "own_elsewhere", seen=mine, now_ms=now_ms))
    found = []
    for passed_ms in (0, LEASE_MS - 1_000, 2_000):
        clock.offset_ms += passed_ms
        await look_for_the_dead(gateway)
        found.append({owner.id for owner in await store.read(all_owners())} - {mine.holder})
    both = {"own_elsewhere", "own_dead"}
    assert found == [both, both, set()]
    assert (await on_duty_at(gateway)).holder == mine.holder


async def test_a_process_that_ends_in_order_leaves_them_to_whoever_looks_next(settings: Settings) -> None:
    async with AsyncExitStack() as first:
        await first.enter_async_context(running(settings))
        async with running(settings) as second:
            before = await on_duty_at(second)
            await look_for_the_dead(second)
            assert (await on_duty_at(second)).holder == before.holder
            await first.aclose()
            await look_for_the_dead(second)
            assert (await on_duty_at(second)).holder != before.holder


async def on_duty_at(gateway: Running) -> Lease:
    """Who does the common chores."""
    lease = await gateway.office.store.read(lease_named(UPKEEP))
    assert lease is not None
    return lease


async def look_for_the_dead(gateway: Running) -> None:
    """Do that chore now, without waiting for its turn."""
    await next(chore for chore in gateway.gateway.upkeep.chores if chore.name == "settle for dead processes").do()


def said(process: Process, words: str) -> int:
    """How many lines of its log have these words."""
    return sum(words in line for line in process.log)


def unused_pid() -> int:
    """The number of a process that has just ended."""
    pid = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(pid, 0)
    return pid
