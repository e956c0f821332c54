"""A real engine beside the gateway: llama.cpp with random weights starts, answers and never outlives its owner; and
behind it, where every token that it counts is a token paid for."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.config import ModelSettings, OfferSettings, PriceSettings, ProviderSettings
from penstock.errors import ConfigError, UpstreamError, UpstreamUnavailable
from penstock.ports import Answer, Call
from penstock.providers.llamacpp import LlamaCppEngine, write_tiny_model
from penstock.providers.openai_compatible import OpenAICompatible
from tests.stories.caller import calling, data, the_record
from tests.stories.gateway import FORWARD, HELLO, ROUTER, ROUTER_V1, TRUST, Running, running, settings_for

pytest.importorskip("xllamacpp", reason="the extra [engine] is not installed")
pytest.importorskip("gguf", reason="the extra [engine] is not installed")

ROOT = Path(__file__).parents[2]
OWNER = """
import asyncio, sys
from penstock.providers.llamacpp import LlamaCppEngine

async def main():
    engine = LlamaCppEngine(sys.argv[1], threads=1)
    await engine.start()
    print(engine.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.gguf"
    write_tiny_model(path)
    return path


@pytest.fixture
async def engine(model: Path) -> AsyncIterator[LlamaCppEngine]:
    engine = LlamaCppEngine(model, "tiny", threads=1)
    yield engine
    await engine.close()


def chat(prompt: str, **fields: Any) -> Call:
    body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 8} | fields
    return Call("chat/completions", json.dumps(body).encode(), stream=bool(fields.get("stream")))


async def read(answer: Answer) -> Any:
    try:
        return json.loads(await answer.read(100_000))
    finally:
        answer.close()


async def first_answer(engine: LlamaCppEngine) -> Any:
    """Until its owner has noticed that an engine is gone, calls to it fail as unreachable, which others may serve."""
    while True:
        try:
            return await read(await engine.open(chat("Hello?")))
        except UpstreamError:
            continue


def ended(pid: int) -> int:
    """A descriptor that becomes readable when the process ends, whoever's child it is."""
    return os.pidfd_open(pid)


async def test_the_first_call_starts_the_engine_and_the_model_answers(engine: LlamaCppEngine) -> None:
    before = engine.pid
    answer = await read(await engine.open(chat("Any language: grüezi, 你好.")))
    assert before is None
    assert engine.pid is not None
    assert answer["model"] == "tiny"
    assert len(answer["choices"][0]["message"]["content"]) == 8
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 8


async def test_the_same_words_come_for_the_same_seed(engine: LlamaCppEngine) -> None:
    answers = [await read(await engine.open(chat("Say it again.", seed=7, cache_prompt=False))) for _ in range(2)]
    assert answers[0]["choices"] == answers[1]["choices"]


async def test_a_schema_is_obeyed_even_by_random_weights(engine: LlamaCppEngine) -> None:
    schema = {"type": "object", "properties": {"ok": {"const": True}}, "required": ["ok"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "ok", "schema": schema}}
    answer = await read(await engine.open(chat("Is it?", response_format=wanted, max_tokens=64)))
    assert json.loads(answer["choices"][0]["message"]["content"]) == {"ok": True}


@pytest.mark.parametrize("api_key", [None, "guess"])
async def test_nobody_else_on_the_machine_can_use_the_engine(engine: LlamaCppEngine, api_key: str | None) -> None:
    await engine.start()
    assert engine.base_url is not None
    assert engine.base_url.startswith("http://127.0.0.1:")
    intruder = OpenAICompatible(ProviderSettings(name="intruder", base_url=engine.base_url, api_key=api_key))
    answer = await intruder.open(chat("Hello?"))
    assert answer.status == 401
    assert (await read(answer))["error"]["type"] == "authentication_error"
    await intruder.close()


async def test_callers_that_come_while_it_starts_share_one_engine(engine: LlamaCppEngine) -> None:
    answers = await asyncio.gather(*(engine.open(chat("Hello?")) for _ in range(4)))
    assert [len((await read(answer))["choices"]) for answer in answers] == [1] * 4


async def test_a_crashed_engine_is_started_again(engine: LlamaCppEngine) -> None:
    await engine.start()
    crashed = engine.pid
    assert crashed is not None
    os.kill(crashed, signal.SIGKILL)
    async with asyncio.timeout(10):
        answer = await first_answer(engine)
    assert answer["usage"]["completion_tokens"] == 8
    assert engine.pid not in (None, crashed)


