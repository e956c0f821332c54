"""The official OpenAI SDK, LangChain and curl, on every surface: only base URL, key and X-Trust differ."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from openai import (
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InternalServerError,
    NotFoundError,
    OpenAI,
    PermissionDeniedError,
    RateLimitError,
    UnprocessableEntityError,
)
from pydantic import SecretStr

from penstock.config import Settings
from tests.stories.gateway import (
    BASES,
    DEEPSEEK,
    FORWARD,
    HELLO,
    LLAMA,
    NOWHERE,
    ROUTER,
    TRUST,
    Person,
    Running,
    plain_client,
    running,
    settings_for,
    with_provider,
)
from tests.upstream import Hang, Plain, Raw, Refusal, ScriptedUpstream, Stream

WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Wetter für einen Ort",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
COST_NANO = 7 * 590 + 5 * 790  # of `Plain` and `Stream` as scripted below, at the price of LLAMA


@pytest.fixture(params=BASES)
def base(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def spent(gateway: Running, person: Person, base: str) -> int:
    """What has been paid of a dollar, in nano-USD, or of 100,000 tokens."""
    if base == FORWARD:
        return 100_000 - await gateway.tokens(person)
    return 1_000_000_000 - await gateway.nano(person)


async def test_a_plain_completion_is_answered_and_paid(gateway: Running, upstream: ScriptedUpstream, base: str) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)
    upstream.script(Plain(tokens=5, prompt_tokens=7, text="Paris is the capital of France."))
    async with gateway.sdk(base, ada) as client:
        answer = await client.chat.completions.create(model=LLAMA, messages=HELLO, temperature=0.7)
    assert answer.choices[0].message.content == "Paris is the capital of France."
    assert answer.model == LLAMA
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert answer.usage.total_tokens == 12
    assert answer.id.startswith("cmpl-" if base == TRUST else "chatcmpl-")
    assert await spent(gateway, ada, base) == (12 if base == FORWARD else COST_NANO)
    assert upstream.requests[0].json == {"model": "llama-upstream", "messages": HELLO, "temperature": 0.7} | {
        "max_tokens": 4096
    }


async def test_a_stream_arrives_in_pieces_and_is_paid(gateway: Running, upstream: ScriptedUpstream, base: str) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)
    upstream.script(Stream(tokens=5, prompt_tokens=7))
    async with gateway.sdk(base, ada) as client:
        stream = await client.chat.completions.create(model=LLAMA, messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Paid ahead, counted along"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["stop"]
    assert {chunk.model for chunk in chunks} == {LLAMA}
    assert {chunk.usage for chunk in chunks} == {None}
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[0].id.startswith("cmpl-" if base == TRUST else "chatcmpl-")
    assert await spent(gateway, ada, base) == (12 if base == FORWARD else COST_NANO)


async def test_the_usage_chunk_comes_to_those_who_ask(gateway: Running) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)
    for base in BASES:
        async with gateway.sdk(base, ada) as client:
            stream = await client.chat.completions.create(
                model=LLAMA, messages=HELLO, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 12
        assert [chunk.usage for chunk in chunks[:-1]] == [None] * 6


async def test_tools_reach_the_model_and_its_calls_come_back(
    gateway: Running, upstream: ScriptedUpstream, base: str
) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)
    upstream.script(Raw(tool_call()), Plain(text="Sunny."))
    messages: list[Any] = [{"role": "user", "content": "How is the weather in Paris?"}]
    async with gateway.sdk(base, ada) as client:
        asked = await client.chat.completions.create(
            model=LLAMA, messages=messages, tools=[WEATHER], tool_choice="auto"
        )
        call: Any = (asked.choices[0].message.tool_calls or [])[0]
        messages += [
            asked.choices[0].message.model_dump(exclude_none=True),
            {"role": "tool", "tool_call_id": call.id, "content": '{"sky": "clear"}'},
        ]
        answer = await client.chat.completions.create(model=LLAMA, messages=messages, tools=[WEATHER])
    assert asked.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments) == {"city": "Paris"}
    assert answer.choices[0].message.content == "Sunny."
    assert [received.json["tools"] for received in upstream.requests] == [[WEATHER], [WEATHER]]
    assert upstream.requests[1].json["messages"] == messages


def tool_call() -> bytes:
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": function}],
    }
    answer = {
        "id": "chatcmpl-9",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "llama-upstream",
        "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}],
        "usage": {"prompt_tokens": 20, "completion_tokens": 9, "total_tokens": 29},
    }
    return json.dumps(answer).encode()


async def test_models_are_listed(gateway: Running) -> None:
    ada = await gateway.person()
    for base in BASES:
        async with gateway.sdk(base, ada) as client:
            listed = {model.id: model async for model in client.models.list()}
        assert DEEPSEEK in listed
        assert listed["auto" if "openai" in base else LLAMA].owned_by == "deepinfra"


async def test_each_refusal_is_the_error_class_that_callers_catch(
    gateway: Running, upstream: ScriptedUpstream, base: str
) -> None:
    ada, poor = await gateway.person(usd="1", tokens=100_000), await gateway.person()
    upstream.script(Refusal(422, "The schema of 'x' is odd."), Refusal(401))
    unknown = NotFoundError if "openai" in base else BadRequestError
    assert await failure(gateway, base, ada, AuthenticationError, api_key="wrong") == 401
    assert await failure(gateway, base, poor, APIStatusError) == 402
    assert await failure(gateway, base, ada, BadRequestError, messages=[]) == 400
    assert await failure(gateway, base, ada, unknown, model="no/such") == (404 if unknown is NotFoundError else 400)
    assert await failure(gateway, base, ada, UnprocessableEntityError) == 422
    assert await failure(gateway, base, ada, InternalServerError) == 502
    async with gateway.sdk(base, ada) as client:
        with pytest.raises(NotFoundError):
            await client.moderations.create(model=LLAMA, input="Hello")


async def test_a_used_up_rate_limit_says_when_to_come_back(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)
    for base in BASES:
        binding = {"user": ada.user} if base != FORWARD else {"account": ada.account}
        key = await gateway.key(ada.key(base).kind, requests_per_minute=1, **binding)
        async with gateway.sdk(base, ada, key=key) as client:
            await client.chat.completions.create(model=LLAMA, messages=HELLO)
            with pytest.raises(RateLimitError) as caught:
                await client.chat.completions.create(model=LLAMA, messages=HELLO)
        assert 1 <= int(caught.value.response.headers["retry-after"]) <= 60
        assert caught.value.code == "rate_limit_exceeded"
    assert len(upstream.requests) == len(BASES)


async def test_an_idempotency_key_in_use_is_a_conflict(gateway: Running) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)
    for base in BASES:
        call: dict[str, Any] = {"model": LLAMA, "messages": HELLO, "extra_headers": {"Idempotency-Key": base}}
        async with gateway.sdk(base, ada) as client:
            await client.chat.completions.create(**call)
            with pytest.raises(ConflictError, match="different request body"):
                await client.chat.completions.create(**call, max_tokens=9)


async def test_unreachable_and_silent_providers_are_503_and_504(settings: Settings, upstream: ScriptedUpstream) -> None:
    upstream.usual = Hang()
    impatient = with_provider(settings, "main", first_byte_timeout_s=0.05)
    async with running(with_provider(impatient, "spare", base_url=NOWHERE)) as gateway:
        ada = await gateway.person(usd="1", tokens=100_000)
        await gateway.grant(ada, contract="DEEPSEEK", tokens=100_000)
        for base in BASES:
            assert await failure(gateway, base, ada, InternalServerError) == 504
            assert await failure(gateway, base, ada, InternalServerError, model=DEEPSEEK) == 503
        assert await gateway.nano(ada) == 1_000_000_000
        assert await gateway.tokens(ada) == 200_000


async def failure(
    gateway: Running, base: str, person: Person, kind: type[APIStatusError], api_key: str | None = None, **fields: Any
) -> int:
    """The status of a call that must fail with exactly this class; its body has all four fields."""
    options = {} if api_key is None else {"key": replace(person.key(base), key=api_key)}
    async with gateway.sdk(base, person, **options) as client:
        with pytest.raises(kind) as caught:
            await client.chat.completions.create(**{"model": LLAMA, "messages": HELLO, **fields})
    assert type(caught.value) is kind
    assert isinstance(caught.value.body, dict)
    assert set(caught.value.body) == {"message", "type", "code", "param"}
    return caught.value.status_code


async def test_another_accounts_trust_is_forbidden_and_x_entity_is_x_trust(gateway: Running) -> None:
    ada, bob = await gateway.person(usd="1"), await gateway.person()
    call: Any = {"model": LLAMA, "messages": HELLO}
    async with gateway.sdk(TRUST, bob) as client:
        with pytest.raises(PermissionDeniedError):
            await client.chat.completions.create(**call, extra_headers={"X-Trust": ada.account})
    async with gateway.sdk(TRUST, ada).with_options(set_default_headers={"X-Entity": ada.account}) as client:
        assert (await client.chat.completions.create(**call)).choices


async def test_the_synchronous_sdk_works_as_the_documents_show_it(gateway: Running) -> None:
    ada = await gateway.person(usd="1", tokens=100_000)

    def hello(base: str, headers: dict[str, str]) -> str | None:
        with OpenAI(api_key=ada.key(base).key, base_url=gateway.url + base, default_headers=headers) as client:
            answer = client.chat.completions.create(model=LLAMA, messages=[{"role": "user", "content": "Hello!"}])
            return answer.choices[0].message.content

    for base in BASES:
        assert await asyncio.to_thread(hello, base, ada.headers(base)) == "Paid ahead, counted along"


@pytest.mark.filterwarnings("default")  # what LangChain warns of is its own business
@pytest.mark.parametrize("streaming", [False, True])
async def test_langchain_calls_and_streams(gateway: Running, streaming: bool) -> None:
    from langchain_openai import ChatOpenAI

    ada = await gateway.person(tokens=100_000)
    async with plain_client() as http:
        model = ChatOpenAI(
            model=LLAMA,
            api_key=SecretStr(ada.inference_key.key),
            base_url=gateway.url + FORWARD,
            http_async_client=http,
        )
        pieces: list[Any]
        if streaming:
            pieces = [piece async for piece in model.astream("What is a compute forward contract?")]
        else:
            pieces = [await model.ainvoke("What is a compute forward contract?")]
    assert len(pieces) > 1 or not streaming
    assert "".join(str(piece.content) for piece in pieces) == "Paid ahead, counted along"
    assert await gateway.tokens(ada) == 100_000 - 12


async def curl(command: str, **variables: str) -> str:
    """What a shell command prints, with these variables in its environment."""
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", command, env={"PATH": "/usr/bin:/bin", "no_proxy": "*"} | variables,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await process.communicate()
    return output.decode()


async def test_curl_of_the_agents_page_works(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(tokens=1_000_000, contract="DEEPSEEK")
    command = """curl -sS "$URL/api/v1/gateway/v1/chat/completions" \\
      -H "Authorization: Bearer $AUTON_API_KEY" \\
      -H "Content-Type: application/json" \\
      -d '{
        "model": "deepseek/deepseek-chat",
        "messages": [
          {"role": "system", "content": "You are a helpful agent."},
          {"role": "user", "content": "Summarize what Auton does in one sentence."}
        ],
        "max_tokens": 100
      }'"""
    answer = json.loads(await curl(command, URL=gateway.url, AUTON_API_KEY=ada.inference_key.key))
    assert answer["choices"][0]["message"]["content"] == "Paid ahead, counted along"
    assert answer["model"] == "deepseek/deepseek-chat"
    assert upstream.requests[0].json["max_tokens"] == 100
    assert await gateway.tokens(ada) == 1_000_000 - 12


