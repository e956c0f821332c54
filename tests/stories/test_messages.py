"""Anthropic's official SDK through a gateway: over a provider that speaks Messages, and over one that speaks chat."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types import Message
from langchain_anthropic import ChatAnthropic
from pydantic import SecretStr

from penstock.config import ModelSettings, OfferSettings, PriceSettings, Settings
from tests.stories.caller import calling, the_record
from tests.stories.gateway import (
    ANTHROPIC,
    DEEPSEEK,
    HELLO,
    LLAMA,
    PLANNED,
    TRUST,
    Person,
    Running,
    settings_for,
    with_provider,
)
from tests.upstream import Raw, Refusal, Script, ScriptedUpstream, Stream
from tests.upstream_messages import (
    Block,
    MessagesPlain,
    MessagesRefusal,
    MessagesStream,
    UsualMessages,
    text,
    thinking,
    tool_use,
)

BY_OUTPUT = "by-output"  # prompts are free, $1 a million for what comes: what is left is exact
INPUT, OUTPUT = 590, 790  # nano-USD a token of LLAMA
COST_NANO = 7 * INPUT + 5 * OUTPUT  # of the usual answer
LOOK: Any = {"name": "look", "description": "Look at it.", "input_schema": {"type": "object"}}
ONCE = {"Idempotency-Key": "order-4711"}


class Speaking:
    """The provider, whichever dialect it speaks: scripts for the same answers."""

    def __init__(self, upstream: ScriptedUpstream, dialect: str) -> None:
        self.upstream = upstream
        self.dialect = dialect
        if dialect == "messages":
            upstream.usual = UsualMessages()

    def __repr__(self) -> str:
        return f"Speaking({self.dialect})"

    def plain(self, *blocks: Block, output: int = 9) -> None:
        """Answer the next request in one piece."""
        if self.dialect == "messages":
            self.upstream.script(MessagesPlain(blocks=blocks, output=output))
            return
        usage = {"prompt_tokens": 7, "completion_tokens": output, "total_tokens": 7 + output}
        choice = {"index": 0, "message": _chat_message(blocks), "finish_reason": "stop"}
        self.upstream.script(Raw(json.dumps({"choices": [choice], "usage": usage}).encode()))

    def stream(self, *blocks: Block, output: int = 9) -> None:
        """Answer the next request with a stream."""
        if self.dialect == "messages":
            self.upstream.script(MessagesStream(blocks=blocks, output=output))
            return
        usage = {"prompt_tokens": 7, "completion_tokens": output, "total_tokens": 7 + output}
        chunks = [{"choices": [{"index": 0, "delta": delta}]} for delta in _deltas(blocks)]
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        events = [*chunks, end, {"choices": [], "usage": usage}]
        raw = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
        self.upstream.script(Raw(raw.encode(), content_type="text/event-stream"))

    def words(self, tokens: int, **how: Any) -> Any:
        """A stream of words, one a token; what it is stopped by is as in both kinds of script."""
        held: Any = MessagesStream(tokens=tokens, **how) if self.dialect == "messages" else Stream(tokens=tokens, **how)
        self.upstream.script(held)
        return held

    def before_words(self) -> int:
        """Events that come before the first word."""
        return 3 if self.dialect == "messages" else 0


def _chat_message(blocks: Iterable[Block]) -> dict[str, Any]:
    message: dict[str, Any] = {"content": None}
    for block in blocks:
        match block["type"]:
            case "text":
                message["content"] = block["text"]
            case "thinking":
                message["reasoning_content"] = block["thinking"]
            case "tool_use":
                message.setdefault("tool_calls", []).append(_call(block, json.dumps(block["input"])))
    return message


def _call(block: Block, arguments: str) -> dict[str, Any]:
    return {"id": block["id"], "type": "function", "function": {"name": block["name"], "arguments": arguments}}


def _deltas(blocks: Iterable[Block]) -> Iterable[dict[str, Any]]:
    """All calls begin before any of them has its input, and grow together."""
    calls = [block for block in blocks if block["type"] == "tool_use"]
    for block in blocks:
        if block["type"] != "tool_use":
            yield {"content" if block["type"] == "text" else "reasoning_content": block[block["type"]]}
    yield {"tool_calls": [{"index": place, **_call(block, "")} for place, block in enumerate(calls)]}
    inputs = [json.dumps(block["input"]) for block in calls]
    for start, end in ((0, 4), (4, None)):
        pieces = [{"index": place, "function": {"arguments": input[start:end]}} for place, input in enumerate(inputs)]
        yield {"tool_calls": pieces[::-1]}


@pytest.fixture(params=["messages", "chat"])
def provider(request: pytest.FixtureRequest, upstream: ScriptedUpstream) -> Speaking:
    return Speaking(upstream, str(request.param))


@pytest.fixture
def settings(store_url: str, provider: Speaking) -> Settings:
    settings = settings_for(store_url, upstream=provider.upstream.base_url)
    model = ModelSettings(BY_OUTPUT, offers=(OfferSettings("main", "up"),), price=PriceSettings(0, 10**9))
    settings = replace(settings, models=(*settings.models, model))
    if provider.dialect == "messages":
        return with_provider(settings, "main", dialects=("anthropic_messages",))
    return settings


@pytest.fixture
async def ada(gateway: Running) -> Person:
    return await gateway.person(usd="1")


async def ask(gateway: Running, person: Person, **fields: Any) -> httpx2.Response:
    """A message as plain HTTP."""
    body = {"model": LLAMA, "max_tokens": 50, "messages": HELLO, **fields}
    return await gateway.post(f"{ANTHROPIC}/v1/messages", person, body=body)


async def test_a_message_is_answered_and_costs_exactly_what_was_used(gateway: Running, ada: Person) -> None:
    async with gateway.anthropic(ada) as client:
        raw = await client.messages.with_raw_response.create(model=LLAMA, max_tokens=50, messages=HELLO)
    message = await raw.parse()
    assert message.content[0].type == "text"
    assert message.content[0].text == "Paid ahead, counted along"
    assert (message.model, message.stop_reason) == (LLAMA, "end_turn")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 5)
    assert await gateway.nano(ada) == 10**9 - COST_NANO
    (record,) = await gateway.usage(ada)
    assert raw.headers["request-id"] == raw.headers["x-request-id"] == record.request
    assert (record.dialect, record.input_tokens, record.output_tokens) == ("anthropic_messages", 7, 5)


async def test_a_stream_is_in_the_balance_when_it_says_that_it_has_stopped(
    gateway: Running, ada: Person, provider: Speaking
) -> None:
    provider.words(20)
    async with (
        gateway.anthropic(ada) as client,
        client.messages.stream(model=LLAMA, max_tokens=50, messages=HELLO) as stream,
    ):
        kinds = [event.type async for event in stream]
        message = await stream.get_final_message()
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    assert kinds.count("text") == 20
    assert (message.usage.input_tokens, message.usage.output_tokens) == (7, 20)
    assert message.stop_reason == "end_turn"
    assert await gateway.nano(ada) == 10**9 - 7 * INPUT - 20 * OUTPUT


BLOCKS = (thinking("Hm."), text("I look."), tool_use("look", {"at": "a"}, "t1"), tool_use("look", {"at": "b"}, "t2"))


@pytest.mark.parametrize("streamed", [False, True])
async def test_thinking_and_parallel_calls_come_and_their_results_go(
    gateway: Running, ada: Person, provider: Speaking, streamed: bool
) -> None:
    (provider.stream if streamed else provider.plain)(*BLOCKS, output=30)
    provider.plain(text("Done."))
    effort: Any = {"type": "enabled", "budget_tokens": 1024}
    question: Any = {"model": LLAMA, "max_tokens": 2000, "messages": HELLO, "tools": [LOOK], "thinking": effort}
    async with gateway.anthropic(ada) as client:
        if streamed:
            async with client.messages.stream(**question) as stream:
                first: Message = await stream.get_final_message()
        else:
            first = await client.messages.create(**question)
        results = [{"type": "tool_result", "tool_use_id": id, "content": f"seen {id}"} for id in ("t1", "t2")]
        turns = [*HELLO, {"role": "assistant", "content": first.content}, {"role": "user", "content": results}]
        second = await client.messages.create(**question | {"messages": turns})
    said = [(block.type, getattr(block, "input", None) or getattr(block, block.type, None)) for block in first.content]
    assert said == [
        ("thinking", "Hm."),
        ("text", "I look."),
        ("tool_use", {"at": "a"}),
        ("tool_use", {"at": "b"}),
    ]
    assert (first.stop_reason, first.usage.output_tokens) == ("tool_use", 30)
    assert second.content[0].type == "text"
    _results_went_up(provider, provider.upstream.requests[1].json["messages"])
    assert await gateway.nano(ada) == 10**9 - 14 * INPUT - 39 * OUTPUT


def _results_went_up(provider: Speaking, messages: list[Any]) -> None:
    if provider.dialect == "messages":
        assert [block["content"] for block in messages[-1]["content"]] == ["seen t1", "seen t2"]
        assert messages[-2]["content"][0]["signature"]
        return
    answered, *results = messages[-3:]
    assert answered["reasoning_content"] == "Hm."
    assert [json.loads(call["function"]["arguments"]) for call in answered["tool_calls"]] == [{"at": "a"}, {"at": "b"}]
    assert [(result["tool_call_id"], result["content"]) for result in results] == [("t1", "seen t1"), ("t2", "seen t2")]


async def test_tokens_are_counted_for_nothing(gateway: Running, ada: Person, provider: Speaking) -> None:
    async with gateway.anthropic(ada) as client:
        count = await client.messages.count_tokens(model=LLAMA, messages=HELLO, system="Be brief.", tools=[LOOK])
    if provider.dialect == "messages":
        assert count.input_tokens == 1234
        assert provider.upstream.requests[0].json["model"] == "llama-upstream"
    else:
        assert count.input_tokens == -(-(len("Hello!" + "Be brief.") + 32 + len(json.dumps(LOOK)) + 2 - 6) // 4)
        assert provider.upstream.requests == []
    assert await gateway.usage(ada) == ()


async def test_a_provider_that_will_not_count_is_estimated(gateway: Running, ada: Person, provider: Speaking) -> None:
    provider.upstream.script(MessagesRefusal(404, "not_found_error"))
    async with gateway.anthropic(ada) as client:
        assert (await client.messages.count_tokens(model=LLAMA, messages=HELLO)).input_tokens == 6


@pytest.mark.parametrize("body", [b'{"x":' + b"[" * 30_000 + b"]" * 30_000 + b"}", b'{"input_tokens":-5}', b"5"])
async def test_a_count_that_is_none_is_estimated(
    gateway: Running, ada: Person, provider: Speaking, body: bytes
) -> None:
    provider.upstream.script(Raw(body))
    async with gateway.anthropic(ada) as client:
        assert (await client.messages.count_tokens(model=LLAMA, messages=HELLO)).input_tokens == 6


async def test_models_are_listed_as_anthropic_lists_them(gateway: Running, ada: Person) -> None:
    async with gateway.anthropic(ada) as client:
        listed = [model async for model in client.models.list(limit=1)]
        assert [model.id for model in listed] == ["auto", DEEPSEEK, BY_OUTPUT]
        page = await client.models.list(limit=1, before_id=BY_OUTPUT)
        assert ([model.id for model in page.data], page.has_more, page.first_id) == ([DEEPSEEK], True, DEEPSEEK)
        model = await client.models.retrieve(LLAMA)
        assert (model.type, model.id, model.max_input_tokens) == ("model", LLAMA, 131_072)
        for unknown in ("nobody", PLANNED):
            with pytest.raises(anthropic.NotFoundError):
                await client.models.retrieve(unknown)
        with pytest.raises(anthropic.BadRequestError):
            await client.models.list(limit=0)
    async with gateway.anthropic(ada, base=TRUST) as client:
        assert (await client.models.list()).data[0].type == "model"
    assert (await gateway.get(f"{TRUST}/models", ada)).json()["object"] == "list"


async def test_the_trust_surface_speaks_messages_for_the_account_that_is_named(gateway: Running, ada: Person) -> None:
    async with gateway.anthropic(ada, base=TRUST) as client:
        assert (await client.messages.create(model=LLAMA, max_tokens=50, messages=HELLO)).usage.output_tokens == 5
        assert (await client.messages.count_tokens(model=LLAMA, messages=HELLO)).input_tokens > 0
        with pytest.raises(anthropic.BadRequestError) as refusal:
            await client.messages.create(
                model=LLAMA,
                max_tokens=50,
                messages=HELLO,
                extra_headers={"x-trust": anthropic.omit},
            )
    assert refusal.value.body["error"]["type"] == "invalid_request_error"  # type: ignore[index]
    assert await gateway.nano(ada) == 10**9 - COST_NANO


@pytest.mark.parametrize("path", ["/messages", "/v1/messages", "/v1/messages?beta=true"])
@pytest.mark.parametrize("header", ["x-api-key", "authorization"])
async def test_a_key_is_taken_from_either_header_at_every_address(
    gateway: Running, ada: Person, path: str, header: str
) -> None:
    key = ada.personal_key.key
    sent = {header: key if header == "x-api-key" else f"Bearer {key}"}
    body = {"model": LLAMA, "max_tokens": 5, "messages": HELLO}
    answer = await gateway.http.post(ANTHROPIC + path, json=body, headers=sent)
    assert (answer.status_code, answer.json()["type"]) == (200, "message")


def said(error: anthropic.APIStatusError) -> str:
    """The type of an error in Anthropic's shape."""
    body: Any = error.body
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["request_id"] == error.request_id
    assert body["error"]["message"]
    return str(body["error"]["type"])


