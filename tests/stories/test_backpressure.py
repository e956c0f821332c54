"""A caller that stops reading: its upstream has to wait, memory does not grow, and nobody else notices."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

import pytest

from penstock.config import Settings
from tests.stories.caller import Caller, calling, the_record
from tests.stories.gateway import LLAMA, ROUTER, Running, running, settings_for, with_provider
from tests.upstream import Exchange, ScriptedUpstream, Stream

DONE = b"data: [DONE]\n\n"
MB = 1024 * 1024
EVENTS, EVENT_BYTES = 800, 128 * 1024  # 100 MB: far more than all the sockets on the way take in
WORD = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"Hi"}}],"padding":"%s"}\n\n' % (
    b"x" * EVENT_BYTES
)
LAST = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
MOST_IN_SOCKETS = 32 * MB  # the kernel grows the buffers of a connection on loopback to about 10 MB
SMALL_BUFFER = 8 * 1024


@dataclass(frozen=True)
class Flood:
    """Large events as fast as they are taken; `stuck` is set whenever one is not taken at once. Then silence."""

    stuck: asyncio.Event = field(default_factory=asyncio.Event)
    resume: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, exchange: Exchange) -> None:
        await exchange.stream_head(())
        for _ in range(EVENTS):
            writing = asyncio.ensure_future(exchange.event(WORD))
            await asyncio.sleep(0)
            if not writing.done():
                self.stuck.set()
            await writing
        await self.resume.wait()
        await exchange.event(LAST + DONE)
        await exchange.end()


@dataclass(frozen=True)
class Boulder:
    """One event of 7 MB, then silence."""

    async def play(self, exchange: Exchange) -> None:
        await exchange.stream_head(())
        await exchange.event(WORD.replace(b"xx", b"x" * 112))
        await asyncio.Event().wait()


@pytest.fixture
def settings(store_url: str, upstream: ScriptedUpstream) -> Settings:
    settings = settings_for(store_url, upstream=upstream.base_url)
    return replace(settings, server=replace(settings.server, keepalive_comment_s=0.05))


@pytest.fixture
async def slow(gateway: Running) -> AsyncIterator[Caller]:
    """A connection that takes in next to nothing until it is read."""
    async with calling(gateway.url, receive_buffer=SMALL_BUFFER) as caller:
        yield caller


async def test_the_upstream_waits_for_a_slow_reader_and_others_do_not(
    gateway: Running, upstream: ScriptedUpstream, slow: Caller
) -> None:
    ada = await gateway.person(usd="1")
    flood = Flood()
    upstream.script(flood)
    tracemalloc.start()
    try:
        await slow.ask(ROUTER, ada, stream=True)
        received = await upstream.arrival(1)
        await flood.stuck.wait()
        for _ in range(50):
            assert (await gateway.chat(ROUTER, ada, stream=True)).text.endswith("data: [DONE]\n\n")
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert received.events.value * EVENT_BYTES < MOST_IN_SOCKETS
    assert most_bytes < 8 * MB
    slow.hang_up()
    await received.over.wait()
    assert received.aborted_at is not None


async def test_a_slow_reader_gets_everything_in_the_end(
    gateway: Running, upstream: ScriptedUpstream, slow: Caller
) -> None:
    ada = await gateway.person(usd="1")
    flood = Flood()
    upstream.script(flood)
    flood.resume.set()
    await slow.ask(ROUTER, ada, stream=True)
    await flood.stuck.wait()
    assert (await slow.head()).status == 200
    size = 0
    while (event := await slow.event()) != DONE:
        size += len(event)
    assert size == EVENTS * (len(WORD) - 1 + len(LLAMA)) + len(LAST) - 1 + len(LLAMA)
    assert (await the_record(gateway, ada)).output_tokens == EVENTS


async def test_a_reader_that_takes_nothing_keeps_no_other_stream_from_its_comments(
    gateway: Running, upstream: ScriptedUpstream, slow: Caller
) -> None:
    """One event fills all there is between the two; then its upstream is silent, and no comment can be written."""
    ada = await gateway.person(usd="1")
    quiet = Stream(tokens=2, hold_after=1)
    upstream.script(Boulder(), quiet)
    await slow.ask(ROUTER, ada, stream=True)
    await slow.head()
    async with calling(gateway.url) as other:
        await other.ask(ROUTER, ada, stream=True)
        await other.head()
        await other.event()
        for _ in range(3):
            assert await other.event() == b": keep-alive\n\n"
        quiet.resume.set()
        assert [event for event in await other.events() if event.startswith(b"data")][-1] == DONE


async def test_a_reader_that_takes_nothing_for_too_long_counts_as_gone(
    gateway: Running, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.relay.stream.LONGEST_STALL_S", 0.2)  # in place of a minute
    ada = await gateway.person(usd="1")
    upstream.script(Flood())
    async with calling(gateway.url, receive_buffer=SMALL_BUFFER) as caller:
        await caller.ask(ROUTER, ada, stream=True)
        record = await the_record(gateway, ada)
    assert (record.ended, record.status) == ("caller_gone", 499)
    assert await gateway.nano(ada) < 1_000_000_000


async def test_who_reads_nothing_any_more_is_drained_as_who_hangs_up(
    settings: Settings, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.relay.stream.LONGEST_STALL_S", 0.2)
    flood = Flood()
    flood.resume.set()
    async with running(with_provider(settings, "main", on_cancel="drain")) as gateway:
        ada = await gateway.person(usd="1")
        upstream.script(flood)
        async with calling(gateway.url, receive_buffer=SMALL_BUFFER) as caller:
            await caller.ask(ROUTER, ada, stream=True)
            record = await the_record(gateway, ada)
        assert (record.ended, record.status, record.output_tokens) == ("caller_gone", 499, EVENTS)
        assert (await upstream.arrival(1)).finished
