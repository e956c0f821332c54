"""GPU workers: whoever dials in serves, whatever becomes of it; and nobody gets in who should not."""

from __future__ import annotations

import asyncio
import json
import signal
import struct
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from penstock.config import HealthSettings
from penstock.errors import Forbidden
from penstock.hub.hub import SHARE_S
from penstock.hub.messages import DEEPEST, piece
from penstock.operations.actor import LOCAL, Actor
from penstock.operations.keys import create_key, revoke_key
from penstock.providers.llamacpp import write_tiny_model
from tests.ports.test_provider_contract import needs_engine
from tests.rules.test_tool_offers import schema
from tests.stories.caller import calling, data, eventually, the_record
from tests.stories.gateway import HELLO, ROUTER, Person, Running, plain_client, running, settings_for
from tests.stories.process import configuration, ended, serving_process, settings_of, verified
from tests.stories.test_workers import ByWish, Load, call, person_of, workers_on
from tests.stories.workers import (
    INPUT,
    MODEL,
    OUTPUT,
    Calls,
    RawPeer,
    call_of,
    raw_peer,
    served,
    with_workers,
    worker,
    worker_process,
)
from tests.upstream import Exchange, Hang, Plain, Received, Refusal, ScriptedUpstream, Stream

SCRIPTED = "scripted"  # what the scripted upstream lists as its model
DONE = b"data: [DONE]\n\n"


@pytest.fixture
async def gateway(store_url: str) -> AsyncIterator[Running]:
    async with running(with_workers(settings_for(store_url), MODEL, SCRIPTED, "tiny")) as gateway:
        yield gateway


@pytest.fixture
async def ada(gateway: Running) -> Person:
    return await gateway.person(usd="1")


@pytest.fixture
async def key(gateway: Running, ada: Person) -> str:
    """The key of a worker of Ada's own."""
    return (await gateway.key("worker", user=ada.user)).key


class Endless:
    """A stream that goes on until nobody takes it any more: comments, which cost nothing, after a first word."""

    async def play(self, exchange: Exchange) -> None:
        await exchange.stream_head(())
        await exchange.event(b'data: {"choices":[{"index":0,"delta":{"content":"Word"}}]}\n\n')
        while True:
            await exchange.event(b": " + b"x" * 60_000 + b"\n\n")


async def stands_still(received: Received) -> None:
    """Wait until all there is between an engine and its caller is full."""
    seen = [0, 0]

    async def look() -> bool:
        seen.append(received.events.value)
        return 0 < seen[-20 if len(seen) > 20 else 0] == seen[-1]

    await eventually(look)


async def ask(gateway: Running, person: Person, **fields: Any) -> Any:
    return await gateway.chat(ROUTER, person, **{"model": MODEL, **fields})


# Serving.


