"""A raw server for the tests of the upstream client: what it says, and when, is a script over bytes. No tests here."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Script = Callable[["Wire"], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
STREAM = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Request:
    """What a client sent: the whole head, and the body its content-length announced."""

    head: bytes
    body: bytes

    @property
    def start(self) -> bytes:
        return self.head.split(b"\r\n")[0]

    @property
    def headers(self) -> dict[bytes, bytes]:
        lines = self.head.strip().split(b"\r\n")[1:]
        return {name.strip(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}


@dataclass
class Wire:
    """The server's end of one connection. `number` counts connections from 1."""

    server: Server
    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def request(self) -> Request:
        head = await self.reader.readuntil(b"\r\n\r\n")
        request = Request(head, b"")
        length = int(request.headers.get(b"content-length", b"0"))
        request = Request(head, await self.reader.readexactly(length))
        self.server.requests.append(request)
        return request

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()
        self.server.sent += len(data)

    async def gone(self) -> None:
        """Returns when the client has closed the connection."""
        try:
            while await self.reader.read(65_536):
                pass
        except OSError:
            pass
        self.server.gone.set()


@dataclass
class Server:
    """A running script: where it listens and what it has seen."""

    url: str = ""
    port: int = 0
    accepted: int = 0
    sent: int = 0
    requests: list[Request] = field(default_factory=list)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    mistakes: list[Exception] = field(default_factory=list)


@asynccontextmanager
async def serving(
    script: Script, *, tls: ssl.SSLContext | None = None, path: str | None = None
) -> AsyncIterator[Server]:
    """Run the script on every connection until the block ends. A script's own mistake fails the test."""
    server = Server()
    tasks: set[asyncio.Task[None]] = set()

    async def run(wire: Wire) -> None:
        try:
            await script(wire)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        except Exception as mistake:
            server.mistakes.append(mistake)
        finally:
            wire.writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.accepted += 1
        tasks.add(asyncio.ensure_future(run(Wire(server, server.accepted, reader, writer))))

    if path is not None:
        listener = await asyncio.start_unix_server(accept, path, ssl=tls)
    else:
        listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
        server.port = listener.sockets[0].getsockname()[1]
        server.url = f"{'https://localhost' if tls else 'http://127.0.0.1'}:{server.port}/v1"
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert not server.mistakes, server.mistakes


def answering(*answers: bytes) -> Script:
    """A script that answers the requests of a connection with these, in turn, then closes it when the client does."""

    async def script(wire: Wire) -> None:
        for answer in answers:
            await wire.request()
            await wire.send(answer)
        await wire.gone()

    return script


async def turns(count: int = 4) -> None:
    """Let the loop deliver what is under way."""
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds; five seconds at most."""
    async with asyncio.timeout(5):
        while not condition():
            await turns(1)
