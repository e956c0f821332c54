"""One HTTP request and its response: an `Exchange`, without framework or copies.

The door reads method, path, headers and body from it, and answers through it; it is the `Reply` of `relay/reply.py`.
Nothing here waits for the network but `body` (for a request that is still arriving) and `drained` (for a caller who is
slow to read). The connection beneath is in `protocol.py`, routing in `door.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import httptools
from msgspec import Struct

from penstock.errors import InvalidRequest, TooLarge
from penstock.relay.reply import Headers

if TYPE_CHECKING:
    from penstock.api.connections import Connections
    from penstock.api.protocol import Connection, Successor

MOST_HEADER_CHARACTERS = 4_096  # of the headers we read; longer ones are refused before they are used
_STATUS_LINES = {each.value: f"HTTP/1.1 {each.value} {each.phrase}\r\n".encode() for each in HTTPStatus}
_SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\n%bupgrade: websocket\r\nconnection: upgrade\r\n"
    b"sec-websocket-accept: %b\r\nx-request-id: %b\r\n\r\n"
)


class Head(Struct, gc=False):
    """The part of a request before its body, as it was read. Header names are lower case; of a name given twice the
    first counts. `keep` says whether the connection may be used again.

    A connection that gets the same bytes again takes the same head for them, so it may belong to many requests. Nothing
    in it changes but `said`, where the door keeps what it has made of it.
    """

    method: str
    target: bytes
    version: str
    headers: dict[bytes, bytes]
    keep: bool
    said: Any = None


class Exchange:
    """A request as it arrived, and the way back.

    `keep` says whether the connection may be used again, `gone` that the caller has left, `started` that a byte of the
    response is out, `complete` that all of it is; `switches` that the caller asks for a WebSocket and may have one.
    `id_header` says the id of the request as `x-request-id` does.
    """

    __slots__ = (
        "_body",
        "_chunked",
        "_connection",
        "_departure",
        "_head",
        "_most",
        "_size",
        "_waiter",
        "arrived",
        "complete",
        "gone",
        "head",
        "headers",
        "id",
        "id_header",
        "keep",
        "method",
        "started",
        "switches",
        "target",
        "version",
    )

    def __init__(self, connection: Connection, id: str, head: Head) -> None:
        self.id = id
        self.id_header: bytes | None = None
        self.head = head
        self.method = head.method
        self.target = head.target
        self.version = head.version
        self.headers = head.headers
        self.keep = head.keep
        self.switches = False
        self.gone = False
        self.arrived = False
        self.started = False
        self.complete = False
        self._connection = connection
        self._body: bytes | bytearray = b""
        self._size = 0
        self._most = connection.most_bytes  # of the body that is kept
        self._waiter: asyncio.Future[None] | None = None
        self._head: tuple[int, Headers] | None = None
        self._departure: Callable[[], None] | None = None
        self._chunked = False

    def __repr__(self) -> str:
        return f"Exchange({self.method} {self.target!r}, {self.id}, started={self.started}, complete={self.complete})"

    @property
    def connections(self) -> Connections:
        """All connections of the server."""
        return self._connection.connections

    # The request.

    @property
    def path(self) -> str:
        """The target's path, unquoted."""
        path = self._parsed()[0].decode("latin-1")
        return unquote(path) if "%" in path else path

    @property
    def query(self) -> str:
        """What follows the question mark."""
        return self._parsed()[1].decode("latin-1")

    def _parsed(self) -> tuple[bytes, bytes]:
        if self.target.startswith(b"/"):
            path, _, query = self.target.partition(b"?")
            return path, query
        try:
            url = httptools.parse_url(self.target)
        except httptools.HttpParserInvalidURLError:
            return b"", b""
        return url.path or b"/", url.query or b""

    def header(self, name: bytes) -> str | None:
        """A header's text; None when absent. InvalidRequest when it is absurdly long."""
        value = self.headers.get(name)
        if value is None:
            return None
        if len(value) > MOST_HEADER_CHARACTERS:
            raise InvalidRequest(f"The header {name.decode()} is too long.", param=name.decode())
        return value.decode("latin-1")

    async def body(self, most_bytes: int | None = None) -> bytes:
        """The whole body. TooLarge as soon as it is known to be, by the connection's bound or by `most_bytes`, which is
        lower; InvalidRequest when the caller leaves early."""
        if most_bytes is not None:
            self._most = min(self._most, most_bytes)
        if not self.arrived:
            await self._arrival()
        if self._size > self._most:
            raise TooLarge()
        if isinstance(self._body, bytearray):
            self._body = bytes(self._body)
        return self._body

    async def _arrival(self) -> None:
        announced = self.headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._most:
            raise TooLarge()
        if self.headers.get(b"expect", b"").lower() == b"100-continue" and not (self._size or self.gone):
            self._connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not self.arrived and self._size <= self._most:
            if self.gone:
                raise InvalidRequest("The body ended before it was complete.")
            self._waiter = self._connection.loop.create_future()
            await self._waiter

    def received(self, piece: bytes) -> None:
        """A piece of the body; what is too large is not kept. The first is kept as it is, for mostly it is all. The
        bytes of more are gathered, since an object for each would cost many times what is in it."""
        self._size += len(piece)
        if self._size > self._most:
            self._body = b""
            self._wake()
        elif not self._body:
            self._body = piece
        else:
            if not isinstance(self._body, bytearray):
                self._body = bytearray(self._body)
            self._body += piece

    def received_whole(self, body: bytes) -> None:
        """The body, which came with the head."""
        self._size = len(body)
        self._body = body
        self.arrived = True

    def received_all(self) -> None:
        """The body has ended."""
        self.arrived = True
        self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    # The response. A head is sent together with the first piece of the body.

    @property
    def ready(self) -> bool:
        return self._connection.writable

    def when_gone(self, departure: Callable[[], None]) -> None:
        self._departure = departure
        if self.gone:
            departure()

    def start(self, status: int, headers: Headers) -> None:
        self._head = status, headers

    def send(self, data: bytes) -> None:
        if self.gone:
            return
        head = self._begun() if self._head is not None else b""
        if self._chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        self._write(head, data)

    def _begun(self) -> bytes:
        """The head of a body that comes in pieces."""
        self._chunked = self.version != "1.0"  # which knows no chunks: there the body ends with the connection
        self.keep = self.keep and self._chunked
        return self._rendered(b"transfer-encoding: chunked\r\n" if self._chunked else b"")

    def finish(self, data: bytes) -> None:
        self._departure = None
        if self.gone or self.complete:
            return
        self.complete = True
        head = b""
        if self._head is not None:
            head = self._rendered(b"content-length: %d\r\n" % len(data))
        elif self._chunked:
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        self._write(head, data)

    def _write(self, head: bytes, body: bytes) -> None:
        if self.method == "HEAD":
            body = b""
        self._connection.transport.write(head + body if head else body)

    async def drained(self) -> None:
        await self._connection.drained()

    def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """An answer in one piece."""
        self.start(status, headers)
        self.finish(body)

    def switch(self, accept: bytes, successor: Successor) -> None:
        """Answer with 101; once this request is over the connection is `successor`'s. `accept` answers the key."""
        if self.gone:
            return
        self.started = self.complete = True
        self._connection.transport.write(
            _SWITCHING % (self._connection.connections.common_headers, accept, self.id.encode())
        )
        self._connection.succeeded_by(successor)

    def drop(self) -> None:
        """Break the answer off."""
        self._connection.transport.abort()

    async def give_up(self) -> None:
        """Give up on a caller that does not read: afterwards he has gone."""
        await self._connection.abort()

    def lost(self) -> None:
        """The caller has gone."""
        self.gone = True
        self._wake()
        departure, self._departure = self._departure, None
        if departure is not None:
            departure()

    def _rendered(self, framing: bytes) -> bytes:
        """Status line and headers. The last answer on a connection says so."""
        assert self._head is not None
        status, headers = self._head
        self._head = None
        self.started = True
        if not self.arrived and b"expect" in self.headers:
            self.keep = False  # whether the body still comes is the caller's choice: what follows could be either
        closing = b"" if self.keep and self._connection.keeps else b"connection: close\r\n"
        id = self.id.encode()
        headers = [*headers, (b"x-request-id", id)]
        if self.id_header is not None:
            headers.append((self.id_header, id))
        lines = b"\r\n".join([b": ".join(pair) for pair in headers])
        if lines.count(b"\n") != len(headers) - 1:
            raise ValueError("a header's value has a line end")
        return b"%b%b%b\r\n%b%b\r\n" % (
            _STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status,  # an upstream's own, which has no name
            self._connection.connections.common_headers,
            lines,
            framing,
            closing,
        )
