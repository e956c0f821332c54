"""Callers who drip, flood, hang up, fall silent or read nothing: each has an end, and nobody else notices."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.api.asgi import MOST_BODY_BYTES
from penstock.config import Settings
from tests.stories.caller import Caller, calling, data, eventually, request, the_record
from tests.stories.gateway import ROUTER, TRUST, Person, Running, running
from tests.stories.served import served
from tests.stories.shapes import Got, answers, named
from tests.upstream import Raw, ScriptedUpstream, Stream

HASTE_S = 1.0  # in place of minutes
CROWD = 150
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
SMALL_BUFFER = 8 * 1024


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.api.protocol.LONGEST_HEAD_S", HASTE_S)
    monkeypatch.setattr("penstock.api.protocol.LONGEST_READ_S", 2 * HASTE_S)
    monkeypatch.setattr("penstock.api.protocol.LONGEST_STALL_S", HASTE_S)


@asynccontextmanager
async def line(gateway: Running) -> AsyncIterator[Caller]:
    async with calling(gateway.url) as caller:
        yield caller


async def drip(gateway: Running, begin: bytes, drop: bytes) -> bytes:
    """Say `begin`, then `drop` again and again until the other side has had enough; what it said."""
    heard = bytearray()

    async def listen(reader: asyncio.StreamReader) -> None:
        with suppress(ConnectionError):  # whoever still speaks when the other side hangs up is reset
            while piece := await reader.read(65_536):
                heard.extend(piece)

    async with line(gateway) as caller:
        listening = asyncio.ensure_future(listen(caller.reader))
        with suppress(ConnectionError):
            await caller.send(begin)
            while not (listening.done() or caller.writer.is_closing()):
                await caller.send(drop)
                await asyncio.sleep(0.05)  # a drop at a time is what this caller is about
        await listening
    return bytes(heard)


def begun(person: Person) -> list[tuple[bytes, bytes]]:
    """How requests begin that never end, and what they go on with."""
    whole = request(ROUTER, person, stream=True)
    head, _, body = whole.partition(b"\r\n\r\n")
    chunked = head.split(b"content-length")[0] + b"transfer-encoding: chunked\r\n\r\n"
    return [
        (b"", b"\r\n"),
        (b"POST /api", b"x"),
        (head + b"\r\nx-more: ", b"y"),
        (head + b"\r\n", b"x-more: y\r\n"),
        (head + b"\r\n\r\n" + body[:-40], b" "),
        (chunked, b"1\r\n \r\n"),
        (chunked + b"1;", b"a=b;"),
        (chunked + b"0\r\n", b"x-trailer: y\r\n"),
        (HEALTH, b"\r\n"),
        (whole.replace(b"content-length", b"expect: 100-continue\r\ncontent-length")[:-20], b""),
    ]


@pytest.mark.usefixtures("hasty")
async def test_a_crowd_that_drips_is_hung_up_on_while_ordinary_calls_go_on(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada, bob = await gateway.person(usd="1"), await gateway.person(usd="1")
    ways = begun(ada)
    crowd = asyncio.gather(*(drip(gateway, *ways[number % len(ways)]) for number in range(CROWD)))
    served = 0
    while not crowd.done():
        assert (await gateway.chat(ROUTER, bob)).status_code == 200
        served += 1
        await asyncio.sleep(0.02)  # or the key's rate of a thousand a minute would be the limit
    await crowd
    assert served > 5
    assert len(upstream.requests) == len(await gateway.usage(bob)) == served
    assert await gateway.usage(ada) == ()
    assert await gateway.nano(ada) == 1_000_000_000


async def test_who_shows_no_key_gets_no_time_for_a_body(gateway: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.api.protocol.LONGEST_HEAD_S", HASTE_S)  # and two minutes for the whole, as ever
    ada = await gateway.person(usd="1")
    known = request(ROUTER, ada)
    unknown = known.replace(ada.personal_key.key.encode(), b"nobody")
    patient = asyncio.ensure_future(drip(gateway, known[:-80], b" "))
    impatient = asyncio.gather(drip(gateway, unknown[:-40], b" "), drip(gateway, known[:30], b"x"))
    refused, silent = await impatient
    assert b"HTTP/1.1 401" in refused
    assert silent == b""
    assert not patient.done()
    patient.cancel()


CHUNKED = b"content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("address", [b"/nowhere", b"/api/v1/accounts"])
async def test_who_names_nobody_is_not_heard_out(gateway: Running, address: bytes) -> None:
    async with line(gateway) as caller:
        await caller.send(b"POST %b HTTP/1.1\r\nhost: a\r\n" % address + CHUNKED)
        assert (await caller.head()).status == (401 if b"api" in address else 404)
        assert b"message" in await caller.body()
        await caller.send(b"2\r\n{}\r\n0\r\n\r\n" + HEALTH)
        assert (await caller.head()).status == 200


async def test_what_is_handed_on_may_have_a_size_of_its_own(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    key = await gateway.key("management", account=ada.account, scopes=["operator"])
    known = b"authorization: Bearer %b\r\n" % key.key.encode()
    fitting = b'{"name": "x"}'.ljust(MOST_BODY_BYTES)

    async def heard(address: bytes, credential: bytes, body: bytes) -> int:
        async with line(gateway) as caller:
            await caller.send(b"POST %b HTTP/1.1\r\nhost: a\r\n%b" % (address, credential) + body)
            head = await caller.head()
            assert head.status < 400 or b'"message"' in await caller.body()
            return head.status

    def counted(body: bytes) -> bytes:
        return b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)

    endless = CHUNKED + b"fa0\r\n%b\r\n" % (b" " * 4_000) * 17
    assert await heard(b"/api/v1/accounts", known, counted(fitting)) == 201
    assert await heard(b"/api/v1/accounts", known, counted(fitting + b" ")) == 413
    assert await heard(b"/api/v1/accounts", known, endless) == 413
    assert await heard(b"/nowhere", b"authorization: Bearer nobody\r\n", endless) == 413


async def test_a_body_in_tiny_pieces_costs_what_is_in_it(gateway: Running) -> None:
    ada = await gateway.person(usd="1")
    start = request(ROUTER, ada).split(b"content-length")[0] + CHUNKED
    tracemalloc.start()
    try:
        async with line(gateway) as caller:
            await caller.send(start)
            for _ in range(50):
                await caller.send(b"2\r\nxy\r\n" * 6_000)
            await caller.send(b"0\r\n\r\n")
            assert (await caller.head()).status == 400
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 6_000_000  # for 600,000 bytes; an object for each piece took 38 MB


async def test_a_body_in_pieces_is_the_body(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    whole = request(ROUTER, ada, user="x" * 3_000)
    start, _, body = whole.partition(b"\r\n\r\n")
    for cuts in ([1], [100, 101, 2_000], range(10, 1_000, 7)):
        places = [0, *cuts, len(body)]
        pieces = [body[begin:end] for begin, end in itertools.pairwise(places)]
        async with line(gateway) as caller:
            await caller.send(start.split(b"content-length")[0] + CHUNKED)
            for piece in pieces:
                await caller.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            await caller.send(b"0\r\n\r\n")
            assert (await caller.head()).status == 200
        assert upstream.requests[-1].json["user"] == "x" * 3_000


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"1;", b"a=b;" * 10_000),
        (b"0\r\n", b"x-trailer: y\r\n" * 3_000),
        (b"0\r\nx-trailer: ", b"y" * 40_000),
    ],
)
async def test_what_surrounds_a_body_has_an_end(gateway: Running, begin: bytes, more: bytes) -> None:
    ada = await gateway.person(usd="1")
    start = request(ROUTER, ada).split(b"content-length")[0] + b"transfer-encoding: chunked\r\n\r\n"
    async with line(gateway) as caller:
        sent, listening = 0, asyncio.ensure_future(caller.reader.read(-1))
        with suppress(ConnectionError):
            await caller.send(start + begin)
            while not listening.done() and sent < 5_000_000:
                await caller.send(more)
                sent += len(more)
                await asyncio.sleep(0)  # for the gateway, which runs beside us, to read it
        assert [answer.status for answer in answers(await listening)] == [400]
    assert sent < 1_000_000
    assert await gateway.usage(ada) == ()


@pytest.mark.parametrize(
    "large", [b"x-more: " + b"y" * 70_000 + b"\r\n", b"".join(b"x-%d: y\r\n" % n for n in range(9_000))]
)
async def test_a_head_that_is_too_large_is_refused_also_when_it_comes_at_once(gateway: Running, large: bytes) -> None:
    async with line(gateway) as caller:
        await caller.send(HEALTH.replace(b"\r\n\r\n", b"\r\n" + large + b"\r\n") + HEALTH)
        assert [answer.status for answer in answers(await caller.reader.read(-1))] == [400]


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("pipelined", [1, 40])
async def test_who_never_reads_an_answer_is_not_waited_for(
    gateway: Running, upstream: ScriptedUpstream, pipelined: int
) -> None:
    ada = await gateway.person(usd="1")
    large = b'{"choices": [{"message": {"content": "%s"}}]}' % (b"x" * (12_000_000 // pipelined))
    upstream.usual = Raw(large)
    async with calling(gateway.url, receive_buffer=SMALL_BUFFER) as caller:
        await caller.send(request(ROUTER, ada) * pipelined)
        await upstream.arrival(1)

        async def gone() -> bool:
            """A connection that the other side has forgotten is reset when it is spoken to."""
            caller.writer.write(b"\r\n")
            return caller.writer.is_closing()

        assert await eventually(gone)
    assert (await gateway.http.get("/health")).status_code == 200
    assert await gateway.nano(ada) < 1_000_000_000


async def test_of_a_flood_of_requests_in_one_packet_the_first_are_answered(gateway: Running) -> None:
    async with line(gateway) as caller:
        await caller.send(HEALTH * 2_000)
        got = answers(await caller.reader.read(-1))
    assert {answer.status for answer in got} == {200}
    assert 1 < len(got) < 100


async def test_nonsense_behind_a_question_does_not_spoil_its_answer(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    held = Stream(tokens=4, hold_after=2)
    upstream.script(held)
    async with line(gateway) as caller:
        await caller.ask(ROUTER, ada, stream=True)
        assert (await caller.head()).status == 200
        events = [await caller.event(), await caller.event()]
        for nonsense in (b"nonsense\r\n\r\n", b"\x00" * 1_000, HEALTH):
            await caller.send(nonsense)
        held.resume.set()
        events += await caller.events()
        assert await caller.closed()
    assert [event for event in events if not event.startswith(b"data: ")] == []
    assert events[-1] == b"data: [DONE]\n\n"
    text = "".join(data(event)["choices"][0]["delta"].get("content", "") for event in events[:-1])
    assert text == "Paid ahead, counted"
    assert (await the_record(gateway, ada)).ended == "answer"


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("late", ["body", "head"])
async def test_who_waits_his_turn_is_not_late(gateway: Running, upstream: ScriptedUpstream, late: str) -> None:
    ada = await gateway.person(usd="1")
    held = Stream(tokens=4, hold_after=2)
    upstream.script(held)
    question = request(ROUTER, ada)
    head = question.index(b"\r\n\r\n") + 4
    async with line(gateway) as caller:
        await caller.ask(ROUTER, ada, stream=True)
        assert (await caller.head()).status == 200
        first = await caller.event()
        if late == "body":  # in a packet of its own, which is not read for the time being
            await caller.send(question[:head])
            rest = question[head:]
        else:  # in the packet of a question that waits
            await caller.send(question + question[:20])
            rest = question[20:]
        await asyncio.sleep(3 * HASTE_S)  # longer than a request may take to arrive
        await caller.send(rest)
        held.resume.set()
        events = [first, *await caller.events()]
        assert events[-1] == b"data: [DONE]\n\n"
        for _ in range(1 if late == "body" else 2):
            assert (await caller.head()).status == 200
            await caller.body()


@pytest.mark.usefixtures("hasty")
async def test_whose_turn_it_is_has_to_go_on(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    question = request(ROUTER, ada)
    async with line(gateway) as caller:
        await caller.send(question + question[:-20])
        assert (await caller.head()).status == 200
        await caller.body()
        assert await caller.closed()
    assert len(upstream.requests) == len(await gateway.usage(ada)) == 1


async def test_nonsense_behind_a_plain_question_is_not_its_answer(gateway: Running, upstream: ScriptedUpstream) -> None:
    ada = await gateway.person(usd="1")
    async with line(gateway) as caller:
        await caller.send(request(ROUTER, ada) + HEALTH + b"nonsense\r\n\r\n" + HEALTH)
        got = answers(await caller.reader.read(-1))
    assert [answer.status for answer in got] == [200, 200]
    assert len(await gateway.usage(ada)) == 1


async def test_nonsense_in_a_body_that_was_refused_already_gets_no_second_answer(gateway: Running) -> None:
    start = b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with line(gateway) as caller:
        await caller.send(start)
        assert (await caller.head()).status == 401
        await caller.body()
        await caller.send(b"nonsense\r\n" + HEALTH)
        assert await caller.closed()


HALVES = [b"", b"POST /api/op", b"HEAD\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n"]


async def test_half_closed_and_reset_connections_leave_nothing_behind(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    whole = request(ROUTER, ada, stream=True)
    for reset in (False, True):
        for said in (*HALVES, whole[:-1], whole):
            async with line(gateway) as caller:
                await caller.send(said)
                if reset:
                    _reset(caller)
                else:
                    caller.writer.write_eof()
                    await caller.reader.read(-1)

    async def settled() -> bool:
        return (await gateway.balance(ada)).credits.held.nano == 0

    assert await eventually(settled)
    assert len(await gateway.usage(ada)) <= 2  # of the two that were whole
    assert (await gateway.chat(ROUTER, ada)).status_code == 200


async def test_who_hangs_up_in_the_midst_of_an_answer_is_gone_and_no_fault(
    gateway: Running, upstream: ScriptedUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    ada = await gateway.person(usd="1")
    upstream.usual = Stream(tokens=40)
    for number in range(90):
        async with line(gateway) as caller:
            if number % 3:
                await caller.ask(ROUTER, ada, stream=True)
            else:
                await caller.send(b"GET /docs/nothing HTTP/1.1\r\nHost: a\r\n\r\n")
            for _ in range(number // 3):  # turns of the loop: each finds the gateway at another step
                await asyncio.sleep(0)
            caller.writer.write_eof()
            await caller.reader.read(-1)

    async def over() -> bool:
        held = (await gateway.balance(ada)).credits.held.nano
        return not held and all(each.over.is_set() for each in upstream.requests)

    await eventually(over)
    assert await gateway.nano(ada) > 0
    assert {record.ended for record in await gateway.usage(ada)} <= {"answer", "caller_gone"}
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []


def _reset(caller: Caller) -> None:
    plug: socket.socket = caller.writer.get_extra_info("socket")
    plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.hang_up()


async def test_a_crowd_keeps_nobody_from_being_served_and_the_process_not_from_stopping(
    tmp_path: Path, upstream: ScriptedUpstream
) -> None:
    async with served(tmp_path, upstream) as server, AsyncExitStack() as crowd:
        ways = [begin for begin, _ in begun(server.people[0]) if begin != HEALTH]
        for number in range(200):
            caller = await crowd.enter_async_context(calling(server.process.url))
            await caller.send(ways[number % len(ways)])
        for _ in range(20):
            (got,) = answers(await server.said(named(b"Connection: close\r\n")))
            assert got.status == 200
        server.process.signal(signal.SIGTERM)
        assert await server.process.ended() == 0
    assert len(upstream.requests) == 20


@pytest.fixture
async def narrow(settings: Settings) -> AsyncIterator[Running]:
    """A gateway that has room for three."""
    async with running(replace(settings, server=replace(settings.server, max_connections=3))) as gateway:
        yield gateway


async def open_lines(stack: AsyncExitStack, gateway: Running, count: int) -> list[Caller]:
    """So many connections that the gateway has taken."""
    already = gateway.server.connections
    callers = [await stack.enter_async_context(line(gateway)) for _ in range(count)]

    async def taken() -> bool:
        return gateway.server.connections == already + count

    assert await eventually(taken)
    return callers


async def said(caller: Caller, question: bytes) -> Got:
    """The answer to a question on a connection that ends with it."""
    await caller.send(question)
    (got,) = answers(await caller.reader.read(-1))
    assert got.headers["connection"] == "close"
    return got


async def test_who_finds_no_room_is_refused_in_words_and_those_inside_do_not_notice(
    narrow: Running, upstream: ScriptedUpstream
) -> None:
    ada = await narrow.person(usd="1")
    upstream.usual = Stream(tokens=3)
    async with AsyncExitStack() as stack:
        inside = await open_lines(stack, narrow, 3)
        for base, kind in ((ROUTER, "internal_error"), (TRUST, "internal_error")):
            (outside,) = await open_lines(stack, narrow, 1)
            refused = await said(outside, request(base, ada))
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert (refused.error["type"], refused.error["code"]) == (kind, "crowded")
        for watched in (b"/health", b"/metrics"):
            (outside,) = await open_lines(stack, narrow, 1)
            assert (await said(outside, HEALTH.replace(b"/health", watched))).status == 200
        for caller in inside * 2:
            await caller.ask(ROUTER, ada, stream=True)
            assert (await caller.head()).status == 200
            assert len(await caller.events()) > 3
        inside[0].hang_up()

        async def room() -> bool:
            return narrow.server.connections < 3

        assert await eventually(room)
        (newcomer,) = await open_lines(stack, narrow, 1)
        await newcomer.ask(ROUTER, ada, stream=True)
        assert (await newcomer.head()).status == 200
    assert len(upstream.requests) == 7


async def test_a_crowd_without_room_that_says_nothing_is_bounded_too(
    narrow: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.api.server.MOST_REFUSED", 2)
    async with AsyncExitStack() as stack:
        await open_lines(stack, narrow, 5)
        heard = b""
        async with line(narrow) as one_too_many:
            with suppress(ConnectionError):
                await one_too_many.send(HEALTH)
                heard = await one_too_many.reader.read(-1)
        assert heard == b""
        assert narrow.server.connections == 5
