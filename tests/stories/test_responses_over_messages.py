"""OpenAI Responses with Anthropic's Messages API behind: what is said, thought, called, refused and paid."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from openai import BadRequestError
from openai.types.responses import Response

from penstock.config import ModelSettings, OfferSettings, PriceSettings, ProviderSettings, Settings
from tests.stories.gateway import ROUTER, Person, Running, settings_for
from tests.upstream import ScriptedUpstream
from tests.upstream_messages import Counts, MessagesPlain, MessagesStream, UsualMessages, text, thinking, tool_use

PRICE = PriceSettings(input=2_000_000, output=10_000_000, cached_input=1_000_000, cache_write=3_000_000)
DOLLAR = 1_000_000_000
WEATHER: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
PATCH: Any = {"type": "custom", "name": "apply_patch", "description": "Edit files."}


@pytest.fixture
async def claude() -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream(UsualMessages()) as upstream:
        yield upstream


@pytest.fixture
def settings(store_url: str, claude: ScriptedUpstream) -> Settings:
    anthropic = ProviderSettings("claude", kind="anthropic", base_url=claude.base_url, api_key="sk-ant-1")
    model = ModelSettings("claude", offers=(OfferSettings("claude", "claude-opus-4-8"),), price=PRICE)
    return replace(settings_for(store_url), providers=(anthropic,), models=(model,), contracts=())


@pytest.fixture
async def ada(gateway: Running) -> Person:
    return await gateway.person(usd="1")


async def test_a_response_is_answered_and_paid_exactly(gateway: Running, ada: Person, claude: ScriptedUpstream) -> None:
    claude.script(MessagesPlain(blocks=(text("Hello."),), output=5, counts=Counts(7, cache_read=20, cache_write=30)))
    async with gateway.sdk(ROUTER, ada) as client:
        response = await client.responses.create(model="claude", input="Hi", instructions="Be brief.")
    assert Response.model_validate(response.to_dict()).output_text == "Hello."
    assert response.usage is not None
    assert response.usage.input_tokens == 57
    assert response.usage.input_tokens_details.to_dict() == {"cached_tokens": 20, "cache_write_tokens": 30}
    assert await gateway.nano(ada) == DOLLAR - (7 * 2 + 20 * 1 + 30 * 3 + 5 * 10)
    sent = claude.requests[0]
    assert sent.path.endswith("/messages")
    assert sent.json["system"][0]["text"] == "Be brief."


async def test_thinking_keeps_its_signature_through_a_chain_with_tools(
    gateway: Running, ada: Person, claude: ScriptedUpstream
) -> None:
    blocks = (
        thinking("Where?", "c2lnbmVk"),
        tool_use("weather", {"city": "Bern"}, "toolu_1"),
        tool_use("apply_patch", {"input": "*** x"}, "toolu_2"),
    )
    claude.script(MessagesStream(blocks=blocks, output=9), MessagesPlain(blocks=(text("Sunny."),), output=2))
    tools = [WEATHER, PATCH]
    async with gateway.sdk(ROUTER, ada) as client:
        stream = client.responses.stream(model="claude", input="Hi", tools=tools, reasoning={"effort": "low"})
        async with stream as events:
            seen = [event async for event in events]
        last = seen[-1]
        assert last.type == "response.completed"
        assert [event.sequence_number for event in seen] == list(range(len(seen)))
        reasoning, call, patch = (item.to_dict() for item in last.response.output)
        kinds = [item["type"] for item in (reasoning, call, patch)]
        assert kinds == ["reasoning", "function_call", "custom_tool_call"]
        assert json.loads(str(call["arguments"])) == {"city": "Bern"}
        assert patch["input"] == "*** x"
        outputs: Any = [
            {"type": "function_call_output", "call_id": "toolu_1", "output": "sunny"},
            {"type": "custom_tool_call_output", "call_id": "toolu_2", "output": "done"},
        ]
        second = await client.responses.create(
            model="claude", input=outputs, previous_response_id=last.response.id, tools=tools
        )
    assert second.output_text == "Sunny."
    user, assistant, results = claude.requests[1].json["messages"]
    assert user["role"] == "user"
    assert assistant["content"] == [
        {"type": "thinking", "thinking": "Where?", "signature": "c2lnbmVk"},
        {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}},
        {"type": "tool_use", "id": "toolu_2", "name": "apply_patch", "input": {"input": "*** x"}},
    ]
    assert [block["tool_use_id"] for block in results["content"]] == ["toolu_1", "toolu_2"]


async def test_what_a_tool_showed_is_seen(gateway: Running, ada: Person, claude: ScriptedUpstream) -> None:
    shown: Any = [
        {"type": "function_call", "call_id": "toolu_1", "name": "weather", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "toolu_1",
            "output": [{"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}],
        },
    ]
    async with gateway.sdk(ROUTER, ada) as client:
        await client.responses.create(
            model="claude", input=[{"role": "user", "content": "Show me."}, *shown], tools=[WEATHER], store=False
        )
    blocks = claude.requests[0].json["messages"][-1]["content"]
    assert [block["type"] for block in blocks] == ["tool_result", "text", "image"]


@pytest.mark.parametrize(
    ("param", "fields"),
    [
        ("text.verbosity", {"text": {"verbosity": "high"}}),
        ("include", {"include": ["message.output_text.logprobs"]}),
        ("service_tier", {"service_tier": "priority"}),
        (
            "input[0].content[0].image_url",
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "ftp://x"}]}]},
        ),
        ("tools[0]", {"tools": [{"type": "web_search"}]}),
    ],
)
async def test_what_messages_has_no_word_for_is_refused_in_the_callers_words(
    gateway: Running, ada: Person, claude: ScriptedUpstream, param: str, fields: Any
) -> None:
    async with gateway.sdk(ROUTER, ada) as client:
        with pytest.raises(BadRequestError) as refused:
            await client.responses.create(**({"model": "claude", "input": "Hi"} | fields))
    assert refused.value.param == param
    assert claude.requests == []
    assert await gateway.nano(ada) == DOLLAR


async def test_a_stream_ends_validly_where_the_money_does(gateway: Running, claude: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.000005")  # 5,000 nano-dollars: some 480 tokens
    claude.script(MessagesStream(tokens=2_000))
    async with gateway.sdk(ROUTER, ada) as client, client.responses.stream(model="claude", input="Hi") as stream:
        events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    last = events[-1]
    assert last.type == "response.incomplete"
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert last.response.output_text == said
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.uncollected) == ("money", 0)


@pytest.mark.parametrize("script", [MessagesStream(break_after=6), MessagesStream(error=("overloaded_error", "Busy."))])
async def test_a_broken_stream_fails_in_its_own_words(
    gateway: Running, ada: Person, claude: ScriptedUpstream, script: MessagesStream
) -> None:
    claude.script(script)
    async with gateway.sdk(ROUTER, ada) as client:
        stream = await client.responses.create(model="claude", input="Hi", stream=True)
        types = [event.type async for event in stream]
    assert types[-2:] == ["error", "response.failed"]
    assert (await gateway.usage(ada))[0].ended == "upstream_failed"
