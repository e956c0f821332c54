"""Requests and responses over ASGI, for the hot paths: no framework, no objects that are not needed.

`Request` reads headers and body; `AsgiReply` is the way back (`relay/reply.py`). Routing is in `door.py`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from penstock.api.protocol import CONNECTION, Connection
from penstock.errors import InvalidRequest, TooLarge
from penstock.relay.reply import Headers

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

MOST_HEADER_CHARACTERS = 4_096  # of the headers we read; longer ones are refused before they are used


class Request:
    """One HTTP request. Header names are lower case; a header given twice counts once, the first time."""

    __slots__ = ("_headers", "_most_bytes", "_receive", "id", "method", "path", "scope")

    def __init__(self, scope: Scope, receive: Receive, *, id: str, most_bytes: int) -> None:
        self.scope = scope
        self.id = id
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self._receive = receive
        self._most_bytes = most_bytes
        self._headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path}, {self.id})"

    def header(self, name: bytes) -> str | None:
        """A header's text; None when absent. InvalidRequest when it is absurdly long."""
        value = self._headers.get(name)
        if value is None:
            return None
        if len(value) > MOST_HEADER_CHARACTERS:
            raise InvalidRequest(f"The header {name.decode()} is too long.", param=name.decode())
        return value.decode("latin-1")

    async def body(self) -> bytes:
        """The whole body. TooLarge as soon as it is known to be, InvalidRequest when the caller leaves early."""
        announced = self._headers.get(b"content-length", b"")
        if announced.isdigit() and int(announced) > self._most_bytes:
            raise TooLarge()
        message = await self._receive()
        body: bytes = message.get("body", b"")
        pieces, size = [body], len(body)
        while message.get("more_body") and size <= self._most_bytes:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise InvalidRequest("The body ended before it was complete.")
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
        if size > self._most_bytes:
            raise TooLarge()
        return body if len(pieces) == 1 else b"".join(pieces)


class AsgiReply:
    """The way back over ASGI. The head is sent together with the first piece of the body."""

    __slots__ = ("_connection", "_departure", "_head", "_request_id", "_send", "gone", "started")

    def __init__(self, request: Request, send: Send) -> None:
        self._request_id = (b"x-request-id", request.id.encode())
        self._connection: Connection = request.scope[CONNECTION]
        self._send = send
        self._head: tuple[int, Headers] | None = None
        self._departure: Callable[[], None] | None = None
        self.started = False
        self.gone = False

    def __repr__(self) -> str:
        return f"AsgiReply({self._request_id[1].decode()}, started={self.started})"

    @property
    def ready(self) -> bool:
        return self._connection.writable

    def when_gone(self, departure: Callable[[], None]) -> None:
        self._departure = departure
        self._connection.departure = self._gone
        if self._connection.lost:
            self._gone()

    async def start(self, status: int, headers: Headers) -> None:
        self._head = status, headers

    async def send(self, data: bytes) -> None:
        if self._head is not None:
            await self._send_head(())
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def finish(self, data: bytes) -> None:
        self.stop_watching()
        if self._head is not None:
            await self._send_head(((b"content-length", str(len(data)).encode()),))
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        """An answer in one piece."""
        await self.start(status, headers)
        await self.finish(body)

    def abort(self) -> None:
        """Leave a response that has begun unfinished: the server closes the connection, and the caller can tell."""
        self.stop_watching()

    def drop(self) -> None:
        """Give up on a caller that does not read."""
        self.stop_watching()
        self._connection.drop()

    def stop_watching(self) -> None:
        """The caller may go now."""
        self._connection.departure = None

    def _gone(self) -> None:
        self.gone = True
        self._connection.departure = None
        if self._departure is not None:
            self._departure()

    async def _send_head(self, length: tuple[()] | tuple[tuple[bytes, bytes]]) -> None:
        assert self._head is not None
        status, headers = self._head
        self._head = None
        self.started = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": [*headers, self._request_id, *length]}
        )
