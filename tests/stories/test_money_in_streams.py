"""When the money ends in mid-stream, the stream ends where the money does: in order, said why, and never below zero."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import perf_counter

import pytest

from penstock.config import ModelSettings, OfferSettings, PriceSettings, Settings
from penstock.operations.key_views import MintedKey
from tests.faults import kept_by_another
from tests.stories.caller import Caller, calling, data, eventually
from tests.stories.gateway import FORWARD, LLAMA, ROUTER, TRUST, Person, Running, running, settings_for
from tests.upstream import Plain, Raw, ScriptedUpstream, Stream

DONE = b"data: [DONE]\n\n"
METERED = "metered"  # $0.10 and $2 a million
OUTPUT_NANO = 2_000
BY_OUTPUT = "by-output"  # prompts are free, $1 a million for what comes: what is left is exact
ENDLESS = Stream(tokens=10**6)
PROMPT_BOUND = 200  # bytes, more than any request here has


@pytest.fixture
def settings(store_url: str, upstream: ScriptedUpstream) -> Settings:
    settings = settings_for(store_url, upstream=upstream.base_url)
    offers = (OfferSettings("main", "upstream-name"),)
    models = (
        ModelSettings(METERED, offers=offers, price=PriceSettings(100_000_000, OUTPUT_NANO * 10**6)),
        ModelSettings(BY_OUTPUT, offers=offers, price=PriceSettings(0, 10**9)),
    )
    return replace(settings, models=settings.models + models)


async def streamed(
    gateway: Running, base: str, person: Person, model: str, key: MintedKey | None = None
) -> list[bytes]:
    """The events of one stream, with usage asked for."""
    async with calling(gateway.url) as caller:
        await caller.ask(base, person, key=key, model=model, stream=True, stream_options={"include_usage": True})
        assert (await caller.head()).status == 200
        return await caller.events()


def assert_ends_with_the_money(events: list[bytes]) -> int:
    """The stream ended in order and said why; the output tokens that its usage tells."""
    *words, final, usage, done = events
    (choice,) = data(final)["choices"]
    assert choice == {"index": 0, "delta": {}, "finish_reason": "length"}
    assert data(final)["penstock"] == {"reason": "insufficient_balance"}
    assert {data(event)["id"] for event in (*words, final, usage)} == {data(words[0])["id"]}
    assert {data(event)["model"] for event in (*words, final, usage)} == {data(words[0])["model"]}
    assert data(usage)["choices"] == []
    assert data(usage)["usage"]["completion_tokens"] == len(words)
    assert done == DONE
    return len(words)


async def test_the_stream_ends_in_order_where_the_money_does(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.002")
    upstream.script(ENDLESS)
    events = await streamed(gateway, ROUTER, ada, METERED)
    tokens = assert_ends_with_the_money(events)
    assert 0 <= await gateway.nano(ada) <= 0.01 * 2_000_000
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.status, record.estimated, record.uncollected) == ("money", 200, True, 0)
    assert record.output_tokens == tokens == data(events[-2])["usage"]["completion_tokens"]


async def test_not_one_more_token_could_have_been_paid(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.001000999")
    upstream.script(ENDLESS)
    assert assert_ends_with_the_money(await streamed(gateway, ROUTER, ada, BY_OUTPUT)) == 1000
    assert await gateway.nano(ada) == 999


async def test_the_upstream_is_aborted_at_once(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.002")
    upstream.script(ENDLESS)
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, model=METERED, stream=True)
        await caller.head()
        while b"insufficient_balance" not in await caller.event():
            pass
        seen = perf_counter()
        received = await upstream.arrival(1)
        await received.over.wait()
    assert received.aborted_at is not None
    assert received.aborted_at < seen + 0.1


@pytest.mark.timeout(10)  # what goes wrong here stops the event loop, and every other time-out with it
async def test_an_extension_decided_at_this_very_moment_is_counted(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    """The store has decided and its callbacks are still to run when the stream asks: rare, and once an endless loop."""
    ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=1000, hold_after=1))
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, model=METERED, stream=True)
        await caller.head()
        (stream,) = gateway.gateway.relay.streams
        hold = stream._hold
        covered = hold.covered_output
        extending = hold._extend()
        while not extending.done():  # noqa: ASYNC110 -- an event would wake us after the callbacks
            await asyncio.sleep(0)
        assert hold.covered_output == covered
        assert await hold.cover(covered + 1)
        assert hold.covered_output > covered


async def test_nobody_gets_usage_who_did_not_ask(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.001")
    upstream.script(ENDLESS)
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, model=BY_OUTPUT, stream=True)
        await caller.head()
        events = await caller.events()
    assert data(events[-2])["choices"][0]["finish_reason"] == "length"
    assert events[-1] == DONE


async def test_a_running_count_of_the_upstream_is_believed(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.001")
    upstream.script(Stream(tokens=10**6, tokens_per_event=3, usage="every"))
    events = await streamed(gateway, ROUTER, ada, BY_OUTPUT)
    assert data(events[-3])["penstock"]["reason"] == "insufficient_balance"
    assert 3 * (len(events) - 3) == 999
    assert await gateway.nano(ada) == 1_000
    assert (await gateway.usage(ada))[0].estimated is False


WORD = (
    b'data: {"id":"c","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,'
    b'"delta":{"content":"word"},"finish_reason":null}],"usage":{"prompt_tokens":%d,"completion_tokens":%d}}\n\n'
)


@pytest.mark.parametrize("each", [0, 1])
async def test_a_running_count_that_does_not_grow_lets_nobody_read_for_nothing(
    gateway: Running, upstream: ScriptedUpstream, each: int
) -> None:
    ada = await gateway.person(usd="0.001")
    upstream.script(Raw(WORD % (each, each) * 5_000, content_type="text/event-stream"))
    events = await streamed(gateway, ROUTER, ada, BY_OUTPUT)
    assert assert_ends_with_the_money(events) == 1_000
    assert await gateway.nano(ada) == 0
    (record,) = await gateway.usage(ada)
    assert (record.output_tokens, record.input_tokens > 0, record.estimated) == (1_000, True, True)


async def test_the_official_sdk_reads_the_end(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.001")
    upstream.script(ENDLESS)
    client = gateway.sdk(TRUST, ada)
    stream = await client.chat.completions.create(
        model=BY_OUTPUT, messages=[{"role": "user", "content": "Hello!"}], stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    await client.close()
    *words, final, usage = chunks
    assert [word.choices[0].finish_reason for word in words] == [None] * 1000
    assert final.choices[0].finish_reason == "length"
    assert (final.model_extra or {})["penstock"] == {"reason": "insufficient_balance"}
    assert usage.usage is not None
    assert usage.usage.completion_tokens == 1000


async def test_less_than_a_slice_lowers_the_limit_that_goes_upstream(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="0.000007")
    upstream.script(ENDLESS)
    events = await streamed(gateway, ROUTER, ada, BY_OUTPUT)
    assert upstream.requests[0].json["max_tokens"] == 7
    assert data(events[-3])["choices"][0]["finish_reason"] == "length"
    assert data(events[-2])["usage"]["completion_tokens"] == 7
    assert await gateway.nano(ada) == 0
    assert upstream.requests[0].finished


async def test_a_plain_answer_is_fitted_to_the_money(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.000007")
    upstream.script(Plain(tokens=1000))
    answer = (await gateway.chat(ROUTER, ada, model=BY_OUTPUT, max_tokens=500)).json()
    assert answer["usage"]["completion_tokens"] == 7
    assert answer["choices"][0]["finish_reason"] == "length"
    assert await gateway.nano(ada) == 0


async def test_callers_share_a_small_balance_to_its_end(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.006")
    upstream.usual = ENDLESS
    ended = await asyncio.gather(*(streamed(gateway, ROUTER, ada, BY_OUTPUT) for _ in range(8)))
    tokens = [assert_ends_with_the_money(events) for events in ended]
    assert all(tokens)
    assert sum(tokens) == 6000
    assert await gateway.nano(ada) == 0
    assert {record.ended for record in await gateway.usage(ada)} == {"money"}


async def test_more_is_set_aside_before_it_is_needed(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    held = Stream(tokens=2000, hold_after=200)
    upstream.script(held)
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, model=BY_OUTPUT, stream=True)
        await caller.head()
        await take(caller, 200)

        async def set_aside() -> bool:
            return (await gateway.balance(ada)).credits.held.nano > 256_000

        await eventually(set_aside)
        held.resume.set()
        assert (await caller.events())[-1] == DONE
    assert (await upstream.arrival(1)).finished
    assert await gateway.nano(ada) == 10**9 - 2_000_000


async def test_a_stream_runs_on_what_is_set_aside_while_the_store_is_busy(
    gateway: Running, store_url: str, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    held = Stream(tokens=250, hold_after=1)
    upstream.script(held)
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, model=BY_OUTPUT, stream=True)
        await caller.head()
        async with kept_by_another(store_url):
            held.resume.set()
            await take(caller, 250)
        assert (await caller.events())[-1] == DONE
    assert await gateway.nano(ada) == 10**9 - 250_000


async def test_a_stream_sets_aside_no_more_than_its_limit_can_cost(
    settings: Settings, upstream: ScriptedUpstream
) -> None:
    held = Stream(tokens=50, hold_after=30)
    upstream.script(held)
    async with running(replace(settings, limits=replace(settings.limits, stream_slice_tokens=16))) as gateway:
        ada = await gateway.person(usd="1")
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada, model=BY_OUTPUT, stream=True, max_tokens=40)
            await caller.head()
            await take(caller, 30)

            async def set_aside() -> int:
                held_nano = (await gateway.balance(ada)).credits.held.nano
                return held_nano if held_nano > 16_000 else 0

            assert await eventually(set_aside) == 40_000
            held.resume.set()
            assert (await caller.events())[-1] == DONE
        assert await gateway.nano(ada) == 10**9 - 40_000


@pytest.mark.parametrize("tokens", [100, 450, 1_000, 3_333])  # 450: a little more than the first slice
async def test_a_contract_lot_is_used_to_the_last_token(
    gateway: Running, upstream: ScriptedUpstream, tokens: int
) -> None:
    ada = await gateway.person(tokens=tokens)
    upstream.usual = ENDLESS
    events = await streamed(gateway, FORWARD, ada, LLAMA)
    assert await gateway.tokens(ada) == 0
    (record,) = await gateway.usage(ada)
    assert record.amount == tokens
    assert record.total_tokens == data(events[-2])["usage"]["total_tokens"]
    assert upstream.requests[0].json.get("max_tokens", 0) <= tokens


async def test_a_contract_stream_ends_in_order_where_the_lot_does(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(tokens=2_000)
    upstream.script(ENDLESS)
    tokens = assert_ends_with_the_money(await streamed(gateway, FORWARD, ada, LLAMA))
    (record,) = await gateway.usage(ada)
    assert (record.ended, record.lane, record.uncollected) == ("money", "contract", 0)
    assert (record.output_tokens, record.input_tokens + tokens) == (tokens, 2_000)


async def test_the_last_token_of_a_lot_serves_a_last_stream(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(tokens=1)
    upstream.script(ENDLESS)
    events = await streamed(gateway, FORWARD, ada, LLAMA)
    assert upstream.requests[0].json["max_tokens"] == 1
    assert data(events[-2])["usage"]["total_tokens"] == 8
    assert await gateway.tokens(ada) == 0
    (record,) = await gateway.usage(ada)
    assert (record.amount, record.uncollected, record.ended) == (1, 7, "answer")
    assert (await gateway.chat(FORWARD, ada, stream=True)).status_code == 402


async def test_the_limit_of_a_key_ends_a_stream_too(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    key = await gateway.key("personal", user=ada.user, limit="0.0015")
    upstream.script(ENDLESS)
    assert assert_ends_with_the_money(await streamed(gateway, ROUTER, ada, BY_OUTPUT, key)) == 1500
    assert await gateway.nano(ada) == 10**9 - 1_500_000
    assert (await gateway.chat(ROUTER, ada, key=key, model=BY_OUTPUT)).status_code == 402
    assert (await gateway.chat(ROUTER, ada, model=BY_OUTPUT)).status_code == 200


async def test_a_grant_in_mid_stream_lets_it_run_on(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="0.000260")
    held = Stream(tokens=400, hold_after=100)
    upstream.script(held)
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, model=BY_OUTPUT, stream=True)
        await caller.head()
        await take(caller, 100)
        await gateway.grant(ada, usd="1")
        held.resume.set()
        assert (await caller.events())[-1] == DONE
    assert (await gateway.usage(ada))[0].output_tokens == 400


async def test_a_call_that_nothing_is_left_for_is_refused_before_the_upstream_hears_of_it(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="0.000000999")
    refused = await gateway.chat(ROUTER, ada, model=BY_OUTPUT, stream=True)
    assert refused.status_code == 402
    assert refused.json()["error"]["code"] == "payment_required"
    assert upstream.requests == []
    assert await gateway.usage(ada) == ()


async def take(caller: Caller, number: int) -> None:
    """Read so many events."""
    for _ in range(number):
        assert await caller.event()
