"""`drain`: a gateway with hundreds of live streams is told to stop. Each is finished, or cut in order; all is settled.

Some streams come to their end within the grace time, some would go on for ever, and some are silent but for comments.
Every caller gets a last event and a terminator; the process is gone soon after the grace time, with exit code 0, and
leaves no hold behind.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec import structs

from torture.caller import Heard, insist, request
from torture.farm import Databases, Farm, Plan, Provider, Upstream, farm
from torture.laws import Case, of_a_cut_stream, of_a_reported_call, of_every_call
from torture.script import CHUNKS, Script, Told, body_of
from torture.store import Key, Outcome, Want, comes_about, till
from torture.table import Row

ON_CANCEL = ("stop", "drain", "full")
GRACE_S = 2
MARGIN_S = 4.0  # for cut streams to end, for what is left to be settled, and for the interpreter to go
PLAN = Plan(tuple(Provider(name, name) for name in ON_CANCEL), {name: (name,) for name in ON_CANCEL}, grace_s=GRACE_S)
PATIENCE_S = 60.0
PLENTY = 10**12
ENDLESS = 100_000
ASSERTED = (
    "every stream finished or cut in order, 0 holds left, 1 record each; "
    f"exit code 0 within the grace time ({GRACE_S} s) + {MARGIN_S:.0f} s"
)


@dataclass(frozen=True, slots=True)
class Live:
    """One stream. `held`: its upstream is silent at a known place; otherwise chunks come until the end."""

    script: Script
    model: str
    held: bool

    @property
    def body(self) -> bytes:
        return body_of(self.script, model=self.model, stream=True, limit=ENDLESS)


def drawn(seed: int, count: int, history: str) -> list[Live]:
    """The streams of a seed: a half that ends in time or nearly so, the others endless or silent."""
    return [_live(random.Random(f"drain/{seed}/{number}"), f"{history}/{number}") for number in range(count)]


def _live(rng: random.Random, marker: str) -> Live:
    chunk, gap_ms, model = rng.choice(CHUNKS), rng.choice((20, 50, 100)), rng.choice(ON_CANCEL)
    usage: Literal["last", "every"] = rng.choice(("last", "every"))
    script = Script(marker, ENDLESS, chunk, gap_ms=gap_ms, usage=usage)
    match rng.choice(("ends", "ends", "endless", "silent")):
        case "ends":
            events = int(rng.uniform(0.5, 1.5) * GRACE_S * 1000 / gap_ms)
            extra = rng.randint(0, 9) if usage == "every" else 0
            return Live(structs.replace(script, tokens=events * chunk, extra=extra), model, held=False)
        case "endless":
            return Live(script, model, held=False)
        case _:
            silent = structs.replace(script, gap_ms=0, stop_after=rng.randint(1, 30), then="comment")
            return Live(silent, model, held=True)


async def run(
    engine: str, databases: Databases, upstream: Upstream, *, seed: int, histories: int, streams: int
) -> list[Row]:
    """So many stops with so many live streams, from this seed on."""
    row = Row("drain", engine, ASSERTED, seed, shape=f" --streams {streams}")
    with row.timed():
        for each in range(seed, seed + histories):
            with row.history(each):
                row.found(await one(engine, databases, upstream, seed=each, streams=streams, row=row), seed=each)
    return [row]


async def one(engine: str, databases: Databases, upstream: Upstream, *, seed: int, streams: int, row: Row) -> list[str]:
    """The stop of a seed; where it broke a law."""
    history = f"drain-{engine}-{seed}"
    lives = drawn(seed, streams, history)
    with databases.new(engine) as ground:
        config = ground.configure(PLAN, upstream)
        async with till(config) as counter:
            (rich,) = await counter.keys([Want(usd_nano=PLENTY)])
            keys = await counter.keys([Want(account=rich.account) for _ in lives])
            async with farm(config, 1) as gateways:
                found, heard = await _stop(gateways, lives, keys, upstream, history, row)
            outcome = await counter.outcome()
    told = await upstream.told(history)
    await upstream.forget(history)
    row.histories += 1
    return found + outcome.troubles() + _judge(row, lives, keys, heard, told, outcome)


async def _stop(
    gateways: Farm, lives: Sequence[Live], keys: Sequence[Key], upstream: Upstream, history: str, row: Row
) -> tuple[list[str], list[Heard]]:
    """SIGTERM when every stream is live: what went wrong with the process, and what the callers heard."""
    url = gateways.alive[0].url
    calls = [
        asyncio.create_task(insist(url, request(key.path, key.secret, live.body), patience_s=PATIENCE_S))
        for live, key in zip(lives, keys, strict=True)
    ]

    async def all_live() -> bool:
        told = await upstream.told(history)
        return len(told) == len(lives) and all(attempts[0].events for attempts in told.values())

    found = [] if await comes_about(all_live, PATIENCE_S) else ["not every stream began"]
    began_s = time.perf_counter()
    found += await gateways.stop()
    took_s = time.perf_counter() - began_s
    row.seen["slowest stop"] = f"{max(took_s, float(str(row.seen.get('slowest stop', '0')).split()[0])):.1f} s"
    if took_s > GRACE_S + MARGIN_S:
        found.append(f"gone only after {took_s:.1f} s")
    return found, await asyncio.gather(*calls)


def _judge(
    row: Row,
    lives: Sequence[Live],
    keys: Sequence[Key],
    heard: Sequence[Heard],
    told: dict[str, list[Told]],
    outcome: Outcome,
) -> list[str]:
    found = []
    for live, key, each in zip(lives, keys, heard, strict=True):
        case = Case(
            script=live.script,
            lane=key.lane,
            body_bytes=len(live.body),
            limit=ENDLESS,
            first=live.model,
            heard=(each,),
            told=told.get(live.script.marker, ()),
            records=outcome.records.get(key.id, ()),
            charges=outcome.charges,
        )
        found += of_every_call(case) + _of_a_stream(live, case)
        row.calls += 1
        for record in case.records:
            row.add(record.ended)
        if each.before:
            row.add("put off by the ledger", each.before)
    return found


def _of_a_stream(live: Live, case: Case) -> list[str]:
    """Finished, and charged as reported; or cut, with an error event that says so and the terminator."""
    chunks, full = 0 if live.held else None, live.model == "full"
    found = of_a_cut_stream(case, ended=("answer", "shutdown"), chunks=chunks, full=full)
    (heard,) = case.heard
    ended = case.records[0].ended if case.records else ""
    if ended == "answer":
        found += of_a_reported_call(case)
    expected = ("stop", "") if ended == "answer" else ("", "shutting_down")
    if not heard.whole or (heard.finish, heard.error) != expected:
        found.append(case.say(f"ended as {ended} and was heard as {heard.finish} {heard.error}, whole: {heard.whole}"))
    return found
