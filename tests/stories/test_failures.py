"""Upstreams break: callers are told in order, what came is charged, and nothing else is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from penstock.config import HealthSettings, Settings
from tests.stories.caller import calling, data
from tests.stories.gateway import DEEPSEEK, ROUTER, UPSTREAM_KEY, Running, events, running, with_provider
from tests.upstream import Exchange, Hang, Plain, Raw, Refusal, Script, ScriptedUpstream, Stream, Wire

DONE = b"data: [DONE]\n\n"
COMMENT = b": PROCESSING\n\n"
INPUT, OUTPUT = 590, 790  # nano-USD a token of LLAMA
INPUT_ESTIMATE = 6  # tokens of the message in HELLO and its template
GRANTED = 10**9
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WORD = b'data: {"id":"c","model":"m","choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
ERROR = b'data: {"error":{"message":"Out of memory, said %s","type":"oops","code":500}}\n\n' % UPSTREAM_KEY.encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


@dataclass(frozen=True)
class Events:
    """A stream of these events, each sent by itself."""

    events: tuple[bytes, ...]

    async def play(self, exchange: Exchange) -> None:
        await exchange.stream_head(())
        for event in self.events:
            await exchange.event(event)
            await asyncio.sleep(0)
        await exchange.end()


BREAKS: dict[str, tuple[Script, int]] = {  # and the tokens that came before
    "reset": (Stream(tokens=50, break_after=5), 5),
    "closed": (Stream(tokens=50, break_after=5, breaks="close"), 5),
    "ended without an end": (Wire(STREAM_HEAD + chunk(WORD) * 3 + b"0\r\n\r\n"), 3),
    "garbage in the framing": (Wire(STREAM_HEAD + chunk(WORD) * 3 + b"what?\r\n"), 3),
    "cut inside an event": (Wire(STREAM_HEAD + chunk(WORD) * 3 + chunk(WORD[:20]) + b"0\r\n\r\n"), 3),
    "an error event": (Stream(tokens=5, error={"message": f"Out of memory, said {UPSTREAM_KEY}"}), 5),
}


@pytest.mark.parametrize(("script", "tokens"), BREAKS.values(), ids=BREAKS)
async def test_a_stream_that_breaks_ends_in_an_error_and_costs_what_came(
    gateway: Running, upstream: ScriptedUpstream, script: Script, tokens: int
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(script)
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, stream=True)
        assert (await caller.head()).status == 200
        *words, error, done = await caller.events()
    assert len(words) == tokens
    assert data(error).keys() == {"error"}
    assert data(error)["error"].keys() == {"message", "type", "code", "param"}
    assert (data(error)["error"]["type"], data(error)["error"]["code"]) == ("upstream_error", "upstream_failed")
    assert UPSTREAM_KEY.encode() not in error
    assert done == DONE
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.status, record.estimated) == ("upstream_failed", 502, True)
    assert record.output_tokens == tokens
    assert await gateway.nano(ada) == GRANTED - INPUT_ESTIMATE * INPUT - tokens * OUTPUT


async def test_the_official_sdk_raises_what_broke(gateway: Running, upstream: ScriptedUpstream) -> None:
    from openai import APIError

    ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=50, break_after=5))
    client = gateway.sdk(ROUTER, ada)
    stream = await client.chat.completions.create(
        model=DEEPSEEK, messages=[{"role": "user", "content": "Hello!"}], stream=True
    )
    for _ in range(5):
        assert (await anext(stream)).choices[0].delta.content
    with pytest.raises(APIError, match="broke off") as raised:
        await anext(stream)
    await client.close()
    assert raised.value.code == "upstream_failed"


UNBEGUN: dict[str, Script] = {
    "refused": Refusal(500),
    "overloaded": Refusal(429),
    "our key is bad there": Refusal(401),
    "closed": Wire(b""),
    "reset": Wire(b"", then="reset"),
    "not HTTP": Wire(b"hello?\r\n\r\n"),
    "a head and no more": Stream(break_after=0),
    "half an event": Wire(STREAM_HEAD + chunk(WORD[:20]), then="reset"),
    "an empty stream": Wire(STREAM_HEAD + b"0\r\n\r\n"),
    "a web page": Raw(b"<html>", content_type="text/html"),
    "an answer in one piece": Plain(),
    "nothing but an error": Wire(STREAM_HEAD + chunk(ERROR + DONE) + b"0\r\n\r\n"),
    "a comment and an error": Events((COMMENT, ERROR)),
    "comments and an error in one piece": Wire(STREAM_HEAD + chunk(COMMENT * 2 + ERROR + DONE) + b"0\r\n\r\n"),
    "nothing but comments": Events((COMMENT, COMMENT)),
    "silence": Hang(),
}


@pytest.fixture
async def impatient(settings: Settings) -> AsyncIterator[Running]:
    """A gateway that gives `main` a quarter of a second to begin."""
    async with running(with_provider(settings, "main", first_byte_timeout_s=0.25)) as gateway:
        yield gateway


@pytest.mark.parametrize("script", UNBEGUN.values(), ids=UNBEGUN)
async def test_a_stream_that_does_not_begin_is_served_by_the_next_offer(
    impatient: Running, upstream: ScriptedUpstream, spare: ScriptedUpstream, script: Script
) -> None:
    ada = await impatient.person(usd="1")
    upstream.script(script)
    spare.script(Stream(tokens=3))
    async with calling(impatient.url) as caller:
        await caller.ask(ROUTER, ada, model=DEEPSEEK, stream=True)
        head = await caller.head()
        came = await caller.events()
    assert head.headers["x-penstock-route"].startswith("spare;attempts=2;")
    assert len(came) == 5
    assert spare.requests[0].json["model"] == "deepseek-spare"
    (record,) = await impatient.usage(ada)
    assert (record.provider, record.attempts, record.ended, record.total_tokens) == ("spare", 2, "answer", 10)
    assert await impatient.nano(ada) == GRANTED - 7 * 200 - 3 * 400


async def test_comments_before_the_first_event_hold_up_no_answer(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Events((COMMENT, COMMENT, WORD, COMMENT, WORD + DONE)))
    answer = await gateway.chat(ROUTER, ada, model=DEEPSEEK, stream=True)
    words = [event["choices"][0]["delta"]["content"] for event in events(answer.text)[:-1]]
    assert (answer.status_code, words) == (200, ["Hi", "Hi"])
    assert answer.content.startswith(COMMENT * 2 + b"data:"), "they pass as they came"


async def test_when_no_offer_is_left_the_caller_gets_an_error_and_pays_nothing(
    impatient: Running, upstream: ScriptedUpstream
) -> None:
    for name, script in UNBEGUN.items():
        ada = await impatient.person(usd="1")
        upstream.usual = script
        refused = await impatient.chat(ROUTER, ada, stream=True)
        assert refused.status_code in (502, 503, 504), name
        assert refused.headers["content-type"] == "application/json"
        assert refused.json()["error"]["type"] == "upstream_error"
        assert UPSTREAM_KEY not in refused.text
        (record,) = await impatient.usage(ada)
        assert (record.status, record.amount, record.output_tokens) == (refused.status_code, 0, 0), name
        assert await impatient.nano(ada) == GRANTED


async def test_once_an_event_is_out_no_other_offer_is_tried(
    gateway: Running, upstream: ScriptedUpstream, spare: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=50, break_after=1))
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, model=DEEPSEEK, stream=True)
        await caller.head()
        assert len(await caller.events()) == 3
    assert spare.requests == []
    assert [record.attempts for record in await gateway.usage(ada)] == [1]


@pytest.mark.parametrize(
    "script",
    [
        Wire(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{\"id\": "),
        Wire(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{", then="reset"),
        Raw(b"<html>It works!</html>", content_type="text/html"),
        Raw(json.dumps({"error": {"message": f"Wrong key {UPSTREAM_KEY}"}}).encode()),
    ],
    ids=["cut short", "reset", "a web page", "an error that says 200"],
)  # fmt: skip
async def test_a_plain_answer_that_is_none_is_a_bad_gateway_and_free(
    gateway: Running, upstream: ScriptedUpstream, script: Script
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(script)
    answer = await gateway.chat(ROUTER, ada)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "upstream_failed")
    assert UPSTREAM_KEY not in answer.text
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.amount) == ("upstream_failed", 0)
    assert await gateway.nano(ada) == GRANTED


async def test_a_provider_that_our_own_calls_keep_busy_is_as_well_as_before(
    settings: Settings, upstream: ScriptedUpstream
) -> None:
    narrow = with_provider(settings, "main", max_connections=1, connect_timeout_s=0.05, health_check_s=60.0)
    async with running(replace(narrow, health=HealthSettings(failures=3, pause_s=60.0))) as gateway:
        ada, office = await gateway.person(usd="1"), gateway.office
        upstream.script(held := Stream(tokens=10, hold_after=1))
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada, stream=True)
            await caller.head()
            refused = await asyncio.gather(*(gateway.chat(ROUTER, ada) for _ in range(4)))
            await office.pulse.look_at_due(office.settings.providers)
            held.resume.set()
            await caller.events()
        assert {(each.status_code, each.json()["error"]["code"]) for each in refused} == {(503, "upstream_unavailable")}
        assert len(upstream.requests) == 1
        assert (await gateway.chat(ROUTER, ada)).status_code == 200
