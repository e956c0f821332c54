"""The official OpenAI SDK at a gateway with Anthropic's Messages API behind it: what is said, called, seen and paid."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from pydantic import BaseModel, ConfigDict

from penstock.config import ModelSettings, OfferSettings, PriceSettings, ProviderSettings, Settings
from tests.stories.gateway import HELLO, ROUTER, TRUST, Person, Running, events, settings_for
from tests.upstream import Received, ScriptedUpstream
from tests.upstream_messages import (
    Counts,
    MessagesPlain,
    MessagesRefusal,
    MessagesStream,
    UsualMessages,
    text,
    thinking,
    tool_use,
)

KEY = "sk-ant-api03-7d1c90be24f84d01"
CLAUDE = "claude-opus-4-8"
PRICE = PriceSettings(  # a nano-dollar is a thousandth of these
    input=2_000_000,
    output=10_000_000,
    cached_input=1_000_000,
    cache_write=3_000_000,
    cache_write_1h=4_000_000,
)
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
PNG = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture
async def claude() -> AsyncIterator[ScriptedUpstream]:
    """Anthropic."""
    async with ScriptedUpstream(UsualMessages()) as upstream:
        yield upstream


@pytest.fixture
def settings(store_url: str, claude: ScriptedUpstream, spare: ScriptedUpstream) -> Settings:
    """The model at Anthropic, and after it at an OpenAI-shaped upstream."""
    settings = settings_for(store_url, upstream=claude.base_url, spare=spare.base_url)
    anthropic = ProviderSettings("claude", kind="anthropic", base_url=claude.base_url, api_key=KEY)
    offers = (OfferSettings("claude", CLAUDE), OfferSettings("spare", "spare-model"))
    models = (
        ModelSettings("claude", offers=offers[:1], price=PRICE),
        ModelSettings("either", offers=offers, price=PRICE),
    )
    return replace(settings, providers=(*settings.providers, anthropic), models=models, contracts=())


@pytest.fixture
async def ada(gateway: Running) -> Person:
    return await gateway.person(usd="1")


@pytest.fixture
async def client(gateway: Running, ada: Person) -> AsyncIterator[openai.AsyncOpenAI]:
    """Ada's, on the router."""
    async with gateway.sdk(ROUTER, ada) as client:
        yield client


async def charged(gateway: Running, ada: Person) -> int:
    return 10**9 - await gateway.nano(ada)


async def test_a_chat_call_arrives_as_a_message_with_our_key_and_a_version(
    gateway: Running, ada: Person, claude: ScriptedUpstream
) -> None:
    async with gateway.sdk(TRUST, ada) as client:
        answer = await client.chat.completions.create(model="claude", messages=HELLO, max_completion_tokens=50)
    assert (answer.model, answer.choices[0].finish_reason) == ("claude", "stop")
    assert answer.id.startswith("cmpl-")
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 5, 12)
    [received] = claude.requests
    assert received.path == "/v1/messages"
    assert received.json == {
        "model": CLAUDE,
        "max_tokens": 50,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "Hello!"}]}],
    }
    assert (received.headers["x-api-key"], received.headers["anthropic-version"]) == (KEY, "2023-06-01")
    assert "authorization" not in received.headers
    assert await charged(gateway, ada) == 7 * 2 + 5 * 10


async def test_a_stream_is_chunks_with_the_usage_at_the_end(
    client: openai.AsyncOpenAI, gateway: Running, ada: Person, claude: ScriptedUpstream
) -> None:
    claude.script(MessagesStream(tokens=6, counts=Counts(input=7, cache_read=4)))
    stream = await client.chat.completions.create(
        model="claude", messages=HELLO, stream=True, stream_options={"include_usage": True}
    )
    chunks = [chunk async for chunk in stream]
    words = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert words == "Paid ahead, counted along,"
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    usage = chunks[-1].usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, chunks[-1].choices) == (11, 6, [])
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 4
    assert await charged(gateway, ada) == 7 * 2 + 4 * 1 + 6 * 10
    [record] = await gateway.usage(ada)
    assert (record.cached_tokens, record.estimated, record.ended) == (4, False, "answer")


