"""Idempotency keys: the same request again is the same answer again, and is charged once."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import httpx2
import pytest

from penstock.operations.actor import LOCAL
from penstock.operations.keys import revoke_key
from tests.stories.gateway import FORWARD, HELLO, LLAMA, ROUTER, ROUTER_V1, TRUST, Running
from tests.upstream import Plain, Refusal, ScriptedUpstream, Stream

COST_NANO = 7 * 590 + 5 * 790  # of the usual answer, at the price of LLAMA
ONCE = {"Idempotency-Key": "order-4711"}


def conflict(answer: httpx2.Response) -> str:
    """The code of a 409."""
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert error["type"] == "conflict"
    return str(error["code"])


@pytest.mark.parametrize("stream", [False, True])
async def test_the_same_request_again_gets_the_same_bytes_and_is_charged_once(
    gateway: Running, upstream: ScriptedUpstream, stream: bool
) -> None:
    ada = await gateway.person(usd="1", tokens=1_000)
    for base in (TRUST, FORWARD, ROUTER):
        first = await gateway.chat(base, ada, headers=ONCE, stream=stream)
        again = await gateway.chat(base, ada, headers=ONCE, stream=stream)
        assert (first.status_code, again.status_code) == (200, 200)
        assert again.content == first.content
        assert again.headers["content-type"] == first.headers["content-type"]
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["x-request-id"] != first.headers["x-request-id"]
    assert len(upstream.requests) == 3
    assert len(await gateway.usage(ada)) == 3
    assert await gateway.nano(ada) == 1_000_000_000 - 2 * COST_NANO
    assert await gateway.tokens(ada) == 1_000 - 12


async def test_a_replay_needs_no_money(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(tokens=12)
    upstream.script(Plain(tokens=5, prompt_tokens=7))
    first = await gateway.chat(FORWARD, ada, headers=ONCE)
    assert await gateway.tokens(ada) == 0
    assert (await gateway.chat(FORWARD, ada, headers=ONCE)).content == first.content
    assert (await gateway.chat(FORWARD, ada)).status_code == 402


async def test_a_replay_needs_a_key_that_is_still_good_and_counts_against_its_rate(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    slow = await gateway.key("personal", user=ada.user, requests_per_minute=2)
    assert [(await gateway.chat(ROUTER, ada, key=slow, headers=ONCE)).status_code for _ in range(3)] == [200, 200, 429]
    assert (await gateway.chat(ROUTER, ada, headers=ONCE)).status_code == 200
    await revoke_key(gateway.office, LOCAL, key=ada.personal_key.id)
    assert (await gateway.chat(ROUTER, ada, headers=ONCE)).status_code == 401


async def test_another_body_with_the_same_key_is_a_conflict(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    first = await gateway.chat(ROUTER, ada, headers=ONCE)
    changed: list[dict[str, Any]] = [{"temperature": 1}, {"stream": True}, {"messages": [*HELLO, *HELLO]}]
    for fields in changed:
        assert conflict(await gateway.chat(ROUTER, ada, headers=ONCE, **fields)) == "idempotency_mismatch"
    assert (await gateway.chat(ROUTER_V1, ada, headers=ONCE)).content == first.content  # the same surface
    assert len(upstream.requests) == 1


async def test_a_duplicate_of_a_call_under_way_is_a_conflict(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    script = Plain(hold=True)
    upstream.script(script)
    call = asyncio.create_task(gateway.chat(ROUTER, ada, headers=ONCE))
    await upstream.arrival(1)
    duplicates = await asyncio.gather(*(gateway.chat(ROUTER, ada, headers=ONCE) for _ in range(8)))
    assert {conflict(answer) for answer in duplicates} == {"idempotency_in_progress"}
    script.resume.set()
    first = await call
    assert (await gateway.chat(ROUTER, ada, headers=ONCE)).content == first.content
    assert await gateway.nano(ada) == 1_000_000_000 - COST_NANO


async def test_of_simultaneous_duplicates_one_is_served(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    answers = await asyncio.gather(*(gateway.chat(ROUTER, ada, headers=ONCE) for _ in range(32)))
    served = [answer for answer in answers if answer.status_code == 200]
    assert {answer.status_code for answer in answers} <= {200, 409}
    assert len({answer.content for answer in served}) == 1
    assert len(upstream.requests) == 1
    assert await gateway.nano(ada) == 1_000_000_000 - COST_NANO


async def test_a_call_that_failed_may_be_tried_again(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person()
    upstream.script(Refusal(400), Refusal(500), Stream(tokens=5, break_after=0))
    assert (await gateway.chat(ROUTER, ada, headers=ONCE)).status_code == 402
    await gateway.grant(ada, usd="1")
    assert (await gateway.chat(ROUTER, ada, headers=ONCE)).status_code == 400
    assert (await gateway.chat(ROUTER, ada, headers=ONCE)).status_code == 502
    assert (await gateway.chat(ROUTER, ada, headers=ONCE, stream=True)).status_code in (502, 503)
    answer = await gateway.chat(ROUTER, ada, headers=ONCE)
    assert answer.status_code == 200
    assert "idempotent-replayed" not in answer.headers
    assert await gateway.nano(ada) == 1_000_000_000 - COST_NANO


async def test_a_stream_that_broke_is_not_replayed_but_tried_again(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Stream(tokens=5, break_after=2))
    broken = await gateway.chat(ROUTER, ada, headers=ONCE, stream=True)
    assert '"error"' in broken.text
    again = await gateway.chat(ROUTER, ada, headers=ONCE, stream=True)
    assert '"error"' not in again.text
    assert "idempotent-replayed" not in again.headers
    assert len(upstream.requests) == 2


async def test_keys_of_different_credentials_have_nothing_to_do_with_each_other(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada, bob = await gateway.person(usd="1"), await gateway.person(usd="1")
    for person in (ada, bob):
        assert (await gateway.chat(ROUTER, person, headers=ONCE)).status_code == 200
    assert (await gateway.chat(TRUST, ada, headers=ONCE)).status_code == 200
    assert len(upstream.requests) == 3


async def test_an_answer_too_large_to_keep_is_sent_and_charged_once_and_not_replayed(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    upstream.script(Plain(tokens=5, prompt_tokens=7, text="x" * 1_100_000))
    assert len((await gateway.chat(ROUTER, ada, headers=ONCE)).content) > 1_100_000
    assert conflict(await gateway.chat(ROUTER, ada, headers=ONCE)) == "idempotency_not_kept"
    assert len(upstream.requests) == 1
    assert await gateway.nano(ada) == 1_000_000_000 - COST_NANO


async def test_a_key_is_free_again_after_a_day(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    await gateway.chat(ROUTER, ada, headers=ONCE)
    gateway.office.clock.offset_ms += 24 * 3600 * 1000 + 1
    assert "idempotent-replayed" not in (await gateway.chat(ROUTER, ada, headers=ONCE, temperature=0)).headers
    assert len(upstream.requests) == 2


async def test_an_absurd_idempotency_key_is_refused(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    for key, status in (("", 400), ("x" * 256, 400), ("x" * 255, 200), ("' or 1=1 --", 200)):
        answer = await gateway.chat(ROUTER, ada, headers={"idempotency-key": key})
        assert answer.status_code == status
    assert len(upstream.requests) == 2


async def test_the_same_body_means_every_byte_of_it(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    body = b'{"model": "%s", "messages": [{"role": "user", "content": "Hi"}]}' % LLAMA.encode()
    path = f"{ROUTER}/chat/completions"
    assert (await gateway.post(path, ada, headers=ONCE, body=body)).status_code == 200
    assert conflict(await gateway.post(path, ada, headers=ONCE, body=body + b" ")) == "idempotency_mismatch"
    elsewhere = replace(ada, personal_key=await gateway.key("personal", user=ada.user))
    assert (await gateway.post(path, elsewhere, headers=ONCE, body=body + b" ")).status_code == 200
