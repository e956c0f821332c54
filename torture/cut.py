"""`cut`: streams cut at random points, by everybody who can: one record each, charged what the upstream's truth is.

A history is a few hundred streams on two gateways. Each is drawn with a cause (below), a point, a size of chunk, a way
in which its upstream reports usage, and an upstream of one of the three `on_cancel`. Where the script can see to it,
the upstream writes at most one chunk beyond the cut and then waits, so that "within one chunk" means just that, however
busy the machine; where upstream and cut run freely, the charge lies between what the caller heard and what was written.

    caller     hangs up: after so many events, or before the first one
    drained    hangs up, and the upstream runs to its end, or breaks on the way
    upstream   the connection is reset, or closed, in or between events; an event reports an error
    time-out   no answer, no next event, no end
    money      the balance, the key's limit or the contract ends
    shutdown   the gateways are told to stop while the stream is live
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from msgspec import structs

from torture.caller import Heard, Leave, insist, request
from torture.farm import Databases, Farm, Plan, Provider, Upstream, farm
from torture.laws import Case, of_a_cut_stream, of_a_reported_call, of_every_call
from torture.script import CHUNKS, INPUT_NANO, OUTPUT_NANO, Script, Then, Told, body_of, prompt_of, prompt_tokens
from torture.store import Key, Outcome, Till, Want, comes_about, till
from torture.table import Row

ON_CANCEL = ("stop", "drain", "full")
PROVIDERS = tuple(
    Provider(f"{on_cancel}{suffix}", on_cancel, hasty=bool(suffix))
    for on_cancel in ON_CANCEL
    for suffix in ("", "-hasty")
)
PLAN = Plan(PROVIDERS, {p.name: (p.name,) for p in PROVIDERS}, grace_s=1, slice_tokens=16, hold_wait_s=0.2)
LIMIT = 200
PLENTY = 10**12
PATIENCE_S = 60.0
AT_ONCE = 80  # streams under way, besides those that wait for the shutdown
ENDLESS = 100_000
WEIGHTS = {"caller": 30, "drained": 15, "upstream": 20, "time-out": 12, "money": 13, "shutdown": 10}
ASSERTED = {
    "caller": "1 record each, what came or a chunk less",
    "drained": "1 record each; reported to the end: exact, else what came; full: never less than counted",
    "upstream": "1 record each, exactly what came; free when nothing came",
    "time-out": "1 record each, exactly what came; free when nothing came",
    "money": "1 record each, ended in order, exactly what was sent and could be paid",
    "shutdown": "1 record each, ended in order, what came or a chunk less; exit code 0",
}


@dataclass(frozen=True, slots=True)
class Cut:
    """One stream and how it is to end. `purse` is money of its own; `model` is the provider's name as well."""

    cause: str
    script: Script
    model: str
    ended: tuple[str, ...]
    lane: str = "credits"
    limit: int = LIMIT
    leave: Leave | None = None
    purse: int | None = None
    by_limit: bool = False
    chunks: int | None = 1  # that may be under way at the cut; None where both run freely
    in_order: bool = False  # the caller gets a last event and a terminator
    reported: bool = False  # the upstream comes to its end and its count arrives

    @property
    def full(self) -> bool:
        return self.model.startswith("full")

    @property
    def body(self) -> bytes:
        return body_of(self.script, model=self.model, stream=True, limit=self.limit)


# What is drawn, cause by cause.


def drawn(seed: int, count: int, history: str) -> list[Cut]:
    """The streams of a seed."""
    rngs = [random.Random(f"cut/{seed}/{number}") for number in range(count)]
    causes = [rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0] for rng in rngs]
    return [DRAW[cause](rngs[number], f"{history}/{number}") for number, cause in enumerate(causes)]


def _script(rng: random.Random, marker: str) -> Script:
    return Script(
        marker=marker,
        tokens=LIMIT,
        chunk=rng.choice(CHUNKS),
        burst=rng.choice((1, 1, 4)),
        gap_ms=rng.choice((0, 0, 1, 3)),
        usage=rng.choice(("last", "last", "every", "never")),
    )


def _caller(rng: random.Random, marker: str) -> Cut:
    """Hangs up: before the first event, at any moment, or after some events with at most one more under way."""
    way = rng.choices((_before, _anywhere, _after), (2, 2, 6))[0]
    return way(rng, _script(rng, marker), reset=rng.random() < 0.5)


