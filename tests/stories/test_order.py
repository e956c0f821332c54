"""GPU, then command line, then cloud, with the real things: a worker that dialled in, a command, a provider over HTTP.

What is scripted is what the worker's engine, the command and the cloud say. Each class has a model of its own, among
which `auto` chooses, over OpenAI's surface and over Anthropic's.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import pytest

from penstock.config import AutoSettings, ModelSettings, OfferSettings, PriceSettings, ProviderSettings
from tests.engines import only_on_sqlite
from tests.scripted_cli import Step, claude, claude_delta, lines, write_script
from tests.stories.caller import eventually, the_record
from tests.stories.gateway import ANTHROPIC, HELLO, ROUTER, Person, Running, events, running, settings_for
from tests.stories.process import Process
from tests.stories.workers import Calls, call_of, served, worker_process
from tests.upstream import Hang, ScriptedUpstream, Stream

pytestmark = only_on_sqlite  # who serves is decided in the process: the order is the same whatever keeps the books

PATHS = {"chat": f"{ROUTER}/chat/completions", "messages": f"{ANTHROPIC}/v1/messages"}
PRICE = {"gpu": 100, "cli": 200, "cloud": 300}  # nano-USD a token, in and out
SERVED_AS = {"gpu": "scripted", "cli": "sonnet", "cloud": "far-away"}  # the models' names at their providers
WORDS = ("Paid", " for", " ahead", " of", " time.")
COMMAND_TOKENS, UPSTREAM_TOKENS = 16 + 5, 7 + 5
FAILS: list[Step] = [{"err": "not logged in"}, {"exit": 1}]


@dataclass(frozen=True)
class Place:
    """A gateway with a command and a cloud; the engine is for whoever dials in. Calls are Ada's, on one surface."""

    gateway: Running
    ada: Person
    engine: ScriptedUpstream
    cloud: ScriptedUpstream
    script: Path
    path: str

    def command(self, *steps: Step) -> None:
        """What the command does from now on."""
        write_script(self.script, *steps)

    @asynccontextmanager
    async def worker(self) -> AsyncIterator[Process]:
        """A process before the engine, connected."""
        key = await self.gateway.key("worker", user=self.ada.user)
        async with worker_process(self.gateway.url, key.key, self.engine.base_url) as process:
            await served(self.gateway, model=SERVED_AS["gpu"])
            yield process

    async def ask(self) -> httpx2.Response:
        return await self.gateway.post(self.path, self.ada, body=self.body())

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[httpx2.Response]:
        headers = {"authorization": f"Bearer {self.ada.personal_key.key}"}
        body = self.body(stream=True)
        async with self.gateway.http.stream("POST", self.path, json=body, headers=headers) as answer:
            yield answer

    def body(self, **fields: Any) -> dict[str, Any]:
        return {"model": "auto", "max_tokens": 90, "messages": HELLO, **fields}

    async def records(self) -> list[tuple[str | None, str, int]]:
        """Who served, what, and for how much; the oldest first."""
        records = reversed(await self.gateway.usage(self.ada))
        return [(each.provider, each.model, each.amount) for each in records]


@pytest.fixture(params=PATHS)
async def place(
    request: pytest.FixtureRequest, store_url: str, tmp_path: Path, upstream: ScriptedUpstream
) -> AsyncIterator[Place]:
    script = tmp_path / "script.json"
    command = write_script(script, *claude(WORDS))
    base = settings_for(store_url, upstream=upstream.base_url)
    models = tuple(
        ModelSettings(
            f"{name}-model",
            offers=(OfferSettings(provider, SERVED_AS[name]),),
            price=PriceSettings(PRICE[name] * 10**6, PRICE[name] * 10**6),
        )
        for name, provider in (("cloud", "main"), ("cli", "command"), ("gpu", "gpus"))
    )
    cli = ProviderSettings("command", kind="cli", template="claude_code", command=command, queue=0)
    gpus = ProviderSettings("gpus", kind="worker")
    async with ScriptedUpstream() as engine, running(base) as gateway:
        ada = await gateway.person(usd="1")
        providers = (base.providers[0], replace(cli, accounts=(ada.account,)), gpus)
        more: dict[str, Any] = {"providers": providers, "models": models, "contracts": (), "auto": AutoSettings()}
        await gateway.gateway.reload(replace(base, **more))
        await gateway.office.hub.refresh()  # it has looked round, and knows that nobody is there
        yield Place(gateway, ada, engine, upstream, script, PATHS[request.param])


