"""`spend`: a crowd on one small balance, through several gateways. Not a unit too many, and at least 99 % of it used.

Every call goes out at the same moment, from several client processes through several gateway processes on one store. A
call that is told that others hold the money asks again, as the documents say; in the end each was answered or refused
for good. All answers end with the upstream's own count, so every figure is exact.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from penstock.operations.usage import UsageView
from tests.stories.process import Process, verified
from torture.crowd import LIMIT, Had, Task, script_of, shares
from torture.farm import ROOT, SECRETS, Databases, Plan, Provider, Upstream, environment, farm
from torture.laws import Case, of_a_reported_call, of_every_call
from torture.script import INPUT_NANO, OUTPUT_NANO, Told, body_of
from torture.store import Key, Outcome, Till, Want, till
from torture.table import Row

PLAN = Plan((Provider("main"),), {"metered": ("main",)})
KINDS = ("usd", "contract", "limit")
ASSERTED = {
    "usd": "0 nano-USD overspent, 99 % used; balance = records = upstream",
    "contract": "0 tokens overspent, 99 % used; lot = records = upstream",
    "limit": "0 nano-USD beyond the key's limit, 99 % used; balance = records = upstream",
}
# What there is for each call: a quarter of what it wants, so the balance ends long before the calls do.
USD_EACH_NANO, TOKENS_EACH = 20_000, 20
PLENTY = 10**12


@dataclass(frozen=True, slots=True)
class Size:
    """How many calls, client processes and gateways."""

    calls: int = 10_000
    clients: int = 4
    gateways: int = 4


async def run(
    engine: str, databases: Databases, upstream: Upstream, *, seed: int, size: Size, kinds: Sequence[str] = KINDS
) -> list[Row]:
    """A row for each kind of balance, one after the other on the same gateways."""
    rows = []
    with databases.new(engine) as ground:
        config = ground.configure(PLAN, upstream)
        async with till(config) as counter, farm(config, size.gateways) as gateways:
            for kind in kinds:
                row = Row(f"spend {kind}", engine, ASSERTED[kind], seed, histories=1, calls=size.calls)
                with row.timed(), row.history(seed):
                    await _history(kind, row, counter, upstream, gateways.alive, size, ground.folder)
                rows.append(row)
            troubles = await gateways.stop()
            troubles += (await counter.outcome()).troubles()
        if not await verified(config, SECRETS):
            troubles.append("penstock ledger verify found differences")
        rows[-1].found(troubles, seed=seed)
    return rows


async def _history(
    kind: str, row: Row, counter: Till, upstream: Upstream, gateways: Sequence[Process], size: Size, folder: Path
) -> None:
    history = f"spend-{row.engine}-{kind}-{row.seed}"
    key, balance = await _purse(kind, counter, size.calls)
    urls = [gateway.url for gateway in gateways]
    tasks = [
        Task(history, row.seed, first, count, urls, key.path, key.secret, "metered", f"{folder}/{kind}-{first}.json")
        for first, count in shares(size.calls, size.clients)
    ]
    had = await _flood(tasks)
    quiet = await counter.quiet(holds=0, owners=len(gateways), within_s=60)
    outcome = await counter.outcome()
    told = await upstream.told(history)
    await upstream.forget(history)
    if not quiet:
        row.found([f"{outcome.holds} holds are left after a minute"], seed=row.seed)
    row.found(_judge(row, key, balance, had, told, outcome), seed=row.seed)


async def _purse(kind: str, counter: Till, calls: int) -> tuple[Key, int]:
    """The key that all calls spend with, and how much that is."""
    if kind == "contract":
        balance = calls * TOKENS_EACH
        (key,) = await counter.keys([Want("contract", tokens=balance)])
        return key, balance
    balance = calls * USD_EACH_NANO
    want = Want(usd_nano=balance) if kind == "usd" else Want(usd_nano=PLENTY, limit_nano=balance)
    (key,) = await counter.keys([want])
    return key, balance


async def _flood(tasks: Sequence[Task]) -> list[Had]:
    """Run the client processes; all calls go out when all are ready."""
    crowds = [await _crowd(task) for task in tasks]
    for crowd in crowds:
        assert crowd.stdout is not None
        assert (await crowd.stdout.readline()).strip() == b"ready"
    await asyncio.gather(*(crowd.communicate(b"go\n") for crowd in crowds))
    return [had for task in tasks for had in _result(task)]


def _result(task: Task) -> list[Had]:
    """What came of a task; nothing when its process did not come to its end, which the count will show."""
    result = Path(task.result)
    return msgspec.json.decode(result.read_bytes(), type=list[Had]) if result.exists() else []


async def _crowd(task: Task) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    command = (sys.executable, "-m", "torture.crowd")
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, cwd=Path(ROOT), env=environment())
    assert process.stdin is not None
    process.stdin.write(msgspec.json.encode(task) + b"\n")
    await process.stdin.drain()
    return process


def _judge(
    row: Row, key: Key, balance: int, had: Sequence[Had], told: dict[str, list[Told]], outcome: Outcome
) -> list[str]:
    """Call by call, then all together."""
    records = {record.request: record for record in outcome.records.get(key.id, [])}
    found = [] if len(had) == row.calls else [f"{row.calls} calls were to be made, {len(had)} came back"]
    answered = 0
    for each in had:
        case = _case(row, key, each, told.get(each.marker, []), records, outcome)
        answered += each.heard.answered
        found += of_every_call(case) + _of_one(case, each)
    row.seen |= {"answered": answered, "held": sum(h.held for h in had), "busy": sum(h.busy for h in had)}
    return found + _of_all(row, key, balance, told, outcome, answered=answered)


def _case(row: Row, key: Key, had: Had, told: list[Told], records: dict[str, UsageView], outcome: Outcome) -> Case:
    script, streamed = script_of(had.marker.partition("/")[0], row.seed, int(had.marker.partition("/")[2]))
    body = body_of(script, model="metered", stream=streamed, limit=LIMIT)
    record = records.get(had.heard.request)
    return Case(
        script=script,
        lane=key.lane,
        body_bytes=len(body),
        limit=LIMIT,
        first="main",
        heard=(had.heard,),
        told=told,
        records=() if record is None else (record,),
        charges=outcome.charges,
    )


def _of_one(case: Case, had: Had) -> list[str]:
    """Answered and charged what the upstream counted, or refused for want of money and never sent on."""
    if had.heard.answered:
        told = [each.tokens for each in case.told]
        wrong = [] if told == [had.heard.tokens] else [case.say(f"heard {had.heard.tokens}, counted {told}")]
        return wrong + of_a_reported_call(case)
    if had.heard.status == 402 and not case.told:
        return []
    return [case.say("neither answered nor refused for want of money")]


def _last_calls(balance: int) -> int:
    """Tokens that the last calls on a lot may use beyond it: while one token is left, a call is served."""
    return max(balance // 100, 10 * LIMIT)


def _of_all(
    row: Row, key: Key, balance: int, told: dict[str, list[Told]], outcome: Outcome, *, answered: int
) -> list[str]:
    """What left the balance is what the records say is what the upstream counted, and no more than there was."""
    records = outcome.records.get(key.id, [])
    spent = sum(record.amount for record in records)
    uncollected = sum(record.uncollected for record in records)
    each = [attempt for attempts in told.values() for attempt in attempts]
    prompts, tokens = sum(t.prompt for t in each), sum(t.tokens for t in each)
    counted = prompts + tokens if key.lane == "contract" else prompts * INPUT_NANO + tokens * OUTPUT_NANO
    granted = PLENTY if row.part == "spend limit" else balance
    left = granted - outcome.remaining.get(key.account, 0)
    row.seen |= {"overspent": max(0, spent - balance), "used": f"{spent / balance:.2%}", "uncollected": uncollected}
    rules = {
        f"{spent} spent of {balance}": spent <= balance,
        f"only {spent} of {balance} was used": spent >= 0.99 * balance,
        f"{left} left the balance, the records say {spent}": left == spent,
        f"the upstream counted {counted}, the records say {spent} and {uncollected} uncollected": counted
        == spent + uncollected,
        f"{uncollected} uncollected": uncollected <= (_last_calls(balance) if key.lane == "contract" else 0),
        f"{len(each)} requests upstream, {answered} answers, {len(records)} records": len(each)
        == answered
        == len(records),
    }
    return [words for words, kept in rules.items() if not kept]