def _before(rng: random.Random, script: Script, *, reset: bool) -> Cut:
    script = structs.replace(script, first_ms=rng.choice((0, 30)), stop_after=0)
    return Cut("caller", script, "stop", ("caller_gone",), leave=Leave(after_s=rng.uniform(0, 0.4), reset=reset))


def _anywhere(rng: random.Random, script: Script, *, reset: bool) -> Cut:
    script = structs.replace(script, gap_ms=rng.choice((2, 5)), burst=1, chunk=1)
    leave = Leave(after_s=rng.uniform(0.05, 0.3), reset=reset)
    return Cut("caller", script, "stop", ("caller_gone", "answer"), leave=leave, chunks=None)


def _after(rng: random.Random, script: Script, *, reset: bool) -> Cut:
    events = rng.randint(1, LIMIT // script.chunk - 2)
    leave, model = Leave(events, reset=reset), rng.choice(ON_CANCEL)
    if model == "stop":
        script = structs.replace(script, stop_after=events + rng.choice((0, 1)))
        return Cut("caller", script, model, ("caller_gone",), leave=leave)
    # The gateway reads on for a caller who has left, and the upstream falls silent: a hasty time-out ends it, and where
    # the ledger is slow to extend the stream, it does so before the caller has heard enough to leave.
    script = structs.replace(script, stop_after=events + rng.choice((0, 1)), then="quiet", gap_ms=0)
    return Cut("caller", script, f"{model}-hasty", ("caller_gone", "timeout"), leave=leave)


def _drained(rng: random.Random, marker: str) -> Cut:
    """Hangs up; the upstream comes to its end all the same, or breaks on the way there; unless it was there before."""
    ended = ("caller_gone", "answer")
    script, model = _script(rng, marker), rng.choice(("drain", "full"))
    tokens = rng.randint(4 * script.chunk, LIMIT)
    script = structs.replace(script, tokens=tokens, gap_ms=rng.choice((1, 3)), burst=1, first_ms=rng.choice((0, 500)))
    leave = Leave(rng.randint(1, 2), reset=rng.random() < 0.5)
    if script.first_ms and rng.random() < 0.5:
        leave = Leave(after_s=rng.uniform(0.05, 0.45))
    if rng.random() < 0.25:
        script = structs.replace(script, stop_after=rng.randint(3, tokens // script.chunk), then=_break(rng))
        chunks = None if script.then == "slam" else 0
        return Cut("drained", script, model, (*ended, "upstream_failed"), leave=leave, chunks=chunks)
    reported = script.usage != "never"
    script = structs.replace(script, extra=rng.randint(0, 9) if reported else 0)
    return Cut("drained", script, model, ended, leave=leave, chunks=0, reported=reported)


def _upstream(rng: random.Random, marker: str) -> Cut:
    """Breaks off, at any point."""
    script = _script(rng, marker)
    script = structs.replace(script, stop_after=rng.randint(0, LIMIT // script.chunk - 1), then=_break(rng))
    chunks = None if script.then == "slam" else 0
    begun = script.stop_after > 0 and chunks == 0
    return Cut("upstream", script, rng.choice(ON_CANCEL), ("upstream_failed",), in_order=begun, chunks=chunks)


def _break(rng: random.Random) -> Then:
    return rng.choice(("reset", "close", "torn", "error", "slam"))


def _time_out(rng: random.Random, marker: str) -> Cut:
    """No first byte, no next event, or comments for ever. What there is comes at once, however slow the machine."""
    then = rng.choice(("mute", "quiet", "quiet", "comment"))
    script = _script(rng, marker)
    events = 0 if then == "mute" else rng.randint(0, LIMIT // script.chunk - 1)
    script = structs.replace(script, stop_after=events, then=then, gap_ms=0, burst=LIMIT)
    return Cut("time-out", script, f"{rng.choice(ON_CANCEL)}-hasty", ("timeout",), in_order=events > 0, chunks=0)


def _money(rng: random.Random, marker: str) -> Cut:
    """Money for some tokens and a bit; the upstream writes the chunk that cannot be paid, and waits."""
    script, lane = _script(rng, marker), rng.choice(("credits", "credits", "contract"))
    cut = Cut("money", script, rng.choice(ON_CANCEL), ("money", "answer"), lane=lane, in_order=True)
    tokens = rng.randint(1, LIMIT - 10)
    if rng.random() < 0.2:  # runs on until it notices
        free = structs.replace(script, gap_ms=2, burst=1)
        return _funded(replace(cut, script=free, chunks=None), tokens, rng)
    # Where not even the first slice fits, the upstream is given a lower limit, and that must be an end of a chunk.
    tokens += script.chunk - tokens % script.chunk if lane == "contract" or tokens < PLAN.slice_tokens else 0
    held = structs.replace(script, stop_after=tokens // script.chunk + 1)
    return _funded(replace(cut, script=held), tokens, rng)


def _funded(cut: Cut, tokens: int, rng: random.Random) -> Cut:
    """The cut with money for so many tokens: only now is it known how long the prompt is."""
    if cut.lane == "contract":
        return replace(cut, purse=prompt_tokens(prompt_of(cut.script)) + tokens)
    purse = len(cut.body) * INPUT_NANO + tokens * OUTPUT_NANO + rng.randrange(OUTPUT_NANO)
    return replace(cut, purse=purse, by_limit=rng.random() < 0.4)


def _shutdown(rng: random.Random, marker: str) -> Cut:
    """Live when the gateways are told to stop: silent but for comments, or on and on."""
    script = _script(rng, marker)
    cut = Cut("shutdown", script, rng.choice(ON_CANCEL), ("shutdown",), in_order=True, limit=ENDLESS)
    if rng.random() < 0.3:
        return replace(cut, script=structs.replace(script, tokens=ENDLESS, gap_ms=50, burst=1), chunks=None)
    silent = structs.replace(script, stop_after=rng.randint(1, LIMIT // script.chunk - 1), then="comment")
    return replace(cut, script=silent, chunks=0)


DRAW: dict[str, Callable[[random.Random, str], Cut]] = {
    "caller": _caller,
    "drained": _drained,
    "upstream": _upstream,
    "time-out": _time_out,
    "money": _money,
    "shutdown": _shutdown,
}


# What happens.


@dataclass(slots=True)
class Run:
    """One history under way."""

    gateways: Farm
    keys: dict[str, Key]
    rng: random.Random
    heard: dict[str, Heard] = field(default_factory=dict)

    async def play(self, cuts: Sequence[Cut]) -> None:
        """Everything that ends by itself."""
        room = asyncio.Semaphore(AT_ONCE)

        async def one(cut: Cut) -> None:
            async with room:
                await self.stream(cut)

        await asyncio.gather(*map(one, cuts))

    async def stream(self, cut: Cut) -> None:
        key = self.keys[cut.script.marker]
        url = self.rng.choice(self.gateways.alive).url
        wire = request(key.path, key.secret, cut.body)
        self.heard[cut.script.marker] = await insist(url, wire, patience_s=PATIENCE_S, leave=cut.leave)


async def run(
    engine: str, databases: Databases, upstream: Upstream, *, seed: int, histories: int, streams: int
) -> list[Row]:
    """So many histories of so many streams, from this seed on; a row for each cause."""
    shape = f" --streams {streams}"
    rows = {cause: Row(f"cut {cause}", engine, asserted, seed, shape=shape) for cause, asserted in ASSERTED.items()}
    for each in range(seed, seed + histories):
        with rows["shutdown"].history(each):
            await one(engine, databases, upstream, seed=each, streams=streams, rows=rows)
    return list(rows.values())


async def one(
    engine: str, databases: Databases, upstream: Upstream, *, seed: int, streams: int, rows: dict[str, Row]
) -> None:
    """The history of a seed."""
    history = f"cut-{engine}-{seed}"
    cuts = drawn(seed, streams, history)
    last, began_s = rows["shutdown"], time.perf_counter()
    with databases.new(engine) as ground:
        config = ground.configure(PLAN, upstream)
        async with till(config) as counter:
            keys = await _keys(counter, cuts)
            async with farm(config, 2) as gateways:
                playing = Run(gateways, keys, random.Random(seed))
                last.found(await _play(playing, cuts, counter, upstream, history), seed=seed)
            outcome = await counter.outcome()
    told = await upstream.told(history)
    await upstream.forget(history)
    last.found(outcome.troubles(), seed=seed)
    took_s = time.perf_counter() - began_s
    for cause, row in rows.items():
        row.histories += 1
        row.seconds += took_s * sum(cut.cause == cause for cut in cuts) / len(cuts)
    for cut in cuts:
        marker = cut.script.marker
        case = _case(cut, keys[marker], playing.heard[marker], told.get(marker, []), outcome)
        _judge(rows[cut.cause], cut, case, seed)


async def _play(playing: Run, cuts: Sequence[Cut], counter: Till, upstream: Upstream, history: str) -> list[str]:
    """All streams, and the end of the gateways; what went wrong with these."""
    waiting = [cut for cut in cuts if cut.cause == "shutdown"]
    live = [asyncio.create_task(playing.stream(cut)) for cut in waiting]
    await playing.play([cut for cut in cuts if cut.cause != "shutdown"])
    found = []
    if not await counter.quiet(holds=len(waiting), owners=2, within_s=PATIENCE_S):
        found.append(f"{await counter.open_holds()} holds are open, {len(waiting)} streams")

    async def begun() -> bool:
        told = await upstream.told(history)
        return all(_begun(cut, told.get(cut.script.marker, [])) for cut in waiting)

    if not await comes_about(begun, PATIENCE_S):
        found.append("a stream did not begin")
    found += await playing.gateways.stop()
    await asyncio.gather(*live)
    return found


def _begun(cut: Cut, told: Sequence[Told]) -> bool:
    return bool(told) and told[0].events >= max(1, cut.script.stop_after)


async def _keys(counter: Till, cuts: Sequence[Cut]) -> dict[str, Key]:
    """A key for each stream; those with a purse get an account of their own, or a spending limit."""
    rich = await counter.keys([Want("credits", usd_nano=PLENTY), Want("contract", tokens=PLENTY)])
    account = {key.lane: key.account for key in rich}

    def want(cut: Cut) -> Want:
        if cut.purse is None:
            return Want(cut.lane, account=account[cut.lane])
        if cut.by_limit:
            return Want(cut.lane, account=account[cut.lane], limit_nano=cut.purse)
        return Want(cut.lane, tokens=cut.purse) if cut.lane == "contract" else Want(cut.lane, usd_nano=cut.purse)

    made = await counter.keys([want(cut) for cut in cuts])
    return {cut.script.marker: key for cut, key in zip(cuts, made, strict=True)}


# What must be true of it.


def _case(cut: Cut, key: Key, heard: Heard, told: Sequence[Told], outcome: Outcome) -> Case:
    return Case(
        script=cut.script,
        lane=cut.lane,
        body_bytes=len(cut.body),
        limit=cut.limit,
        first=cut.model,
        heard=(heard,),
        told=told,
        records=outcome.records.get(key.id, ()),
        charges=outcome.charges,
    )


def _judge(row: Row, cut: Cut, case: Case, seed: int) -> None:
    row.calls += 1
    found = of_every_call(case)
    found += of_a_cut_stream(case, ended=cut.ended, chunks=cut.chunks, full=cut.full)
    if cut.reported:
        found += of_a_reported_call(case)
    if cut.in_order:
        found += _in_order(cut, case)
    row.found(found, seed=seed)
    for record in case.records:
        row.add(record.ended)
    if not case.told:
        row.add("left before the request was sent on")
    if case.heard[-1].before:
        row.add("put off by the ledger", case.heard[-1].before)


def _in_order(cut: Cut, case: Case) -> list[str]:
    """The caller got every token that is charged, a last event that says how it ended, and the terminator."""
    (heard,), found = case.heard, []
    if not heard.whole:
        found.append("no terminator")
    if not (heard.finish or heard.error):
        found.append("no last event")
    ended = case.records[0].ended if case.records else ""
    if ended == "money" and (heard.finish, heard.reason) != ("length", "insufficient_balance"):
        found.append(f"the money ended and the caller heard {heard.finish} {heard.reason}")
    if case.records and case.records[0].output_tokens != heard.tokens:
        found.append(f"charged {case.records[0].output_tokens}, sent {heard.tokens}")
    return [case.say(words) for words in found]
