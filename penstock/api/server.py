"""The socket: it is listened on here, and the door answers what comes. And how that ends.

On SIGTERM and SIGINT it takes no more connections, lets calls finish for `grace_s`, or until a second SIGINT, then cuts
what is left; cut calls are settled before this returns. When it retires, because a successor serves at the same
address, it also leaves every connection time to end between two requests.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import cast

from penstock.api.connections import Connections, Served
from penstock.api.door import Door, FullDoor
from penstock.api.listener import BACKLOG, listen, url_of
from penstock.api.protocol import Connection
from penstock.config import ServerSettings
from penstock.db.groups import WRITE_S
from penstock.ids import IdMaker

SWEEP_S = 0.5  # between two looks at all connections, whether one is late
CUT_S = WRITE_S + 2.0  # for cut calls to end their streams: longer than the last bytes wait for a store that is away
LINGER_S = 5.0  # how long a retiring server waits for one more request on a connection that is idle
MOST_REFUSED = 100  # connections beyond `max_connections` that are answered, for a while; any more are hung up on
LOOK_S = 0.05  # between looks whether connections that retire have ended
LAST_LOOK_S = 0.01  # between looks whether all have

_logger = logging.getLogger("penstock.server")


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that takes calls at `url`."""

    url: str
    server: _Server
    task: asyncio.Task[None]

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self.server.connections.open)

    async def ended(self) -> None:
        """Wait until it has been told to stop, and has. Who gives up waiting does not keep it from ending in order."""
        await asyncio.shield(self.task)

    async def stop(self) -> None:
        """Tell it to stop, as SIGTERM does."""
        self.server.told.set()

    async def retire(self, most_s: float) -> None:
        """Hand over to a successor: take no more connections, end each between requests, then stop.

        Calls that take longer than `most_s` are cut.
        """
        await self.server.retire(most_s)


@asynccontextmanager
async def serving(
    door: Door, settings: ServerSettings, listener: socket.socket | None = None, *, deaf_afterwards: bool = False
) -> AsyncIterator[Serving]:
    """Serve `door` on the settings' address (port 0 takes any) until told to stop or the block is left.

    A `listener` is a socket at that address which this takes its connections from. With `deaf_afterwards` the process
    ignores SIGINT and SIGTERM from its end on: it is about to end, and what is left to be written takes bounded time.
    """
    with listener or listen(settings) as listening:
        server = _Server(door, settings, listening)
        with server.signals(deaf_afterwards=deaf_afterwards):
            await server.begin()
            task = asyncio.create_task(server.end())
            try:
                yield Serving(url_of(listening, settings.host), server, task)
            finally:
                server.told.set()
                await task


class _Server:
    """What listens on a socket. `told` is set when it is to stop."""

    def __init__(self, door: Door, settings: ServerSettings, listener: socket.socket) -> None:
        self.connections = Connections()
        self.told = asyncio.Event()
        self._cut = False  # told once more: calls are not waited for
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._door, self._full_door = door, FullDoor(door)
        self._ids = IdMaker()
        self._grace_s = settings.grace_s
        self._most = settings.max_connections
        self._most_bytes = settings.max_body_bytes
        self._listening: asyncio.Server
        self._sweeping: asyncio.Task[None]

    async def begin(self) -> None:
        """Take connections."""
        self._listening = await self._loop.create_server(self._connection, sock=self._listener, backlog=BACKLOG)
        self._sweeping = asyncio.create_task(self._sweep())

    async def end(self) -> None:
        """Once told to, take no more connections, wait for calls, and cut those that take too long."""
        try:
            await self.told.wait()
            self._listening.close()
            self._listener.close()
            await asyncio.sleep(0)  # what was taken just before is a connection now
            await self._wait_for_calls()
            await self._cut_calls()
        finally:
            self._listening.close()
            self._sweeping.cancel()
            for each in self.connections.all():
                each.transport.close()

    async def _wait_for_calls(self) -> None:
        """Until all connections have ended, or the time for that has. Each is told once, also one that comes of another
        meanwhile: a worker whose handshake was under way would stay, and be given jobs."""
        end_s = self._loop.time() + self._grace_s
        told: set[Served] = set()
        while self.connections.open or self.connections.tasks:
            for each in self.connections.open - told:
                told.add(each)
                each.shutdown()
            if self._cut or self._loop.time() >= end_s:
                return
            await asyncio.sleep(LAST_LOOK_S)

    async def _cut_calls(self) -> None:
        cut = set(self.connections.tasks)
        for call in cut:
            call.cancel()
        if cut:
            _logger.warning("%d calls were cut", len(cut))
            await asyncio.wait(cut, timeout=CUT_S)

    async def retire(self, most_s: float) -> None:
        """See `Serving.retire`."""
        self._listening.close()
        await asyncio.sleep(0)  # what was taken just before is a connection now, and may have said something already
        end_s = self._loop.time() + most_s
        idle_since_s: dict[Served, float] = {}
        while (connections := self.connections.all()) and self._loop.time() < end_s and not self.told.is_set():
            now_s = self._loop.time()
            idle_since_s = {each: idle_since_s.get(each, now_s) for each in connections if each.idle}
            for each in connections:
                each.retire()
                if now_s - idle_since_s.get(each, now_s) > LINGER_S:
                    each.shutdown()
            await asyncio.sleep(LOOK_S)
        if not self.told.is_set():
            self._grace_s = min(self._grace_s, 1.0)  # calls that are left have had their time
            self.told.set()

    @contextmanager
    def signals(self, *, deaf_afterwards: bool) -> Iterator[None]:
        """Take signals as orders to stop. Only the main thread hears any."""
        handled = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self._heard) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if deaf_afterwards else handler)

    def _heard(self, number: int, _: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop, number)

    def _stop(self, number: int) -> None:
        self._cut = self._cut or (self.told.is_set() and number == signal.SIGINT)
        self.told.set()

    async def _sweep(self) -> None:
        """Look for connections that are late, also while it ends, and at the clock on the wall: until cancelled."""
        while True:
            self.connections.date(time.time())
            self.connections.check(self._loop.time())
            await asyncio.sleep(SWEEP_S)

    def _connection(self) -> asyncio.Protocol:
        over = len(self.connections.open) - self._most
        if over >= MOST_REFUSED:
            return _HungUp()
        door = self._full_door if over >= 0 else self._door
        return Connection(door, self.connections, self._ids, most_bytes=self._most_bytes)


class _HungUp(asyncio.Protocol):
    """A connection too many, even for a refusal."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()