async def test_refusals_are_in_anthropics_shape(gateway: Running, ada: Person, provider: Speaking) -> None:
    poor = await gateway.person()
    slow = await gateway.key("personal", user=ada.user, requests_per_minute=1)
    cases: list[tuple[type[anthropic.APIStatusError], int, str, dict[str, Any], dict[str, Any]]] = [
        (anthropic.AuthenticationError, 401, "authentication_error", {"api_key": "user.nobody"}, {}),
        (anthropic.AuthenticationError, 401, "authentication_error", {"api_key": ada.account_key.key}, {}),
        (anthropic.BadRequestError, 400, "invalid_request_error", {}, {"max_tokens": -1}),
        (anthropic.BadRequestError, 400, "invalid_request_error", {}, {"messages": []}),
        (anthropic.NotFoundError, 404, "not_found_error", {}, {"model": "nobody"}),
        (anthropic.APIStatusError, 402, "billing_error", {"api_key": poor.personal_key.key}, {}),
    ]
    for kind, status, type, options, fields in cases:
        async with gateway.anthropic(ada, **options) as client:
            with pytest.raises(kind) as refusal:
                await client.messages.create(**{"model": LLAMA, "max_tokens": 5, "messages": HELLO} | fields)
        assert (refusal.value.status_code, said(refusal.value)) == (status, type)
    async with gateway.anthropic(ada, api_key=slow.key) as client:
        await client.messages.create(model=LLAMA, max_tokens=5, messages=HELLO)
        with pytest.raises(anthropic.RateLimitError) as limited:
            await client.messages.create(model=LLAMA, max_tokens=5, messages=HELLO, stream=True)
    assert said(limited.value) == "rate_limit_error"
    assert int(limited.value.response.headers["retry-after"]) >= 1
    assert len(provider.upstream.requests) == 1


