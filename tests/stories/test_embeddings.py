"""Embeddings: not implemented until a model is configured, then served and paid like everything else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from openai import InternalServerError

from penstock.config import ModelSettings, OfferSettings, PriceSettings, Settings
from tests.stories.gateway import BASES, FORWARD, HELLO, LLAMA, ROUTER, TRUST, Running, running
from tests.upstream import Embeddings, Raw, Refusal, ScriptedUpstream

EMBED = ModelSettings(
    id="acme/embed",
    kind="embeddings",
    offers=(OfferSettings("main", "embed-upstream"),),
    price=PriceSettings(input=20_000_000),
    contract="LLAMA",
)


@pytest.fixture
def embedding(settings: Settings) -> Settings:
    return replace(settings, models=(*settings.models, EMBED))


async def test_without_an_embedding_model_it_is_501_for_those_who_may_ask(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1", tokens=100)
    for base in BASES:
        async with gateway.sdk(base, ada) as client:
            with pytest.raises(InternalServerError) as caught:
                await client.embeddings.create(model=LLAMA, input="Hello")
        assert caught.value.status_code == 501
        assert caught.value.type == caught.value.code == "not_implemented"
        assert (await gateway.http.post(f"{base}/embeddings", json={})).status_code == 401
    assert upstream.requests == []


async def test_with_one_they_are_served_and_paid_on_every_surface(
    embedding: Settings, upstream: ScriptedUpstream
) -> None:
    async with running(embedding) as gateway:
        ada = await gateway.person(usd="1", tokens=100)
        upstream.usual = Embeddings(dimensions=3, prompt_tokens=7)
        inputs: list[Any] = ["Hello", ["Hello", "world"], [1, 2, 3], [[1, 2], [3]]]
        for base, given in zip(BASES, inputs, strict=True):
            async with gateway.sdk(base, ada) as client:
                answer = await client.embeddings.create(model="ACME/Embed", input=given, encoding_format="float")
            assert answer.model == "ACME/Embed"
            assert answer.data[0].embedding == [1.0, 0.0, 0.0]
            received = upstream.requests[-1]
            assert received.path.endswith("/embeddings")
            assert received.json == {"model": "embed-upstream", "input": given, "encoding_format": "float"}
        assert await gateway.nano(ada) == 1_000_000_000 - 3 * 7 * 20
        assert await gateway.tokens(ada) == 100 - 7
        assert {(each.dialect, each.output_tokens) for each in await gateway.usage(ada)} == {("openai_embeddings", 0)}


async def test_each_endpoint_serves_its_own_kind_of_model(embedding: Settings, upstream: ScriptedUpstream) -> None:
    async with running(embedding) as gateway:
        ada = await gateway.person(usd="1", tokens=100)
        for base in BASES:
            wrong = await gateway.post(f"{base}/embeddings", ada, body={"model": LLAMA, "input": "Hello"})
            assert (wrong.status_code, wrong.json()["error"]["param"]) == (400, "model")
            assert (await gateway.chat(base, ada, model=EMBED.id)).status_code == 400
        assert upstream.requests == []


async def test_an_input_that_is_none_is_refused_and_checked_in_the_usual_order(embedding: Settings) -> None:
    async with running(embedding) as gateway:
        ada = await gateway.person()
        path = f"{ROUTER}/embeddings"
        inputs: list[Any] = [None, "", [], 5, {}, [None], ["a", 1], [["a"]], True]
        for given in inputs:
            refused = await gateway.post(path, ada, body={"model": EMBED.id, "input": given})
            assert (refused.status_code, refused.json()["error"]["param"]) == (400, "input"), given
        statuses = [
            (await gateway.post(path, ada, body=body)).status_code
            for body in (b"", {"input": "x"}, {"model": "no/such", "input": "x"}, {"model": EMBED.id, "input": "x"})
        ]
        assert statuses == [400, 400, 404, 402]


async def test_trouble_upstream_costs_nothing(embedding: Settings, upstream: ScriptedUpstream) -> None:
    async with running(embedding) as gateway:
        ada = await gateway.person(usd="1", tokens=100)
        upstream.script(Refusal(400, "Too many inputs."), Refusal(500), Raw(b"nonsense"))
        asked = {"model": EMBED.id, "input": "Hello"}
        answers = [await gateway.post(f"{TRUST}/embeddings", ada, body=asked) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [400, 502, 502]
        assert answers[0].json()["error"]["message"] == "Too many inputs."
        assert await gateway.nano(ada) == 1_000_000_000


async def test_the_same_request_again_is_charged_once(embedding: Settings, upstream: ScriptedUpstream) -> None:
    async with running(embedding) as gateway:
        ada = await gateway.person(tokens=100)
        once = {"idempotency-key": "batch-1"}
        asked = {"model": EMBED.id, "input": ["Hello"]}
        first = await gateway.post(f"{FORWARD}/embeddings", ada, body=asked, headers=once)
        again = await gateway.post(f"{FORWARD}/embeddings", ada, body=asked, headers=once)
        other = await gateway.post(
            f"{FORWARD}/chat/completions", ada, body={"model": LLAMA, "messages": HELLO}, headers=once
        )
        assert first.content == again.content
        assert other.status_code == 409
        assert await gateway.tokens(ada) == 100 - 7
        assert len(upstream.requests) == 1
