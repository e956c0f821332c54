"""HTTP/1.1 as a serving process speaks it on the hot path: connections are kept, pipelined, and asked to continue.

The process runs as installed, without a configuration file: its built-in model answers.
"""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from tests.stories.caller import Caller, calling, data, request
from tests.stories.gateway import HELLO, ROUTER, ROUTER_V1, Person, running
from tests.stories.process import Process, serving_process, settings_of

DEMO: dict[str, Any] = {"model": "penstock/demo", "max_tokens": 8}
CONFIG = """
[server]
port = 0
[store]
url = "{store_url}"
[providers.demo]
kind = "demo"
[[models]]
id = "penstock/demo"
offers = [{{ provider = "demo" }}]
price = {{ input = 0.10, output = 0.40 }}
"""


@pytest.fixture
def config(tmp_path: Path, store_url: str) -> Path:
    path = tmp_path / "penstock.toml"
    path.write_text(CONFIG.format(store_url=store_url))
    return path


@pytest.fixture
async def ada(config: Path) -> Person:
    async with running(settings_of(config)) as gateway:
        return await gateway.person(usd="1")


@pytest.fixture
async def process(config: Path, ada: Person) -> AsyncIterator[Process]:
    async with serving_process(config) as process:
        yield process
        process.signal(signal.SIGTERM)
        assert await process.ended() == 0


async def test_one_connection_serves_many_calls_whatever_becomes_of_them(process: Process, ada: Person) -> None:
    async with calling(process.url) as caller:
        for stream in (False, True, False, True):
            await caller.ask(ROUTER, ada, **DEMO, stream=stream)
            assert (await caller.head()).status == 200
            assert await caller.body()
        await caller.ask(ROUTER, ada, model="no such model")
        assert (await caller.head()).status == 404
        await caller.body()
        await caller.send(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await caller.head()).status == 200
        await caller.body()
        await pipelined_calls_are_answered_in_order(caller, ada)
        await a_call_is_asked_to_continue(caller, ada)
        await a_call_without_a_length_is_served(caller, ada)
        await caller.ask(ROUTER, ada, **DEMO, headers={"connection": "close"})
        assert (await caller.head()).headers["connection"] == "close"
        await caller.body()
        assert await caller.closed()


async def pipelined_calls_are_answered_in_order(caller: Caller, ada: Person) -> None:
    """Three calls in one packet: a stream, a plain one and one that is refused."""
    first = request(ROUTER, ada, **DEMO, stream=True)
    second = request(ROUTER, ada, model="penstock/demo", max_tokens=3)
    third = request(ROUTER, ada, model="no such model")
    await caller.send(first + second + third)
    assert (await caller.head()).headers["content-type"] == "text/event-stream"
    *words, done = await caller.events()
    assert done == b"data: [DONE]\n\n"
    assert sum(1 for word in words if data(word)["choices"][0]["delta"].get("content")) == 8
    assert (await caller.head()).status == 200
    assert json.loads(await caller.body())["usage"]["completion_tokens"] == 3
    assert (await caller.head()).status == 404
    await caller.body()


async def a_call_is_asked_to_continue(caller: Caller, ada: Person) -> None:
    head, _, body = request(ROUTER, ada, **DEMO, headers={"expect": "100-continue"}).partition(b"\r\n\r\n")
    await caller.send(head + b"\r\n\r\n")
    assert (await caller.head()).status == 100
    await caller.send(body)
    assert (await caller.head()).status == 200
    await caller.body()


async def a_call_without_a_length_is_served(caller: Caller, ada: Person) -> None:
    """A body in chunks, cut anywhere."""
    head, _, body = request(ROUTER, ada, **DEMO).partition(b"\r\n\r\n")
    lines = [line for line in head.split(b"\r\n") if not line.startswith(b"content-length")]
    await caller.send(b"\r\n".join([*lines, b"transfer-encoding: chunked"]) + b"\r\n\r\n")
    for start in range(0, len(body), 30):
        piece = body[start : start + 30]
        await caller.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    await caller.send(b"0\r\n\r\n")
    assert (await caller.head()).status == 200
    await caller.body()


async def test_a_burst_of_the_official_sdk_is_served_and_charged_to_the_last_token(
    process: Process, config: Path, ada: Person
) -> None:
    url, key = process.url + ROUTER_V1, ada.personal_key.key
    async with AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=60) as client:

        async def streamed() -> int:
            wish = DEMO | {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}}
            chunks = [chunk async for chunk in await client.chat.completions.create(**wish)]
            return int(chunks[-1].usage.total_tokens)

        async def plain() -> int:
            answer = await client.chat.completions.create(**DEMO, messages=HELLO)
            return int(answer.usage.total_tokens)

        totals = await asyncio.gather(*(call() for _ in range(20) for call in (streamed, plain)))
    async with running(settings_of(config)) as gateway:
        records = await gateway.usage(ada)
        assert sorted(record.total_tokens for record in records) == sorted(totals)
        assert await gateway.nano(ada) == 10**9 - sum(record.amount for record in records)
        assert {record.ended for record in records} == {"answer"}