async def test_an_unknown_address_is_refused_in_anthropics_shape(gateway: Running, ada: Person) -> None:
    for path in (f"{ANTHROPIC}/v1/batches", f"{ANTHROPIC}/chat/completions", f"{TRUST}/messages/batches"):
        answer = await gateway.post(path, ada, body={})
        assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")
    answer = await gateway.get(f"{ANTHROPIC}/v1/messages", ada)
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


async def test_what_a_provider_refuses_is_told_in_its_words(gateway: Running, ada: Person, provider: Speaking) -> None:
    refusals: dict[str, Script] = {
        "messages": MessagesRefusal(400, message="prompt is too long"),
        "chat": Refusal(400, "prompt is too long"),
    }
    provider.upstream.script(refusals[provider.dialect])
    async with gateway.anthropic(ada) as client:
        with pytest.raises(anthropic.BadRequestError, match="prompt is too long") as refusal:
            await client.messages.create(model=LLAMA, max_tokens=5, messages=HELLO)
    assert said(refusal.value) == "invalid_request_error"
    assert await gateway.nano(ada) == 10**9


async def test_a_provider_that_fails_costs_nothing(gateway: Running, ada: Person, provider: Speaking) -> None:
    provider.upstream.script(MessagesRefusal(529, "overloaded_error"))
    async with gateway.anthropic(ada) as client:
        with pytest.raises(anthropic.InternalServerError) as refusal:
            await client.messages.create(model=LLAMA, max_tokens=5, messages=HELLO)
    assert (refusal.value.status_code, said(refusal.value)) == (503, "overloaded_error")
    assert await gateway.nano(ada) == 10**9


