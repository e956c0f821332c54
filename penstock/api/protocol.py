"""A connection: httptools reads its requests, the door answers them, one after the other.

It stands where uvicorn's own protocol would, below ASGI, and costs a call no message, no event and no timer: bytes
become an `Exchange` (`http.py`), an exchange a task. What is not one of our addresses is handed on as ASGI by the door.

Strict where laxness is dangerous: a head has a largest size and a request a longest time to arrive; after anything
that is not HTTP/1.1, or that wants another protocol, the connection is answered and closed, for nothing that follows
could be trusted to be a request. One sweep over the connections (`check`) looks for late ones.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.server import ServerState

from penstock.api.http import Exchange
from penstock.ids import IdMaker

LONGEST_READ_S = 120.0  # from a request's first byte to its last: 20 MB over a slow line
LONGEST_IDLE_S = 75.0  # between two requests: longer than most proxies keep theirs, so that they close first
LARGEST_HEAD = 64 * 1024  # bytes of request line and headers
MOST_QUEUED = 64  # pipelined requests that wait for their turn before reading stops

Serve = Callable[[Exchange], Awaitable[None]]


class Connection(asyncio.Protocol):
    """One connection. `keeps` turns false when the server is about to end."""

    __slots__ = (
        "_arriving",
        "_common",
        "_current",
        "_defaults",
        "_drained",
        "_head_size",
        "_headers",
        "_ids",
        "_in_head",
        "_parser",
        "_queue",
        "_reading",
        "_retiring",
        "_serve",
        "_since_s",
        "_state",
        "_target",
        "_task",
        "_work",
        "keeps",
        "loop",
        "most_bytes",
        "transport",
        "writable",
    )

    transport: asyncio.Transport

    def __init__(self, serve: Serve, state: ServerState, ids: IdMaker, *, most_bytes: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.most_bytes = most_bytes
        self.writable = True
        self.keeps = True
        self._serve = serve
        self._state = state
        self._ids = ids
        self._parser = HttpRequestParser(self)
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._in_head = False
        self._head_size = 0
        self._reading = True  # a request, or the first one, has not arrived as a whole
        self._retiring = False
        self._since_s = self.loop.time()
        self._arriving: Exchange | None = None
        self._current: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._work: asyncio.Future[None] | None = None  # what the task waits for
        self._queue: deque[Exchange] = deque()
        self._drained: asyncio.Future[None] | None = None
        self._defaults: list[tuple[bytes, bytes]] | None = None
        self._common = b""

    def __repr__(self) -> str:
        return f"Connection({self._current!r}, {len(self._queue)} queued, keeps={self.keeps})"

    # What the server and its sweep call.

    def shutdown(self) -> None:
        """End when the request under way is answered; at once when there is none."""
        self.keeps = False
        if self._current is None:
            self.transport.close()

    @property
    def idle(self) -> bool:
        """Whether no request is under way, or arriving."""
        return self._current is None and not self._in_head

    def retire(self) -> None:
        """Let the next answer whose head has not been sent be the last one here, and say so in it."""
        self._retiring = True
        last = self._queue[-1] if self._queue else self._current
        if last is not None and not last.started:
            last.keep = False

    def check(self, now_s: float) -> None:
        """Close when a request takes too long to arrive, or none has come for long."""
        quiet_s = now_s - self._since_s
        if quiet_s > LONGEST_READ_S if self._reading else (self._current is None and quiet_s > LONGEST_IDLE_S):
            self.transport.abort()

    # What an exchange calls.

    def common_headers(self) -> bytes:
        """The server's own header lines; they change once a second."""
        defaults = self._state.default_headers
        if defaults is not self._defaults:
            self._defaults = defaults
            self._common = b"".join([b"%b: %b\r\n" % pair for pair in defaults])
        return self._common

    async def drained(self) -> None:
        """Wait until the caller has read enough, or has gone."""
        while not self.writable and not self.transport.is_closing():
            if self._drained is None:
                self._drained = self.loop.create_future()
            await asyncio.shield(self._drained)

    async def _answer_all(self) -> None:
        """Answer one exchange after the other, until the connection ends. The server knows the task only while it has
        something to do: what is idle need not be waited for."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        while not self.transport.is_closing():
            exchange = self._current
            if exchange is None:
                self._work = self.loop.create_future()
                await self._work
                continue
            self._state.tasks.add(task)
            await self._serve(exchange)
            self._state.total_requests += 1
            if not (exchange.complete and exchange.keep and self.keeps):
                self.transport.close()
            self._turn()
        self._state.tasks.discard(task)

    def _turn(self) -> None:
        """An exchange is over: the next one's turn."""
        if self._queue:
            self._current = self._queue.popleft()
            if not self._queue:
                self.transport.resume_reading()
        else:
            self._current = None
            self._state.tasks.discard(cast("asyncio.Task[None]", self._task))
            if not self._reading:
                self._since_s = self.loop.time()

    def _begin(self, exchange: Exchange | None) -> None:
        """Wake the task, with an exchange or because there will be none."""
        self._current = exchange
        work, self._work = self._work, None
        if work is not None and not work.done():
            work.set_result(None)

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._task = self.loop.create_task(self._answer_all())
        self._state.connections.add(self)  # type: ignore[arg-type]

    def connection_lost(self, exc: Exception | None) -> None:
        self._state.connections.discard(self)
        self._queue.clear()
        self.resume_writing()
        for exchange in {self._current, self._arriving}:
            if exchange is not None:
                exchange.lost()
        self._arriving = None
        self._begin(self._current)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade:  # the request is answered as if it had not asked for that, and is the last one
            self._end_with(self._queue[-1] if self._queue else self._current)
        except HttpParserError as error:
            reason = error.__context__ if isinstance(error.__context__, _Refused) else None
            self._refuse(reason or _Refused(400, "This is not valid HTTP/1.1."))
            return
        if self._in_head and self._head_size > LARGEST_HEAD:
            self._refuse(_Refused(431, "The request's head is too large."))

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # What the parser calls, inside data_received.

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = {}
        self._in_head = True
        self._head_size = 0
        if not self._reading:
            self._reading = True
            self._since_s = self.loop.time()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name not in self._headers:
            self._headers[name] = value
        elif name == b"host":
            raise _Refused(400, "A request has one Host.")

    def on_headers_complete(self) -> None:
        self._in_head = False
        version = self._parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise _Refused(505, "Only HTTP/1.1 is spoken here.")
        if version == "1.1" and b"host" not in self._headers:
            raise _Refused(400, "A request names its Host.")
        exchange = Exchange(
            self, self._ids.new("req"), self._parser.get_method().decode(), self._target, version, self._headers
        )
        exchange.keep = self._parser.should_keep_alive() and not self._retiring
        self._arriving = exchange
        if self._current is None:
            self._begin(exchange)
        else:
            self._queue.append(exchange)
            if len(self._queue) > MOST_QUEUED:
                raise _Refused(400, "Too many requests were sent ahead.")
            self.transport.pause_reading()

    def on_body(self, piece: bytes) -> None:
        if self._arriving is not None and not self._arriving.complete:
            self._arriving.received(piece)

    def on_message_complete(self) -> None:
        self._reading = False
        self._since_s = self.loop.time()
        arriving, self._arriving = self._arriving, None
        if arriving is not None:
            arriving.received_all()

    def _refuse(self, refused: _Refused) -> None:
        """Answer what cannot be served, unless another answer is due first, and end the connection."""
        self._in_head = False
        arriving, self._arriving = self._arriving, None
        if self._current is None or (self._current is arriving and not arriving.started):
            id = self._ids.new("req")
            self.transport.write(refused.rendered(id))
            self.transport.close()
        elif arriving is self._current:
            self.transport.close()
        else:
            self._queue.clear()
            self._end_with(self._current)

    def _end_with(self, exchange: Exchange | None) -> None:
        self.transport.pause_reading()
        if exchange is not None:
            exchange.keep = False


class _Refused(Exception):
    """Bytes that are not a request we serve."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def rendered(self, id: str) -> bytes:
        """The whole response, in OpenAI's envelope: no surface has been reached whose words it could have."""
        error = {"message": self.message, "type": "invalid_request_error", "code": "bad_request", "param": None}
        body = json.dumps({"error": error}).encode()
        head = (
            f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nx-request-id: {id}\r\nconnection: close\r\n\r\n"
        )
        return head.encode() + body
