"""The command that a worker runs as its engine: nothing of it is left behind, and it is started whenever it can be."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from penstock.errors import ConfigError
from penstock.worker import engine
from penstock.worker.engine import CommandEngine
from tests.stories.caller import eventually
from tests.stories.process import ended

# A command with a child that SIGTERM does not end. Both say their number in a file.
STUBBORN = """
import os, signal, subprocess, sys, time
if len(sys.argv) == 4:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    subprocess.Popen([sys.executable, *sys.argv, "child"])
with open(sys.argv[1], "a") as file:
    print(os.getpid(), file=file, flush=True)
time.sleep(60)
"""


async def started(file: Path, count: int) -> list[int]:
    """The processes that have said their number, once there are so many."""

    async def look() -> list[int]:
        numbers = [int(line) for line in file.read_text().splitlines()] if file.exists() else []  # noqa: ASYNC240
        return numbers if len(numbers) >= count else []

    return await eventually(look)


@pytest.fixture
def stubborn(tmp_path: Path) -> CommandEngine:
    (tmp_path / "engine.py").write_text(STUBBORN)
    words = [sys.executable, str(tmp_path / "engine.py"), str(tmp_path / "started"), "{port}"]
    return CommandEngine(words, key=None, slots=None)


async def test_what_an_engine_has_begun_ends_with_it_when_the_worker_does(
    stubborn: CommandEngine, tmp_path: Path
) -> None:
    await stubborn.start()
    both = await started(tmp_path / "started", 2)
    await stubborn.close()
    for pid in both:
        await eventually(partial(ended, pid))


async def test_what_an_engine_has_begun_ends_with_it_before_it_is_started_again(
    stubborn: CommandEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "FIRST_PAUSE_S", 0.05)
    await stubborn.start()
    try:
        first = await started(tmp_path / "started", 2)
        leader = next(pid for pid in first if os.getpgid(pid) == pid)
        os.kill(leader, signal.SIGKILL)
        await started(tmp_path / "started", 4)
        for pid in first:
            await eventually(partial(ended, pid))
    finally:
        await stubborn.close()


async def test_an_engine_that_is_no_command_is_a_mistake_and_not_tried_for_ever() -> None:
    with pytest.raises(ConfigError, match="no such command"):
        await CommandEngine(["/no/such/command", "{port}"], key=None, slots=None).start()


async def test_an_engine_that_is_away_for_a_while_is_started_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine, "FIRST_PAUSE_S", 0.02)
    command, away = tmp_path / "engine", tmp_path / "away"
    command.write_text(f'#!/bin/sh\necho $$ >> {tmp_path}/started\nmv "$0" {away}\n')
    command.chmod(0o755)
    kept = CommandEngine([str(command), "{port}"], key=None, slots=None)
    await kept.start()
    try:
        await eventually(lambda: said("no such command", caplog))
        away.rename(command)
        await started(tmp_path / "started", 2)
    finally:
        await kept.close()


async def said(text: str, caplog: pytest.LogCaptureFixture) -> bool:
    """Whether the log has it."""
    return text in caplog.text
