"""`make bench`: the gateway beside no gateway and beside nginx, in one run on one machine.

The mock upstream and the generator share one core, what is measured has the other to itself: every figure is per core.
Ratios carry over to other machines, absolute figures do not. Each figure is the median of some rounds taken in turn, so
that a noisy moment hits all alike.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import uvloop

from bench.machine import Pace, pace
from bench.measure import PARTS, Outcome, measure, process, soak
from bench.processes import LOAD_CORE
from bench.report import bars, judge, table
from bench.subjects import LineUp, Upstream, Wanted, running

GROUPS = tuple(dict.fromkeys([part.name.partition("-")[0] for part in PARTS] + ["process"]))


def main() -> int:
    given = _parser().parse_args()
    os.sched_setaffinity(0, {LOAD_CORE})
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # and what was started with it
    parts = [part.name for part in PARTS if part.name.partition("-")[0] in given.only]
    parts += ["process"] if "process" in given.only else []
    wanted = Wanted(parts, given.store, given.synchronous, given.postgres, given.peers)
    print(_head(given))
    paces = [_pace()]
    with (
        tempfile.TemporaryDirectory(dir=given.store) as folder,
        running(wanted, Path(folder)) as (upstream, line_up),
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        outcomes = runner.run(_measure(parts, line_up, upstream, given))
    verdicts = judge({name: outcome.figures for name, outcome in outcomes.items()})
    print(bars(verdicts))
    paces.append(_pace())
    if given.json:
        document = {
            "run": _run(given),
            "paces": [asdict(each) for each in paces],
            "parts": {name: asdict(each) for name, each in outcomes.items()},
            "bars": [asdict(each) for each in verdicts],
        }
        given.json.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    return 0


async def _measure(
    parts: list[str], line_up: LineUp, upstream: Upstream, given: argparse.Namespace
) -> dict[str, Outcome]:
    """What was asked for, printed as it comes. Memory comes after every other load."""
    outcomes: dict[str, Outcome] = {}
    for part in PARTS:
        if part.name in parts:
            subjects = line_up[part.name]
            outcome = await measure(part, subjects, seconds=given.seconds, rounds=given.rounds, store=given.store)
            outcomes[part.name] = outcome
            print(table(part.title, outcome.figures, part.note), flush=True)
    if given.soak:
        outcomes["soak"] = await soak(line_up["soak"][0], seconds=given.soak)
        print(table(f"soak of {given.soak:g} s, plain completions", outcomes["soak"].figures), flush=True)
    if "process" in parts:
        outcomes["process"] = await process(line_up, upstream, seconds=given.seconds, rounds=given.rounds)
        print(table("process", outcomes["process"].figures), flush=True)
    return outcomes


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=_groups, default=GROUPS, metavar="PART,…", help=f"of {', '.join(GROUPS)}")
    parser.add_argument("--synchronous", choices=("EXTRA", "FULL", "NORMAL"), default="FULL")
    parser.add_argument("--store", type=Path, help="folder for the databases (default: a temporary one)")
    parser.add_argument(
        "--postgres", metavar="URL", help="a server to make a database on (default: one from the wheel)"
    )
    parser.add_argument(
        "--soak", type=float, default=0.0, metavar="SECONDS", help="watch memory under load for so long"
    )
    parser.add_argument("--peers", type=Path, metavar="FOLDER", help="measure LiteLLM, from this virtual environment")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures and every round")
    return parser


def _groups(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in GROUPS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(GROUPS)}")
    return names


def _pace() -> Pace:
    """Say how fast the machine is at the moment: before and after, for it may change under way."""
    now = pace()
    print(f"now a step of a plain Python loop takes {now.step_ns:.0f} ns, a read from memory {now.read_ns:.0f} ns\n")
    return now


def _run(given: argparse.Namespace) -> dict[str, str | float]:
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cores": os.cpu_count() or 0,
        "synchronous": given.synchronous,
        "seconds": given.seconds,
        "rounds": given.rounds,
    }


def _head(given: argparse.Namespace) -> str:
    run = _run(given)
    where = "is the server that was named" if given.postgres else "runs on core 0 too, with its own defaults"
    return (
        f"{run['platform']}, Python {run['python']}, {run['cores']} cores\n"
        f"SQLite synchronous={given.synchronous}, {given.rounds} rounds of {given.seconds:g} s, medians\n"
        "core 0: generator and mock upstream; core 1: what is measured, one at a time\n"
        f"PostgreSQL {where}; its time is not in `per CPU-s`\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
