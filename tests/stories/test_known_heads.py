"""A client sends the same head again and again; each request is still read for what it is."""

from __future__ import annotations

import asyncio
import json
import random

import pytest

from penstock.operations.actor import LOCAL
from penstock.operations.keys import revoke_key
from tests.stories.caller import Caller, calling, request
from tests.stories.gateway import ROUTER, Person, Running
from tests.upstream import Plain, ScriptedUpstream

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture
async def ada(gateway: Running, upstream: ScriptedUpstream) -> Person:
    upstream.usual = Plain()
    return await gateway.person(usd="1")


def asking(ada: Person, word: str, **headers: str) -> bytes:
    return request(ROUTER, ada, headers=headers, user=word)


async def statuses(caller: Caller, *packets: bytes, answers: int | None = None) -> list[int]:
    """What comes back for packets that the network keeps apart."""
    for packet in packets:
        await caller.send(packet)
        await asyncio.sleep(0.02)
    found = []
    for _ in range(len(packets) if answers is None else answers):
        found.append((await caller.head()).status)
        await caller.body()
    return found


def words(upstream: ScriptedUpstream) -> list[str]:
    return [json.loads(received.body)["user"] for received in upstream.requests]


async def test_each_of_many_requests_with_one_head_has_its_own_body_answer_and_record(
    gateway: Running, upstream: ScriptedUpstream, ada: Person
) -> None:
    sent = [f"word-{number}" for number in range(6)]
    ids = set()
    async with calling(gateway.url) as caller:
        for word in sent:
            await caller.send(asking(ada, word))
            head = await caller.head()
            assert head.status == 200
            ids.add(head.headers["x-request-id"])
            await caller.body()
    assert words(upstream) == sent
    assert {record.request for record in await gateway.usage(ada)} == ids
    assert len(ids) == len(sent)


async def test_what_is_like_a_known_request_and_not_one_is_read_for_what_it_is(
    gateway: Running, upstream: ScriptedUpstream, ada: Person
) -> None:
    usual = asking(ada, "usual")
    head, body = usual[: usual.index(b"\r\n\r\n") + 4], usual[usual.index(b"\r\n\r\n") + 4 :]
    async with calling(gateway.url) as caller:
        assert await statuses(caller, usual, usual) == [200, 200]
        assert await statuses(caller, head, body, answers=1) == [200]
        assert await statuses(caller, usual[:40], usual[40:], answers=1) == [200]
        assert await statuses(caller, asking(ada, "a longer word"), usual) == [200, 200]
        assert await statuses(caller, usual + usual, answers=2) == [200, 200]
        assert await statuses(caller, b"\r\n" + usual, usual, answers=2) == [200, 200]
        assert await statuses(caller, b"\r\n", usual, answers=1) == [200]
        assert await statuses(caller, usual + b"\r\n", usual, answers=2) == [200, 200]
        forged = usual.replace(ada.key(ROUTER).key.encode(), b"x" * len(ada.key(ROUTER).key))
        assert await statuses(caller, forged, usual) == [401, 200]
        assert await statuses(caller, usual.replace(b"POST", b"GEET"), answers=1) == [400]
        assert await caller.closed()
    assert words(upstream) == ["usual"] * 4 + ["a longer word"] + ["usual"] * 9


async def test_other_methods_and_ends_are_seen_behind_a_known_head(gateway: Running, ada: Person) -> None:
    async with calling(gateway.url) as caller:
        assert await statuses(caller, HEALTH, HEALTH, asking(ada, "a"), HEALTH) == [200, 200, 200, 200]
        last = HEALTH.replace(b"Host: a", b"Host: a\r\nConnection: close")
        assert await statuses(caller, last) == [200]
        assert await caller.closed()


async def test_a_key_that_is_revoked_is_refused_behind_a_known_head(gateway: Running, ada: Person) -> None:
    key = await gateway.key("personal", user=ada.user)
    usual = request(ROUTER, ada, key=key)
    async with calling(gateway.url) as caller:
        assert await statuses(caller, usual, usual) == [200, 200]
        await revoke_key(gateway.office, LOCAL, key=key.id)
        assert await statuses(caller, usual) == [401]


async def test_two_connections_with_two_keys_keep_apart(
    gateway: Running, upstream: ScriptedUpstream, ada: Person
) -> None:
    bob = await gateway.person(usd="1")
    async with calling(gateway.url) as one, calling(gateway.url) as two:
        for _ in range(3):
            assert await statuses(one, asking(ada, "ada")) == [200]
            assert await statuses(two, asking(bob, "bob")) == [200]
    assert len(await gateway.usage(ada)) == len(await gateway.usage(bob)) == 3


async def test_an_idempotency_key_in_a_known_head_is_one_request(gateway: Running, ada: Person) -> None:
    once = asking(ada, "once", **{"idempotency-key": "k1"})
    async with calling(gateway.url) as caller:
        assert await statuses(caller, once, once, once) == [200, 200, 200]
        other = once.replace(b'"once"', b'"Once"')
        assert await statuses(caller, other) == [409]
    assert len(await gateway.usage(ada)) == 1


async def test_wherever_the_network_cuts_many_requests_each_is_answered(
    gateway: Running, upstream: ScriptedUpstream, ada: Person
) -> None:
    cuts = random.Random(11)
    sent = [cuts.choice(["one", "two", "a longer one"]) for _ in range(40)]
    stream = b"".join(asking(ada, word) for word in sent)
    async with calling(gateway.url) as caller:
        writing = asyncio.ensure_future(_trickle(caller, stream, cuts))
        for _ in sent:
            assert (await caller.head()).status == 200
            await caller.body()
        await writing
    assert words(upstream) == sent


async def _trickle(caller: Caller, data: bytes, cuts: random.Random) -> None:
    length = len(data) // 40
    while data:
        size = cuts.choice([1, 7, length, length, length, 2 * length])
        await caller.send(data[:size])
        data = data[size:]
        await asyncio.sleep(0)
