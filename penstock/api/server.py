"""The socket: uvicorn with uvloop and httptools around the door, and how it ends.

On SIGTERM and SIGINT it takes no more connections, lets calls finish for `grace_s`, then cuts what is left; cut calls
are settled before this returns.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import cast

import uvicorn
from uvicorn.server import ServerState

from penstock.api.door import Door
from penstock.api.protocol import Connection
from penstock.config import ServerSettings
from penstock.errors import ConfigError
from penstock.ids import IdMaker

BACKLOG = 2048  # connections that may wait to be accepted: a burst of agents starting at once
SWEEP_TICKS = 10  # a tenth of a second each: connections are looked at once a second
CUT_S = 5.0  # for cut calls to end their streams and settle

_logger = logging.getLogger("penstock.server")


@dataclass(frozen=True, slots=True)
class Serving:
    """A server that takes calls at `url`."""

    url: str
    server: uvicorn.Server
    task: asyncio.Task[None]

    async def ended(self) -> None:
        """Wait until it has been told to stop, and has."""
        await self.task

    def stop(self) -> None:
        """Tell it to stop, as SIGTERM does."""
        self.server.should_exit = True


@asynccontextmanager
async def serving(door: Door, settings: ServerSettings) -> AsyncIterator[Serving]:
    """Serve `door` on the settings' address (port 0 takes any) until told to stop or the block is left."""
    listener = _listen(settings)
    ids = IdMaker()

    def connection(*, server_state: ServerState, **_: object) -> Connection:
        return Connection(door.serve, server_state, ids, most_bytes=settings.max_body_bytes)

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
    server = _Server(config)
    task = asyncio.create_task(_run(server, listener))
    try:
        while not server.started and not task.done():  # noqa: ASYNC110 -- uvicorn offers nothing to wait for
            await asyncio.sleep(0.001)
        yield Serving(_url(listener, settings.host), server, task)
    finally:
        server.should_exit = True
        await task


class _Server(uvicorn.Server):
    """Uvicorn's server for our connections, but for one habit: when it has ended it raises the signal that stopped it
    once more, which would kill the process before the calls it cut are settled."""

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second, as long as it serves."""
        if counter % SWEEP_TICKS == 0:
            now_s = asyncio.get_running_loop().time()
            for each in list(self.server_state.connections):
                cast(Connection, each).check(now_s)
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with super().capture_signals():
            yield
            self._captured_signals.clear()


async def _nothing(scope: object, receive: object, send: object) -> None:
    """The application that uvicorn is told of; our connections do not ask it."""


async def _run(server: uvicorn.Server, listener: socket.socket) -> None:
    with listener:
        await server.serve(sockets=[listener])
        cut = set(server.server_state.tasks)
        if cut:
            _logger.warning("%d calls were cut", len(cut))
            await asyncio.wait(cut, timeout=CUT_S)


def _listen(settings: ServerSettings) -> socket.socket:
    try:
        return socket.create_server((settings.host, settings.port), backlog=BACKLOG, family=_family(settings.host))
    except OSError as error:
        where = f"{settings.host}:{settings.port}"
        raise ConfigError([f"server: cannot listen on {where}: {error.strerror or error}"]) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _url(listener: socket.socket, host: str) -> str:
    shown = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 -- shown
    return f"http://{shown}:{listener.getsockname()[1]}"
