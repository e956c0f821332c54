"""`kill`: gateways are killed at random moments under mixed load, again and again; nothing is lost, nothing doubled.

A history is short: a store, one or two gateways, some callers who go on calling (plain answers, streams, upstreams that
refuse or break, idempotency keys that are asked again until they are answered), and SIGKILL when a drawn number of
things has happened and a few milliseconds have passed. Killed gateways are started again, or buried by the one that
survives. Then every call is held to what the upstream kept.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from tests.stories.process import Process
from tests.upstream import Tally
from torture.caller import AGAIN_S, Heard, call, request
from torture.farm import Databases, Farm, Plan, Provider, Upstream, farm
from torture.laws import Case, of_a_killed_call, of_every_call
from torture.script import CHUNKS, Script, Told, body_of
from torture.store import Key, Outcome, Till, Want, till
from torture.table import Row

MAIN, SPARE = "main", "spare"
PLAN = Plan((Provider(MAIN), Provider(SPARE)), {"metered": (MAIN, SPARE)}, slice_tokens=24)
ASSERTED = (
    "1 record for each call that reached the upstream, 1 charge each, 0 holds left, books clean; whole answers "
    "charged exactly, others at most what the upstream counted"
)
AT_ONCE = 2  # histories: while the gateways of one start, another has its load
PLENTY = 10**12
LIMIT = 160
PATIENCE_S = 60.0
LEFT_S = 60.0  # after the last kill no hold may be left


@dataclass(frozen=True, slots=True)
class Errand:
    """One call that a caller is to make. `once`: with an idempotency key, and again until it is answered."""

    script: Script
    lane: str
    streamed: bool
    once: bool

    @property
    def body(self) -> bytes:
        return body_of(self.script, model="metered", stream=self.streamed, limit=LIMIT)


@dataclass(frozen=True, slots=True)
class Kill:
    """When so many things have happened and so many seconds have passed, a gateway is killed."""

    after: int
    delay_s: float
    restart: bool


@dataclass(frozen=True, slots=True)
class History:
    """What is to happen, all of it drawn from one seed."""

    name: str
    gateways: int
    callers: tuple[tuple[Errand, ...], ...]
    kills: tuple[Kill, ...]


def drawn(seed: int, engine: str) -> History:
    """The history of a seed."""
    rng = random.Random(f"kill/{seed}")
    name = f"kill-{engine}-{seed}"
    gateways = rng.choice((1, 2, 2))
    callers = tuple(
        tuple(_errand(rng, f"{name}/{caller}.{number}") for number in range(rng.randint(3, 7)))
        for caller in range(rng.randint(8, 20))
    )
    steps = 2 * sum(map(len, callers))
    moments = sorted(rng.randrange(2, steps) for _ in range(rng.choice((1, 2, 2, 3))))
    survivor = gateways == 2 and rng.random() < 0.2
    kills = tuple(
        Kill(after, rng.choice((0.0, rng.uniform(0, 0.03))), restart=not survivor or place + 1 < len(moments))
        for place, after in enumerate(moments)
    )
    return History(name, gateways, callers, kills)


def _errand(rng: random.Random, marker: str) -> Errand:
    streamed = rng.random() < 0.6
    script = Script(
        marker=marker,
        tokens=rng.randint(10, 150),
        chunk=rng.choice((*CHUNKS, 3)),
        burst=rng.choice((1, 1, 5)),
        gap_ms=rng.choice((0, 2, 5, 10)) if streamed else 0,
        first_ms=rng.choice((0, 0, 10, 60)),
        usage=rng.choice(("last", "last", "every")),
        extra=rng.randint(0, 9),
    )
    script = structs.replace(script, **_trouble(rng, streamed=streamed))
    return Errand(script, rng.choice(("credits", "credits", "contract")), streamed, rng.random() < 0.3)


def _trouble(rng: random.Random, *, streamed: bool) -> dict[str, Any]:
    """One call in four meets an upstream that fails: at once, at both providers, or in mid-stream."""
    if rng.random() < 0.75:
        return {}
    status = rng.choice((429, 500, 503))
    if rng.random() < 0.5 or not streamed:
        return {"refuse": {MAIN: status} | ({SPARE: 500} if rng.random() < 0.3 else {})}
    return {"stop_after": rng.randint(0, 12), "then": rng.choice(("reset", "slam", "close", "torn", "error"))}


@dataclass(slots=True)
class Run:
    """One history under way. `steps` counts calls that began and ended, by which kills are timed."""

    history: History
    gateways: Farm
    rng: random.Random
    steps: Tally = field(default_factory=Tally)
    heard: dict[str, list[Heard]] = field(default_factory=dict)

    async def play(self, keys: dict[str, Key]) -> None:
        """All callers and all kills, to the end of both."""
        callers = [asyncio.create_task(self._caller(errands, keys)) for errands in self.history.callers]
        killer = asyncio.create_task(self._killer())
        await asyncio.gather(*callers)
        await killer
        await asyncio.gather(*(self._once_more(errand, keys) for errands in self.history.callers for errand in errands))

    async def _caller(self, errands: Sequence[Errand], keys: dict[str, Key]) -> None:
        for errand in errands:
            self.steps.grow()
            self.heard[errand.script.marker] = await self._answers(_wire(errand, keys), again=errand.once)
            self.steps.grow()

    async def _once_more(self, errand: Errand, keys: dict[str, Key]) -> None:
        """Who has had an answer for an idempotency key gets the same one again, whatever was killed meanwhile."""
        heard = self.heard[errand.script.marker]
        if errand.once and heard[-1].answered:
            heard += await self._answers(_wire(errand, keys), again=True)

    async def _answers(self, wire: bytes, *, again: bool) -> list[Heard]:
        """What was heard, time after time: once only, or until an answer is whole and says more than to wait."""
        heard: list[Heard] = []
        began = asyncio.get_running_loop().time()
        while True:
            await self.gateways.anyone.wait()
            gateway = self.rng.choice(self.gateways.alive)
            heard.append(await call(gateway.url, wire, patience_s=PATIENCE_S))
            if not again or (heard[-1].whole and heard[-1].status != 409):
                return heard
            if asyncio.get_running_loop().time() - began > PATIENCE_S:
                return heard
            await asyncio.sleep(AGAIN_S)

    async def _killer(self) -> None:
        for kill in self.history.kills:
            await self.steps.reach(kill.after)
            await asyncio.sleep(kill.delay_s)
            victim: Process = self.rng.choice(self.gateways.alive)
            await self.gateways.kill(victim)
            if kill.restart:
                await self.gateways.start(1)


def _wire(errand: Errand, keys: dict[str, Key]) -> bytes:
    marker = errand.script.marker
    key = keys[marker]
    return request(key.path, key.secret, errand.body, once=marker if errand.once else None)


async def run(engine: str, databases: Databases, upstream: Upstream, *, seed: int, histories: int) -> list[Row]:
    """So many histories, from this seed on, two at a time: they know nothing of each other."""
    row, room = Row("kill", engine, ASSERTED, seed), asyncio.Semaphore(AT_ONCE)

    async def in_turn(each: int) -> None:
        async with room:
            with row.history(each):
                row.found(await one(engine, databases, upstream, seed=each, row=row), seed=each)

    with row.timed():
        await asyncio.gather(*(in_turn(each) for each in range(seed, seed + histories)))
    return [row]


async def one(engine: str, databases: Databases, upstream: Upstream, *, seed: int, row: Row) -> list[str]:
    """The history of a seed; where it broke a law."""
    history = drawn(seed, engine)
    with databases.new(engine) as ground:
        config = ground.configure(PLAN, upstream)
        async with till(config) as counter:
            keys = await _keys(counter, history)
            async with farm(config, history.gateways) as gateways:
                playing = Run(history, gateways, random.Random(seed))
                await playing.play(keys)
                buried = await counter.quiet(holds=0, owners=len(gateways.alive), within_s=LEFT_S)
                found = await gateways.stop()
            outcome = await counter.outcome()
    told = await upstream.told(history.name)
    await upstream.forget(history.name)
    found += outcome.troubles()
    if not buried:
        found.append(f"a hold or a dead process was left {LEFT_S:.0f} s after the last kill")
    return found + _judge(row, history, keys, playing.heard, told, outcome)


async def _keys(counter: Till, history: History) -> dict[str, Key]:
    """A key for each call: all of a lane are minted from one, and spend the money of one account."""
    parents = await counter.keys([Want("credits", usd_nano=PLENTY), Want("contract", tokens=PLENTY)])
    parent = {key.lane: key for key in parents}
    errands = [errand for errands in history.callers for errand in errands]
    wants = [Want(e.lane, account=parent[e.lane].account, parent=parent[e.lane].id) for e in errands]
    made = await counter.keys(wants)
    return {errand.script.marker: key for errand, key in zip(errands, made, strict=True)}


def _judge(
    row: Row,
    history: History,
    keys: dict[str, Key],
    heard: dict[str, list[Heard]],
    told: dict[str, list[Told]],
    outcome: Outcome,
) -> list[str]:
    found = []
    row.histories += 1
    row.add("kills", len(history.kills))
    for errand in (errand for errands in history.callers for errand in errands):
        marker = errand.script.marker
        key = keys[marker]
        case = Case(
            script=errand.script,
            lane=errand.lane,
            body_bytes=len(errand.body),
            limit=LIMIT,
            first=MAIN,
            heard=tuple(heard[marker]),
            told=told.get(marker, ()),
            records=outcome.records.get(key.id, ()),
            charges=outcome.charges,
            once=errand.once,
        )
        found += of_every_call(case) + of_a_killed_call(case)
        _count(row, case)
    return found


def _count(row: Row, case: Case) -> None:
    """Figures for the table: how many calls the kills met, and how."""
    row.calls += 1
    row.add("whole answers", sum(heard.answered for heard in case.heard))
    row.add("replayed", sum(heard.replayed for heard in case.heard))
    row.add("cut by a kill", sum(record.ended == "crash" for record in case.records))
