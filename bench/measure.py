"""The measurements: which load each part is, rounds taken in turn, and the figures they come to.

A part's outcome is a table of figures, subject by subject: medians of the rounds, then what only a comparison within
the part says. Nothing is printed and nothing judged here.
"""

from __future__ import annotations

import asyncio
import math
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench import load
from bench.load import EventDelay, Latency, Throughput
from bench.machine import durable_writes
from bench.mock import EVENTS
from bench.processes import quiet, resident_mb
from bench.startup import startup
from bench.subjects import LITELLM, LineUp, Subject, Upstream

CONNECTIONS = 64
RATE_PER_S = 500
DISK = "the disk alone"
BUSY_CORES = 0.95  # below, the generator was the limit

Figures = dict[str, float]
Result = Throughput | Latency | EventDelay
Drive = Callable[[Subject, float], Awaitable[Result]]
OnDisk = Callable[[Path | None, float], Awaitable[Result]]


@dataclass(frozen=True, slots=True)
class Part:
    """One load that all subjects of its line-up get in turn. `on_disk` is what of it the disk does, by itself."""

    name: str
    title: str
    drive: Drive
    note: str = ""
    on_disk: OnDisk | None = None


@dataclass(slots=True)
class Outcome:
    """The figures of each subject, and each round as it was."""

    figures: dict[str, Figures]
    rounds: dict[str, list[dict[str, Any]]]


async def _plain(subject: Subject, seconds: float) -> Result:
    return await load.closed_loop(
        subject.target, connections=CONNECTIONS, seconds=seconds, warm_up_s=subject.warm_up_s, pids=subject.pids
    )


async def _burst(subject: Subject, seconds: float) -> Result:
    return await load.burst_streams(
        subject.target, connections=CONNECTIONS, seconds=seconds, warm_up_s=subject.warm_up_s, pids=subject.pids
    )


async def _open(subject: Subject, seconds: float) -> Result:
    return await load.open_loop(subject.target, rate_per_s=RATE_PER_S, seconds=seconds, pids=subject.pids)


async def _writes(folder: Path | None, seconds: float) -> Result:
    return await durable_writes(folder, rate_per_s=RATE_PER_S, seconds=seconds)


async def _paced(subject: Subject, seconds: float, *, streams: int, model: str) -> Result:
    target = replace(subject.target, model=model)
    return await load.paced_streams(target, streams=streams, seconds=seconds, pids=subject.pids)


OVER_TLS = "The certificate is verified; sessions are resumed as it comes."
NO_MONEY = (
    "A free call reads the lots but draws on none: no lot is changed, no charge enters the journal. Key, rate and\n"
    "  route are checked as ever; the hold (of nothing), the key's row and the usage record are written."
)
ON_DISK = (
    "The disk alone: a write as long as a hold's, and its fdatasync, at the same rate. No durable hold takes less."
)
PARTS = (
    Part("plain", "plain completions", _plain),
    Part("tls", "plain completions, upstream over TLS", _plain, OVER_TLS),
    Part("free", "plain completions, without money", _plain, NO_MONEY),
    Part("burst", f"streams of {EVENTS} events in a burst", _burst),
    Part("open", f"open loop, {RATE_PER_S} requests/s", _open, ON_DISK, _writes),
    Part("paced-100", "100 streams, an event each 5 ms", partial(_paced, streams=100, model="mock-stream-paced-5ms")),
    Part("paced-512", "512 streams, an event each 20 ms", partial(_paced, streams=512, model="mock-stream-paced-20ms")),
)


async def measure(
    part: Part, subjects: Sequence[Subject], *, seconds: float, rounds: int, store: Path | None
) -> Outcome:
    """All rounds of one part, the subjects in turn, each alone. `store` is the folder whose disk counts."""
    taken: dict[str, list[Result]] = {subject.name: [] for subject in subjects}
    bare: list[Result] = []
    for _ in range(rounds):
        for subject in subjects:
            taken[subject.name].append(await part.drive(subject, max(seconds, subject.least_s)))
            await quiet(subject.pids)
        if part.on_disk is not None:
            bare.append(await part.on_disk(store, seconds))
    figures = {name: _medians([_figures(each) for each in results]) for name, results in taken.items()}
    compare(figures)
    if bare:
        taken[DISK], figures[DISK] = bare, _medians([_figures(each) for each in bare])
    return Outcome(figures, {name: [asdict(each) for each in results] for name, results in taken.items()})


