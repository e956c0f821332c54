"""How a server ends: what came in its last moment, who waits for its end, and what it cannot look at."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.asyncio.client import connect

from penstock.access import Access
from penstock.api.connect import Connect
from penstock.api.connections import Connections
from penstock.api.door import Door
from penstock.api.server import Serving, serving
from penstock.config import ServerSettings
from penstock.worker.worker import CONNECT
from tests.stories.caller import PATIENCE_S, calling, eventually
from tests.stories.gateway import ROUTER, Running
from tests.stories.workers import RawPeer
from tests.upstream import Plain, ScriptedUpstream

HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
PATIENT = ServerSettings(port=0, grace_s=PATIENCE_S)


async def test_who_came_in_the_moment_a_server_retires_is_answered(gateway: Running) -> None:
    async with serving(gateway.gateway.door, PATIENT) as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as caller:
            caller.sendall(HEALTH)
            await asyncio.sleep(0)  # the loop takes the connection behind our back, and nobody has been told of it yet
            await server.retire(PATIENCE_S)
            caller.settimeout(PATIENCE_S)
            assert caller.recv(100).startswith(b"HTTP/1.1 200")


async def test_who_gives_up_waiting_for_the_end_does_not_cut_it_short(
    gateway: Running, upstream: ScriptedUpstream
) -> None:
    ada = await gateway.person(usd="1")
    held = Plain(hold=True)
    upstream.script(held)
    begun: asyncio.Future[Serving] = asyncio.get_running_loop().create_future()

    async def serve() -> None:
        async with serving(gateway.gateway.door, PATIENT) as server:
            begun.set_result(server)
            await server.ended()

    task = asyncio.create_task(serve())
    server = await begun
    async with calling(server.url) as caller:
        await caller.ask(ROUTER, ada)
        await upstream.arrival(1)
        task.cancel()

        async def told() -> bool:
            return server.server.told.is_set()

        assert await eventually(told)
        ended_already = task.done()
        held.resume.set()
        assert not ended_already
        head = await caller.head()
        assert (head.status, head.headers["connection"]) == (200, "close")
        await caller.body()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (server.task.exception(), server.connections) == (None, 0)


@asynccontextmanager
async def admitting(gateway: Running, gate: asyncio.Event) -> AsyncIterator[Serving]:
    """A server where workers dial in, and are kept waiting at the gate."""
    office = gateway.office
    access = Access(office.store, office.keyring, office.sessions, office.clock, 1_000)

    async def reachable() -> None:
        await gate.wait()

    connect = Connect(access, office.hub, reachable)
    door = Door(connect.routes(), {}, {}, _nothing, observer=gateway.gateway.observer)
    async with serving(door, PATIENT) as server:
        yield server


async def _nothing(scope: object, receive: object, send: object) -> None:
    raise AssertionError


async def test_a_worker_whose_handshake_is_under_way_does_not_keep_a_server_that_ends(gateway: Running) -> None:
    ada, gate = await gateway.person(), asyncio.Event()
    key = (await gateway.key("worker", user=ada.user)).key
    async with admitting(gateway, gate) as server:
        url = server.url.replace("http:", "ws:") + CONNECT
        dialling = asyncio.ensure_future(
            connect(url, additional_headers={"authorization": f"Bearer {key}"}, proxy=None).__aenter__()
        )

        async def arrived() -> bool:
            return bool(server.server.connections.tasks)

        assert await eventually(arrived)
        await server.stop()

        async def last_one() -> bool:
            return not server.server._listening.sockets

        assert await eventually(last_one)
        gate.set()
        peer = RawPeer(await dialling)
        assert await peer.closed() == (1012, "the gateway ends")
        async with asyncio.timeout(PATIENCE_S / 2):
            await server.ended()


class Odd:
    """A connection that cannot be looked at, or counts the looks."""

    idle = True

    def __init__(self, transport: asyncio.Transport, *, fails: bool) -> None:
        self.transport = transport
        self.fails = fails
        self.looks = 0

    def shutdown(self) -> None: ...
    def retire(self) -> None: ...

    def check(self, now_s: float) -> None:
        self.looks += 1
        if self.fails:
            raise ArithmeticError


class Cut(asyncio.Transport):
    """Counts how often it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def abort(self) -> None:
        self.times += 1


def test_a_connection_that_cannot_be_looked_at_is_cut_and_keeps_no_other_from_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    connections, cut = Connections(), Cut()
    odd, others = Odd(cut, fails=True), [Odd(Cut(), fails=False) for _ in range(20)]
    connections.open |= {odd, *others}
    connections.check(1.0)
    connections.check(1.5)
    assert [each.looks for each in (odd, *others)] == [1] + 20 * [2]
    assert (cut.times, connections.open) == (1, set(others))
    assert "cannot be looked at" in caplog.text


async def test_what_is_refused_unread_is_dated_too(gateway: Running) -> None:
    async with calling(gateway.url) as caller:
        await caller.send(b"nonsense\r\n\r\n")
        head = await caller.head()
    assert (head.status, head.headers["date"][-3:]) == (400, "GMT")