async def test_what_is_read_from_a_cache_and_written_to_one_costs_what_it_costs(
    gateway: Running, ada: Person, claude: ScriptedUpstream
) -> None:
    hour = {"cache_creation": {"ephemeral_5m_input_tokens": 20, "ephemeral_1h_input_tokens": 10}}
    usage = Counts(input=5, cache_read=100, cache_write=30).usage(4) | hour
    claude.script(MessagesPlain(tokens=4, usage=False, extra={"usage": usage}))
    marked = [{"role": "user", "content": [{**text("Long."), "cache_control": {"type": "ephemeral", "ttl": "1h"}}]}]
    answer = await gateway.chat(ROUTER, ada, model="claude", messages=marked)
    assert answer.json()["usage"]["prompt_tokens_details"] == {"cached_tokens": 100, "cache_write_tokens": 30}
    assert claude.requests[0].json["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert await charged(gateway, ada) == 5 * 2 + 100 * 1 + 20 * 3 + 10 * 4 + 4 * 10


async def test_a_hold_covers_a_prompt_that_is_written_whole(
    gateway: Running, ada: Person, claude: ScriptedUpstream
) -> None:
    held = MessagesPlain(hold=True)
    claude.script(held)
    call = asyncio.create_task(gateway.chat(ROUTER, ada, model="claude", max_tokens=5))
    received = await claude.arrival(1)
    balance = (await gateway.balance(ada)).credits
    assert balance.held.nano >= len(received.json["messages"][0]["content"][0]["text"]) * 4 + 5 * 10
    held.resume.set()
    await call


async def test_tools_are_called_in_parallel_and_answered_in_one_turn(
    client: openai.AsyncOpenAI, claude: ScriptedUpstream
) -> None:
    calls = (tool_use("weather", {"city": "Paris"}, "toolu_1"), tool_use("weather", {"city": "Rome"}, "toolu_2"))
    claude.script(MessagesPlain(blocks=(text("Let me look."), *calls), output=20))
    first = await client.chat.completions.create(model="claude", messages=HELLO, tools=[WEATHER])
    said = first.choices[0].message
    assert (first.choices[0].finish_reason, said.content) == ("tool_calls", "Let me look.")
    assert said.tool_calls is not None
    arguments = [json.loads(call.function.arguments) for call in said.tool_calls if call.type == "function"]
    assert arguments == [{"city": "Paris"}, {"city": "Rome"}]
    again: Any = said.model_dump()
    results: list[Any] = [{"role": "tool", "tool_call_id": call.id, "content": "rain"} for call in said.tool_calls]
    await client.chat.completions.create(model="claude", messages=[*HELLO, again, *results], tools=[WEATHER])
    turns = claude.requests[1].json["messages"]
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"]
    assert turns[1]["content"] == [text("Let me look."), *calls]
    assert [block["tool_use_id"] for block in turns[2]["content"]] == ["toolu_1", "toolu_2"]
    assert claude.requests[0].json["tools"][0]["input_schema"] == WEATHER["function"]["parameters"]


async def test_tools_stream_and_the_sdk_puts_them_together(
    client: openai.AsyncOpenAI, claude: ScriptedUpstream
) -> None:
    blocks = (
        thinking("Hm."),
        text("Look."),
        tool_use("weather", {"city": "Paris"}),
        tool_use("weather", {}, "toolu_2"),
    )
    claude.script(MessagesStream(blocks=blocks, output=30))
    async with client.chat.completions.stream(model="claude", messages=HELLO, tools=[WEATHER]) as stream:
        final = await stream.get_final_completion()
    said = final.choices[0].message
    assert (said.content, final.choices[0].finish_reason) == ("Look.", "tool_calls")
    assert said.tool_calls is not None
    assert [(call.id, call.function.arguments) for call in said.tool_calls] == [
        ("toolu_01", '{"city":"Paris"}'),
        ("toolu_2", "{}"),
    ]
    assert said.model_extra is not None
    assert said.model_extra["reasoning_content"] == "Hm."


class Trip(BaseModel):
    """What the answer is to look like."""

    model_config = ConfigDict(extra="forbid")
    city: str


async def test_an_answer_has_the_form_of_a_schema(client: openai.AsyncOpenAI, claude: ScriptedUpstream) -> None:
    claude.script(MessagesPlain(blocks=(text('{"city":"Paris"}'),), output=6))
    answer = await client.chat.completions.parse(model="claude", messages=HELLO, response_format=Trip)
    assert answer.choices[0].message.parsed == Trip(city="Paris")
    form = claude.requests[0].json["output_config"]["format"]
    assert (form["type"], form["schema"]["additionalProperties"]) == ("json_schema", False)


async def test_images_and_documents_are_seen(client: openai.AsyncOpenAI, claude: ScriptedUpstream) -> None:
    parts: list[Any] = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "image_url", "image_url": {"url": "https://x.test/cat.jpg"}},
        {"type": "file", "file": {"filename": "a.pdf", "file_data": "data:application/pdf;base64,JVBERi0="}},
    ]
    await client.chat.completions.create(model="claude", messages=[{"role": "user", "content": parts}])
    content = claude.requests[0].json["messages"][0]["content"]
    assert [block["type"] for block in content] == ["text", "image", "image", "document"]
    assert [block["source"]["type"] for block in content[1:]] == ["base64", "url", "base64"]


