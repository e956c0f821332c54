"""A client process of `spend`: many calls at once, and each asked again for as long as the gateway says that may help.

    python -m torture.crowd

The first line on standard input is a `Task` in JSON. It opens a connection for each call, says `ready`, and waits for
another line; then all calls go out at once. A list of what was `Had` is left in the task's file.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop
from msgspec import Struct

from torture.caller import HUNG, Caller, Heard, request
from torture.script import CHUNKS, Script, body_of

LONGEST_S = 300.0  # for a call and all its repeats; nobody waits that long unless something hangs
PAUSE_S = (0.05, 0.3)  # before a call that may help is asked again
LIMIT = 64
BUSY = frozenset({503})
OPENING = 200  # connections opened at once: no more than the gateway's backlog takes


class Task(Struct):
    """What a process is to do: calls `first` to `first + count` of a history, spread over `urls`.

    `result` is a file, for standard output may not take so much at a time.
    """

    history: str
    seed: int
    first: int
    count: int
    urls: list[str]
    path: str
    key: str
    model: str
    result: str


class Had(Struct):
    """A call: what came of it in the end, and how often it was told that others hold the money, or to come again."""

    marker: str
    heard: Heard
    held: int = 0
    busy: int = 0


def script_of(history: str, seed: int, number: int) -> tuple[Script, bool]:
    """`(script, streamed)` of one call of a history."""
    rng = random.Random(f"{seed}/{number}")
    script = Script(
        marker=f"{history}/{number}",
        tokens=rng.randint(5, 80),
        chunk=rng.choice((*CHUNKS, 3)),
        burst=rng.choice((1, 4)),
        first_ms=rng.choice((0, 0, 2, 10)),
        gap_ms=rng.choice((0, 0, 0, 2)),
        extra=rng.randint(0, 9),
    )
    return script, rng.random() < 0.5


async def spend(task: Task, number: int, caller: Caller) -> Had:
    """One call: asked until it is answered, or until there is nothing left for it."""
    script, streamed = script_of(task.history, task.seed, number)
    body = body_of(script, model=task.model, stream=streamed, limit=LIMIT)
    wire = request(task.path, task.key, body)
    had = Had(script.marker, Heard())
    rng = random.Random(number)
    try:
        async with asyncio.timeout(LONGEST_S):
            while True:
                had.heard = await caller.ask(wire, patience_s=LONGEST_S)
                if had.heard.held:
                    had.held += 1
                elif had.heard.status in BUSY:
                    had.busy += 1
                else:
                    return had
                await asyncio.sleep(rng.uniform(*PAUSE_S))
    except TimeoutError:
        had.heard.error = HUNG
    return had


async def crowd(task: Task) -> list[Had]:
    """All calls of the task, at once."""
    callers: list[Caller] = []
    urls = itertools.cycle(task.urls)
    for _ in range(0, task.count, OPENING):
        wanted = min(OPENING, task.count - len(callers))
        callers += await asyncio.gather(*(Caller.to(next(urls)) for _ in range(wanted)))
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    had = await asyncio.gather(*(spend(task, task.first + place, caller) for place, caller in enumerate(callers)))
    for caller in callers:
        caller.close()
    return had


def shares(count: int, processes: int) -> Sequence[tuple[int, int]]:
    """`(first, count)` for each process."""
    bounds = [count * place // processes for place in range(processes + 1)]
    return [(begin, end - begin) for begin, end in itertools.pairwise(bounds)]


if __name__ == "__main__":
    given = msgspec.json.decode(sys.stdin.readline(), type=Task)
    Path(given.result).write_bytes(msgspec.json.encode(uvloop.run(crowd(given))))
