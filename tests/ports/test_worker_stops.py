"""Workers that are told to stop before they serve, and what an engine says that nobody understands."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from penstock.hub.dialer import Dialer
from penstock.hub.messages import ModelOffer, Offer
from penstock.ports import Answer, Call
from penstock.toolbox import worker as tools_worker
from penstock.toolbox.settings import ToolsSettings
from penstock.toolbox.source import Toolbox
from penstock.worker import worker as gpu_worker
from tests.stories.caller import PATIENCE_S

NOWHERE = "http://127.0.0.1:1"


class Slow:
    """An engine, or a toolbox, that is never ready. `seen` is what became of it."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.seen: list[str] = []

    async def start(self) -> None:
        self.begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)  # ending takes a while
            self.seen.append("start ended")

    async def look(self) -> Offer:
        raise AssertionError

    async def open(self, call: Call) -> Answer:
        raise AssertionError

    async def close(self) -> None:
        self.seen.append("closed")

    @asynccontextmanager
    async def toolbox(self, settings: ToolsSettings, changed: Callable[[], None]) -> AsyncIterator[Toolbox]:
        await self.start()
        yield Toolbox([])


async def stopped(work: Coroutine[Any, Any, None], slow: Slow, number: signal.Signals) -> None:
    """Let the worker begin to start, send its process a signal, and wait for its end."""
    working = asyncio.create_task(work)
    try:
        await slow.begun.wait()
        os.kill(os.getpid(), number)
        await asyncio.wait_for(asyncio.shield(working), PATIENCE_S / 4)
    finally:
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_worker_stops_while_its_engine_starts(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    monkeypatch.setattr(gpu_worker, "engine_of", lambda *_, **__: slow)
    await stopped(gpu_worker.work(gpu_worker.Options(NOWHERE, "key", "model.gguf")), slow, number)
    assert slow.seen == ["start ended", "closed"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_tools_worker_stops_while_its_tools_start(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Slow()
    monkeypatch.setattr(tools_worker, "open_toolbox", slow.toolbox)
    await stopped(tools_worker.work(tools_worker.Options(NOWHERE, "key", ToolsSettings())), slow, number)
    assert slow.seen == ["start ended"]


async def test_an_engine_that_says_what_nobody_understands_is_looked_at_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    offer = Offer(1, (ModelOffer("mine"),))

    class Odd(Slow):
        async def look(self) -> Offer:
            self.seen.append("looked")
            if len(self.seen) == 1:
                raise TypeError
            return offer

    async def nothing(job: object) -> None:
        raise AssertionError

    monkeypatch.setattr(gpu_worker, "LOOK_S", 0.01)
    dialer = Dialer(NOWHERE, gpu_worker.CONNECT, "key", Offer(), nothing, agent="test")
    watching = asyncio.create_task(gpu_worker.watch(Odd(), dialer))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while dialer.offer != offer and not watching.done():  # noqa: ASYNC110 -- nothing announces it
                await asyncio.sleep(0.01)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    assert dialer.offer == offer
    assert "not understood" in caplog.text