async def test_a_call_is_served_by_whoever_dialled_in_and_charged_as_any(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    async with worker_process(gateway.url, key, upstream.base_url):
        plain = await ask(gateway, ada, model=SCRIPTED)
        stream = await ask(gateway, ada, model=SCRIPTED, stream=True)
    assert plain.json()["usage"]["completion_tokens"] == 5
    assert stream.text.endswith("data: [DONE]\n\n")
    assert [each.amount for each in await gateway.usage(ada)] == [7 * INPUT + 5 * OUTPUT] * 2
    assert (await gateway.usage(ada))[0].provider == "gpus"


async def test_a_large_body_and_a_large_answer_pass_whole(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    prompt, text = "word " * 100_000, "answer " * 300_000
    upstream.usual = Calls(Plain(text=text))
    async with worker(gateway, key, upstream.base_url):
        answer = await ask(gateway, ada, messages=[{"role": "user", "content": prompt}], max_tokens=5)
    assert answer.json()["choices"][0]["message"]["content"] == text
    assert (await call_of(upstream)).json["messages"][0]["content"] == prompt


async def test_one_caller_who_takes_nothing_keeps_nobody_waiting(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    upstream.usual = Calls(Endless())
    async with worker(gateway, key, upstream.base_url), calling(gateway.url, receive_buffer=4_096) as slow:
        await slow.ask(ROUTER, ada, model=MODEL, stream=True)
        await slow.head()
        first = await call_of(upstream)
        await stands_still(first)
        upstream.usual = Calls(Plain())
        answers = await asyncio.gather(*(ask(gateway, ada) for _ in range(12)))
        assert [answer.status_code for answer in answers] == [200] * 12
        assert not first.over.is_set()
        slow.hang_up()
        await first.over.wait()
        assert first.aborted_at is not None


@needs_engine
async def test_a_real_engine_behind_a_real_worker_is_charged_for_what_it_counts_and_stops_when_told(
    gateway: Running, ada: Person, key: str, tmp_path: Path
) -> None:
    write_tiny_model(tmp_path / "tiny.gguf")
    async with worker_process(gateway.url, key, str(tmp_path / "tiny.gguf"), "--slots", "1") as process:
        usage = (await ask(gateway, ada, model="tiny", max_tokens=8)).json()["usage"]
        (record,) = await gateway.usage(ada)
        assert record.amount == usage["prompt_tokens"] * INPUT + 8 * OUTPUT
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada, model="tiny", stream=True, max_tokens=4_000)
            await caller.head()
            await caller.event()
            caller.hang_up()
        # With one slot the next call is served only when the engine has let go of the first.
        assert (await ask(gateway, ada, model="tiny", max_tokens=3)).json()["usage"]["completion_tokens"] == 3
        async with calling(gateway.url) as caller:
            await caller.ask(ROUTER, ada, model="tiny", stream=True, max_tokens=4_000)
            await caller.head()
            await caller.event()
            process.signal(signal.SIGKILL)
            *_, error, done = await caller.events()
        assert data(error)["error"]["code"] == "upstream_failed"
        assert done == b"data: [DONE]\n\n"
    assert {each.ended for each in await gateway.usage(ada)} == {"answer", "caller_gone", "upstream_failed"}
    await gateway.nano(ada)


# Ends.


async def test_a_worker_killed_in_mid_stream_is_an_error_frame_and_what_came_is_settled(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    upstream.usual = Calls(Stream(tokens=50, hold_after=4))
    async with worker_process(gateway.url, key, upstream.base_url) as process, calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, model=SCRIPTED, stream=True)
        await caller.head()
        words = [await caller.event() for _ in range(4)]
        process.signal(signal.SIGKILL)
        *_, error, done = await caller.events()
    assert len(words) == 4
    assert data(error)["error"]["code"] == "upstream_failed"
    assert done == b"data: [DONE]\n\n"
    record = await the_record(gateway, ada)
    assert (record.output_tokens, record.provider) == (4, "gpus")
    await gateway.nano(ada)


async def test_a_worker_killed_before_the_first_token_loses_nothing_another_serves(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    upstream.usual = Calls(Hang())
    async with ScriptedUpstream() as spare, worker_process(gateway.url, key, upstream.base_url) as process:
        asking = asyncio.create_task(ask(gateway, ada, model=SCRIPTED, stream=True))
        await call_of(upstream)
        async with worker(gateway, key, spare.base_url, models=(SCRIPTED,)):
            process.signal(signal.SIGKILL)
            answer = await asking
        assert answer.status_code == 200
        assert answer.text.endswith("data: [DONE]\n\n")
        assert (await call_of(spare)).tokens_produced == 5
    record = await the_record(gateway, ada)
    assert (record.provider, record.attempts, record.ended) == ("gpus", 1, "answer")
    assert record.amount == 7 * INPUT + 5 * OUTPUT


async def test_a_caller_who_leaves_stops_the_engine(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    upstream.usual = Calls(Stream(tokens=50, hold_after=3))
    async with worker(gateway, key, upstream.base_url) as dialer, calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, model=MODEL, stream=True)
        await caller.head()
        await caller.event()
        caller.hang_up()
        received = await call_of(upstream)
        await received.over.wait()
        assert received.aborted_at is not None
        assert (await the_record(gateway, ada)).ended == "caller_gone"
        upstream.usual = Calls(Plain())
        assert (await ask(gateway, ada)).status_code == 200
        assert dialer.running == 0


async def test_an_engine_without_room_is_no_failure_the_call_is_given_again(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    upstream.script(*[Refusal(503)] * 2)
    async with (
        ScriptedUpstream(Calls(Refusal(429))) as full,
        worker(gateway, key, upstream.base_url, slots=9),
        worker(gateway, key, full.base_url),
    ):
        answers = await asyncio.gather(*(ask(gateway, ada) for _ in range(3)))
    assert [answer.status_code for answer in answers] == [200] * 3
    assert {record.attempts for record in await gateway.usage(ada)} == {1}


@pytest.mark.parametrize("refusal", [Refusal(401), Refusal(404, "The model `m` does not exist.")])
async def test_a_worker_of_one_account_makes_nobody_elses_seem_sick(
    store_url: str, upstream: ScriptedUpstream, refusal: Refusal
) -> None:
    settings = replace(with_workers(settings_for(store_url)), health=HealthSettings(failures=3))
    async with running(settings) as gateway, ScriptedUpstream(Calls(refusal)) as sick:
        ada, eve = await gateway.person(usd="1"), await gateway.person(usd="1")
        well, ill = [await gateway.key("worker", user=each.user) for each in (ada, eve)]
        async with worker(gateway, ill.key, sick.base_url), worker(gateway, well.key, upstream.base_url):
            assert (await ask(gateway, eve)).status_code == 502
            assert (await ask(gateway, eve)).json()["error"]["code"] == "no_healthy_provider"
            assert (await ask(gateway, ada)).status_code == 200


async def test_calls_beyond_the_slots_wait_their_turn(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    held = [Plain(hold=True) for _ in range(4)]
    upstream.script(*held)
    async with worker(gateway, key, upstream.base_url, slots=1):
        asking = [asyncio.create_task(ask(gateway, ada)) for _ in held]
        for number, each in enumerate(held, 1):
            await upstream.arrival(number)
            assert len(upstream.requests) == number
            each.resume.set()
        assert [answer.status_code for answer in await asyncio.gather(*asking)] == [200] * 4


async def test_when_all_are_busy_for_long_the_call_is_refused_and_free(
    store_url: str, upstream: ScriptedUpstream
) -> None:
    settings = with_workers(settings_for(store_url), connect_timeout_s=0.05)
    held = Plain(hold=True)
    upstream.script(held)
    async with running(settings) as gateway:
        ada = await gateway.person(usd="1")
        key = await gateway.key("worker", user=ada.user)
        async with worker(gateway, key.key, upstream.base_url, slots=1):
            first = asyncio.create_task(ask(gateway, ada))
            await upstream.arrival(1)
            second = await ask(gateway, ada)
            held.resume.set()
            assert (await first).status_code == 200
        assert (second.status_code, second.json()["error"]["message"]) == (503, "Every worker is busy.")
        assert sorted(each.amount for each in await gateway.usage(ada)) == [0, 7 * INPUT + 5 * OUTPUT]


async def test_a_worker_that_was_cut_off_is_back_by_itself(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    async with worker(gateway, key, upstream.base_url) as dialer:
        hub = gateway.office.hub
        (first,) = hub.seats("worker", ada.account)
        peer = hub.here(first.id)
        assert peer is not None
        peer.close(1012, "for a test")
        assert (await ask(gateway, ada)).status_code == 200
        (second,) = hub.seats("worker", ada.account)
        assert first.id != second.id
        assert dialer.connected.is_set()


async def test_told_to_end_a_worker_finishes_its_jobs_and_takes_no_more(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    held = Plain(hold=True)
    upstream.usual = Calls(held)
    async with worker_process(gateway.url, key, upstream.base_url) as process:
        asking = asyncio.create_task(ask(gateway, ada, model=SCRIPTED))
        await call_of(upstream)
        process.signal(signal.SIGTERM)
        await process.said("ends when 1 jobs are done")
        (seat,) = gateway.office.hub.seats("worker", ada.account)

        async def leaving() -> bool:
            return seat.room == 0

        await eventually(leaving)
        held.resume.set()
        assert (await asking).status_code == 200
        assert await process.ended() == 0


# Several processes.


async def test_a_call_reaches_a_worker_that_is_connected_to_another_process(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    async with running(gateway.office.settings) as other, worker(other, key, upstream.base_url, slots=9):
        await served(gateway)
        plain = await ask(gateway, ada)
        upstream.usual = Calls(Stream(tokens=50, hold_after=3))
        assert plain.json()["usage"]["completion_tokens"] == 5
        async with calling(gateway.url) as caller:  # and so does its leaving
            await caller.ask(ROUTER, ada, model=MODEL, stream=True)
            await caller.head()
            await caller.event()
            caller.hang_up()
            received = await call_of(upstream, 2)
            await received.over.wait()
            assert received.aborted_at is not None
        upstream.usual = Calls(Refusal(400, "Not like this."))
        refused = await ask(gateway, ada)
        assert (refused.status_code, refused.json()["error"]["message"]) == (400, "Not like this.")
        bob = await gateway.person(usd="1")
        assert (await ask(gateway, bob)).status_code == 503


async def test_as_large_a_call_as_may_be_reaches_a_worker_that_is_connected_to_another_process(
    store_url: str, upstream: ScriptedUpstream
) -> None:
    """We ask for the usage of a stream, so a job is larger than the call was."""
    settings = with_workers(settings_for(store_url))
    settings = replace(settings, server=replace(settings.server, max_body_bytes=1_000))
    async with running(settings) as gateway, running(settings) as other:
        ada = await gateway.person(usd="1")
        key = await gateway.key("worker", user=ada.user)
        fields = {"model": MODEL, "messages": HELLO, "stream": True, "user": ""}
        fields["user"] = "x" * (1_000 - len(json.dumps(fields)))
        async with worker(other, key.key, upstream.base_url):
            await served(gateway)
            for _ in range(2):
                answer = await gateway.post(f"{ROUTER}/chat/completions", ada, body=json.dumps(fields).encode())
                assert answer.status_code == 200
                assert answer.text.endswith("data: [DONE]\n\n")
        assert len((await call_of(upstream)).body) > 1_000


@pytest.mark.parametrize(("status", "told"), [(204, 502), (304, 502), (460, 460)])
async def test_no_answer_of_a_worker_spoils_the_line_between_processes(
    gateway: Running, ada: Person, key: str, status: int, told: int
) -> None:
    async with running(gateway.office.settings) as other, raw_peer(other, key) as far:
        await far.hello()
        await served(gateway)
        for number in (1, 2):
            asking = asyncio.create_task(ask(gateway, ada))
            assert await far.job() == number
            await far.say(type="head", job=number, status=status)
            await far.socket.send(struct.pack(">I", number) + b"HTTP/1.1 200 OK\r\n\r\n")
            await far.say(type="end", job=number)
            assert (await asking).status_code == told


async def test_when_the_other_process_is_overloaded_or_loses_it_the_call_is_given_again(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    async with running(gateway.office.settings) as other, raw_peer(other, key) as far, raw_peer(other, key) as dying:
        await far.hello()
        await served(gateway)
        asking = asyncio.create_task(ask(gateway, ada))
        await far.say(type="overloaded", job=await far.job())
        await far.say(type="drain")
        await dying.hello()
        assert await dying.job() == 1
        await dying.socket.close()
        async with worker(gateway, key, upstream.base_url):
            assert (await asking).status_code == 200
    (record,) = await gateway.usage(ada)
    assert record.attempts == 1


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_who_leaves_after_a_worker_gave_the_call_back_pays_nothing(
    gateway: Running, ada: Person, key: str, elsewhere: bool
) -> None:
    hub = gateway.office.hub

    async def waits() -> bool:
        return len(hub._waiting) > 0

    async with AsyncExitStack() as stack:
        near = await stack.enter_async_context(running(gateway.office.settings)) if elsewhere else gateway
        peer = await stack.enter_async_context(raw_peer(near, key))
        await peer.hello()
        await served(gateway)
        caller = await stack.enter_async_context(calling(gateway.url))
        await caller.ask(ROUTER, ada, model=MODEL, stream=True)
        job = await peer.job()
        await peer.say(type="drain")
        await peer.say(type="accepted", job=job)
        await peer.say(type="overloaded", job=job)
        await eventually(waits)
        caller.hang_up()
        record = await the_record(gateway, ada)
    assert (record.ended, record.amount) == ("caller_gone", 0)


async def test_nobody_else_is_answered_at_the_address_between_processes(
    gateway: Running, key: str, upstream: ScriptedUpstream
) -> None:
    async with worker(gateway, key, upstream.base_url):
        hub = gateway.office.hub
        (peer,) = [each.id for each in hub._peers.values()]
        for secret in ("none", key, "0" * 64):
            answer = await gateway.http.post(
                f"http://{hub.address}/peer/v1/jobs/{peer}?path=chat/completions",
                headers={"authorization": f"Bearer {secret}"},
                content=b"{}",
            )
            assert answer.status_code == 401
    assert [each for each in upstream.requests if each.method == "POST"] == []


# Who gets in, and whom they serve.


async def test_a_worker_serves_the_account_of_its_key_and_only_a_shared_one_all(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream
) -> None:
    bob = await gateway.person(usd="1")
    async with worker(gateway, key, upstream.base_url):
        assert (await ask(gateway, ada)).status_code == 200
        assert (await ask(gateway, bob)).status_code == 503
    shared = await gateway.key("worker", account=ada.account, scopes=["shared"])
    async with worker(gateway, shared.key, upstream.base_url):
        assert (await ask(gateway, bob)).status_code == 200


async def test_only_the_operator_mints_a_key_that_serves_all(gateway: Running, ada: Person) -> None:
    mine = frozenset({ada.account})
    owner = Actor(frozenset({"management"}), sees=mine, manages=mine)
    made = await create_key(gateway.office, owner, kind="worker", name="own", account=ada.account)
    assert made.scopes == ("connect",)
    with pytest.raises(Forbidden):
        await create_key(
            gateway.office, owner, kind="worker", name="own", account=ada.account, scopes=["connect", "shared"]
        )


async def test_only_a_worker_key_opens_the_door_and_it_opens_no_other(gateway: Running, ada: Person, key: str) -> None:
    wrong = [made.key for made in (ada.account_key, ada.personal_key, ada.inference_key)]
    wrong += [(await gateway.key("tools_worker", user=ada.user)).key, "wrk_nonsense", key[:-1] + "x", ""]
    for each in wrong:
        with pytest.raises(InvalidStatus) as refused:
            async with raw_peer(gateway, each):
                pass
        assert refused.value.response.status_code == 401
        assert json.loads(refused.value.response.body or b"")["error"]["code"] == "invalid_api_key"
    minted = replace(ada.personal_key, key=key)
    for base in ("/v1", "/api/v1/gateway/v1", ROUTER):
        assert (await gateway.chat(base, ada, key=minted, model=MODEL)).status_code == 401
    assert await gateway.usage(ada) == ()


async def test_a_worker_with_a_wrong_key_gives_up(gateway: Running, ada: Person, upstream: ScriptedUpstream) -> None:
    wrong = ada.personal_key.key
    with pytest.raises(AssertionError, match=r"ended with 1: .*refuses this worker: 401") as said:
        async with worker_process(gateway.url, wrong, upstream.base_url):
            pass
    assert wrong not in str(said.value)


async def test_a_worker_whose_key_is_revoked_is_hung_up_on(gateway: Running, ada: Person) -> None:
    made = await gateway.key("worker", user=ada.user)
    async with raw_peer(gateway, made.key) as peer:
        await peer.hello()
        await revoke_key(gateway.office, LOCAL, key=made.id)
        assert await peer.closed() == (1008, "the key is revoked or expired")


HANDSHAKE = (
    "GET /api/workers/v1/connect HTTP/1.1\r\nhost: gateway\r\nconnection: upgrade\r\nupgrade: {upgrade}\r\n"
    "authorization: Bearer {key}\r\nsec-websocket-version: {version}\r\nsec-websocket-key: {nonce}\r\n{more}\r\n"
)
SOUND = {"upgrade": "websocket", "version": "13", "nonce": "dGhlIHNhbXBsZSBub25jZQ==", "more": ""}
BEHIND = b"GET /health HTTP/1.1\r\nhost: gateway\r\n\r\n"


@pytest.mark.parametrize(
    ("wrong", "statuses"),
    [
        ({"key": "wrk_nonsense"}, [401]),
        ({"version": "8"}, [400]),
        ({"nonce": "short"}, [400]),
        ({"more": "host: another\r\n"}, [400]),
        ({"upgrade": "h2c"}, [400, 200]),  # no wish that is heard: a request as any, and so is what follows
        ({"upgrade": "websocket, h2c"}, [400, 200]),
        ({"more": "content-length: 0\r\n"}, [400, 200]),
    ],
)
async def test_what_stands_behind_a_refused_handshake_is_no_request(
    gateway: Running, key: str, wrong: dict[str, str], statuses: list[int]
) -> None:
    async with calling(gateway.url) as caller:
        await caller.send(HANDSHAKE.format(**{"key": key, **SOUND, **wrong}).encode() + BEHIND)
        for status in statuses:
            assert (await caller.head()).status == status
            await caller.body()
        if len(statuses) == 1:
            assert await caller.closed()


async def test_what_stands_behind_a_handshake_that_is_taken_is_the_peers_first_word(gateway: Running, key: str) -> None:
    async with calling(gateway.url) as caller:
        await caller.send(HANDSHAKE.format(key=key, **SOUND).encode() + BEHIND)
        head = await caller.head()
        assert (head.status, head.headers["sec-websocket-accept"]) == (101, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        frame = await caller.reader.read()
        assert (frame[0], int.from_bytes(frame[2:4], "big")) == (0x88, 1002)  # a close: what came is no frame


def nested(deep: int) -> dict[str, Any]:
    """A tool whose schema is so deep."""
    return {"name": "search", "parameters": schema(deep)}


BEFORE_HELLO: dict[str, Any] = {
    "no JSON": "nonsense",
    "another type": json.dumps({"type": "destroy"}),
    "no hello": json.dumps({"type": "heartbeat"}),
    "another version": json.dumps({"type": "hello", "version": 99, "offer": {"type": "offer"}}),
    "a piece": b"\x00\x00\x00\x01data",
    "half a piece": b"\x00",
    "far too many slots": json.dumps({"type": "hello", "version": 1, "offer": {"type": "offer", "slots": 10**9}}),
    "deep": "[" * 100_000,
    "a deep schema": json.dumps(
        {"type": "hello", "version": 1, "offer": {"type": "offer", "tools": [nested(DEEPEST + 1)]}}
    ),
}
WITH_A_JOB: dict[str, Any] = {
    "a second hello": json.dumps({"type": "hello", "version": 1, "offer": {"type": "offer"}}),
    "a job that is not": json.dumps({"type": "end", "job": 7}),
    "a piece before the head": struct.pack(">I", 1) + b"data",
    "an end before the head": json.dumps({"type": "end", "job": 1}),
    "a status that is none": json.dumps({"type": "head", "job": 1, "status": 9_999}),
    "a job's number that is none": json.dumps({"type": "accepted", "job": "1"}),
}


@pytest.mark.parametrize("frame", BEFORE_HELLO.values(), ids=BEFORE_HELLO)
async def test_nonsense_is_answered_with_a_code_and_harms_nobody(
    gateway: Running, key: str, frame: str | bytes
) -> None:
    async with raw_peer(gateway, key) as peer:
        await peer.socket.send(frame)
        code, reason = await peer.closed()
    assert code == 1002
    assert reason
    assert (await gateway.http.get("/health")).status_code == 200


async def test_as_deep_a_schema_as_may_be_keeps_nobody_else_from_being_welcome(gateway: Running, key: str) -> None:
    async with raw_peer(gateway, key) as deep, raw_peer(gateway, key) as other:
        await deep.hello()
        await deep.say(type="offer", tools=[nested(DEEPEST)])
        await deep.say(type="heartbeat")
        assert (await deep.hear())["type"] == "heartbeat"
        await asyncio.sleep(SHARE_S)  # what is offered again is written down so much later
        await other.hello()


@pytest.mark.parametrize("frame", WITH_A_JOB.values(), ids=WITH_A_JOB)
async def test_nonsense_about_a_job_loses_it_to_somebody_else(
    gateway: Running, ada: Person, key: str, upstream: ScriptedUpstream, frame: str | bytes
) -> None:
    async with raw_peer(gateway, key) as peer:
        await peer.hello()
        asking = asyncio.create_task(ask(gateway, ada))
        assert await peer.job() == 1
        async with worker(gateway, key, upstream.base_url):
            await peer.socket.send(frame)
            assert (await peer.closed())[0] == 1002
            assert (await asking).status_code == 200
    (record,) = await gateway.usage(ada)
    assert record.amount == 7 * INPUT + 5 * OUTPUT


async def test_who_sends_more_than_was_asked_for_or_too_much_at_once_is_hung_up_on(
    gateway: Running, ada: Person, key: str
) -> None:
    async with raw_peer(gateway, key) as flood, calling(gateway.url, receive_buffer=4_096) as slow:
        await flood.hello()
        await slow.ask(ROUTER, ada, model=MODEL, stream=True)
        assert await flood.job() == 1
        await flood.say(type="head", job=1, status=200, headers={"content-type": "text/event-stream"})
        assert await sends_until_closed(flood, struct.pack(">I", 1) + b"x" * 60_000) == 1002
        slow.hang_up()
    async with raw_peer(gateway, key) as large:
        assert await sends_until_closed(large, b"x" * 2_000_000) == 1009
    await eventually(lambda: gateway.usage(ada))
    await gateway.nano(ada)


async def sends_until_closed(peer: RawPeer, frame: bytes) -> int | None:
    """Send it again and again; the code of the close."""
    with suppress(ConnectionClosed):
        for _ in range(100):
            await peer.socket.send(frame)
    return (await peer.closed())[0]


# Processes of their own.


def several_processes(folder: Path, upstream: ScriptedUpstream, *, workers: int, grace_s: float = 10) -> Path:
    """A configuration whose one model, `metered`, is served by whoever dials in as `scripted`."""
    config = configuration(folder, upstream.base_url, workers=workers, grace_s=grace_s)
    text = config.read_text().replace(f'base_url = "{upstream.base_url}"', 'kind = "worker"')
    config.write_text(text.replace('provider = "main"', 'provider = "main", model = "scripted"'))
    return config


async def reached_by_all(url: str, person: Person) -> bool:
    """Whether a worker serves this person's calls, whichever of two processes a connection leads to."""
    async with plain_client(base_url=url, limits=httpx2.Limits(max_keepalive_connections=0)) as client:
        return [await call(client, person) for _ in range(20)] == [200] * 20


async def test_a_rolling_restart_fails_no_call_that_a_worker_serves(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    config = several_processes(tmp_path, upstream, workers=2)
    ada = await person_of(config)
    async with running(settings_of(config)) as gateway:
        key = (await gateway.key("worker", user=ada.user)).key
    upstream.usual = Calls(ByWish())
    async with workers_on(config) as process, worker_process(process.url, key, upstream.base_url, "--slots", "16"):
        load = Load(process.url, ada)
        await eventually(partial(reached_by_all, process.url, ada))
        tasks = [
            *(asyncio.create_task(load.keep_calling(stream=stream)) for stream in (False, True) for _ in range(2)),
            *(asyncio.create_task(load.keep_calling(stream=True, tokens=30)) for _ in range(2)),
            asyncio.create_task(load.keep_calling(stream=False, per_connection=1)),
        ]
        process.signal(signal.SIGUSR2)
        await process.said("all 2 workers have been replaced")
        await upstream.arrival(len(upstream.requests) + 30)
        load.enough.set()
        await asyncio.gather(*tasks)
        assert load.failures == []
        assert load.calls > 30
    assert await verified(config)


async def test_a_killed_process_takes_nothing_with_it_but_its_own_calls(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = several_processes(tmp_path, upstream, workers=1)
    async with running(settings_of(config)) as gateway:
        ada = await gateway.person(usd="1")
        key = (await gateway.key("worker", user=ada.user)).key
        async with serving_process(config) as process, worker_process(process.url, key, upstream.base_url):
            await served(gateway, model=SCRIPTED)
            assert (await ask(gateway, ada, model="metered")).status_code == 200
            upstream.usual = Calls(Stream(tokens=50, hold_after=3))
            async with calling(gateway.url) as caller:
                await caller.ask(ROUTER, ada, model="metered", stream=True)
                await caller.head()
                await caller.event()
                process.signal(signal.SIGKILL)
                *_, error, _ = await caller.events()
            assert data(error)["error"]["code"] == "upstream_failed"
            refused = await ask(gateway, ada, model="metered")
            assert refused.status_code == 503
            upstream.usual = Calls(Plain())
            async with worker(gateway, key, upstream.base_url, models=(SCRIPTED,)):
                assert (await ask(gateway, ada, model="metered")).status_code == 200


async def test_told_to_end_while_a_worker_answers_it_cuts_the_call_in_order_and_ends_well(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    config = several_processes(tmp_path, upstream, workers=1, grace_s=1)
    ada = await person_of(config)
    async with running(settings_of(config)) as gateway:
        key = (await gateway.key("worker", user=ada.user)).key
    async with serving_process(config) as process, raw_peer(process, key) as peer, calling(process.url) as caller:
        await peer.hello(model=SCRIPTED)
        await caller.ask(ROUTER, ada, model="metered", stream=True)
        job = await peer.job()
        await peer.say(type="head", job=job, status=200, headers={"content-type": "text/event-stream"})
        await peer.socket.send(piece(job, b'data: {"choices":[{"index":0,"delta":{"content":"Word"}}]}\n\n'))
        await caller.head()
        await caller.event()
        peer.socket.transport.pause_reading()  # it does not hang up before the gateway does
        process.signal(signal.SIGTERM)
        error, done = await caller.events()
        assert (data(error)["error"]["code"], done) == ("shutting_down", DONE)
        assert await process.ended() == 0
    assert await verified(config)
    async with running(settings_of(config)) as gateway:
        assert [record.ended for record in await gateway.usage(ada)] == ["shutdown"]


ENGINE = """
import http.server, json, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"data": [{"id": "homemade"}]} if self.path == "/v1/models" else {"total_slots": 2})
    def do_POST(self):
        self.answer({"error": {"message": os.environ.get("PENSTOCK_WORKER_KEY", "none")}})
    def answer(self, document):
        body = json.dumps(document).encode()
        self.send_response(200 if self.command == "GET" else 418)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        print("pid", os.getpid(), file=sys.stderr, flush=True)
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


async def test_an_engine_that_a_worker_starts_serves_knows_no_key_and_ends_with_it(
    store_url: str, tmp_path: Path
) -> None:
    (tmp_path / "engine.py").write_text(ENGINE)
    command = f"{sys.executable} {tmp_path / 'engine.py'} {{port}}"
    async with running(with_workers(settings_for(store_url), "homemade")) as gateway:
        ada = await gateway.person(usd="1")
        key = (await gateway.key("worker", user=ada.user)).key
        async with worker_process(gateway.url, key, command) as process:
            (offer,) = gateway.office.hub.offers("worker")
            assert (offer.slots, offer.models[0].id) == (2, "homemade")
            answer = await ask(gateway, ada, model="homemade")
            assert (answer.status_code, answer.json()["error"]["message"]) == (418, "none")
            engine = int((await process.said("pid ")).split()[1])
            process.signal(signal.SIGKILL)
            await eventually(lambda: ended(engine))
