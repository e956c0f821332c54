"""A connection: httptools reads its requests, the door answers them, one after the other.

It stands below ASGI, and costs a call no message, no event, no task and no timer: bytes become an `Exchange`
(`http.py`), and the connection's task has the door serve it. Most clients send the same head again and again, and one
that is known is not read twice (`_know`). What is not one of our addresses is handed on as ASGI by the door. At the few
addresses that speak WebSocket a request may end with another protocol taking the connection over (`websocket.py`);
anywhere else such a wish is not heard. After its last answer a connection is a `Farewell` (`farewell.py`).

Strict where laxness is dangerous: what two readers could take for two different requests is refused; a request and the
reading of its answer have an end, in size and in time. After anything that is not HTTP/1.1 the connection is answered
and closed, for nothing that follows could be trusted to be a request. One sweep over the connections (`check`) looks
for late ones.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import deque
from collections.abc import Awaitable
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from penstock.api.connections import Connections
from penstock.api.farewell import Farewell
from penstock.api.http import Exchange, Head
from penstock.ids import IdMaker

LONGEST_READ_S = 120.0  # from a request's first byte to its last: 20 MB over a slow line
LONGEST_HEAD_S = 20.0  # for the part before the body, or to go on after an answer that did not wait for the body
LONGEST_IDLE_S = 75.0  # between two requests: longer than most proxies keep theirs, so that they close first
LONGEST_STALL_S = 90.0  # without a byte of an answer taken; a stream gives up on its caller earlier
LARGEST_HEAD = 64 * 1024  # bytes without a body: request line and headers, chunk extensions, trailers
LARGEST_KNOWN = 4096  # bytes of a head that is remembered, as long as its connection lasts
MOST_QUEUED = 64  # requests behind one that is being answered; a packet holds thousands, each a hundred times its size

_HOST = re.compile(rb"[0-9A-Za-z.~!$&'()*+,;=:%\[\]_-]*")
_WITH_BODY = frozenset([b"transfer-encoding", b"content-length", b"expect"])
_ONCE = frozenset([b"host", b"transfer-encoding", b"content-length"])  # twice, they could mean two things


class Server(Protocol):
    """What a connection needs of the door."""

    def serve(self, exchange: Exchange) -> Awaitable[None]:
        """Answer one exchange, whatever happens."""
        ...

    def unreadable(self, id: str, why: str) -> bytes:
        """The body of the answer to bytes that are no request."""
        ...

    def switches(self, target: bytes) -> bool:
        """Whether a WebSocket is spoken at this address."""
        ...


class Successor(Protocol):
    """What takes a connection over."""

    def begin(self, transport: asyncio.Transport, early: bytes) -> None:
        """It is yours; `early` is what came behind the request."""
        ...


class Connection(asyncio.Protocol):
    """One connection. `keeps` turns false when the server is about to end, or to hand over to another one."""

    __slots__ = (
        "_arriving",
        "_bare",
        "_current",
        "_door",
        "_drained",
        "_early",
        "_head",
        "_headers",
        "_host",
        "_ids",
        "_in_head",
        "_known",
        "_known_bytes",
        "_known_size",
        "_over",
        "_parser",
        "_queue",
        "_reading",
        "_retiring",
        "_since_s",
        "_successor",
        "_target",
        "_task",
        "_unread",
        "_unread_since_s",
        "_work",
        "connections",
        "keeps",
        "loop",
        "most_bytes",
        "transport",
        "writable",
    )

    transport: asyncio.Transport

    def __init__(self, door: Server, connections: Connections, ids: IdMaker, *, most_bytes: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.connections = connections
        self.most_bytes = most_bytes
        self.writable = True
        self.keeps = True
        self._door = door
        self._ids = ids
        self._parser = HttpRequestParser(self)
        self._retiring = False
        self._over = False  # no more requests are read, nor answers given
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._head: Head | None = None  # the last one that was read
        self._known: Head | None = None  # the one to take for these bytes when they come again, before so much body
        self._known_bytes = b""
        self._known_size = 0
        self._host: bytes | None = None  # the last one that was in order
        self._in_head = False
        self._bare = 0  # bytes received since the last piece of a body
        self._reading = True  # a request, or the first one, has not arrived as a whole
        self._since_s = self.loop.time()
        self._unread = 0  # bytes of answers that the caller had not taken at the last look
        self._unread_since_s = 0.0
        self._arriving: Exchange | None = None
        self._current: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._work: asyncio.Future[None] | None = None  # what the task waits for
        self._queue: deque[Exchange] = deque()
        self._drained: asyncio.Future[None] | None = None
        self._early: bytearray | None = None  # what comes behind a request for a WebSocket, while that is decided
        self._successor: Successor | None = None

    def __repr__(self) -> str:
        return f"Connection({self._current!r}, {len(self._queue)} queued, keeps={self.keeps})"

    # What the server and its sweep call.

    def shutdown(self) -> None:
        """End when the request under way is answered; at once when there is none."""
        self.keeps = False
        if self._current is not None:
            return
        if self._arriving is not None:  # the answer is out already
            self._part()
        else:
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
        """Hang up when a request takes too long to arrive, none has come for long, or an answer is not taken."""
        unread = self.transport.get_write_buffer_size()
        if now_s - self._since_s > self._longest_s():
            self.transport.abort() if unread else self.transport.close()
        if unread < self._unread or not self._unread:
            self._unread_since_s = now_s
        elif now_s - self._unread_since_s > LONGEST_STALL_S:
            self.transport.abort()
        self._unread = unread

    def _longest_s(self) -> float:
        """How long what is going on now may take. What waits its turn is not read, and so not late."""
        if self._reading and not self._queue:
            in_body = self._arriving is not None and not self._arriving.complete
            return LONGEST_READ_S if in_body else min(LONGEST_HEAD_S, LONGEST_READ_S)
        return LONGEST_IDLE_S if self._current is None else math.inf

    # What an exchange calls.

    async def drained(self) -> None:
        """Wait until the caller has read enough, or has gone."""
        while not self.writable and not self.transport.is_closing():
            await self._taken()

    async def abort(self) -> None:
        """End the connection, whatever has not been read; afterwards it is lost."""
        self.transport.abort()
        while not self._over:
            await self._taken()

    async def _taken(self) -> None:
        """Wait until much has been read, or the connection is lost."""
        if self._drained is None:
            self._drained = self.loop.create_future()
        await asyncio.shield(self._drained)

    def succeeded_by(self, successor: Successor) -> None:
        """Hand the connection over when the request under way is over."""
        self._successor = successor

    def _hand_over(self, successor: Successor, task: asyncio.Task[None]) -> None:
        self._current = None
        self.connections.tasks.discard(task)
        self.connections.open.discard(self)
        successor.begin(self.transport, bytes(self._early or b""))

    async def _answer_all(self) -> None:
        """Answer one exchange after the other, until the connection ends. The server knows the task only while it has
        something to do: what is idle need not be waited for."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        while not (self._over or self.transport.is_closing()):
            exchange = self._current
            if exchange is None:
                self._work = self.loop.create_future()
                await self._work
                continue
            self.connections.tasks.add(task)
            await self._door.serve(exchange)
            if self._successor is not None:
                self._hand_over(self._successor, task)
                return
            self._turn()
            if not (exchange.complete and exchange.keep and self.keeps):
                self._part()
        self.connections.tasks.discard(task)

    def _turn(self) -> None:
        """An exchange is over: the next one's turn."""
        if self._queue:
            self._current = self._queue.popleft()
            if not self._queue:
                self._since_s = self.loop.time()
                self.transport.resume_reading()
        else:
            self._current = None
            self.connections.tasks.discard(cast("asyncio.Task[None]", self._task))
            if not self._reading:
                self._since_s = self.loop.time()

    def _part(self) -> None:
        """The last answer has been given. Whatever else was asked gets none."""
        if not (self._over or self.transport.is_closing()):
            Farewell(self.transport, self.connections, longest_stall_s=LONGEST_STALL_S)
            self.connection_lost(None)

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
        self.connections.open.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self.connections.open.discard(self)
        self._queue.clear()
        self.resume_writing()
        for exchange in {self._current, self._arriving}:
            if exchange is not None:
                exchange.lost()
        self._arriving = None
        self._begin(self._current)

    def data_received(self, data: bytes) -> None:
        if self._early is not None:
            self._early += data
            return
        if len(data) == self._known_size and self._take_known(data):
            return
        between = self._arriving is None and not self._bare
        self._bare += len(data)
        if self._current is None and not self._reading:  # be it a line end: nothing keeps a connection open for ever
            self._reading = True
            self._since_s = self.loop.time()
        try:
            self._feed(data)
        except HttpParserError as error:
            reason = error.__context__ if isinstance(error.__context__, _Refused) else None
            self._refuse(reason or _Refused("This is not HTTP/1.1."))
        except _Refused as refused:
            self._refuse(refused)
        else:
            if self._bare > LARGEST_HEAD and self._reading:
                self._refuse(_Refused("The request's headers are too large."))
            elif between and not self._reading and self._early is None:
                self._know(data)

    def _know(self, data: bytes) -> None:
        """Remember the head of a request that came as a whole, alone, and is nothing unusual.

        What is unusual: an end of the connection behind it, a line that is no header of its own (a name given twice, a
        wish for another protocol), a body that is not counted, anything behind the body.
        """
        head, end = self._head, data.find(b"\r\n\r\n") + 4
        if (
            head is not None
            and head.keep
            and end <= LARGEST_KNOWN
            and len(data) - end == int(head.headers.get(b"content-length", b"0"))
            and data.count(b"\n", 0, end) == len(head.headers) + 2
        ):
            self._known, self._known_bytes, self._known_size = head, data[:end], len(data)

    def _take_known(self, data: bytes) -> bool:
        """Whether this is a request like the one before, of which only the body need be looked at."""
        head = self._known
        if head is None or self._reading or self._current is not None or not data.startswith(self._known_bytes):
            return False
        exchange = Exchange(self, self._ids.new("req"), head)
        exchange.keep = not self._retiring
        exchange.received_whole(data[len(self._known_bytes) :])
        self._begin(exchange)
        return True

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as pause:
            rest = data[pause.args[0] :]
            if self._may_switch():
                self._begin_switch(rest)
            else:
                self._feed(self._as_if_not_asked() + rest)

    def _may_switch(self) -> bool:
        """Whether a wish for another protocol is one for a WebSocket where one is spoken. Nothing may be before it on
        the connection, nor a body behind it: what that meant in the other protocol could be taken for something."""
        headers = self._headers
        return (
            headers.get(b"upgrade", b"").lower() == b"websocket"
            and self._parser.get_method() == b"GET"
            and self._parser.get_http_version() == "1.1"
            and self._door.switches(self._target)
            and self._current is None
            and not self._retiring
            and self.keeps
            and headers.keys().isdisjoint(_WITH_BODY)
        )

    def _begin_switch(self, rest: bytes) -> None:
        """Have the door decide about a request for a WebSocket. Nothing more is read until it has."""
        self._require_one_meaning("1.1")
        self._early = bytearray(rest)
        self.transport.pause_reading()
        head = Head("GET", self._target, "1.1", self._headers, keep=False)  # if it is refused
        exchange = Exchange(self, self._ids.new("req"), head)
        exchange.switches = exchange.arrived = True
        self._reading = False
        self._begin(exchange)

    def _as_if_not_asked(self) -> bytes:
        """The head of a request for another protocol without that wish, for a new parser.

        Who does not switch goes on as if not asked (RFC 9110, 7.8). The parser would read nothing more, no body either.
        """
        line = b"%b %b HTTP/%b" % (self._parser.get_method(), self._target, self._parser.get_http_version().encode())
        lines = [b"%b: %b" % header for header in self._headers.items() if header[0] != b"upgrade"]
        self._parser = HttpRequestParser(self)
        return b"\r\n".join([line, *lines, b"", b""])

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        self._unread = 0  # much has been taken, whatever is there at the next look
        drained, self._drained = self._drained, None
        if drained is not None and not drained.done():
            drained.set_result(None)

    # What the parser calls, inside data_received.

    def on_message_begin(self) -> None:
        self._target = b""
        self._headers = {}
        self._in_head = True
        if not self._reading:
            self._reading = True
            self._since_s = self.loop.time()

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if not self._in_head:  # a trailer: whatever it says, it comes too late to count
            return
        if name not in self._headers:
            self._headers[name] = value
        elif name in _ONCE:
            raise _Refused(f"A request has one {name.decode().title()}.")

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self._bare > LARGEST_HEAD:  # of one packet, that is: nearly always it is the body that is large
            self._require_small_head()
        parser = self._parser
        method = parser.get_method()
        if method == b"CONNECT":
            raise _Refused("There is no way through here.")
        if parser.should_upgrade():
            return  # see `_as_if_not_asked`
        version = parser.get_http_version()
        self._require_one_meaning(version)
        self._head = Head(method.decode(), self._target, version, self._headers, parser.should_keep_alive())
        exchange = Exchange(self, self._ids.new("req"), self._head)
        exchange.keep = exchange.keep and not self._retiring
        self._arriving = exchange
        if self._current is None:
            self._begin(exchange)
        else:
            self._queue.append(exchange)
            if len(self._queue) > MOST_QUEUED:
                raise _Refused("Too many requests at once on one connection.")
            self.transport.pause_reading()

    def on_body(self, piece: bytes) -> None:
        self._bare = 0
        if self._arriving is not None and not self._arriving.complete:
            self._arriving.received(piece)

    def on_message_complete(self) -> None:
        if self._parser.should_upgrade():
            return
        self._reading = False
        self._bare = 0
        self._since_s = self.loop.time()
        arriving, self._arriving = self._arriving, None
        if arriving is not None:
            arriving.received_all()

    def _require_small_head(self) -> None:
        """Refuse a head that is too large though it came at once. Of a name given twice only the first is counted."""
        lines = self._headers
        size = len(self._target) + sum(map(len, lines)) + sum(map(len, lines.values())) + len(b": \r\n") * len(lines)
        if size > LARGEST_HEAD:
            raise _Refused("The request's headers are too large.")

    def _require_one_meaning(self, version: str) -> None:
        """Refuse a head that is ambiguous though the parser takes it (RFC 9112: 2.3, 3.2, 6.1)."""
        if version not in ("1.1", "1.0"):
            raise _Refused("Only HTTP/1.1 is spoken here.")
        coding = self._headers.get(b"transfer-encoding")
        if coding is not None and (version != "1.1" or coding.lower().strip() != b"chunked"):
            raise _Refused("The only Transfer-Encoding that is understood is chunked, given once, in HTTP/1.1.")
        host = self._headers.get(b"host")
        if host is None:
            if version == "1.1":
                raise _Refused("A request names one Host.")
        elif host != self._host:
            if not _HOST.fullmatch(host):
                raise _Refused("A request names one Host.")
            self._host = host

    def _refuse(self, refused: _Refused) -> None:
        """Answer what cannot be served, after the requests that came before it, and end the connection.

        Never in the midst of another answer, nor in the place of one that is yet to come.
        """
        self._in_head = self._reading = False
        self.transport.pause_reading()
        arriving, self._arriving = self._arriving, None
        if arriving is not None and arriving in self._queue:
            self._queue.remove(arriving)
        before = self._queue[-1] if self._queue else self._current
        if before is not None and before is not arriving:
            before.keep = False
            return
        if arriving is None or not arriving.started:
            common = self.connections.common_headers
            self.transport.write(refused.rendered(self._door, self._ids.new("req"), common))
        self._part()


class _Refused(Exception):
    """Bytes that are not a request we serve."""

    def rendered(self, door: Server, id: str, common_headers: bytes) -> bytes:
        """The whole response, in the words of every other refusal."""
        body = door.unreadable(id, str(self))
        head = b"HTTP/1.1 400 Bad Request\r\n%bcontent-type: application/json\r\ncontent-length: %d\r\n" % (
            common_headers,
            len(body),
        )
        return head + b"x-request-id: %b\r\nconnection: close\r\n\r\n%b" % (id.encode(), body)
