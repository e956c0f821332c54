"""The last answer on a connection arrives, however much the caller had to say behind it."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.stories.caller import calling, eventually, request
from tests.stories.gateway import ROUTER, Person, Running
from tests.stories.shapes import HIDDEN, answers
from tests.upstream import Plain, ScriptedUpstream

TAIL = b"x" * 12_000_000  # more than the buffers of both ends hold: who has sent it has been heard out, or cut off
PATIENCE_S = 20.0
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
CLOSE = b"Host: a\r\nConnection: close\r\n"
CHAT = b"POST /api/openai/chat/completions HTTP/1.1\r\n"


@asynccontextmanager
async def plug(gateway: Running) -> AsyncIterator[socket.socket]:
    """A bare socket, of which nothing is read unless it is asked for."""
    with socket.socket() as end:
        end.setblocking(False)
        await asyncio.get_running_loop().sock_connect(end, ("127.0.0.1", gateway.port))
        yield end


async def heard(end: socket.socket) -> bytes:
    """All that comes until the other side is done, or hangs up."""
    loop, got = asyncio.get_running_loop(), b""
    async with asyncio.timeout(PATIENCE_S):
        with suppress(ConnectionError):
            while piece := await loop.sock_recv(end, 65_536):
                got += piece
    return got


async def spoken_first(gateway: Running, said: bytes) -> bytes:
    """What comes back to a caller who says it all before he reads: as most clients do, who at a reset read no more."""
    got = b""
    async with calling(gateway.url) as caller, asyncio.timeout(PATIENCE_S):
        with suppress(ConnectionError):
            await caller.send(said)
            got = await caller.reader.read(-1)
    return got


def last_requests(ada: Person) -> dict[str, tuple[bytes, int]]:
    """Requests behind which no other one is answered, whatever they bring; and the status of each."""
    key = ada.personal_key.key.encode()
    chat = request(ROUTER, ada)
    known = CHAT + CLOSE + b"Authorization: Bearer %b\r\n" % key
    return {
        "asked to close": (HEALTH, 200),
        "HTTP/1.0": (HEALTH.replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
        "a call by HTTP/1.0": (chat.replace(b"HTTP/1.1", b"HTTP/1.0"), 200),
        "nonsense": (b"nonsense\r\n\r\n", 400),
        "two hosts": (HEALTH.replace(b"Host", b"Host: b\r\nHost"), 400),
        "too much of a head": (b"GET / HTTP/1.1\r\nHost: a\r\nx-much: ", 400),
        "no key": (CHAT + CLOSE + b"Content-Length: %d\r\n\r\n" % len(TAIL), 401),
        "no key, and a body to wait for": (
            CHAT + b"Host: a\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(TAIL),
            401,
        ),
        "too large": (known + b"Content-Length: 20000001\r\n\r\n", 413),
    }


async def test_who_reads_only_when_all_is_said_still_finds_the_answer(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    upstream.usual = Plain()
    wrong = {}
    for name, (last, status) in last_requests(ada).items():
        got = answers(await spoken_first(gateway, last + TAIL))
        if [answer.status for answer in got] != [status]:
            wrong[name] = got
    assert wrong == {}
    assert len(upstream.requests) == len(await gateway.usage(ada)) == 1


async def test_requests_behind_the_last_one_are_heard_but_not_answered(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    upstream.usual = Plain()
    got = answers(await spoken_first(gateway, HEALTH + request(ROUTER, ada) * 200 + HIDDEN))
    assert [answer.status for answer in got] == [200]
    assert upstream.requests == []


async def test_who_is_answered_and_does_not_close_is_left_soon(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.api.farewell.LONGEST_SILENCE_S", 0.3)
    async with plug(gateway) as end:
        await asyncio.get_running_loop().sock_sendall(end, HEALTH)
        assert [answer.status for answer in answers(await heard(end))] == [200]
        assert gateway.server.connections == 1  # it was told of the end, and has not closed
        assert await eventually(lambda: closed(gateway))


@pytest.mark.parametrize(("limit", "most"), [("LONGEST_S", 0.5), ("MOST_BYTES", 1_000_000)])
async def test_who_is_answered_and_goes_on_talking_is_cut_off(
    gateway: Running, monkeypatch: pytest.MonkeyPatch, limit: str, most: float
) -> None:
    monkeypatch.setattr(f"penstock.api.farewell.{limit}", most)
    async with plug(gateway) as end:
        await asyncio.get_running_loop().sock_sendall(end, HEALTH)
        assert [answer.status for answer in answers(await heard(end))] == [200]
        with pytest.raises(ConnectionError):
            await talk(end)
        assert await eventually(lambda: closed(gateway))


async def talk(end: socket.socket) -> None:
    """Go on and on."""
    while True:
        await asyncio.get_running_loop().sock_sendall(end, b"x" * 1_000)
        await asyncio.sleep(0)


async def test_a_server_that_ends_does_not_hear_everybody_out(
    gateway: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.api.farewell.LONGEST_SILENCE_S", 0.2)
    async with plug(gateway) as end:
        await asyncio.get_running_loop().sock_sendall(end, HEALTH)
        assert [answer.status for answer in answers(await heard(end))] == [200]
        await gateway.server.stop()
        with pytest.raises(ConnectionError):
            await talk(end)
        await gateway.server.ended()


async def test_who_is_answered_and_does_not_take_it_is_cut_off(
    gateway: Running, upstream: ScriptedUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.api.protocol.LONGEST_STALL_S", 0.5)
    ada = await gateway.person(usd="1")
    upstream.usual = Plain(text="x" * 12_000_000)
    async with plug(gateway) as end:
        last = request(ROUTER, ada).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        await asyncio.get_running_loop().sock_sendall(end, last)
        await upstream.arrival(1)
        assert await eventually(lambda: closed(gateway))


async def closed(gateway: Running) -> bool:
    return gateway.server.connections == 0