async def test_close_ends_the_process(engine: LlamaCppEngine) -> None:
    await engine.start()
    assert engine.pid is not None
    gone = ended(engine.pid)
    await engine.close()
    assert select.select([gone], [], [], 0)[0] == [gone]
    os.close(gone)
    with pytest.raises(UpstreamUnavailable):
        await engine.open(chat("Hello?"))


async def test_close_during_the_start_ends_it(engine: LlamaCppEngine) -> None:
    starting = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    await engine.close()
    with pytest.raises(UpstreamUnavailable, match="closed while it started"):
        await starting


async def test_a_caller_that_gives_up_does_not_stop_the_start(engine: LlamaCppEngine) -> None:
    impatient = asyncio.create_task(engine.start())
    patient = asyncio.create_task(engine.start())
    await asyncio.sleep(0)
    impatient.cancel()
    await patient
    assert impatient.cancelled()
    assert engine.pid is not None


async def test_a_file_that_is_no_model_is_said_to_be_unavailable_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "junk.gguf").write_bytes(b"junk")
    engine = LlamaCppEngine(tmp_path / "junk.gguf", "junk")
    with pytest.raises(UpstreamUnavailable, match="'junk' did not start"):
        await engine.start()
    assert "invalid magic" in caplog.text
    await engine.close()


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("xllamacpp", "gguf"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"penstock\[engine\]"):
        LlamaCppEngine(tmp_path / "tiny.gguf")
    with pytest.raises(ConfigError, match=r"penstock\[engine\]"):
        write_tiny_model(tmp_path / "tiny.gguf")


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part of this is Linux's")
@pytest.mark.parametrize("state", ["serving", "stuck"])
async def test_the_engine_dies_with_an_owner_that_is_killed(model: Path, state: str) -> None:
    owner = await asyncio.create_subprocess_exec(
        sys.executable, "-c", OWNER, str(model), stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert owner.stdout is not None
    pid = int(await owner.stdout.readline())
    gone = ended(pid)
    if state == "stuck":  # as while it loads: its Python does not run
        os.kill(pid, signal.SIGSTOP)
    owner.kill()
    await owner.wait()
    assert (await asyncio.to_thread(select.select, [gone], [], [], 10))[0] == [gone]
    os.close(gone)


class TestBehindTheGateway:
    """The same engine as a provider, called with the official SDK. It costs $0.10 and $2 a million tokens."""

    INPUT, OUTPUT = 100, 2_000  # nano-USD a token

    @pytest.fixture
    async def gateway(self, store_url: str, model: Path) -> AsyncIterator[Running]:
        settings = settings_for(store_url)
        engine = ProviderSettings("engine", kind="llamacpp", model_path=str(model), threads=1)
        tiny = ModelSettings(
            "tiny",
            offers=(OfferSettings("engine", "tiny"),),
            price=PriceSettings(self.INPUT * 10**6, self.OUTPUT * 10**6),
            contract="LLAMA",
        )
        async with running(replace(settings, providers=(engine,), models=(tiny,))) as gateway:
            yield gateway

    async def test_what_the_engine_counts_is_what_is_charged(self, gateway: Running) -> None:
        ada = await gateway.person(usd="1")
        client = gateway.sdk(TRUST, ada)
        wish: Any = {"model": "tiny", "messages": HELLO, "max_tokens": 20}
        plain = await client.chat.completions.create(**wish)
        chunks = await client.chat.completions.create(**wish, stream=True, stream_options={"include_usage": True})
        pieces = [chunk async for chunk in chunks]
        await client.close()
        text = "".join(chunk.choices[0].delta.content or "" for chunk in pieces if chunk.choices)
        assert len(text) == pieces[-1].usage.completion_tokens == 20  # one token is one letter
        usages = [plain.usage, pieces[-1].usage]
        records = (await gateway.usage(ada))[::-1]
        assert [record.estimated for record in records] == [False, False]
        for usage, record in zip(usages, records, strict=True):
            assert (record.input_tokens, record.output_tokens) == (usage.prompt_tokens, usage.completion_tokens)
            assert record.amount == usage.prompt_tokens * self.INPUT + usage.completion_tokens * self.OUTPUT
        assert await gateway.nano(ada) == 10**9 - sum(record.amount for record in records)

    async def test_a_stream_ends_where_the_money_does_and_the_engine_is_free_again(self, gateway: Running) -> None:
        ada, bob = await gateway.person(usd="0.0008"), await gateway.person(usd="1")
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada, model="tiny", stream=True, max_tokens=4000)
            await caller.head()
            *words, final, done = await caller.events()
        assert data(final)["choices"][0]["finish_reason"] == "length"
        assert data(final)["penstock"] == {"reason": "insufficient_balance"}
        assert done == b"data: [DONE]\n\n"
        (record,) = await gateway.usage(ada)
        assert record.ended == "money"
        letters = "".join(data(word)["choices"][0]["delta"].get("content") or "" for word in words)
        assert record.output_tokens == len(letters)
        assert 0 <= await gateway.nano(ada) < 0.02 * 800_000  # the prompt was held at its bound and counted as less
        answers = await asyncio.gather(*(gateway.chat(ROUTER, bob, model="tiny", max_tokens=5) for _ in range(4)))
        assert [answer.json()["usage"]["completion_tokens"] for answer in answers] == [5] * 4

    async def test_a_lot_is_used_to_the_last_token(self, gateway: Running) -> None:
        ada = await gateway.person(tokens=300)
        while (answer := await gateway.chat(FORWARD, ada, model="tiny", max_tokens=40)).status_code == 200:
            pass
        assert answer.json()["error"]["type"] == "insufficient_compute_balance"
        assert await gateway.tokens(ada) == 0
        records = await gateway.usage(ada)
        assert sum(record.amount for record in records) == 300
        assert sum(record.uncollected for record in records) == sum(each.total_tokens for each in records) - 300

    async def test_a_caller_that_leaves_pays_for_the_letters_that_came(self, gateway: Running) -> None:
        ada = await gateway.person(usd="1")
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada, model="tiny", stream=True, max_tokens=4000)
            await caller.head()
            for _ in range(10):
                await caller.event()
            caller.hang_up()
            record = await the_record(gateway, ada)
        assert record.ended == "caller_gone"
        assert 9 <= record.output_tokens < 4000
        assert (await gateway.chat(ROUTER, ada, model="tiny", max_tokens=3)).status_code == 200