async def _read(gateway: Running, person: Person, words: list[str]) -> None:
    """Read a stream into `words`, which has them when it breaks."""
    async with (
        gateway.anthropic(person) as client,
        client.messages.stream(model=LLAMA, max_tokens=50, messages=HELLO) as stream,
    ):
        async for word in stream.text_stream:
            words.append(word)


async def test_an_error_in_an_open_stream_is_an_event_and_what_came_is_charged(
    gateway: Running, ada: Person, provider: Speaking
) -> None:
    errors: dict[str, Any] = {"messages": ("overloaded_error", "Overloaded"), "chat": {"message": "Overloaded"}}
    for how in ({"error": errors[provider.dialect]}, {"break_after": 5 + provider.before_words()}):
        provider.words(5 if "error" in how else 50, **how)
        words: list[str] = []
        with pytest.raises(anthropic.APIStatusError) as broken:
            await _read(gateway, ada, words)
        assert len(words) == 5
        assert broken.value.body["error"]["type"] == "api_error"  # type: ignore[index]
    first, second = await gateway.usage(ada)
    assert (first.ended, first.output_tokens, second.ended, second.output_tokens) == (
        "upstream_failed",
        5,
        "upstream_failed",
        5,
    )


async def test_the_stream_ends_in_order_where_the_money_does(gateway: Running, provider: Speaking) -> None:
    ada = await gateway.person(usd="0.000600")
    provider.words(10**6)
    async with (
        gateway.anthropic(ada) as client,
        client.messages.stream(model=BY_OUTPUT, max_tokens=10**6, messages=HELLO) as stream,
    ):
        events = [event async for event in stream]
        message = await stream.get_final_message()
    assert [event.type for event in events].count("text") == 600
    assert [event.type for event in events[-3:]] == ["content_block_stop", "message_delta", "message_stop"]
    assert (message.stop_reason, message.usage.output_tokens) == ("max_tokens", 600)
    assert events[-2].model_extra["penstock"] == {"reason": "insufficient_balance"}  # type: ignore[index]
    assert await gateway.nano(ada) == 0
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.output_tokens) == ("money", 600)


