"""Legacy completions with the official SDK: by an upstream that has them, and by one that only has chat."""

from __future__ import annotations

import json
from typing import Any

import pytest
from openai import BadRequestError

from penstock.config import Settings
from tests.stories.gateway import DEEPSEEK, LLAMA, ROUTER, ROUTER_V1, TRUST, Running, events, running, with_provider
from tests.upstream import Plain, Raw, ScriptedUpstream, Stream

PLACES = (TRUST, ROUTER, ROUTER_V1)
INPUT, OUTPUT = 590, 790  # nano-USD a token of LLAMA


def completion(text: str, **more: Any) -> Raw:
    choice = {"text": text, "index": 0, "logprobs": None, "finish_reason": "length"}
    usage = {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6}
    document = {"id": "cmpl-up", "object": "text_completion", "created": 9, "model": "up", "choices": [choice]}
    return Raw(json.dumps(document | {"usage": usage} | more).encode())


@pytest.fixture
def with_completions(settings: Settings) -> Settings:
    return with_provider(settings, "main", dialects=("openai_chat", "openai_completions"))


async def test_on_each_surface_they_pass_as_they_are_and_are_paid(
    with_completions: Settings, upstream: ScriptedUpstream
) -> None:
    async with running(with_completions) as gateway:
        ada = await gateway.person(usd="1")
        for base in PLACES:
            upstream.script(completion(" there was"))
            async with gateway.sdk(base, ada) as client:
                answer = await client.completions.create(model=LLAMA, prompt=["Once"], suffix="end", max_tokens=5)
            assert (answer.object, answer.model, answer.choices[0].text) == ("text_completion", LLAMA, " there was")
            received = upstream.requests[-1]
            assert received.path.endswith("/v1/completions")
            assert received.json == {
                "model": "llama-upstream",
                "prompt": ["Once"],
                "suffix": "end",
                "max_tokens": 5,
            }
        records = await gateway.usage(ada)
        assert {(each.dialect, each.amount) for each in records} == {("openai_completions", 4 * INPUT + 2 * OUTPUT)}
        assert await gateway.nano(ada) == 10**9 - 3 * (4 * INPUT + 2 * OUTPUT)


async def test_a_chat_model_answers_too_plain_and_streamed(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Plain(tokens=3), Stream(tokens=3))
    wish: Any = {"model": LLAMA, "prompt": "Tell me.", "max_tokens": 9}
    async with gateway.sdk(ROUTER, ada) as client:
        plain = await client.completions.create(**wish)
        chunks = await client.completions.create(**wish, stream=True, stream_options={"include_usage": True})
        pieces = [chunk async for chunk in chunks]
    assert upstream.requests[0].path.endswith("/v1/chat/completions")
    assert upstream.requests[0].json["messages"] == [{"role": "user", "content": "Tell me."}]
    streamed = "".join(choice.text for piece in pieces for choice in piece.choices)
    assert plain.choices[0].text == streamed == "Paid ahead,"
    assert plain.choices[0].finish_reason == pieces[-2].choices[0].finish_reason == "stop"
    assert {piece.object for piece in pieces} == {"text_completion"}
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == 3
    assert await gateway.nano(ada) == 10**9 - 2 * (7 * INPUT + 3 * OUTPUT)


async def test_what_a_chat_model_cannot_do_is_a_400_naming_the_field_and_costs_nothing(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    async with gateway.sdk(TRUST, ada) as client:
        for wish in ({"suffix": "x"}, {"echo": True}, {"logprobs": 1}, {"prompt": [1, 2]}, {"best_of": 2}):
            with pytest.raises(BadRequestError) as refused:
                await client.completions.create(**({"model": LLAMA, "prompt": "Tell me."} | wish))
            assert refused.value.param == next(iter(wish))
    assert upstream.requests == []
    assert await gateway.nano(ada) == 10**9


async def test_the_offer_that_can_serves_where_the_first_fails(
    with_completions: Settings, upstream: ScriptedUpstream, spare: ScriptedUpstream
) -> None:
    async with running(with_completions) as gateway:
        ada = await gateway.person(usd="1")
        upstream.script(Raw(b"nonsense"))
        spare.script(Plain(tokens=2))
        answer = await gateway.post(f"{TRUST}/completions", ada, body={"model": DEEPSEEK, "prompt": "Tell me."})
        assert answer.json()["choices"][0]["text"] == "Paid ahead"
        assert answer.headers["x-penstock-route"].startswith("spare;attempts=2")
        (record,) = await gateway.usage(ada)
        assert (record.provider, record.attempts) == ("spare", 2)


async def test_a_stream_ends_where_the_money_does(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.0003")  # a slice of 256 tokens, and not a second
    upstream.script(Stream(tokens=500))
    body = {"model": LLAMA, "prompt": "Go", "max_tokens": 500, "stream": True}
    answer = await gateway.post(f"{TRUST}/completions", ada, body=body)
    *words, final, done = events(answer.text)
    assert final["penstock"] == {"reason": "insufficient_balance"}
    assert final["choices"] == [{"text": "", "index": 0, "logprobs": None, "finish_reason": "length"}]
    assert done == "[DONE]"
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.output_tokens) == ("money", len(words))