async def test_what_messages_cannot_carry_is_refused_by_name_and_costs_nothing(
    client: openai.AsyncOpenAI, gateway: Running, ada: Person, claude: ScriptedUpstream
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await client.chat.completions.create(model="claude", messages=HELLO, seed=7)
    assert caught.value.param == "seed"
    assert claude.requests == []
    [record] = await gateway.usage(ada)
    assert (record.status, record.ended, await charged(gateway, ada)) == (400, "refused", 0)


async def test_what_one_offer_has_nothing_for_the_next_one_serves(
    gateway: Running, ada: Person, claude: ScriptedUpstream, spare: ScriptedUpstream
) -> None:
    answer = await gateway.chat(ROUTER, ada, model="either", seed=7)
    assert answer.status_code == 200
    assert (claude.requests, spare.requests[0].json["seed"]) == ([], 7)


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_what_is_wrong_with_our_key_is_not_the_callers_fault(
    gateway: Running, ada: Person, claude: ScriptedUpstream, status: int
) -> None:
    claude.script(MessagesRefusal(status, "authentication_error", f"invalid x-api-key {KEY}"))
    answer = await gateway.chat(ROUTER, ada, model="claude")
    assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")
    assert KEY not in answer.text
    assert await charged(gateway, ada) == 0


async def test_an_empty_purse_at_anthropic_is_ours_though_it_says_400(
    gateway: Running, ada: Person, claude: ScriptedUpstream
) -> None:
    claude.script(MessagesRefusal(400, message="Your credit balance is too low to access the Anthropic API."))
    assert (await gateway.chat(ROUTER, ada, model="claude")).status_code == 502


async def test_what_is_wrong_with_the_request_reaches_the_caller_in_its_words(
    client: openai.AsyncOpenAI, gateway: Running, ada: Person, claude: ScriptedUpstream
) -> None:
    claude.script(MessagesRefusal(400, message="messages.0: prompt is too long"))
    with pytest.raises(openai.BadRequestError, match="prompt is too long"):
        await client.chat.completions.create(model="claude", messages=HELLO)
    assert await charged(gateway, ada) == 0


@pytest.mark.parametrize(("status", "kind"), [(429, "rate_limit_error"), (529, "overloaded_error")])
async def test_when_it_is_busy_the_next_offer_serves_in_its_own_dialect(
    gateway: Running, ada: Person, claude: ScriptedUpstream, spare: ScriptedUpstream, status: int, kind: str
) -> None:
    claude.script(MessagesRefusal(status, kind, "Busy."))
    answer = await gateway.chat(ROUTER, ada, model="either")
    assert answer.status_code == 200
    assert answer.headers["x-penstock-route"].startswith("spare;attempts=2")
    assert spare.requests[0].path == "/v1/chat/completions"
    [record] = await gateway.usage(ada)
    assert (record.provider, record.attempts) == ("spare", 2)


async def test_an_error_in_mid_stream_is_told_and_what_came_is_paid(
    gateway: Running, ada: Person, claude: ScriptedUpstream
) -> None:
    claude.script(MessagesStream(tokens=3, error=("overloaded_error", "Overloaded")))
    answer = await gateway.chat(ROUTER, ada, model="claude", stream=True)
    *chunks, error, done = events(answer.text)
    assert (error["error"]["message"], error["error"]["type"], done) == ("Overloaded", "upstream_error", "[DONE]")
    assert not any(chunk["choices"][0]["finish_reason"] for chunk in chunks)
    [record] = await gateway.usage(ada)
    assert (record.ended, record.input_tokens) == ("upstream_failed", 7)
    assert await charged(gateway, ada) == 7 * 2 + record.output_tokens * 10


async def test_a_stream_that_fails_with_its_prompt_counted_and_nothing_said_is_free(
    gateway: Running, ada: Person, claude: ScriptedUpstream
) -> None:
    claude.script(MessagesStream(tokens=0, error=("overloaded_error", "Overloaded")))
    answer = await gateway.chat(ROUTER, ada, model="claude", stream=True)
    assert '"Overloaded"' in answer.text
    [record] = await gateway.usage(ada)
    assert (record.ended, record.input_tokens, record.output_tokens) == ("upstream_failed", 0, 0)
    assert await charged(gateway, ada) == 0


async def test_a_stream_that_the_money_ends_says_so_and_the_upstream_is_let_go(
    gateway: Running, claude: ScriptedUpstream
) -> None:
    eve = await gateway.person()
    await gateway.grant(eve, usd="0.00002")
    claude.script(MessagesStream(tokens=10_000, hold_after=4_000))
    answer = await gateway.chat(ROUTER, eve, model="claude", stream=True)
    *_, last, done = events(answer.text)
    assert (last["choices"][0]["finish_reason"], last["penstock"]) == ("length", {"reason": "insufficient_balance"})
    received: Received = claude.requests[0]
    await received.over.wait()
    assert (done, received.finished) == ("[DONE]", False)
    assert 0 <= await gateway.nano(eve) < 500  # at most what was set aside for the prompt


async def test_thinking_that_comes_back_lets_the_model_think_on(
    client: openai.AsyncOpenAI, claude: ScriptedUpstream
) -> None:
    claude.script(MessagesPlain(blocks=(thinking("Hm.", "sig"), tool_use("weather", {"city": "Paris"})), output=9))
    first = await client.chat.completions.create(
        model="claude", messages=HELLO, tools=[WEATHER], reasoning_effort="low"
    )
    assert claude.requests[0].json["thinking"] == {"type": "adaptive"}
    assert claude.requests[0].json["output_config"] == {"effort": "low"}
    result: Any = {"role": "tool", "tool_call_id": "toolu_01", "content": "rain"}
    said: Any = first.choices[0].message.model_dump()
    await client.chat.completions.create(model="claude", messages=[*HELLO, said, result], tools=[WEATHER])
    assert claude.requests[1].json["messages"][1]["content"][0] == thinking("Hm.", "sig")
