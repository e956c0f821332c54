"""Streams pass through as they come: at once, byte for byte, and settled before they are said to be done."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.stories.caller import calling, data
from tests.stories.gateway import LLAMA, ROUTER, TRUST, Running, running, settings_for
from tests.upstream import Exchange, ScriptedUpstream, Stream

DONE = b"data: [DONE]\n\n"
LLAMA_INPUT, LLAMA_OUTPUT = 590, 790  # nano-USD a token

PECULIAR = [
    b": OPENROUTER PROCESSING\n\n",
    b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk","created":1,"model":"llama-upstream","choices":'
    b'[{"index":0,"delta":{"role":"assistant","content":"One"},"finish_reason":null,"vendor":[1.50,{"a":null}]}]}\n\n',
    b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk","created":1,"model":"llama-upstream","choices":'
    b'[{"index":0,"delta":{"content":" t\\u0077o \xc3\xa9"}}],"timings":  {"ms":1e-3},"x":"llama-upstream"}\n\n',
    b"event: note\nid: 7\ndata: not JSON at all\n\n",
    b'data:{"model":"llama-upstream","id":"chatcmpl-9","choices":[{"delta":{"content":"!"},"index":0}]}\n\n',
    b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk","created":1,"model":"llama-upstream","choices":'
    b'[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n',
]
USAGE = (
    b'data: {"id":"chatcmpl-9","object":"chat.completion.chunk","created":1,"model":"llama-upstream","choices":[],'
    b'"usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"queue_time":0.25}}\n\n'
)


@dataclass(frozen=True)
class Pieces:
    """Exactly these bytes as a stream, each piece a write of its own with other work done in between."""

    pieces: Sequence[bytes]

    async def play(self, exchange: Exchange) -> None:
        await exchange.stream_head(())
        for piece in self.pieces:
            await exchange.event(piece)
            await asyncio.sleep(0)
        await exchange.end()


def renamed(event: bytes, model: str) -> bytes:
    """The event with the model's name swapped, in the one place where it is the model's name."""
    return event.replace(b'"model":"llama-upstream"', b'"model":"%s"' % model.encode())


async def test_the_first_event_reaches_the_caller_before_the_second_is_sent(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    held = Stream(tokens=3, hold_after=1)
    upstream.script(held)
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, stream=True)
        head = await caller.head()
        first = await caller.event()
        assert data(first)["choices"][0]["delta"]["content"] == "Paid"
        assert (await upstream.arrival(1)).events.value == 1
        held.resume.set()
        assert (await caller.events())[-1] == DONE
    assert head.status == 200
    assert head.headers["content-type"] == "text/event-stream"
    assert head.headers["cache-control"] == "no-cache"
    assert head.headers["x-accel-buffering"] == "no"
    assert head.headers["x-penstock-route"] == "main;attempts=1;class=cloud;why=only"


@pytest.mark.parametrize(
    "cut",
    [
        pytest.param(lambda stream: [stream], id="all in one packet"),
        pytest.param(lambda stream: [stream[i : i + 1] for i in range(len(stream))], id="byte by byte"),
        pytest.param(lambda stream: [stream[i : i + 83] for i in range(0, len(stream), 83)], id="at odd places"),
    ],
)
async def test_events_pass_byte_for_byte_but_for_the_models_name(
    gateway: Running, upstream: ScriptedUpstream, cut: Any
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Pieces(cut(b"".join(PECULIAR) + USAGE + DONE)))
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, stream=True, model="llama-70b")
        await caller.head()
        passed = await caller.body()
    assert passed == b"".join(renamed(event, "llama-70b") for event in PECULIAR) + DONE
    (record,) = await gateway.usage(ada)
    assert (record.input_tokens, record.output_tokens, record.estimated, record.ended) == (5, 3, False, "answer")


async def test_on_the_trust_surface_the_id_is_swapped_as_well(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Pieces([*PECULIAR, USAGE, DONE]))
    async with calling(gateway.url) as caller:
        await caller.ask(TRUST, ada, stream=True)
        await caller.head()
        passed = await caller.body()
    assert passed == b"".join(renamed(e, LLAMA).replace(b"chatcmpl-9", b"cmpl-9") for e in PECULIAR) + DONE


@pytest.mark.parametrize("line_end", [b"\r\n", b"\r"], ids=["CRLF", "CR"])
async def test_other_line_ends_pass_too(gateway: Running, upstream: ScriptedUpstream, line_end: bytes) -> None:
    ada = await gateway.person(usd="1")
    events = [event.replace(b"\n", line_end) for event in PECULIAR]
    upstream.script(Pieces([b"".join([*events, USAGE.replace(b"\n", line_end), DONE.replace(b"\n", line_end)])]))
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, stream=True)
        await caller.head()
        passed = await caller.body()
    assert passed == b"".join(renamed(event, LLAMA) for event in events) + DONE
    assert (await gateway.usage(ada))[0].total_tokens == 8


@pytest.mark.parametrize("asked", [True, False])
async def test_usage_is_always_asked_for_and_shown_to_who_asked(
    gateway: Running, upstream: ScriptedUpstream, asked: bool
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Pieces([*PECULIAR, USAGE, DONE]))
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, stream=True, stream_options={"include_usage": asked, "extra": 1})
        await caller.head()
        passed = await caller.body()
    assert upstream.requests[0].json["stream_options"] == {"include_usage": True, "extra": 1}
    assert passed.endswith((renamed(USAGE, LLAMA) if asked else renamed(PECULIAR[-1], LLAMA)) + DONE)


@pytest.mark.parametrize("usage", ["asked", "always", "last", "every", "never"])
async def test_whatever_way_usage_comes_the_charge_is_exact(
    gateway: Running, upstream: ScriptedUpstream, usage: Any
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=40, usage=usage))
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, stream=True, stream_options={"include_usage": True})
        await caller.head()
        *words, last, done = await caller.events()
    told = data(last)["usage"]
    (record,) = await gateway.usage(ada)
    assert done == DONE
    assert (told["completion_tokens"], record.output_tokens) == (40, 40)
    assert told["prompt_tokens"] == record.input_tokens
    assert record.estimated == (usage == "never")
    assert record.amount == record.input_tokens * LLAMA_INPUT + 40 * LLAMA_OUTPUT
    assert sum(1 for word in words if data(word)["choices"][0]["delta"].get("content")) == 40


async def test_when_the_stream_says_done_it_is_in_the_balance(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=40))
    async with calling(gateway.url) as caller, calling(gateway.url) as watcher:
        await caller.ask(ROUTER, ada, stream=True)
        await caller.head()
        while await caller.event() != DONE:
            pass
        key = ada.account_key.key
        ask = f"GET /v1/balance HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nx-trust: {ada.account}\r\n\r\n"
        await watcher.send(ask.encode())
        await watcher.head()
        credits = json.loads(await watcher.body())["credits"]
    assert credits["total"]["nano"] == 10**9 - 7 * LLAMA_INPUT - 40 * LLAMA_OUTPUT
    assert credits["held"]["nano"] == 0


async def test_an_upstream_that_forgets_its_terminator_has_answered_all_the_same(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=4, done=False))
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, stream=True)
        await caller.head()
        events = await caller.events()
    assert len(events) == 6
    assert events[-1] == DONE
    assert (await gateway.usage(ada))[0].ended == "answer"


async def test_every_choice_passes_and_is_charged(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    chunk = b'data: {"id":"c","model":"m","choices":[{"index":%d,"delta":{"content":"ha"},"finish_reason":%s}]}\n\n'
    chunks = [chunk % (index, end) for end in (b"null", b'"stop"') for index in (0, 1, 2)]
    upstream.script(Pieces([*chunks, DONE]))
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, stream=True, n=3)
        await caller.head()
        assert len(await caller.events()) == 7
    (record,) = await gateway.usage(ada)
    assert (record.output_tokens, record.estimated) == (6, True)


def said(index: int, end: bytes) -> bytes:
    """An event that adds two letters to a choice, or ends it."""
    text = b"" if end.startswith(b'"s') else b'"content":"ha"'
    chunk = b'data: {"id":"c","model":"m","choices":[{"index":%d,"delta":{%b},"finish_reason":%b}]}\n\n'
    return chunk % (index, text, end)


@pytest.mark.parametrize(
    ("events", "ended"),
    [
        pytest.param([said(0, b'""')] * 3, "upstream_failed", id="a reason that is empty"),
        pytest.param([said(0, b"null"), said(1, b"null"), said(0, b'"stop"')], "upstream_failed", id="one of two"),
        pytest.param([said(0, b'"stop"'), said(1, b"null")], "upstream_failed", id="one after the other"),
        pytest.param([said(0, b"null"), said(1, b"null"), said(0, b'"stop"'), said(1, b'"stop"')], "answer", id="both"),
        pytest.param([said(0, b'""'), said(0, b'"stop"')], "answer", id="empty until it ends"),
    ],
)
async def test_a_stream_without_its_terminator_is_whole_when_every_choice_has_ended(
    gateway: Running, upstream: ScriptedUpstream, events: list[bytes], ended: str
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Pieces(events))
    answer = await gateway.chat(ROUTER, ada, stream=True, n=2)
    assert (b"upstream_failed" in answer.content) is (ended == "upstream_failed")
    assert (await gateway.usage(ada))[0].ended == ended


async def test_a_quiet_stream_is_kept_alive_with_comments(store_url: str, upstream: ScriptedUpstream) -> None:
    settings = settings_for(store_url, upstream=upstream.base_url)
    settings = replace(settings, server=replace(settings.server, keepalive_comment_s=0.05))
    async with running(settings) as gateway, calling(gateway.url) as caller:
        ada = await gateway.person(usd="1")
        quiet = Stream(tokens=2, hold_after=1)
        upstream.script(quiet)
        await caller.ask(ROUTER, ada, stream=True)
        await caller.head()
        await caller.event()
        assert await caller.event() == b": keep-alive\n\n"
        quiet.resume.set()
        assert [event for event in await caller.events() if event.startswith(b"data")][-1] == DONE


async def test_the_official_sdk_reads_it(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=20))
    client = gateway.sdk(TRUST, ada)
    stream = await client.chat.completions.create(
        model="llama-70b",
        messages=[{"role": "user", "content": "Hello!"}],
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = [chunk async for chunk in stream]
    await client.close()
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).startswith("Paid ahead,")
    assert {chunk.model for chunk in chunks} == {"llama-70b"}
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens == 27
