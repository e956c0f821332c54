"""The common chores: one process does them for all, and another takes over when it is gone."""

from __future__ import annotations

import io
import os
import signal
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.access import Access
from penstock.app import open_office
from penstock.config import Settings
from penstock.db.program import Program
from penstock.db.recovery import UPKEEP, Lease, Owner, all_owners, lease_named, register, renew, take_lease
from penstock.db.schema import usage_records
from penstock.db.slips import Slips
from penstock.db.store import Store
from penstock.errors import StoreUnavailable
from penstock.hub.hub import Hub
from penstock.log import Redactor, RequestLog
from penstock.operations.actor import LOCAL
from penstock.operations.office import Office
from penstock.operations.usage import UsageView, list_usage
from penstock.providers.connected_tools import ConnectedTools
from penstock.providers.other_process import OtherProcesses
from penstock.relay.attempt import Attempts
from penstock.relay.hold import Holds
from penstock.relay.observe import Observer
from penstock.relay.relay import Relay
from penstock.relay.tools import Tools
from penstock.upkeep import START_TRIES, Upkeep, host_identity
from tests.ledger import HandClock, admission, furnish, lot, need, rows, settlement
from tests.stories.caller import calling, eventually
from tests.stories.gateway import ROUTER, running
from tests.stories.process import Process, configuration, serving_process, settings_of, verified
from tests.upstream import Plain, ScriptedUpstream

TAKEN, BURIED = "does the common chores now", "is gone; settled 1 of its calls"
PROMPT_NANO = 600  # what the prompt of a call costs where nobody has counted it
BOUND_S = 30  # promised; on one host it is the five seconds between two looks


@dataclass(frozen=True)
class Looker:
    """The chores of a process whose seconds are set by hand, on a store where nobody else does any."""

    store: Store
    clock: HandClock
    upkeep: Upkeep

    async def leave_them_to(self, owner: str) -> None:
        """Let an owner take the common chores, or keep them."""
        seen = await self.store.read(lease_named(UPKEEP))
        assert await self.store.write(take_lease(UPKEEP, owner, seen=seen, now_ms=int(self.clock.seconds)))


@pytest.fixture
async def looker(office: Office) -> Looker:
    """The chores are done when a test says so."""
    clock, redact, limits = HandClock(), Redactor(), office.settings.limits
    log = RequestLog(io.StringIO(), msgspec.json.encode)
    observer = Observer(log, clock, redact)
    holds = Holds(office.store, clock, limits, owner="own_looking", observe=observer)
    access = Access(office.store, office.keyring, office.sessions, clock, 1)
    attempts = Attempts(office.upstreams, 1, redact)
    hub = Hub(store=office.store, clock=clock, ids=office.ids, owner="own_looking", reach=OtherProcesses("secret"))
    relay = Relay(
        access=access,
        holds=holds,
        attempts=attempts,
        catalogue=office.catalogue,
        tools=Tools(ConnectedTools(hub), office.store, clock, office.settings.tools),
        clock=clock,
        limits=limits,
    )
    upkeep = Upkeep(
        store=office.store,
        clock=clock,
        owner="own_looking",
        holds=holds,
        relay=relay,
        observer=observer,
        hub=hub,
        quiet_s=60,
        check_providers=partial(office.pulse.look_at_due, ()),
        response_bytes=1_000_000_000,
    )
    return Looker(office.store, clock, upkeep)


async def test_one_process_does_them_and_when_it_is_killed_another_settles_what_it_left(
    tmp_path: Path, upstream: ScriptedUpstream, store_url: str
) -> None:
    config = configuration(tmp_path, upstream.base_url, store=store_url)
    async with running(settings_of(config)) as gateway:
        ada = await gateway.person(usd="1")
    held = [Plain(hold=True) for _ in range(3)]
    upstream.script(*held)
    async with AsyncExitStack() as stack:
        processes = [await stack.enter_async_context(serving_process(config)) for _ in held]
        for number, process in enumerate(processes, 1):
            caller = await stack.enter_async_context(calling(process.url))
            await caller.ask(ROUTER, ada, model="metered")
            await upstream.arrival(number)
        (on_duty,) = [process for process in processes if said(process, TAKEN)]
        killed_s = time.monotonic()
        on_duty.signal(signal.SIGKILL)
        await on_duty.ended()
        async with open_office(settings_of(config)) as office:

            async def record() -> tuple[UsageView, ...]:
                return (await list_usage(office, LOCAL, account=ada.account)).data

            (review,) = await eventually(record)
        assert (review.state, review.ended) == ("review", "crash")
        assert review.amount in (0, PROMPT_NANO)  # it may have lived long enough to note that the prompt was sent
        assert time.monotonic() - killed_s < BOUND_S
        others = [process for process in processes if process is not on_duty]

        async def told() -> bool:  # a record is there before a line of log about it
            return any(said(process, BURIED) for process in others)

        await eventually(told)
        assert [sum(said(process, words) for process in others) for words in (TAKEN, BURIED)] == [1, 1]
        for script in held:
            script.resume.set()
        for process in others:
            process.signal(signal.SIGTERM)
        assert [await process.ended() for process in others] == [0, 0]
    async with running(settings_of(config)) as gateway:
        assert sorted(record.ended for record in await gateway.usage(ada)) == ["answer", "answer", "crash"]
    assert await verified(config)


