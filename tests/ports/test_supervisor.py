"""The supervisor, with a worker that does nothing but answer it: when that hangs, another one takes its place.

What it does with workers that serve is in `tests/stories/test_workers.py`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from penstock import supervisor
from penstock.api.listener import bind_apart
from penstock.config import ServerSettings, Settings
from penstock.supervisor import Supervisor, _Place
from tests.stories.caller import eventually

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


def reload() -> Settings:
    raise AssertionError("nobody asked for it")


async def test_a_worker_that_hangs_is_killed_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor, "ASK_S", 0.2)
    settings, pids = ServerSettings(port=0), tmp_path / "pids"
    pids.touch()

    def command(number: int, listener: int, line: int) -> Sequence[str]:
        return sys.executable, "-c", WORKER, str(line), str(pids)

    async def started() -> list[int]:
        return [int(line) for line in pids.read_text().splitlines()]

    async def replaced() -> bool:
        return (await started())[-1] != hung

    (listener,) = bind_apart(settings, 1)
    kept = asyncio.create_task(Supervisor([_Place(1, listener)], settings, command, os.environ, reload).run())
    hung = (await eventually(started))[-1]
    os.kill(hung, signal.SIGSTOP)
    await eventually(replaced)
    with pytest.raises(ProcessLookupError):
        os.kill(hung, 0)
    assert any("hangs" in record.getMessage() for record in caplog.records)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await kept == 0
