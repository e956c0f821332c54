"""GPU workers for stories: the worker's own code in the test's event loop, a real process, or a peer that speaks raw.

async with running(with_workers(settings_for(store_url))) as gateway:
    key = await gateway.key("worker", user=ada.user)
    async with worker(gateway, key.key, upstream.base_url): ...           # a `Dialer`, connected
    async with worker_process(gateway.url, key.key, upstream.base_url): ...
    async with raw_peer(gateway, key.key) as peer: ...                    # says what it is told
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from penstock.config import ModelSettings, OfferSettings, PriceSettings, ProviderSettings, Settings
from penstock.hub.dialer import Dialer
from penstock.hub.messages import ModelOffer, Offer
from penstock.worker.engine import HttpEngine
from penstock.worker.worker import CONNECT, Forward
from tests.stories.caller import PATIENCE_S, eventually
from tests.stories.gateway import Running
from tests.stories.process import ENVIRONMENT, Process
from tests.upstream import Exchange, Received, Script, ScriptedUpstream, Usual

MODEL = "mine"
INPUT, OUTPUT = 100, 2_000  # nano-USD a token


def with_workers(settings: Settings, *models: str, **changes: Any) -> Settings:
    """The settings with one provider, which is whoever dials in, and these models of it (`mine` when none is named)."""
    price = PriceSettings(INPUT * 10**6, OUTPUT * 10**6)
    offered = tuple(ModelSettings(id, offers=(OfferSettings("gpus", id),), price=price) for id in models or (MODEL,))
    return replace(
        settings, providers=(ProviderSettings("gpus", kind="worker", **changes),), models=offered, contracts=()
    )


async def served(gateway: Running, *, model: str = MODEL) -> None:
    """Wait until a worker, here or elsewhere, serves the model."""
    hub = gateway.office.hub

    async def look() -> bool:
        return any(offer.serves(model) for offer in hub.offers("worker"))

    await eventually(look)


@asynccontextmanager
async def worker(
    gateway: Running, key: str, engine: str, *, slots: int = 4, models: tuple[str, ...] = (MODEL,)
) -> AsyncIterator[Dialer]:
    """A worker with an engine at this URL, connected; afterwards its jobs are done and it has left."""
    offer = Offer(slots, tuple(ModelOffer(id) for id in models))
    http = HttpEngine(engine)
    dialer = Dialer(gateway.url, CONNECT, key, offer, Forward(http), agent="tests")
    task = asyncio.create_task(dialer.run())
    try:
        async with asyncio.timeout(PATIENCE_S):
            await dialer.connected.wait()
        yield dialer
    finally:
        dialer.drain()
        await task
        await http.close()


@asynccontextmanager
async def worker_process(url: str, key: str, engine: str, *words: str) -> AsyncIterator[Process]:
    """`penstock worker`, connected; killed at the end if it still runs."""
    started = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "penstock", "worker", "--gateway", url, "--engine", engine, *words),
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT | {"PENSTOCK_WORKER_KEY": key},
        cwd=Path(__file__).parents[2],
    )
    process = Process(started)
    listening = asyncio.create_task(process.listen())
    try:
        await process.said("connected to the gateway")
        yield process
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()
        await listening


class RawPeer:
    """A connection that says exactly what it is told."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    async def say(self, **message: Any) -> None:
        await self.socket.send(json.dumps(message))

    async def hello(self, *, slots: int = 1, model: str = MODEL) -> None:
        """Be welcomed."""
        offer = {"type": "offer", "slots": slots, "models": [{"id": model}]}
        await self.say(type="hello", version=1, offer=offer)
        assert (await self.hear())["type"] == "welcome"

    async def hear(self) -> Any:
        """The next control message."""
        while isinstance(frame := await self.socket.recv(), bytes):
            pass
        return json.loads(frame)

    async def job(self) -> int:
        """The number of the next job it is given."""
        told = await self.hear()
        assert told["type"] == "job"
        number: int = told["job"]
        return number

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait to be hung up on: the code and the reason."""
        await self.socket.wait_closed()
        return self.socket.close_code, self.socket.close_reason


@asynccontextmanager
async def raw_peer(gateway: Running | Process, key: str) -> AsyncIterator[RawPeer]:
    """Connected, and silent yet."""
    url = gateway.url.replace("http:", "ws:") + CONNECT
    async with connect(url, additional_headers={"authorization": f"Bearer {key}"}, proxy=None) as socket:
        yield RawPeer(socket)


@dataclass(frozen=True)
class Calls:
    """What an engine does with calls; what a worker asks to know what it serves is answered as usual."""

    script: Script

    async def play(self, exchange: Exchange) -> None:
        kind: Script = self.script if exchange.received.method == "POST" else Usual()
        await kind.play(exchange)


async def call_of(upstream: ScriptedUpstream, number: int = 1) -> Received:
    """The call of that number that came to an engine, counted from 1, once it is there."""

    async def look() -> Received | None:
        calls = [each for each in upstream.requests if each.method == "POST"]
        return calls[number - 1] if len(calls) >= number else None

    found = await eventually(look)
    assert found is not None
    return found
