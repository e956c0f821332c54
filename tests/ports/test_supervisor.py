"""The supervisor, with workers that do nothing but answer it: when one hangs or dies, another takes its place, also
in a rolling restart, in which these workers never come to the end of their calls.

What it does with workers that serve is in `tests/stories/test_workers.py`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from penstock import supervisor
from penstock.api import server
from penstock.api.listener import bind_apart
from penstock.channel import Channel
from penstock.cli import serving_process
from penstock.config import SecretSettings, ServerSettings, Settings
from penstock.db import groups, migrate, postgres
from penstock.supervisor import Supervisor, Worker, _Place
from tests.stories.caller import eventually
from tests.stories.gateway import NOWHERE
from tests.stories.process import ENVIRONMENT, START_S, configuration

WORKER = """
import asyncio, os, socket, sys
from penstock.channel import Channel

async def main():
    line = await Channel.on(socket.socket(fileno=int(sys.argv[1])))
    line.say("serving")
    with open(sys.argv[2], "a") as pids:
        print(os.getpid(), file=pids)
    while message := await line.hear():
        if message.word == "report":
            line.say("figures")

asyncio.run(main())
"""


@dataclass(frozen=True)
class Kept:
    """A supervisor at work. `log` has the process ids of its workers, a line each, if they are those of this file."""

    log: Path

    def started(self) -> list[int]:
        """The workers that have come to serve, in the order in which they came."""
        return [int(line) for line in self.log.read_text().splitlines()]

    async def newest(self, count: int) -> int:
        """Wait until so many have come to serve; the last of them."""

        async def look() -> bool:
            return len(self.started()) >= count

        await eventually(look)
        return self.started()[count - 1]


@asynccontextmanager
async def kept(
    folder: Path,
    settings: ServerSettings,
    command: Callable[[int, int, int], Sequence[str]] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> AsyncIterator[Kept]:
    """A supervisor of one worker, which must end in order when it is told to stop."""
    pids = folder / "pids"
    pids.touch()

    def idle(number: int, listener: int, line: int) -> Sequence[str]:
        return sys.executable, "-c", WORKER, str(line), str(pids)

    def reload() -> Settings:
        return Settings(secrets=SecretSettings(b"", b""), server=settings)

    (listener,) = bind_apart(settings, 1)
    place = _Place(1, listener)
    supervisor = Supervisor([place], settings, command or idle, environ, reload)
    running = asyncio.create_task(supervisor.run())
    try:
        yield Kept(pids)
    finally:
        supervisor.end()
        code = await running
    assert code == 0


def runs(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_a_worker_that_hangs_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "ASK_S", 0.2)
    async with kept(tmp_path, ServerSettings(port=0)) as workers:
        hung = await workers.newest(1)
        os.kill(hung, signal.SIGSTOP)
        await workers.newest(2)
        assert not runs(hung)
        assert await any_of(caplog, "hangs")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
async def test_a_new_worker_that_dies_or_hangs_is_replaced_while_the_one_before_it_still_has_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: signal.Signals
) -> None:
    monkeypatch.setattr(supervisor, "ASK_S", 0.2)
    async with kept(tmp_path, ServerSettings(port=0, grace_s=3_600)) as workers:
        old = await workers.newest(1)
        os.kill(os.getpid(), signal.SIGUSR2)
        successor = await workers.newest(2)
        os.kill(successor, how)
        another = await workers.newest(3)
        assert not runs(successor)
        assert runs(old)
    assert not runs(old)
    assert not runs(another)


async def test_a_worker_may_take_the_grace_time_that_it_has_read_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(supervisor, "SETTLE_S", 0.0)
    config = configuration(tmp_path, NOWHERE, grace_s=600)
    migrate.upgrade(f"sqlite:///{tmp_path}/penstock.db")  # which a supervisor does before it starts a worker

    async def serve(times: int) -> bool:
        return sum(record.getMessage().endswith("serves") for record in caplog.records) == times

    async with kept(tmp_path, ServerSettings(port=0, grace_s=0), serving_process.command(config, ""), ENVIRONMENT):
        await eventually(lambda: serve(1), patience_s=START_S)
        configuration(tmp_path, NOWHERE, grace_s=900)
        os.kill(os.getpid(), signal.SIGUSR2)
        await eventually(lambda: serve(2), patience_s=START_S)
        await eventually(lambda: any_of(caplog, "all 1 workers have been replaced"))
    assert not await any_of(caplog, "is killed")


def test_a_worker_whose_store_hangs_is_given_the_time_that_its_end_takes() -> None:
    cut_s = 1 + server.CUT_S  # after a grace time that is over
    store_s = groups.WAIT_S + groups.CLOSE_S + 3 * postgres.CONNECT_S  # chores that end, settlements, connections
    assert cut_s + store_s < supervisor.SETTLE_S
    assert groups.WRITE_S + groups.LOOK_S < server.CUT_S


async def any_of(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    """Whether something has been said with these words in it."""
    return any(words in record.getMessage() for record in caplog.records)


async def test_who_does_not_report_leaves_nothing_behind_when_figures_are_added_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "REPORT_S", 0.01)
    ours, theirs = socket.socketpair()
    channel = await Channel.on(ours)
    one = Supervisor([], ServerSettings(port=0), lambda *_: (), {}, lambda: None)  # type: ignore[arg-type, return-value]
    process = await asyncio.create_subprocess_exec("true")
    silent = Worker(1, process, channel, grace_s=1)
    silent.serving.set()
    one._workers.add(silent)
    before = asyncio.all_tasks()
    await one._sum()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    await process.wait()
    await channel.close()
    theirs.close()