async def test_curl_of_the_router_page_works_plain_and_streamed(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    command = """curl -sS "$AUXOT_BASE_URL/api/openai/chat/completions" \\
      -H "Authorization: Bearer $AUXOT_API_KEY" \\
      -H "Content-Type: application/json" \\
      -d '{"model": "auto", "messages": [{"role": "user", "content": "Ping with one word."}]%s}'"""
    known = {"AUXOT_BASE_URL": gateway.url, "AUXOT_API_KEY": ada.personal_key.key}
    answer = json.loads(await curl(command % "", **known))
    streamed = await curl(command % ', "stream": true', **known)
    assert answer["choices"][0]["message"]["content"] == "Paid ahead, counted along"
    assert all(line.startswith("data: ") for line in streamed.split("\n\n") if line)
    assert streamed.endswith("data: [DONE]\n\n")


async def test_curl_with_x_trust_works(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    command = """curl -sS "$URL/v1/chat/completions" \\
      -H "Authorization: Bearer $TOKEN" -H "X-Trust: $TRUST" -H "Content-Type: application/json" \\
      -d '{"model": "meta-llama/Meta-Llama-3.1-70B-Instruct", "stream": false, "temperature": 0.7,
           "messages": [{"role": "user", "content": "What is the capital of France?"}], "max_tokens": 1024}'"""
    answer = json.loads(await curl(command, URL=gateway.url, TOKEN=ada.account_key.key, TRUST=ada.account))
    assert answer["id"].startswith("cmpl-")
    assert answer["usage"] == {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


async def test_a_gateway_without_any_provider_in_reach_still_lists_and_refuses_in_good_order(store_url: str) -> None:
    async with running(settings_for(store_url)) as gateway:
        ada = await gateway.person(usd="1")
        async with gateway.sdk(ROUTER, ada) as client:
            assert [model.id async for model in client.models.list()]
        assert await failure(gateway, ROUTER, ada, InternalServerError) == 503
