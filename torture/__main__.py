"""`python -m torture`: the parts, one after the other, and the table at the end. Ends with 1 when any law was broken.

Without words it does all parts on both engines at full size. `--seed` is the seed of the first history, and each
history adds one to it; the seed of a history that broke a law is printed with it.
"""

from __future__ import annotations

import argparse
import os
import platform
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import uvloop

from torture import cut, drain, kill, spend
from torture.farm import POSTGRESQL, SQLITE, Databases, Upstream, databases, upstream_process
from torture.table import Row, exit_code, rendered


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything; histories by engine."""

    crowd: spend.Size
    kills: Mapping[str, int]
    cuts: Mapping[str, int]
    streams: int  # in one history of `cut`
    drains: Mapping[str, int]
    live: int  # streams in one history of `drain`


FULL = Size(
    spend.Size(),
    kills={SQLITE: 170, POSTGRESQL: 40},
    cuts={SQLITE: 21, POSTGRESQL: 4},
    streams=500,
    drains={SQLITE: 5, POSTGRESQL: 5},
    live=200,
)
QUICK = Size(
    spend.Size(calls=300, clients=2, gateways=2),
    kills={SQLITE: 2, POSTGRESQL: 1},
    cuts={SQLITE: 1, POSTGRESQL: 1},
    streams=120,
    drains={SQLITE: 1, POSTGRESQL: 1},
    live=60,
)


@dataclass(frozen=True, slots=True)
class Ask:
    """What was asked for on the command line, and what it runs on. `histories` and `streams` go before the size."""

    size: Size
    seed: int
    histories: int | None
    streams: int | None
    databases: Databases
    upstream: Upstream

    def of(self, usual: Mapping[str, int], engine: str) -> int:
        return usual[engine] if self.histories is None else self.histories


async def _spend(ask: Ask, engine: str) -> list[Row]:
    return await spend.run(engine, ask.databases, ask.upstream, seed=ask.seed, size=ask.size.crowd)


async def _kill(ask: Ask, engine: str) -> list[Row]:
    histories = ask.of(ask.size.kills, engine)
    return await kill.run(engine, ask.databases, ask.upstream, seed=ask.seed, histories=histories)


async def _cut(ask: Ask, engine: str) -> list[Row]:
    histories, streams = ask.of(ask.size.cuts, engine), ask.streams or ask.size.streams
    return await cut.run(engine, ask.databases, ask.upstream, seed=ask.seed, histories=histories, streams=streams)


async def _drain(ask: Ask, engine: str) -> list[Row]:
    histories, live = ask.of(ask.size.drains, engine), ask.streams or ask.size.live
    return await drain.run(engine, ask.databases, ask.upstream, seed=ask.seed, histories=histories, streams=live)


PARTS: dict[str, Callable[[Ask, str], Awaitable[list[Row]]]] = {
    "spend": _spend,
    "kill": _kill,
    "cut": _cut,
    "drain": _drain,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="torture", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=(*PARTS, []), metavar="|".join(PARTS), help="else all of them")
    parser.add_argument("--engine", choices=(SQLITE, POSTGRESQL), help="else both")
    parser.add_argument("--seed", type=int, help="of the first history; else a new one")
    parser.add_argument("--histories", type=int, help="of each part but spend, in place of the usual number")
    parser.add_argument("--streams", type=int, help="in one history of cut or drain, in place of the usual number")
    parser.add_argument("--quick", action="store_true", help="the size that the tests have")
    given = parser.parse_args()
    return uvloop.run(run(given))


async def run(given: argparse.Namespace) -> int:
    """Everything that was asked for; 1 when a law was broken."""
    seed = secrets.randbelow(10**6) if given.seed is None else given.seed
    print(f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} cores, seed {seed}", flush=True)
    began_s, rows = time.perf_counter(), list[Row]()
    with databases() as found:
        async with upstream_process() as upstream:
            ask = Ask(QUICK if given.quick else FULL, seed, given.histories, given.streams, found, upstream)
            for part in given.parts or PARTS:
                for engine in found.engines:
                    if given.engine in (None, engine):
                        rows += await _one(ask, part, engine)
    print(f"\n{rendered(rows)}\n\n{time.perf_counter() - began_s:.0f} s in all")
    if POSTGRESQL not in found.engines:
        print("There is no PostgreSQL here; its rows are left out.")
    return exit_code(rows)


async def _one(ask: Ask, part: str, engine: str) -> list[Row]:
    rows = await PARTS[part](ask, engine)
    for row in rows:
        print(" | ".join(row.cells()), flush=True)
    return rows


if __name__ == "__main__":
    raise SystemExit(main())
