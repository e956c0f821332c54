"""A caller on a bare socket: sees every byte, reads no faster than asked, and leaves as rudely as callers do.

    async with calling(gateway.url) as caller:
        await caller.ask(ROUTER, ada, stream=True)
        assert (await caller.head()).status == 200
        first = await caller.event()                    # the bytes of one event, as they came
        caller.hang_up()

Stories that need no such closeness use the clients of `gateway.py`. Waiting for what nothing announces is `eventually`.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from penstock.operations.key_views import MintedKey
from penstock.operations.usage import UsageView
from tests.stories.gateway import HELLO, LLAMA, Person, Running

T = TypeVar("T")

PATIENCE_S = 15.0  # for things that take milliseconds, on a machine that is busy with something else


@dataclass(frozen=True)
class Head:
    """Status and headers, names in lower case."""

    status: int
    headers: Mapping[str, str]


class Caller:
    """One connection. Reading follows the framing of the answer that `head` has read, chunks or a length."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._left: int | None = None  # bytes of a body with a length; None when it comes in chunks
        self._ended = False
        self._read = b""

    async def ask(
        self,
        base: str,
        person: Person,
        *,
        key: MintedKey | None = None,
        headers: Mapping[str, str] | None = None,
        **fields: Any,
    ) -> None:
        """Send a chat completion; `fields` are the body's, beside a model and a message."""
        await self.send(request(base, person, key=key, headers=headers, **fields))

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> Head:
        """The next answer's status and headers."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(": ") for line in lines[1:] if line)
        headers = {name.lower(): value for name, _, value in pairs}
        length = headers.get("content-length")
        self._left = None if length is None else int(length)
        self._ended, self._read = False, b""
        return Head(int(lines[0].split()[1]), headers)

    async def event(self) -> bytes:
        """The next event, up to and with its blank line; empty at the end of the answer."""
        while b"\n\n" not in self._read and not self._ended:
            await self._more()
        event, end, self._read = self._read.partition(b"\n\n")
        return event + end

    async def body(self) -> bytes:
        """The rest of the answer."""
        while not self._ended:
            await self._more()
        body, self._read = self._read, b""
        return body

    async def events(self) -> list[bytes]:
        """The rest of the answer, event by event."""
        return [event + b"\n\n" for event in (await self.body()).split(b"\n\n") if event]

    def hang_up(self) -> None:
        """Close the connection at once, with RST: what was on its way is lost."""
        self.writer.transport.abort()

    async def closed(self) -> bool:
        """Wait for the other side to close; whether it did so without another byte."""
        return await self.reader.read() == b""

    async def _more(self) -> None:
        if self._left is not None:
            self._read += await self.reader.readexactly(self._left)
            self._ended = True
            return
        size = int(await self.reader.readuntil(b"\r\n"), 16)
        self._read += (await self.reader.readexactly(size + 2))[:-2]
        self._ended = size == 0


@asynccontextmanager
async def calling(url: str, *, receive_buffer: int | None = None) -> AsyncIterator[Caller]:
    """A connection to a gateway; `receive_buffer` (bytes) makes the kernel take in less for a caller that is slow."""
    host, port = url.removeprefix("http://").split(":")
    wire = socket.socket()
    wire.setblocking(False)
    if receive_buffer is not None:
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await asyncio.get_running_loop().sock_connect(wire, (host, int(port)))
    reader, writer = await asyncio.open_connection(sock=wire, limit=receive_buffer or 2**16)
    try:
        async with asyncio.timeout(2 * PATIENCE_S):
            yield Caller(reader, writer)
    finally:
        writer.transport.abort()


def request(
    base: str,
    person: Person,
    *,
    key: MintedKey | None = None,
    headers: Mapping[str, str] | None = None,
    **fields: Any,
) -> bytes:
    """The bytes of a request for a chat completion."""
    body = json.dumps({"model": LLAMA, "messages": HELLO, **fields}).encode()
    sent = {"host": "gateway", "authorization": f"Bearer {(key or person.key(base)).key}"}
    sent |= person.headers(base) | {"content-length": str(len(body))} | dict(headers or {})
    lines = [f"POST {base}/chat/completions HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def data(event: bytes) -> Any:
    """The JSON of an event."""
    return json.loads(event.removeprefix(b"data:"))


async def eventually(look: Callable[[], Awaitable[T]], *, patience_s: float = PATIENCE_S) -> T:
    """What `look` finds, as soon as it finds something: for what nothing announces. TimeoutError when it never does."""
    async with asyncio.timeout(patience_s):
        while not (found := await look()):  # noqa: ASYNC110 -- nothing announces it
            await asyncio.sleep(0.005)
    return found


async def the_record(gateway: Running, person: Person) -> UsageView:
    """The one usage record of somebody who made one call; waits for it, since a call may end after its caller left."""
    (record,) = await eventually(lambda: gateway.usage(person))
    return record