async def process(line_up: LineUp, upstream: Upstream, *, seconds: float, rounds: int) -> Outcome:
    """Memory before any load and after all of it (some is given here), and how long starting takes."""
    figures: dict[str, Figures] = {}
    for subject in line_up["process"]:
        await _plain(subject, seconds)
        await quiet(subject.pids)
        figures[subject.name] = {"idle_mb": subject.idle_mb, "loaded_mb": resident_mb(subject.pids[0])}
    seen = [await asyncio.to_thread(startup, upstream.url) for _ in range(rounds)]
    figures["penstock"] |= _medians(seen)
    return Outcome(figures, {"penstock": [dict(each) for each in seen]})


async def soak(subject: Subject, *, seconds: float) -> Outcome:
    """Plain completions for long, and how memory grows in the second half, when all that is kept should be there."""
    began = time.monotonic()
    driven = asyncio.create_task(_plain(subject, seconds))
    samples: list[tuple[float, float]] = []
    while not driven.done():
        samples.append((time.monotonic() - began, resident_mb(subject.pids[0])))
        await asyncio.wait((driven,), timeout=min(1.0, seconds / 20))
    late = samples[len(samples) // 2 :]
    slope = statistics.linear_regression([at for at, _ in late], [mb for _, mb in late]).slope
    figures = _figures(driven.result()) | {
        "loaded_mb": samples[-1][1],
        "mb_per_hour": slope * 3600,
        "grown_mb": slope * (late[-1][0] - late[0][0]),
    }
    return Outcome({subject.name: figures}, {subject.name: [{"seconds": at, "resident_mb": mb} for at, mb in samples]})


def compare(rows: dict[str, Figures]) -> None:
    """Add to each row what it is of nginx and of LiteLLM, core for core, and what it adds to no gateway."""
    for reference, figure in (("nginx", "of_nginx"), (LITELLM, "of_litellm")):
        base = rows.get(reference, {}).get("rate_per_core")
        for row in rows.values():
            if base and "rate_per_core" in row:
                row[figure] = row["rate_per_core"] / base
    for figure in ("p50_ms", "p99_ms"):
        base = rows.get("no gateway", {}).get(figure)
        for row in rows.values():
            if base and figure in row:
                row[f"added_{figure}"] = row[figure] - base


def _figures(result: Result) -> Figures:
    match result:
        case Throughput():
            figures = {"rate_per_s": result.rate_per_s}
            if result.cpu_s:
                limit = result.rate_per_s if result.cores >= BUSY_CORES else result.rate_per_cpu_s
                figures |= {"rate_per_cpu_s": result.rate_per_cpu_s, "cores": result.cores, "rate_per_core": limit}
        case Latency():
            figures = {"p50_ms": result.p50_ms, "p99_ms": result.p99_ms}
        case EventDelay():
            figures = {"events": result.events, "p50_ms": result.p50_ms, "p99_ms": result.p99_ms}
            figures |= {"longest_gap_ms": result.longest_gap_ms}
            if result.cpu_s:
                figures["cpu_us_per_event"] = result.cpu_us_per_event
    return figures | {"failures": result.failures}


def _medians(seen: Sequence[Figures]) -> Figures:
    """Medians, of what is a number; but every failure counts, and the longest gap is the longest."""
    together: Figures = {}
    for figure in seen[0]:
        values = [each[figure] for each in seen if not math.isnan(each.get(figure, math.nan))]
        if values:
            together[figure] = _WHOLE.get(figure, statistics.median)(values)
    return together


_WHOLE: dict[str, Callable[[Sequence[float]], float]] = {"failures": sum, "longest_gap_ms": max}