async def test_they_are_left_to_a_process_on_another_host_as_long_as_it_is_heard_of(looker: Looker) -> None:
    """Its death is found out within a lease and the time between two looks, by the seconds of whoever looks."""
    await looker.store.write(register(Owner("own_elsewhere", "elsewhere", os.getpid(), 0), 0))
    await looker.store.write(register(Owner("own_dead", host_identity(), unused_pid(), 0), 0))
    await looker.leave_them_to("own_elsewhere")
    found = []
    for passed_s, heard_of in ((0, True), (14, True), (14, True), (14, False), (2, False)):
        looker.clock.seconds += passed_s
        if heard_of:
            await looker.store.write(renew("own_elsewhere", [], int(looker.clock.seconds)))
            await looker.leave_them_to("own_elsewhere")
        await look_for_the_dead(looker.upkeep)
        found.append({owner.id for owner in await looker.store.read(all_owners())})
    both = {"own_elsewhere", "own_dead"}
    assert found == [both, both, both, both, set()]
    assert (await on_duty_at(looker.store)).holder == "own_looking"


async def test_they_are_not_left_to_a_process_that_lives_and_does_not_do_them(looker: Looker) -> None:
    await looker.store.write(register(Owner("own_elsewhere", "elsewhere", os.getpid(), 0), 0))
    await looker.leave_them_to("own_elsewhere")
    holders = []
    for passed_s in (0, 14, 2):
        looker.clock.seconds += passed_s
        await looker.store.write(renew("own_elsewhere", [], int(looker.clock.seconds)))
        await look_for_the_dead(looker.upkeep)
        holders.append((await on_duty_at(looker.store)).holder)
    assert holders == ["own_elsewhere", "own_elsewhere", "own_looking"]
    assert "own_elsewhere" in {owner.id for owner in await looker.store.read(all_owners())}


async def test_a_process_that_ends_in_order_leaves_them_to_whoever_looks_next(settings: Settings) -> None:
    async with AsyncExitStack() as first:
        await first.enter_async_context(running(settings))
        async with running(settings) as second:
            before = await on_duty_at(second.gateway.office.store)
            await look_for_the_dead(second.gateway.upkeep)
            assert (await on_duty_at(second.gateway.office.store)).holder == before.holder
            await first.aclose()
            await look_for_the_dead(second.gateway.upkeep)
            assert (await on_duty_at(second.gateway.office.store)).holder != before.holder


async def test_a_chore_that_fails_keeps_no_other_from_being_done(
    looker: Looker, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, write = [], looker.store.write

    async def written(program: Program[Any]) -> Any:
        name = getattr(program, "__name__", "")
        if name == "expire_lots":
            program.close()
            raise StoreUnavailable
        done.append(name)
        return await write(program)

    monkeypatch.setattr(looker.store, "write", written)
    await next(chore for chore in looker.upkeep.chores if chore.name == "tidy the ledger").do()
    assert {"settle_overdue", "forget_answers", "forget_turns"} <= set(done)


@pytest.mark.parametrize("failures", [START_TRIES - 1, START_TRIES])
async def test_a_process_starts_on_a_store_that_does_not_answer_at_first(
    looker: Looker, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    store, look_up, left = looker.store, looker.store.read, [StoreUnavailable()] * failures

    async def read(program: Program[Any], **how: Any) -> Any:
        if left:
            program.close()
            raise left.pop()
        return await look_up(program, **how)

    now_ms = int(looker.clock.seconds * 1000)
    dead = Owner("own_dead", host_identity(), unused_pid(), now_ms)
    await store.write(register(dead, now_ms))
    monkeypatch.setattr(store, "read", read)
    await looker.upkeep.start()
    try:
        assert not left
        still_there = failures == START_TRIES  # it has settled at its last try, or has left it to the chore
        assert (dead.id in {owner.id for owner in await look_up(all_owners())}) is still_there
        await look_for_the_dead(looker.upkeep)
        assert dead.id not in {owner.id for owner in await look_up(all_owners())}
    finally:
        await looker.upkeep.stop()


async def test_slips_of_a_process_that_renewed_its_lease_and_died_between_two_looks_are_kept(
    looker: Looker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, look_up = looker.store, looker.store.read
    monkeypatch.setattr(store, "slips", Slips(str(tmp_path), "own_looking"))
    left = Slips(str(tmp_path), "own_dead")
    left.open()
    await store.write(furnish(owners=[]))
    await store.write(lot("lot_1", 1_000))
    await store.write(register(Owner("own_dead", host_identity(), unused_pid(), 0), 0))
    await store.commit(admission("req_1", need(500), owner="own_dead"))

    async def read(program: Program[Any], **how: Any) -> Any:
        found = await look_up(program, **how)
        monkeypatch.setattr(store, "read", look_up)
        await store.write(renew("own_dead", [], 1))
        left.leave(settlement("req_1", need(0), 400))
        return found

    monkeypatch.setattr(store, "read", read)
    await looker.upkeep._bury_dead()
    assert left.left_by("own_dead").keys() == {"req_1"}
    await looker.upkeep._bury_dead()
    assert [(row["amount"], row["state"]) for row in await rows(store, usage_records)] == [(400, "final")]
    assert not left.left_by("own_dead")


async def on_duty_at(store: Store) -> Lease:
    """Who does the common chores."""
    lease = await store.read(lease_named(UPKEEP))
    assert lease is not None
    return lease


async def look_for_the_dead(upkeep: Upkeep) -> None:
    """Do that chore now, without waiting for its turn."""
    await next(chore for chore in upkeep.chores if chore.name == "settle for dead processes").do()


def said(process: Process, words: str) -> int:
    """How many lines of its log have these words."""
    return sum(words in line for line in process.log)


def unused_pid() -> int:
    """The number of a process that has just ended."""
    pid = os.spawnlp(os.P_NOWAIT, "true", "true")
    os.waitpid(pid, 0)
    return pid
