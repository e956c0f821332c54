"""Processes on a core of their own: starting them, knowing when they serve, what /proc says of them, stopping them.

What they are and what is asked of them is none of this module's business.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.load import cpu_seconds

LOAD_CORE, OWN_CORE = 0, 1
START_S = 60.0  # LiteLLM takes 12 s on an idle core
STOP_S = 30.0
QUIET_S = 10.0
QUIET_SHARE = 0.1  # of a core, over a moment that is ten of /proc's steps long
MOMENT_S = 0.1


@contextmanager
def announced(command: Sequence[str], core: int) -> Iterator[tuple[int, str]]:
    """A process that says on its first line when it is ready: its id and that line. What it says later is dropped."""
    process = subprocess.Popen(pinned(command, core), stdout=subprocess.PIPE, stderr=sys.stderr, text=True)
    assert process.stdout is not None
    with stopped_in_the_end(process):
        with patience(process):
            line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(command)} did not start")
        # It ends when the process has: what nobody reads would keep the process from ending.
        with subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL):
            process.stdout.close()
            with stopped_in_the_end(process):
                yield process.pid, line


@contextmanager
def listening(
    command: Sequence[str], core: int, *, port: int, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[int]:
    """A process that does not say when it is ready: its id, once something listens on its port. It writes to `log`."""
    with log.open("wb") as output:
        process = subprocess.Popen(pinned(command, core), stdout=output, stderr=output, cwd=log.parent, env=environment)
    with stopped_in_the_end(process):
        until = time.monotonic() + START_S
        while not _accepts(port):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{command[0]} did not start:\n{log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)
        yield process.pid


@contextmanager
def stopped_in_the_end(process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(STOP_S)
        finally:
            process.kill()


@contextmanager
def patience(process: subprocess.Popen[str]) -> Iterator[None]:
    """Within this block the process is killed after START_S, so that reading from it ends."""
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def pinned(command: Sequence[str], core: int) -> list[str]:
    """The command, to run on that core; the process keeps its id."""
    return ["taskset", "-c", str(core), *command]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def resident_mb(pid: int) -> float:
    """What of the process is in memory, in millions of bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(f"{pid} has no memory: it has ended")


async def quiet(pids: Sequence[int]) -> None:
    """Wait until these processes have nothing to do any more; for QUIET_S at most, which is then as it is."""
    until = time.monotonic() + QUIET_S
    while pids and time.monotonic() < until:
        before = cpu_seconds(pids)
        await asyncio.sleep(MOMENT_S)
        if cpu_seconds(pids) - before <= QUIET_SHARE * MOMENT_S:
            return


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
    except OSError:
        return False
    return True