async def test_a_plain_message_is_asked_for_no_longer_than_the_money_reaches(
    gateway: Running, provider: Speaking
) -> None:
    ada = await gateway.person(usd="0.003")
    thought: Any = {"type": "enabled", "budget_tokens": 8_000}
    async with gateway.anthropic(ada) as client:
        await client.messages.create(model=BY_OUTPUT, max_tokens=10_000, messages=HELLO, thinking=thought)
    sent = provider.upstream.requests[0].json
    assert sent["max_tokens"] == 3_000
    assert sent.get("thinking", {"budget_tokens": 2_400})["budget_tokens"] == 2_400


async def test_a_caller_who_leaves_pays_what_came(gateway: Running, ada: Person, provider: Speaking) -> None:
    events = 5 + provider.before_words()
    provider.words(50, hold_after=events)
    body = json.dumps({"model": LLAMA, "max_tokens": 50, "messages": HELLO, "stream": True}).encode()
    head = f"POST {ANTHROPIC}/v1/messages HTTP/1.1\r\nhost: x\r\nx-api-key: {ada.personal_key.key}\r\n"
    async with calling(gateway.url) as caller:
        await caller.send(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert (await caller.head()).status == 200
        read = 0
        while read < 5:
            event = await caller.event()
            read += b"text_delta" in event
        caller.hang_up()
        received = await provider.upstream.arrival(1)
        await received.over.wait()
    record = await the_record(gateway, ada)
    assert received.aborted_at is not None
    assert (record.ended, record.status, record.output_tokens) == ("caller_gone", 499, 5)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_request_again_gets_the_same_bytes_and_is_charged_once(
    gateway: Running, ada: Person, provider: Speaking, stream: bool
) -> None:
    body = {"model": LLAMA, "max_tokens": 50, "messages": HELLO, "stream": stream}
    first = await gateway.post(f"{ANTHROPIC}/v1/messages", ada, body=body, headers=ONCE)
    again = await gateway.post(f"{ANTHROPIC}/v1/messages", ada, body=body, headers=ONCE)
    assert (first.status_code, again.content) == (200, first.content)
    assert again.headers["idempotent-replayed"] == "true"
    assert len(provider.upstream.requests) == 1
    other = await gateway.post(f"{ANTHROPIC}/v1/messages", ada, body=body | {"max_tokens": 9}, headers=ONCE)
    assert (other.status_code, other.json()["error"]["type"]) == (409, "invalid_request_error")
    assert await gateway.nano(ada) == 10**9 - COST_NANO


async def test_only_a_provider_that_speaks_messages_sees_the_callers_headers(
    gateway: Running, ada: Person, provider: Speaking
) -> None:
    headers = {"anthropic-beta": "a-2025,b-2026", "anthropic-version": "2023-06-01", "x-app": "cli"}
    async with gateway.anthropic(ada, default_headers=headers) as client:
        await client.messages.create(model=LLAMA, max_tokens=5, messages=HELLO)
    seen = provider.upstream.requests[0].headers
    passed = {name: value for name, value in headers.items() if name != "x-app" and provider.dialect == "messages"}
    assert {name: seen[name] for name in headers if name in seen} == passed
    assert ada.personal_key.key not in str(seen)


async def test_langchain_calls_tools_and_streams(gateway: Running, ada: Person, provider: Speaking) -> None:
    model = ChatAnthropic(  # type: ignore[call-arg]
        model_name=LLAMA,
        base_url=gateway.url + ANTHROPIC,
        api_key=SecretStr(ada.personal_key.key),
        max_tokens_to_sample=50,
        max_retries=0,
    )
    provider.plain(text("I look."), tool_use("look", {"at": "it"}, "t1"))
    called = await model.bind_tools([LOOK]).ainvoke("Look.")
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("look", {"at": "it"})]
    provider.words(5)
    chunks = [chunk async for chunk in model.astream("Hello!")]
    await model._async_client.close()
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert whole.text == "Paid ahead, counted along"
    assert whole.usage_metadata is not None
    assert (whole.usage_metadata["input_tokens"], whole.usage_metadata["output_tokens"]) == (7, 5)