class TestEmbeddings:
    """The engine with vectors, behind the gateway, at $0.10 a million tokens."""

    INPUT = 100  # nano-USD a token

    @pytest.fixture
    async def gateway(self, store_url: str, model: Path) -> AsyncIterator[Running]:
        settings = settings_for(store_url)
        engine = ProviderSettings(
            "engine", kind="llamacpp", model_path=str(model), threads=1, embeddings="mean", context_tokens=512
        )
        tiny = ModelSettings(
            "tiny-embed",
            kind="embeddings",
            offers=(OfferSettings("engine", "tiny"),),
            price=PriceSettings(self.INPUT * 10**6),
        )
        async with running(replace(settings, providers=(engine,), models=(tiny,))) as gateway:
            yield gateway

    async def test_vectors_come_in_every_form_the_sdk_knows_and_are_charged_to_the_token(
        self, gateway: Running
    ) -> None:
        ada = await gateway.person(usd="1")
        texts = ["A hold is a promise.", "Grüezi, 你好."]
        async with gateway.sdk(ROUTER_V1, ada) as client:
            packed = await client.embeddings.create(model="tiny-embed", input=texts)  # asks for base64 by itself
            plain = await client.embeddings.create(model="tiny-embed", input=texts[0], encoding_format="float")
            tokens = await client.embeddings.create(model="tiny-embed", input=[[1, 300, 301], [302]])
        assert plain.model == "tiny-embed"
        assert plain.data[0].embedding == pytest.approx(packed.data[0].embedding, abs=1e-5)
        assert packed.data[0].embedding != pytest.approx(packed.data[1].embedding, abs=1e-2)
        assert [len(each.embedding) for each in [*packed.data, *tokens.data]] == [64] * 4
        assert sum(value * value for value in packed.data[0].embedding) == pytest.approx(1, abs=1e-4)
        counted = [answer.usage.prompt_tokens for answer in (packed, plain, tokens)]
        records = (await gateway.usage(ada))[::-1]
        assert [record.input_tokens for record in records] == counted
        assert [(record.output_tokens, record.estimated) for record in records] == [(0, False)] * 3
        assert await gateway.nano(ada) == 10**9 - sum(counted) * self.INPUT

    async def test_a_text_that_is_too_long_for_the_engine_is_refused_and_free(self, gateway: Running) -> None:
        ada = await gateway.person(usd="1")
        body = {"model": "tiny-embed", "input": "a" * 600}
        answer = await gateway.post(f"{ROUTER_V1}/embeddings", ada, body=body)
        assert answer.status_code == 502
        assert await gateway.nano(ada) == 10**9


async def test_a_model_that_knows_of_no_vectors_has_to_be_told_how(model: Path) -> None:
    engine = LlamaCppEngine(model, "tiny", threads=1, embeddings="model")
    with pytest.raises(UpstreamUnavailable, match="answered its first call with 400"):
        await engine.start()
    await engine.close()
