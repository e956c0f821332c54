"""Upstreams that are slow or silent: each limit strikes, the caller is told, and the record says so."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import pytest

from penstock.config import Settings
from tests.stories.caller import calling, data
from tests.stories.gateway import ROUTER, running, with_provider
from tests.upstream import Hang, Plain, Script, ScriptedUpstream, Stream, Wire

DONE = b"data: [DONE]\n\n"
INPUT, OUTPUT = 590, 790  # nano-USD a token of LLAMA
INPUT_ESTIMATE = 6  # tokens of the message in HELLO and its template
GRANTED = 10**9
LIMIT_S = 0.2
SOON_S = 5.0  # far below the usual limits of minutes
HALF_AN_ANSWER = Wire(
    b'HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 900\r\n\r\n{"id": ', then="silence"
)


@pytest.mark.parametrize(
    ("limit", "script", "streamed"),
    [
        ("first_byte_timeout_s", Hang, True),
        ("first_byte_timeout_s", Hang, False),
        ("idle_timeout_s", lambda: HALF_AN_ANSWER, False),
        ("total_timeout_s", lambda: Plain(hold=True), False),
        ("total_timeout_s", lambda: Stream(hold_after=0), True),
    ],
    ids=["no stream", "no answer", "half an answer", "in all", "no event in all"],
)
async def test_an_answer_that_does_not_come_in_time_is_a_time_out(
    settings: Settings, upstream: ScriptedUpstream, limit: str, script: Callable[[], Script], streamed: bool
) -> None:
    async with running(with_provider(settings, "main", **{limit: LIMIT_S})) as gateway:
        ada = await gateway.person(usd="1")
        upstream.script(script())
        began = perf_counter()
        answer = await gateway.chat(ROUTER, ada, stream=streamed)
        assert LIMIT_S <= perf_counter() - began < SOON_S
        assert answer.status_code == 504
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("upstream_error", "upstream_timeout")
        received = await upstream.arrival(1)
        await received.over.wait()
        assert received.aborted_at is not None
        (record,) = await gateway.usage(ada)
        assert (record.ended, record.status, record.amount) == ("timeout", 504, 0)
        assert record.state == "review"  # the upstream may have done the work, and nobody knows
        assert await gateway.nano(ada) == GRANTED


@pytest.mark.parametrize(
    ("limit", "script"),
    [
        ("idle_timeout_s", lambda: Stream(hold_after=3)),
        ("total_timeout_s", lambda: Stream(tokens=10**6, gap_s=0.005)),
    ],
    ids=["silent", "endless"],
)
async def test_a_stream_over_its_time_ends_in_an_error_and_costs_what_came(
    settings: Settings, upstream: ScriptedUpstream, limit: str, script: Callable[[], Script]
) -> None:
    async with running(with_provider(settings, "main", **{limit: LIMIT_S})) as gateway:
        ada = await gateway.person(usd="1")
        upstream.script(script())
        began = perf_counter()
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada, stream=True)
            assert (await caller.head()).status == 200
            *words, error, done = await caller.events()
        assert perf_counter() - began < SOON_S
        assert (data(error)["error"]["type"], data(error)["error"]["code"]) == ("upstream_error", "upstream_timeout")
        assert done == DONE
        received = await upstream.arrival(1)
        await received.over.wait()
        assert received.aborted_at is not None
        (record,) = await gateway.usage(ada)
        assert (record.ended, record.status, record.state) == ("timeout", 504, "final")
        assert record.output_tokens == len(words) > 0
        assert await gateway.nano(ada) == GRANTED - INPUT_ESTIMATE * INPUT - len(words) * OUTPUT


async def test_a_call_does_not_wait_for_ever_for_a_connection(settings: Settings, upstream: ScriptedUpstream) -> None:
    only_one = with_provider(settings, "main", max_connections=1, connect_timeout_s=LIMIT_S)
    async with running(only_one) as gateway:
        ada = await gateway.person(usd="1")
        held = Stream(tokens=2, hold_after=1)
        upstream.script(held)
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada, stream=True)
            await caller.head()
            refused = await gateway.chat(ROUTER, ada)
            held.resume.set()
            assert (await caller.events())[-1] == DONE
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "upstream_unavailable")
        assert [record.status for record in await gateway.usage(ada)] == [503, 200]
        assert (await gateway.chat(ROUTER, ada)).status_code == 200
