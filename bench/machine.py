"""What the machine does by itself, at the moment: a step of plain Python, a read from memory, and a write that outlives
a power cut.

Shared machines vary from hour to hour. So a run says what it ran on: figures of two runs may be compared when these are
alike. A call that comes alone finds little of what it needs in the caches, so it is as slow as memory is; and no
gateway that keeps a hold durable adds less than the write.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from array import array
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.load import Latency, percentiles
from bench.processes import OWN_CORE, pinned

HOLD_BYTES = 3 * (24 + 4096)  # what a hold that is alone adds to SQLite's log: three pages with their heads
LOG_BYTES = 16 * 1024 * 1024  # the log is written again from its start when it is so long, so it does not grow
NEAR, FAR = 2**8, 2**22  # places: 1 KiB, and 16 MiB, which is more than one core has of the caches
STEPS = 300_000
ROUNDS = 3
PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Nanoseconds for a step of a plain Python loop, and for a read of what is in no cache."""

    step_ns: float
    read_ns: float


def pace() -> Pace:
    """That of the core of what is measured."""
    done = subprocess.run(_command("pace"), stdout=subprocess.PIPE, timeout=PATIENCE_S, check=True)
    return Pace(**json.loads(done.stdout))


async def durable_writes(folder: Path | None, *, rate_per_s: float, seconds: float) -> Latency:
    """Writes of a hold's size, each synced, at a constant rate, on the core of what is measured."""
    options = ["--folder", str(folder)] if folder else []
    command = _command("write", *options, "--rate", str(rate_per_s), "--seconds", str(seconds))
    done = await asyncio.to_thread(
        subprocess.run, command, stdout=subprocess.PIPE, timeout=seconds + PATIENCE_S, check=True
    )
    return Latency(**json.loads(done.stdout))


def _command(*arguments: str) -> list[str]:
    return pinned([sys.executable, "-m", "bench.machine", *arguments], OWN_CORE)


def _pace() -> Pace:
    """The best of a few: what it takes when nothing else runs."""
    near, far = _walk(NEAR), _walk(FAR)
    step_ns = min(_walk_ns(near) for _ in range(ROUNDS))
    return Pace(step_ns, min(_walk_ns(far) for _ in range(ROUNDS)) - step_ns)


def _walk(places: int) -> array[int]:
    """Where to go from each place, so that all are visited (Hull and Dobell) and no next one can be guessed."""
    return array("I", [(place * 1_664_525 + 1_013_904_223) % places for place in range(places)])


def _walk_ns(walk: array[int]) -> float:
    place, began = 0, time.perf_counter_ns()
    for _ in range(STEPS):
        place = walk[place]
    return (time.perf_counter_ns() - began) / STEPS


def _durable_writes(folder: Path | None, *, rate_per_s: float, seconds: float) -> Latency:
    piece, spans_s = os.urandom(HOLD_BYTES), []
    with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
        file.write(bytes(LOG_BYTES))
        os.fsync(file)
        began = time.perf_counter()
        for turn in range(round(rate_per_s * seconds)):
            time.sleep(max(0.0, began + turn / rate_per_s - time.perf_counter()))
            before = time.perf_counter()
            os.pwrite(file.fileno(), piece, turn * HOLD_BYTES % (LOG_BYTES - HOLD_BYTES))
            os.fdatasync(file.fileno())
            spans_s.append(time.perf_counter() - before)
    return Latency(len(spans_s), 0, *percentiles(sorted(spans_s), 1e3), cpu_s=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.machine", description=__doc__)
    parser.add_argument("what", choices=("pace", "write"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=1.0)
    given = parser.parse_args()
    if given.what == "pace":
        print(json.dumps(asdict(_pace())))
    else:
        print(json.dumps(asdict(_durable_writes(given.folder, rate_per_s=given.rate, seconds=given.seconds))))


if __name__ == "__main__":
    main()
