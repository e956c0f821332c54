"""The upstream client against scripted servers: framing, pool, time limits, pressure, and what it refuses."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest

from penstock.errors import UpstreamBusy, UpstreamError, UpstreamFailed, UpstreamTimeout, UpstreamUnavailable
from penstock.ports import Answer, Timeouts
from penstock.providers import http1
from penstock.providers.http1 import Client, Response
from penstock.providers.origin import Headers, Origin
from tests.ports.test_http1_script import OK, STREAM, Server, Wire, answering, serving, turns, until

CLOSE = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
HASTY = Timeouts(connect_s=0.1, first_byte_s=0.1, idle_s=0.1, total_s=0.4)
MIB = 1_048_576

pytestmark = pytest.mark.each_loop


@asynccontextmanager
async def calling(
    server: Server, *, timeouts: Timeouts | None = None, max_connections: int = 8, headers: Headers = ()
) -> AsyncIterator[Client]:
    origin = Origin(server.url, timeouts or Timeouts(), max_connections, headers=tuple(headers))
    client = Client(origin)
    try:
        yield client
    finally:
        await client.close()


async def post(client: Client, body: bytes = b"{}") -> Response:
    return await client.request("POST", "chat/completions", (), body)


async def ask(client: Client) -> bytes:
    return await (await post(client)).read(MIB)


# What is sent.


async def test_a_request_is_exactly_its_own_lines_and_nothing_else() -> None:
    async with serving(answering(OK)) as server, calling(server, headers=[(b"authorization", b"Bearer k")]) as client:
        await client.request("POST", "/chat/completions", [(b"x-one", b"1")], b'{"a":1}')
        sent = server.requests[0]
    assert sent.head == (
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:%d\r\naccept-encoding: identity\r\n"
        b"authorization: Bearer k\r\nx-one: 1\r\ncontent-length: 7\r\n\r\n" % server.port
    )
    assert sent.body == b'{"a":1}'


async def test_a_get_announces_no_body() -> None:
    async with serving(answering(OK)) as server, calling(server) as client:
        await client.request("GET", "models?limit=1", (), b"")
    assert server.requests[0].start == b"GET /v1/models?limit=1 HTTP/1.1"
    assert b"content-length" not in server.requests[0].headers


@pytest.mark.parametrize(
    ("method", "path", "header"),
    [
        ("POST", "chat completions", (b"x", b"y")),
        ("POST", "chat\r\nx: y", (b"x", b"y")),
        ("POST", "chät", (b"x", b"y")),
        ("CONNECT", "chat", (b"x", b"y")),
        ("GET / HTTP/1.1\r\n\r\nGET", "chat", (b"x", b"y")),
        ("POST", "chat", (b"x", b"y\r\nz: 1")),
        ("POST", "chat", (b"x", b"y\n")),
        ("POST", "chat", (b"x", b"y\x00")),
        ("POST", "chat", (b"x\r\nz", b"y")),
        ("POST", "chat", (b"x ", b"y")),
        ("POST", "chat", (b"", b"y")),
        ("POST", "chat", (b"Content-Length", b"0")),
        ("POST", "chat", (b"transfer-encoding", b"chunked")),
        ("POST", "chat", (b"host", b"elsewhere")),
    ],
)
async def test_what_would_split_or_reframe_a_request_is_refused_unsent(
    method: str, path: str, header: tuple[bytes, bytes]
) -> None:
    async with serving(answering(OK)) as server, calling(server) as client:
        with pytest.raises(ValueError, match=r"header|path|method"):
            await client.request(method, path, [header], b"{}")
    assert server.accepted == 0


# What comes back.

ANSWERS = {
    "length": (OK, b"ok", True),
    "empty": (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b"", True),
    "chunked": (STREAM + b"2\r\nok\r\n5;x=y\r\n, yes\r\n0\r\n\r\n", b"ok, yes", True),
    "trailers": (STREAM + b"2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n", b"ok", True),
    "until close": (b"HTTP/1.1 200 OK\r\n\r\nok", b"ok", False),
    "http 1.0": (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", b"ok", False),
    "asks to close": (CLOSE, b"ok", False),
    "interim": (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + OK, b"ok", True),
    "204": (b"HTTP/1.1 204 No Content\r\n\r\n", b"", True),
    "304": (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 9\r\n\r\n", b"", True),
    "redirect": (b"HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 2\r\n\r\nno", b"no", True),
    "error": (b"HTTP/1.1 500 Oh\r\ncontent-length: 2\r\n\r\nno", b"no", True),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_is_the_same_wherever_the_network_cuts_it(name: str) -> None:
    raw, body, reusable = ANSWERS[name]

    async def script(wire: Wire) -> None:
        while True:
            request = await wire.request()
            cut = int(request.body)
            await wire.send(raw[:cut])
            await turns()
            await wire.send(raw[cut:])
            if not reusable:
                return

    async with serving(script) as server, calling(server) as client:
        for cut in range(len(raw)):
            answer = await post(client, b"%d" % cut)
            assert answer.status == int(raw[raw.rindex(b"HTTP/1.") :][9:12])
            assert await answer.read(100) == body
            assert not {"x-sum", "link"} & answer.headers.keys()
        assert server.accepted == (1 if reusable else len(raw))


@pytest.mark.parametrize("name", ANSWERS)
async def test_an_answer_after_one_that_is_remembered_is_read_for_what_it_is(name: str) -> None:
    raw, body, reusable = ANSWERS[name]

    async def script(wire: Wire) -> None:
        for answer in (OK, OK, raw):
            await wire.request()
            await wire.send(answer)
        if reusable:
            await wire.gone()

    async with serving(script) as server, calling(server) as client:
        assert [await ask(client), await ask(client), await ask(client)] == [b"ok", b"ok", body]
        assert server.accepted == 1


async def test_what_is_like_a_remembered_answer_and_not_one_is_read_for_what_it_is() -> None:
    other = OK.replace(b"ok", b"no")
    longer = OK.replace(b": 2", b": 3").replace(b"ok", b"yes")
    named = OK.replace(b"content-", b"x-name: a\r\ncontent-")
    async with serving(answering(OK, other, longer, longer, OK, named, named, OK)) as server, calling(server) as client:
        assert [await ask(client) for _ in range(5)] == [b"ok", b"no", b"yes", b"yes", b"ok"]
        first, second = await post(client), await post(client)
        assert [(await answer.read(9), answer.headers["x-name"]) for answer in (first, second)] == [(b"ok", "a")] * 2
        last = await post(client)
        assert (await last.read(9), last.headers) == (b"ok", {"content-length": "2"})
        assert server.accepted == 1


@pytest.mark.parametrize("surplus", [b"\r\n", b"x", OK])
async def test_more_than_a_remembered_answer_costs_the_connection(surplus: bytes) -> None:
    async with serving(answering(OK, OK + surplus)) as server, calling(server) as client:
        assert [await ask(client), await ask(client)] == [b"ok", b"ok"]
        await server.gone.wait()
        await until(lambda: client.open_connections == 0)


@pytest.mark.parametrize("body", [b"2\r\nok\r\n0\r\n\r\n", b"2\r\nok\r\n0\r\nx: y\r\n\r\n", None])
async def test_line_ends_behind_an_answer_cost_the_connection(body: bytes | None) -> None:
    empty = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    answer = empty if body is None else STREAM + body
    async with serving(answering(answer, answer, answer + b"\r\n")) as server, calling(server) as client:
        for _ in range(3):
            assert await ask(client) == (b"" if body is None else b"ok")
        assert server.accepted == 1
        await server.gone.wait()
        await until(lambda: client.open_connections == 0)


async def test_a_head_is_not_taken_for_an_answer_that_is_remembered() -> None:
    empty = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    async with serving(answering(empty, empty)) as server, calling(server) as client:
        assert await ask(client) == b""
        answer = await client.request("HEAD", "models", (), b"")
        assert (answer.status, await answer.read(10)) == (200, b"")
        await server.gone.wait()  # as ever after HEAD


# What flows.


def kept_in(taken: list[bytes]) -> Callable[[bytes], bool]:
    """Takes whatever comes."""

    def take(piece: bytes) -> bool:
        taken.append(piece)
        return True

    return take


async def test_what_flows_is_taken_where_it_arrives_until_it_has_to_stop() -> None:
    go = [asyncio.Event() for _ in range(4)]

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(STREAM)
        for word, gate in zip((b"one", b"two", b"STOP", b"six"), go, strict=True):
            await gate.wait()
            await wire.send(b"%x\r\n%b\r\n" % (len(word), word))
        await wire.send(b"0\r\n\r\n")

    taken: list[bytes] = []

    def take(piece: bytes) -> bool:
        taken.append(piece)
        if len(taken) < len(go):
            go[len(taken)].set()
        return not piece.startswith(b"STOP")

    async with serving(script) as server, calling(server) as client:
        answer = await post(client)
        go[0].set()
        assert await answer.flow(take)
        assert b"".join(taken).startswith(b"onetwoSTOP")
        assert not await answer.flow(take)
        assert b"".join(taken) == b"onetwoSTOPsix"
        assert not await answer.flow(take)
        assert client.idle_connections == 1


async def test_what_had_come_before_flows_first() -> None:
    async with serving(answering(STREAM + b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")) as server, calling(server) as client:
        answer, taken = await post(client), list[bytes]()
        assert not await answer.flow(kept_in(taken))
        assert b"".join(taken) == b"onetwo"


async def test_a_flow_that_breaks_off_says_so_after_what_came() -> None:
    taken: list[bytes] = []

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(STREAM + b"3\r\none\r\n")
        await until(lambda: bool(taken))
        await wire.send(b"3\r\ntwo\r\nnonsense\r\n")

    async with serving(script) as server, calling(server) as client:
        answer = await post(client)
        with pytest.raises(UpstreamFailed, match=r"HTTP/1\.1"):
            await answer.flow(kept_in(taken))
        assert b"".join(taken) == b"onetwo"


async def test_cancelling_a_flow_loses_nothing() -> None:
    taken: list[bytes] = []
    gate = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(STREAM + b"3\r\none\r\n")
        await gate.wait()
        await wire.send(b"3\r\ntwo\r\n0\r\n\r\n")

    async with serving(script) as server, calling(server) as client:
        answer = await post(client)
        waiting = asyncio.ensure_future(answer.flow(kept_in(taken)))
        await until(lambda: bool(taken))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gate.set()
        assert await answer.read(MIB) == b"two"
    assert taken == [b"one"]


async def test_headers_are_lower_case_and_repeated_ones_are_joined() -> None:
    raw = b"HTTP/1.1 200 OK\r\nX-Request-ID: a \r\nVary: b\r\nvary:c\r\nX-Name: caf\xe9\r\nContent-Length: 0\r\n\r\n"
    async with serving(answering(raw)) as server, calling(server) as client:
        answer: Answer = await post(client)
    assert answer.headers == {"x-request-id": "a", "vary": "b, c", "x-name": "café", "content-length": "0"}


async def test_an_answer_to_head_has_no_body_and_costs_the_connection() -> None:
    head = b"HTTP/1.1 200 OK\r\ncontent-length: 999\r\n\r\n"
    async with serving(answering(head)) as server, calling(server) as client:
        answer = await client.request("HEAD", "models", (), b"")
        assert (answer.status, await answer.read(10)) == (200, b"")
        await server.gone.wait()
        await until(lambda: client.open_connections == 0)


async def test_a_piece_is_delivered_before_the_next_is_sent() -> None:
    seen = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(STREAM + b"3\r\none\r\n")
        await seen.wait()
        await wire.send(b"3\r\ntwo\r\n0\r\n\r\n")

    async with serving(script) as server, calling(server) as client:
        pieces = []
        async for piece in await post(client):
            pieces.append(piece)
            seen.set()
    assert pieces == [b"one", b"two"]


async def test_pieces_that_arrived_together_are_delivered_as_one() -> None:
    async with serving(answering(STREAM + b"3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")) as server, calling(server) as client:
        assert [piece async for piece in await post(client)] == [b"onetwo"]


async def test_a_body_that_came_with_its_head_is_read_without_waiting() -> None:
    async with serving(answering(OK)) as server, calling(server) as client:
        answer = await post(client)
        with pytest.raises(StopIteration) as done:
            answer.read(MIB).send(None)
    assert done.value.value == b"ok"


async def test_a_body_longer_than_the_limit_fails_and_closes_the_connection() -> None:
    async with serving(answering(STREAM + b"5\r\nhello\r\n")) as server, calling(server) as client:
        with pytest.raises(UpstreamFailed, match="too long"):
            await (await post(client)).read(4)
        await server.gone.wait()


MALFORMED = {
    "garbage": b"\x00\x01\x02 what\r\n\r\n",
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "length and chunked": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 2\r\n\r\n0\r\n\r\n",
    "negative length": b"HTTP/1.1 200 OK\r\ncontent-length: -2\r\n\r\nok",
    "signed length": b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\nok",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
    "a list of lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nok",
    "a huge length": b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\nok",
    "another coding": b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "nearly chunked": b"HTTP/1.1 200 OK\r\ntransfer-encoding: xchunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    "chunked twice": b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "a folded header": b"HTTP/1.1 200 OK\r\nx: y\r\n z\r\ncontent-length: 0\r\n\r\n",
    "space before colon": b"HTTP/1.1 200 OK\r\ncontent-length : 0\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 0\n\n",
    "a NUL in a header": b"HTTP/1.1 200 OK\r\nx: \x00\r\ncontent-length: 0\r\n\r\n",
    "status zero": b"HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n",
    "an upgrade": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
    "an interim answer with a body": b"HTTP/1.1 150 Hm\r\ncontent-length: 2\r\n\r\nno" + OK,
    "endless interim answers": b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" * 12_000,
    "a long header": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 70_000 + b"\r\ncontent-length: 0\r\n\r\n",
    "an endless header": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 300_000,
    "many headers": b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 70_000 + b"\r\n",
}


@pytest.mark.parametrize("name", MALFORMED)
async def test_what_is_not_an_answer_fails_and_drops_the_connection(name: str) -> None:
    async with serving(answering(MALFORMED[name])) as server, calling(server) as client:
        with pytest.raises(UpstreamFailed, match=r"not valid HTTP/1\.1") as failure:
            await post(client)
        assert failure.value.began
        await server.gone.wait()
        await until(lambda: client.open_connections == 0)
    assert len(server.requests) == 1


BROKEN_BODIES = {
    "negative chunk": b"-2\r\nok\r\n",
    "spaced chunk size": b"2 \r\nok\r\n",
    "hexadecimal prefix": b"0x2\r\nok\r\n",
    "overflowing chunk": b"fffffffffffffffff\r\nok\r\n",
    "overlong chunk": b"2\r\nok!\r\n",
    "bare line feeds": b"2\nok\n",
    "endless extension": b"2;" + b"x" * 400_000,
    "a length in the trailers": b"0\r\ncontent-length: 9\r\n\r\n",
    "endless trailers": b"0\r\n" + b"a: b\r\n" * 70_000,
}


@pytest.mark.parametrize("name", BROKEN_BODIES)
async def test_a_body_that_turns_invalid_breaks_off_after_what_was_valid(name: str) -> None:
    async with serving(answering(STREAM + b"3\r\nyes\r\n" + BROKEN_BODIES[name])) as server, calling(server) as client:
        answer = await post(client)
        assert (await anext(answer)).startswith(b"yes")
        with pytest.raises(UpstreamFailed) as failure:
            await answer.read(MIB)
        assert failure.value.began
        await server.gone.wait()


@pytest.mark.parametrize(
    "raw", [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nsome", STREAM + b"9\r\nsome", STREAM + b"4\r\nsome\r\n"]
)
async def test_a_body_cut_off_fails_after_what_had_come(raw: bytes) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(raw)

    async with serving(script) as server, calling(server) as client:
        answer = await post(client)
        assert await anext(answer) == b"some"
        with pytest.raises(UpstreamFailed, match="broke off") as failure:
            await anext(answer)
    assert failure.value.began


# The pool.


async def test_a_connection_serves_one_call_after_the_other() -> None:
    async with serving(answering(OK, OK, OK)) as server, calling(server) as client:
        for _ in range(3):
            assert await ask(client) == b"ok"
            assert (client.open_connections, client.idle_connections) == (1, 1)
    assert server.accepted == 1


async def test_a_connection_is_free_when_the_body_has_ended_and_not_when_it_was_read() -> None:
    async with serving(answering(OK, OK)) as server, calling(server, max_connections=1) as client:
        first, second = await post(client), await post(client)
        assert [await first.read(9), await second.read(9)] == [b"ok", b"ok"]
        first.close()
        first.close()
        assert client.idle_connections == 1


@pytest.mark.parametrize("raw", [OK, CLOSE])
async def test_no_more_connections_than_allowed_and_everybody_has_a_turn(raw: bytes) -> None:
    open_now, most = 0, 0

    async def script(wire: Wire) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        while True:
            await wire.request()
            await turns(20)
            if raw is CLOSE:
                open_now -= 1
                return await wire.send(raw)
            await wire.send(raw)

    async with serving(script) as server, calling(server, max_connections=2) as client:
        calls = [asyncio.ensure_future(ask(client)) for _ in range(9)]
        await turns(2)
        assert client.waiting == 7
        assert await asyncio.gather(*calls) == [b"ok"] * 9
        assert client.waiting == 0
    assert most == 2
    assert server.accepted == (2 if raw is OK else 9)


async def test_a_full_pool_ends_in_unavailable_after_the_connect_time_out() -> None:
    held = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await held.wait()
        await wire.send(OK)
        await answering(OK)(wire)

    limits = Timeouts(connect_s=0.05)
    async with serving(script) as server, calling(server, timeouts=limits, max_connections=1) as client:
        first = asyncio.ensure_future(ask(client))
        await until(lambda: len(server.requests) == 1)
        with pytest.raises(UpstreamBusy, match="in use"):
            await ask(client)
        held.set()
        assert await first == b"ok"
        assert await ask(client) == b"ok"


async def test_a_cancelled_wait_for_a_connection_does_not_lose_it() -> None:
    async with serving(answering(STREAM, OK)) as server, calling(server, max_connections=1) as client:
        held = await post(client)
        waits = [asyncio.ensure_future(ask(client)) for _ in range(2)]
        await turns(1)
        [connection] = client._all
        # All in one turn: the first is cancelled, the connection comes free, and so does the second.
        waits[0].cancel()
        connection.data_received(b"0\r\n\r\n")
        assert (client.waiting, client.idle_connections) == (0, 0)
        waits[1].cancel()
        assert [type(end) for end in await asyncio.gather(*waits, return_exceptions=True)] == [
            asyncio.CancelledError
        ] * 2
        assert await held.read(9) == b""
        assert await ask(client) == b"ok"
        assert (client.waiting, server.accepted) == (0, 1)


async def test_a_stale_connection_is_replaced_once() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        request = await wire.request()
        if wire.number == 2:
            await wire.send(OK)
        assert request.body == b"{}"

    async with serving(script) as server, calling(server) as client:
        assert await ask(client) == b"ok"
        assert await ask(client) == b"ok"
        assert (server.accepted, len(server.requests)) == (2, 3)


async def test_when_one_kept_connection_is_stale_the_others_are_not_tried() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        await wire.request()  # and hangs up

    async with serving(script) as server, calling(server) as client:
        await asyncio.gather(*[ask(client) for _ in range(3)])
        assert client.idle_connections == 3
        assert await ask(client) == b"ok"
        assert (server.accepted, len(server.requests)) == (4, 5)


async def test_a_kept_connection_the_upstream_has_closed_is_not_used() -> None:
    async with serving(answering_once) as server, calling(server) as client:
        assert await ask(client) == b"ok"
        await until(lambda: client.open_connections == 0)
        assert await ask(client) == b"ok"
        assert (server.accepted, len(server.requests)) == (2, 2)


async def answering_once(wire: Wire) -> None:
    await wire.request()
    await wire.send(OK)


async def test_a_request_is_not_repeated_a_second_time() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        if wire.number == 1:
            await wire.send(OK)
            await wire.request()

    async with serving(script) as server, calling(server) as client:
        await ask(client)
        with pytest.raises(UpstreamUnavailable):
            await ask(client)
        assert (server.accepted, len(server.requests)) == (2, 3)


async def test_a_new_connection_closed_without_an_answer_is_unavailable_and_not_repeated() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()

    async with serving(script) as server, calling(server) as client:
        with pytest.raises(UpstreamUnavailable) as failure:
            await ask(client)
        assert not failure.value.began
    assert len(server.requests) == 1


@pytest.mark.parametrize("said", [b"H", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 200 OK\r\ncontent-le"])
async def test_nothing_is_repeated_once_a_byte_has_come(said: bytes) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        await wire.request()
        await wire.send(said)

    async with serving(script) as server, calling(server) as client:
        await ask(client)
        with pytest.raises(UpstreamFailed) as failure:
            await ask(client)
        assert failure.value.began
    assert len(server.requests) == 2


async def test_nothing_is_repeated_when_the_upstream_may_have_worked_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "_STALE_S", 0.0)

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        await wire.request()

    async with serving(script) as server, calling(server) as client:
        await ask(client)
        with pytest.raises(UpstreamUnavailable):
            await ask(client)
    assert len(server.requests) == 2


@pytest.mark.parametrize("surplus", [b"x", b"\r\n", OK])
async def test_bytes_on_an_idle_connection_drop_it(surplus: bytes) -> None:
    idle = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(OK)
        await idle.wait()
        await wire.send(surplus)
        await wire.gone()

    async with serving(script) as server, calling(server) as client:
        assert await ask(client) == b"ok"
        idle.set()
        await server.gone.wait()
        await until(lambda: client.open_connections == 0)
        assert await ask(client) == b"ok"
    assert server.accepted == 2


@pytest.mark.parametrize("surplus", [b"x", OK, b"HTTP/1.1 200 OK\r\n"])
async def test_bytes_after_the_end_of_an_answer_cost_the_connection_and_not_the_answer(surplus: bytes) -> None:
    async with serving(answering(OK + surplus)) as server, calling(server) as client:
        assert await ask(client) == b"ok"
        await server.gone.wait()
        assert client.idle_connections == 0


async def test_a_connection_idle_for_long_is_closed() -> None:
    async with serving(answering(OK)) as server, calling(server) as client:
        await ask(client)
        [connection] = client._all
        now = asyncio.get_running_loop().time()
        connection.check(now, Timeouts())
        connection.check(now + 50, Timeouts())
        assert client.idle_connections == 1
        connection.check(now + 60, Timeouts())
        await server.gone.wait()


# Time limits.


async def nothing(wire: Wire) -> None:
    await wire.gone()


async def test_no_first_byte_in_time_is_a_time_out_that_had_not_begun() -> None:
    async with serving(nothing) as server, calling(server, timeouts=Timeouts(first_byte_s=0.1)) as client:
        with pytest.raises(UpstreamTimeout) as failure:
            await post(client)
        assert not failure.value.began
        await server.gone.wait()


@pytest.mark.parametrize("word", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"])
async def test_a_word_before_the_answer_is_not_its_beginning(word: bytes) -> None:
    ready = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(word)
        await ready.wait()
        await wire.send(OK)

    patient = Timeouts(first_byte_s=60, idle_s=0.1)
    async with serving(script) as server, calling(server, timeouts=patient) as client:
        asking = asyncio.create_task(ask(client))
        await until(lambda: any(each.answer._began for each in client._all if each.answer))
        [connection] = client._all
        now = asyncio.get_running_loop().time()
        connection.check(now, patient)
        connection.check(now + 50, patient)
        ready.set()
        assert await asking == b"ok"


async def test_no_answer_in_time_after_a_word_before_it_is_a_time_out() -> None:
    async with (
        serving(answering(b"HTTP/1.1 100 Continue\r\n\r\n")) as server,
        calling(server, timeouts=Timeouts(first_byte_s=0.1)) as client,
    ):
        with pytest.raises(UpstreamTimeout, match="did not begin"):
            await post(client)
        await server.gone.wait()


@pytest.mark.parametrize("words", [[b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"], [b"HTTP/1.1 200 OK\r\nx: ", b"y"]])
async def test_words_before_the_answer_without_end_are_not_waited_for(words: list[bytes]) -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        with suppress(ConnectionError):
            for word in [*words, *words[-1:] * 200]:
                await wire.send(word)
                await asyncio.sleep(0.01)  # a drop at a time is what this upstream is about
        await wire.gone()

    async with serving(script) as server, calling(server, timeouts=HASTY) as client:
        with pytest.raises(UpstreamTimeout, match="did not begin"):
            await post(client)
        await server.gone.wait()


async def test_silence_in_the_middle_is_a_time_out_after_what_had_come() -> None:
    async with serving(answering(STREAM + b"2\r\nok\r\n")) as server, calling(server, timeouts=HASTY) as client:
        answer = await post(client)
        assert await anext(answer) == b"ok"
        with pytest.raises(UpstreamTimeout, match="silent") as failure:
            await anext(answer)
        assert failure.value.began
        await server.gone.wait()


async def test_an_answer_without_end_stops_at_the_total_time() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(STREAM)
        while not wire.writer.is_closing():
            await wire.send(b"1\r\nx\r\n")
            await turns(1)

    async with serving(script) as server, calling(server, timeouts=HASTY) as client:
        answer = await post(client)
        with pytest.raises(UpstreamTimeout, match="in all"):
            await answer.read(1000 * MIB)


async def test_a_head_that_drips_without_end_stops_at_the_time_for_its_beginning() -> None:
    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(b"HTTP/1.1 200 OK\r\n")
        async with asyncio.timeout(2):
            for _ in range(60_000):
                await wire.send(b"x")
                await turns(100)

    async with serving(script) as server, calling(server, timeouts=HASTY) as client:
        with pytest.raises(UpstreamTimeout, match="did not begin"):
            await post(client)


async def test_a_slow_reader_is_not_taken_for_a_silent_upstream() -> None:
    async with serving(flooding) as server, calling(server) as client:
        answer = await post(client)
        [connection] = client._all
        await until(lambda: "paused" in repr(connection))
        now = asyncio.get_running_loop().time()
        for later in range(500):
            connection.check(now + later, Timeouts())
        assert repr(answer).startswith("Response(200, open")


async def test_the_sweep_stops_with_the_last_connection() -> None:
    async with serving(answering_once) as server, calling(server, timeouts=HASTY) as client:
        await ask(client)
        await until(lambda: client.open_connections == 0)
        await until(lambda: client._timer is None)


# Pressure.


FLOOD_BYTES = 48 * MIB  # far more than the kernel buffers of a loopback connection


async def flooding(wire: Wire) -> None:
    await wire.request()
    await wire.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % FLOOD_BYTES)
    for _ in range(FLOOD_BYTES // 65_536):
        await wire.send(b"x" * 65_536)


async def stalled(server: Server) -> int:
    """The bytes the server has sent, once it has been unable to send more for 300 turns of the loop."""
    sent = -1
    async with asyncio.timeout(5):
        while sent != server.sent:
            sent = server.sent
            await turns(300)
    return sent


async def test_an_upstream_faster_than_the_reader_has_to_wait() -> None:
    async with serving(flooding) as server, calling(server) as client:
        answer = await post(client)
        assert await stalled(server) < FLOOD_BYTES // 2
        assert answer._unread < MIB
        assert sum([len(piece) async for piece in answer]) == FLOOD_BYTES
        assert client.idle_connections == 1


async def test_reading_it_all_waits_for_no_one() -> None:
    async with serving(flooding) as server, calling(server) as client:
        answer = await post(client)
        await stalled(server)
        assert len(await answer.read(FLOOD_BYTES)) == FLOOD_BYTES


async def test_a_long_request_waits_for_the_upstream_to_read() -> None:
    reading = asyncio.Event()

    async def script(wire: Wire) -> None:
        await reading.wait()
        await answering(OK, OK)(wire)

    body = b"0123456789abcdef" * (FLOOD_BYTES // 16)
    async with serving(script) as server, calling(server) as client:
        call = asyncio.ensure_future(post(client, body))
        await until(lambda: client.open_connections == 1)
        await turns(300)
        [connection] = client._all
        assert connection.transport.get_write_buffer_size() < MIB
        reading.set()
        assert await (await call).read(9) == b"ok"
        assert server.requests[0].body == body
        assert await ask(client) == b"ok"
        assert server.accepted == 1


async def test_an_upstream_that_refuses_a_long_request_is_heard_before_all_of_it_is_sent() -> None:
    async def script(wire: Wire) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        await wire.send(b"HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\n\r\n")
        await refused.wait()
        await wire.send(b"big")
        await wire.gone()

    refused = asyncio.Event()
    async with serving(script) as server, calling(server) as client:
        answer = await post(client, b"x" * FLOOD_BYTES)
        refused.set()
        assert (answer.status, await answer.read(9)) == (413, b"big")
        assert client.idle_connections == 0


async def test_an_upstream_that_hangs_up_in_a_long_request_is_unavailable() -> None:
    async def script(wire: Wire) -> None:
        await wire.reader.readuntil(b"\r\n\r\n")
        wire.writer.transport.abort()

    async with serving(script) as server, calling(server) as client:
        with pytest.raises(UpstreamUnavailable):
            await post(client, b"x" * FLOOD_BYTES)


# Letting go.


async def test_cancelling_a_request_closes_its_connection() -> None:
    async with serving(nothing) as server, calling(server) as client:
        call = asyncio.ensure_future(post(client))
        await until(lambda: client.open_connections == 1)
        await turns()
        call.cancel()
        async with asyncio.timeout(0.1):
            await server.gone.wait()
        with pytest.raises(asyncio.CancelledError):
            await call
        await until(lambda: client.open_connections == 0)


async def test_closing_an_answer_before_its_end_closes_the_connection_and_wakes_its_reader() -> None:
    async with serving(answering(STREAM + b"2\r\nok\r\n")) as server, calling(server) as client:
        answer = await post(client)
        assert await anext(answer) == b"ok"
        reader = asyncio.ensure_future(answer.read(9))
        await turns(1)
        answer.close()
        answer.close()
        async with asyncio.timeout(0.1):
            await server.gone.wait()
        with pytest.raises(UpstreamFailed, match="closed before its end"):
            await reader


async def test_a_cancelled_read_loses_nothing() -> None:
    seen = asyncio.Event()

    async def script(wire: Wire) -> None:
        await wire.request()
        await wire.send(STREAM + b"3\r\none\r\n")
        await seen.wait()
        await wire.send(b"3\r\ntwo\r\n0\r\n\r\n")
        await wire.gone()

    async with serving(script) as server, calling(server) as client:
        answer = await post(client)
        assert await anext(answer) == b"one"
        reader = asyncio.ensure_future(answer.read(9))
        await turns(1)
        reader.cancel()
        await turns(1)
        seen.set()
        assert await answer.read(9) == b"two"
        assert client.idle_connections == 1


async def test_a_closed_client_has_no_connections_and_takes_no_requests() -> None:
    async with serving(answering(OK)) as server, calling(server, max_connections=2) as client:
        await ask(client)
        calls = [asyncio.ensure_future(ask(client)) for _ in range(4)]
        await until(lambda: client.waiting == 2 and client.open_connections == 2)
        calls[2].cancel()
        await client.close()
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(ends.pop(2), asyncio.CancelledError)
        assert all(isinstance(end, UpstreamError) for end in ends)
        assert client.open_connections == 0
        with pytest.raises(UpstreamUnavailable):
            await ask(client)


async def test_a_client_closed_while_it_connects_sends_nothing() -> None:
    async with serving(answering(OK)) as server, calling(server) as client:
        call = asyncio.ensure_future(ask(client))
        await turns(1)
        await client.close()
        with pytest.raises(UpstreamUnavailable):
            await call
        assert (client.open_connections, server.requests) == (0, [])


async def test_no_slot_is_lost_whatever_callers_and_upstream_do() -> None:
    chance = random.Random(7)

    async def script(wire: Wire) -> None:
        while True:
            await wire.request()
            await turns(chance.randrange(4))
            await wire.send(chance.choice([OK, OK, CLOSE, STREAM, STREAM + b"3\r\none\r\n0\r\n\r\n", b"HTTP/1.1", b""]))
            if chance.random() < 0.3:
                return

    async def fickle() -> None:
        answer = await post(client)
        if chance.random() < 0.5:
            await answer.read(MIB)
        answer.close()

    async with serving(script) as server, calling(server, timeouts=HASTY, max_connections=3) as client:
        calls = [asyncio.ensure_future(fickle()) for _ in range(300)]
        while not all(call.done() for call in calls):
            chance.choice(calls).cancel()
            await turns(chance.randrange(20))
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert {type(end) for end in ends} - {type(None)} <= {
            asyncio.CancelledError, UpstreamBusy, UpstreamFailed, UpstreamTimeout, UpstreamUnavailable,
            http1._StaleConnection,
        }  # fmt: skip
        await until(lambda: client.open_connections == client.idle_connections)
        assert client._slots + client.open_connections == 3
        assert client.waiting == 0


async def test_nobody_listening_is_unavailable() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with calling(Server(f"http://127.0.0.1:{unused.getsockname()[1]}")) as client:
            with pytest.raises(UpstreamUnavailable) as failure:
                await ask(client)
            assert "127" not in failure.value.message
            assert client.open_connections == client.waiting == 0


async def test_connections_and_answers_show_their_state() -> None:
    async with serving(answering(OK)) as server, calling(server, headers=[(b"authorization", b"Bearer s3")]) as client:
        answer = await post(client)
        assert repr(answer) == "Response(200, ended, 2 bytes unread)"
        assert repr(client) == f"Client(127.0.0.1:{server.port}: 1 open, 1 of them idle, 0 waiting)"
        assert repr(next(iter(client._all))) == "_Connection(idle, 1 served)"
        assert "s3" not in repr(client._origin)