async def test_who_is_gone_or_fails_is_followed_by_the_next_class(place: Place) -> None:
    async with place.worker() as process:
        answers = [await place.ask()]
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0
    answers += [await place.ask()]
    place.command(*FAILS)
    answers += [await place.ask()]
    assert [answer.json()["model"] for answer in answers] == ["gpu-model", "cli-model", "cloud-model"]
    assert answers[-1].headers["x-penstock-route"].endswith("command:failed")
    assert await place.records() == [
        ("gpus", "gpu-model", UPSTREAM_TOKENS * 100),
        ("command", "cli-model", COMMAND_TOKENS * 200),
        ("main", "cloud-model", UPSTREAM_TOKENS * 300),
    ]
    spent = UPSTREAM_TOKENS * 400 + COMMAND_TOKENS * 200
    assert await place.gateway.nano(place.ada) == 10**9 - spent


async def test_while_the_command_is_busy_the_cloud_serves(place: Place, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    place.command({"wait": str(pipe)}, *claude(WORDS))
    first = asyncio.create_task(place.ask())

    async def runs() -> bool:
        return place.script.with_suffix(".seen").exists()

    await eventually(runs)
    assert (await place.ask()).json()["model"] == "cloud-model"
    await asyncio.to_thread(pipe.write_text, "go on")
    assert (await first).json()["model"] == "cli-model"
    assert await place.records() == [
        ("command", "cli-model", COMMAND_TOKENS * 200),
        ("main", "cloud-model", UPSTREAM_TOKENS * 300),
    ]


async def test_all_that_fails_before_the_first_token_is_one_record_of_who_served(place: Place) -> None:
    place.engine.usual = Calls(Hang())
    place.command(*FAILS)
    place.cloud.script(Stream(tokens=3))
    async with place.worker() as process, asyncio.TaskGroup() as group:
        group.create_task(killed_when_called(place, process))
        async with place.stream() as answer:
            came = events(await answer.aread())
    assert answer.headers["x-penstock-route"].startswith("main;attempts=3;class=cloud;why=class;after=gpus:")
    assert "cloud-model" in str(came[0])
    assert "error" not in str(came)
    (record,) = await place.gateway.usage(place.ada)
    assert (record.provider, record.model, record.attempts, record.amount) == ("main", "cloud-model", 3, (7 + 3) * 300)
    assert await place.gateway.nano(place.ada) == 10**9 - 10 * 300


async def killed_when_called(place: Place, process: Process) -> None:
    await call_of(place.engine)
    process.signal(signal.SIGKILL)


@pytest.mark.parametrize("name", ["gpu", "cli"])
async def test_a_failure_after_the_first_token_is_told_and_paid_and_nobody_else_is_asked(
    place: Place, name: str
) -> None:
    place.engine.usual = Calls(Stream(tokens=50, hold_after=1))
    place.command(*lines(claude_delta("Paid")), {"exit": 1})
    said: list[str] = []
    if name == "gpu":
        async with place.worker() as process, place.stream() as answer:
            async for line in answer.aiter_lines():
                said.append(line)
                if "Paid" in line:
                    process.signal(signal.SIGKILL)
    else:
        async with place.stream() as answer:
            said = [line async for line in answer.aiter_lines()]
    text = "\n".join(said)
    assert (answer.status_code, text.count("Paid")) == (200, 1)
    told = events(text)
    assert "error" in (told[-2] if told[-1] == "[DONE]" else told[-1])
    assert (told[-1] == "[DONE]") == (place.path == PATHS["chat"])
    record = await the_record(place.gateway, place.ada)
    assert (record.model, record.attempts, record.ended) == (f"{name}-model", 1, "upstream_failed")
    assert record.output_tokens == 1
    assert record.amount == (record.input_tokens + 1) * PRICE[name]
    assert place.cloud.requests == []
    assert await place.gateway.nano(place.ada) == 10**9 - record.amount
