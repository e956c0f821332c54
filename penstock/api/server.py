"""The socket: uvicorn with uvloop and httptools around the door, and how it ends.

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
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import uvicorn
from uvicorn.server import HANDLED_SIGNALS, ServerState

from penstock.api.door import Door, FullDoor
from penstock.api.farewell import Farewell
from penstock.api.listener import BACKLOG, listen, url_of
from penstock.api.protocol import Connection
from penstock.config import ServerSettings
from penstock.db.groups import WRITE_S
from penstock.ids import IdMaker

if TYPE_CHECKING:
    from penstock.api.websocket import WebSocket

SWEEP_S = 0.5  # between two looks at all connections, whether one is late
CUT_S = WRITE_S + 2.0  # for cut calls to end their streams: longer than the last bytes wait for a store that is away
LINGER_S = 5.0  # how long a retiring server waits for one more request on a connection that is idle
MOST_REFUSED = 100  # connections beyond `max_connections` that are answered, for a while; any more are hung up on
LOOK_S = 0.05  # between looks whether connections have ended

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
        return len(self.server.server_state.connections)

    async def ended(self) -> None:
        """Wait until it has been told to stop, and has."""
        await self.task

    async def stop(self) -> None:
        """Tell it to stop, as SIGTERM does."""
        self.server.should_exit = True

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
    listener = listener or listen(settings)
    ids, full = IdMaker(), FullDoor(door)

    def connection(*, server_state: ServerState, **_: object) -> asyncio.Protocol:
        over = len(server_state.connections) - settings.max_connections
        if over >= MOST_REFUSED:
            return _HungUp()
        answering = full if over >= 0 else door
        return Connection(answering, server_state, ids, most_bytes=settings.max_body_bytes)

    config = uvicorn.Config(
        _nothing,
        loop="none",
        http=connection,  # type: ignore[arg-type]  # called as a class would be
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=int(settings.grace_s) or 1,
        backlog=BACKLOG,
    )
    server = _Server(config, deaf_afterwards=deaf_afterwards)
    task = asyncio.create_task(_run(server, listener))
    try:
        while not server.started and not task.done():  # noqa: ASYNC110 -- uvicorn offers nothing to wait for
            await asyncio.sleep(0.001)
        yield Serving(url_of(listener, settings.host), server, task)
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    """Uvicorn's server for our connections, but for one habit: when it has ended it raises the signal that stopped it
    once more, which would kill the process before all is written. And it can retire."""

    def __init__(self, config: uvicorn.Config, *, deaf_afterwards: bool) -> None:
        super().__init__(config)
        self._deaf_afterwards = deaf_afterwards

    async def sweep(self) -> None:
        """Look for connections that are late, also while it ends: until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            now_s = loop.time()
            for each in self.connections():
                each.check(now_s)
            await asyncio.sleep(SWEEP_S)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals as orders, in place of uvicorn's way."""
        handled = HANDLED_SIGNALS if threading.current_thread() is threading.main_thread() else ()
        before = {number: signal.signal(number, self.handle_exit) for number in handled}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, signal.SIG_IGN if self._deaf_afterwards else handler)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Uvicorn's, which cuts calls when their time is over, and then to their end.

        At a second SIGINT it waits no longer, and cuts no call: that is done here.
        """
        await super().shutdown(sockets)
        cut = set(self.server_state.tasks)
        if self.force_exit:
            for call in cut:
                call.cancel()
        if cut:
            _logger.warning("%d calls were cut", len(cut))
            await asyncio.wait(cut, timeout=CUT_S)

    async def retire(self, most_s: float) -> None:
        """See `Serving.retire`."""
        for listening in self.servers:
            listening.close()
        loop = asyncio.get_running_loop()
        end_s = loop.time() + most_s
        idle_since_s: dict[Connection | Farewell | WebSocket, float] = {}
        while (connections := self.connections()) and loop.time() < end_s and not self.should_exit:
            now_s = loop.time()
            idle_since_s = {each: idle_since_s.get(each, now_s) for each in connections if each.idle}
            for each in connections:
                each.retire()
                if now_s - idle_since_s.get(each, now_s) > LINGER_S:
                    each.shutdown()
            await asyncio.sleep(LOOK_S)
        if not self.should_exit:
            self.config.timeout_graceful_shutdown = 1  # calls that are left have had their time
            self.should_exit = True

    def connections(self) -> set[Connection | Farewell | WebSocket]:
        """Those that are open now."""
        return cast("set[Connection | Farewell | WebSocket]", set(self.server_state.connections))


class _HungUp(asyncio.Protocol):
    """A connection too many, even for a refusal."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


async def _nothing(scope: object, receive: object, send: object) -> None:
    """The application that uvicorn is told of; our connections do not ask it."""


async def _run(server: _Server, listener: socket.socket) -> None:
    sweeping = asyncio.create_task(server.sweep())
    with listener:
        await server.serve(sockets=[listener])
    sweeping.cancel()
    for each in server.connections():
        each.transport.close()
