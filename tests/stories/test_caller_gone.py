"""The caller leaves: what was produced is charged, nothing stays held, and the upstream is told in its own way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import func, select

from penstock.config import HealthSettings, Settings
from penstock.db.program import Program, Statement, fetch
from penstock.db.schema import holds
from penstock.errors import OutcomeUnknown
from penstock.providers.openai_compatible import OpenAICompatible
from tests.faults import kept_by_another
from tests.stories.caller import Caller, calling, eventually, the_record
from tests.stories.gateway import DEEPSEEK, LLAMA, ROUTER, Person, Running, running, settings_for, with_provider
from tests.upstream import Exchange, Plain, Refusal, ScriptedUpstream, Stream

INPUT, OUTPUT = 590, 790  # nano-USD a token of LLAMA
INPUT_ESTIMATE = 6  # tokens of the message in HELLO and its template
GRANTED = 10**9
HELD = Statement(select(func.count()).select_from(holds))

LEAVING: dict[str, Callable[[Caller], object]] = {
    "with a reset": Caller.hang_up,
    "in good order": lambda caller: caller.writer.close(),
    "by closing its half": lambda caller: caller.writer.write_eof(),
}


@asynccontextmanager
async def streaming(
    gateway: Running, person: Person, upstream: ScriptedUpstream, events: int, **fields: Any
) -> AsyncIterator[tuple[Caller, Stream]]:
    """A caller that has read `events` events of a stream of 50; its upstream waits there."""
    held, number = Stream(tokens=50, hold_after=events), len(upstream.requests) + 1
    upstream.script(held)
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, person, stream=True, **fields)
        await upstream.arrival(number)
        if events:
            await caller.head()
        for _ in range(events):
            assert await caller.event()
        yield caller, held


@pytest.mark.parametrize("leave", LEAVING.values(), ids=LEAVING)
async def test_leaving_in_mid_stream_stops_the_upstream_and_costs_what_came(
    gateway: Running, upstream: ScriptedUpstream, leave: Callable[[Caller], object]
) -> None:
    ada = await gateway.person(usd="1")
    async with streaming(gateway, ada, upstream, events=5) as (caller, _):
        leave(caller)
        received = await upstream.arrival(1)
        await received.over.wait()
        record = await the_record(gateway, ada)
    assert received.aborted_at is not None
    assert received.tokens_produced == 5
    assert (record.ended, record.status, record.estimated, record.state) == ("caller_gone", 499, True, "final")
    assert (record.input_tokens, record.output_tokens) == (INPUT_ESTIMATE, 5)
    assert await gateway.nano(ada) == GRANTED - INPUT_ESTIMATE * INPUT - 5 * OUTPUT


async def test_closing_the_official_sdks_stream_does_the_same(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=50, hold_after=3))
    client = gateway.sdk(ROUTER, ada)
    stream = await client.chat.completions.create(
        model=LLAMA, messages=[{"role": "user", "content": "Hello!"}], stream=True
    )
    async for _ in stream:
        if (await upstream.arrival(1)).events.value == 3:
            break
    await stream.close()
    await (await upstream.arrival(1)).over.wait()
    record = await the_record(gateway, ada)
    await client.close()
    assert (record.ended, record.output_tokens) == ("caller_gone", 3)
    assert (await gateway.balance(ada)).credits.held.nano == 0


async def test_every_stream_that_is_left_has_one_record_of_exactly_what_came(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    people = [await gateway.person(usd="1") for _ in range(12)]
    async with AsyncExitStack() as leaving_all_at_once:
        for events, person in enumerate(people, 1):
            await leaving_all_at_once.enter_async_context(streaming(gateway, person, upstream, events))
    for events, person in enumerate(people, 1):
        record = await the_record(gateway, person)
        assert record.output_tokens == upstream.requests[events - 1].tokens_produced == events
        assert await gateway.nano(person) == GRANTED - record.amount


async def test_before_the_first_byte_only_the_prompt_is_charged(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    async with streaming(gateway, ada, upstream, events=0) as (caller, _):
        caller.hang_up()
        record = await the_record(gateway, ada)
    assert (await upstream.arrival(1)).aborted_at is not None
    assert (record.ended, record.output_tokens, record.estimated) == ("caller_gone", 0, True)
    assert await gateway.nano(ada) == GRANTED - INPUT_ESTIMATE * INPUT


async def test_a_call_that_still_waits_for_a_connection_is_left_for_nothing(
    settings: Settings, upstream: ScriptedUpstream
) -> None:
    """The upstream has not heard of it, so there is no prompt to pay."""
    async with running(with_provider(settings, "main", max_connections=1)) as gateway:
        ada, eve = await gateway.person(usd="1"), await gateway.person(usd="1")
        provider = gateway.gateway.relay.attempts.providers["main"]
        assert isinstance(provider, OpenAICompatible)
        async with streaming(gateway, ada, upstream, events=1), calling(gateway.url) as caller:
            await caller.ask(ROUTER, eve, stream=True)

            async def waits() -> bool:
                return provider.waiting == 1

            await eventually(waits)
            caller.hang_up()
            record = await the_record(gateway, eve)
        assert (record.ended, record.amount, record.attempts) == ("caller_gone", 0, 1)
        assert len(upstream.requests) == 1
        assert await gateway.nano(eve) == GRANTED


async def test_a_plain_call_that_is_left_is_cancelled(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Plain(hold=True))
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada)
        await upstream.arrival(1)
        caller.hang_up()
        record = await the_record(gateway, ada)
    assert (await upstream.arrival(1)).aborted_at is not None
    assert (record.ended, record.output_tokens) == ("caller_gone", 0)
    assert (await gateway.balance(ada)).credits.held.nano == 0


async def test_while_the_store_decides_nothing_is_charged_and_no_upstream_is_called(
    gateway: Running, store_url: str, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    async with calling(gateway.url) as caller:
        async with kept_by_another(store_url):
            blocked = asyncio.create_task(gateway.grant(ada, usd="1"))  # keeps the writer busy until the end
            await caller.ask(ROUTER, ada, stream=True)
            await eventually(lambda: waiting(gateway))
            caller.hang_up()
            await eventually(lambda: nobody_is_connected(gateway))
        await blocked
        record = await the_record(gateway, ada)
    assert (record.ended, record.status, record.amount) == ("caller_gone", 499, 0)
    assert await gateway.nano(ada) == 2 * GRANTED
    assert upstream.requests == []


async def test_who_leaves_while_it_is_not_known_whether_money_was_set_aside_for_him_leaves_none_behind(
    gateway: Running, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = await gateway.person(usd="1")
    queue: Any = gateway.office.store
    commit, written, lost = queue._groups._commit, asyncio.Event(), asyncio.Event()

    async def without_a_word(program: Program[Any]) -> Any:
        """What a connection does that breaks in the midst of a COMMIT."""
        await commit(program)
        written.set()
        await lost.wait()
        raise OutcomeUnknown

    async with calling(gateway.url) as caller:
        with monkeypatch.context() as broken:
            broken.setattr(queue._groups, "_commit", without_a_word)
            await caller.ask(ROUTER, ada)
            await written.wait()
        assert (await gateway.office.store.read(fetch(HELD)))[0][0] > 0
        caller.hang_up()
        await eventually(lambda: nobody_is_connected(gateway))
        lost.set()
        record = await the_record(gateway, ada)
    assert (record.ended, record.status, record.amount) == ("caller_gone", 499, 0)
    assert await gateway.nano(ada) == GRANTED
    assert upstream.requests == []


@pytest.mark.parametrize("on_cancel", ["drain", "full"])
async def test_an_upstream_that_bills_to_the_end_is_read_to_the_end(
    settings: Settings, upstream: ScriptedUpstream, on_cancel: str
) -> None:
    async with running(with_provider(settings, "main", on_cancel=on_cancel)) as gateway:
        ada = await gateway.person(usd="1")
        async with streaming(gateway, ada, upstream, events=5) as (caller, held):
            caller.hang_up()
            await eventually(lambda: nobody_is_connected(gateway))
            held.resume.set()
            record = await the_record(gateway, ada)
        assert (await upstream.arrival(1)).finished
        assert (record.ended, record.output_tokens, record.estimated) == ("caller_gone", 50, False)
        assert await gateway.nano(ada) == GRANTED - 7 * INPUT - 50 * OUTPUT


@pytest.mark.parametrize("limits", [{"draining_calls": 0}, {"drain_s": 0.05}], ids=["no room", "no time"])
@pytest.mark.parametrize(("on_cancel", "output"), [("drain", 5), ("full", 40)])
async def test_what_cannot_be_drained_is_charged_as_its_upstream_bills(
    store_url: str, upstream: ScriptedUpstream, limits: dict[str, Any], on_cancel: str, output: int
) -> None:
    """A stream that runs on unseen is billed in full, so all that its hold covers is charged: 40 tokens asked for."""
    settings = with_provider(settings_for(store_url, upstream=upstream.base_url), "main", on_cancel=on_cancel)
    async with running(replace(settings, limits=replace(settings.limits, **limits))) as gateway:
        ada = await gateway.person(usd="1")
        async with streaming(gateway, ada, upstream, events=5, max_tokens=40) as (caller, _):
            held = (await gateway.balance(ada)).credits.held.nano
            caller.hang_up()
            record = await the_record(gateway, ada)
        assert (await upstream.arrival(1)).aborted_at is not None
        charged = held if on_cancel == "full" else INPUT_ESTIMATE * INPUT + output * OUTPUT
        assert (record.amount, record.ended) == (charged, "caller_gone")
        assert await gateway.nano(ada) == GRANTED - charged


async def test_the_room_for_drained_calls_is_given_back(settings: Settings, upstream: ScriptedUpstream) -> None:
    settings = with_provider(settings, "main", on_cancel="drain")
    async with running(replace(settings, limits=replace(settings.limits, draining_calls=1))) as gateway:
        for number in (1, 2):
            ada = await gateway.person(usd="1")
            async with streaming(gateway, ada, upstream, events=5) as (caller, held):
                caller.hang_up()
                await eventually(lambda: nobody_is_connected(gateway))
                held.resume.set()
                record = await the_record(gateway, ada)
            assert record.output_tokens == 50
            assert (await upstream.arrival(number)).finished


async def test_money_ends_a_drained_stream_as_any_other(settings: Settings, upstream: ScriptedUpstream) -> None:
    async with running(with_provider(settings, "main", on_cancel="drain")) as gateway:
        ada = await gateway.person(usd="0.0005")
        held = Stream(tokens=10**6, hold_after=5)
        upstream.script(held)
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada, stream=True)
            await caller.head()
            await caller.event()
            caller.hang_up()
            await eventually(lambda: nobody_is_connected(gateway))
            held.resume.set()
            record = await the_record(gateway, ada)
        assert (await upstream.arrival(1)).aborted_at is not None
        assert record.ended == "caller_gone"
        assert 0 <= await gateway.nano(ada) < 500_000 - 400 * OUTPUT


PUT_OFF = Refusal(429, headers=[("retry-after", "5")])


@pytest.mark.parametrize("on_cancel", ["stop", "drain", "full"])
async def test_who_leaves_in_the_pause_that_a_provider_asked_for_pays_nothing(
    settings: Settings, upstream: ScriptedUpstream, on_cancel: str
) -> None:
    waiting = replace(with_provider(settings, "main", on_cancel=on_cancel), health=HealthSettings(retry_wait_s=10))
    async with running(waiting) as gateway:
        ada = await gateway.person(usd="1")
        upstream.script(PUT_OFF)
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada)

            async def put_off() -> bool:
                return bool(gateway.office.upstreams.health.out)

            await eventually(put_off)
            caller.hang_up()
            record = await the_record(gateway, ada)
        assert (record.ended, record.status, record.amount, record.attempts) == ("caller_gone", 499, 0, 1)
        assert len(upstream.requests) == 1
        assert await gateway.nano(ada) == GRANTED


@dataclass(frozen=True)
class Later:
    """Refuses when it is told to."""

    refusal: Refusal
    resume: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, exchange: Exchange) -> None:
        await self.resume.wait()
        await self.refusal.play(exchange)


@pytest.mark.parametrize("refusal", [Refusal(500), PUT_OFF], ids=["to the next", "once more"])
@pytest.mark.parametrize("on_cancel", ["drain", "full"])
async def test_no_further_call_is_made_for_a_caller_who_has_gone(
    settings: Settings, upstream: ScriptedUpstream, spare: ScriptedUpstream, on_cancel: str, refusal: Refusal
) -> None:
    waiting = replace(with_provider(settings, "main", on_cancel=on_cancel), health=HealthSettings(retry_wait_s=10))
    async with running(waiting) as gateway:
        ada = await gateway.person(usd="1")
        upstream.script(later := Later(refusal))
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada, model=LLAMA if refusal is PUT_OFF else DEEPSEEK)
            await upstream.arrival(1)
            caller.hang_up()
            await eventually(draining(gateway))
            later.resume.set()
            record = await the_record(gateway, ada)
        assert (record.ended, record.status, record.amount, record.attempts) == ("caller_gone", 499, 0, 1)
        assert (len(upstream.requests), spare.requests) == (1, [])
        assert await gateway.nano(ada) == GRANTED


async def test_an_answer_with_an_idempotency_key_is_sought_at_the_next_provider_though_its_caller_has_gone(
    gateway: Running, upstream: ScriptedUpstream, spare: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    once = {"idempotency-key": "come-back-later"}
    upstream.script(later := Later(Refusal(500)))
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, headers=once, model=DEEPSEEK)
        await upstream.arrival(1)
        caller.hang_up()
        await eventually(draining(gateway))
        later.resume.set()
        record = await the_record(gateway, ada)
    assert (record.ended, record.provider, record.attempts) == ("caller_gone", "spare", 2)
    again = await gateway.chat(ROUTER, ada, headers=once, model=DEEPSEEK)
    assert again.headers["idempotent-replayed"] == "true"
    assert len(spare.requests) == 1


async def waiting(gateway: Running) -> bool:
    return gateway.office.store.backlog > 0


async def nobody_is_connected(gateway: Running) -> bool:
    return gateway.server.connections == 0


def draining(gateway: Running) -> Callable[[], Awaitable[bool]]:
    """Whether a call is being read to its end for nobody."""

    async def look() -> bool:
        return gateway.gateway.relay.drains.now == 1

    return look


async def test_an_answer_with_an_idempotency_key_is_finished_kept_and_charged_once(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    once = {"idempotency-key": "come-back-later"}
    held = Stream(tokens=50, hold_after=5)
    upstream.script(held)
    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, headers=once, stream=True)
        await caller.head()
        for _ in range(5):
            assert await caller.event()
        caller.hang_up()
        await eventually(draining(gateway))
        held.resume.set()
        record = await the_record(gateway, ada)
    assert (record.ended, record.output_tokens, record.estimated) == ("caller_gone", 50, False)
    again = await gateway.chat(ROUTER, ada, headers=once, stream=True)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.text.endswith("data: [DONE]\n\n")
    assert len(upstream.requests) == 1
    assert len(await gateway.usage(ada)) == 1
