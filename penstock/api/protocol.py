"""uvicorn's HTTP protocol, and three things more: a call learns at once, without a task, that its caller has gone; a
request and the reading of its answer have an end, in size and in time; and what two readers could take for two
different requests is refused, in the words and the shape of every other refusal.

ASGI would have every call wait for a message that hardly ever comes; that costs a task a call. A head without an end
would fill the memory before anybody could ask for a key, and a request that drips in would hold its socket for ever.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from typing import Protocol, cast

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

CONNECTION = "penstock.connection"  # where a scope holds its connection
LONGEST_READ_S = 120.0  # from a request's first byte to its last: 20 MB over a slow line
LONGEST_HEAD_S = 20.0  # for the part before the body, or to go on after an answer that did not wait for the body
LONGEST_STALL_S = 90.0  # without a byte of an answer taken; a stream gives up on its caller earlier
MOST_WAITING = 64  # requests behind one that is being answered; a packet holds thousands, each a hundred times its size
LARGEST_HEAD = 64 * 1024  # bytes without a body: request line and headers, chunk extensions, trailers

_HOST = re.compile(rb"[0-9A-Za-z.~!$&'()*+,;=:%\[\]_-]*")


class Connection(Protocol):
    """What a call knows of the connection it came by. `departure` is called once it is `lost`."""

    lost: bool
    departure: Callable[[], None] | None

    @property
    def writable(self) -> bool:
        """Whether what is sent now need not wait for the caller to read."""
        ...

    def drop(self) -> None:
        """Close at once; what the caller has not read is lost."""
        ...


class Refusing(Protocol):
    """The application, as far as a connection needs it."""

    def unreadable(self, why: str) -> bytes:
        """The whole response to bytes that are no request, after which the connection is closed."""
        ...


class WatchedProtocol(HttpToolsProtocol):
    """One connection. The calls on it come one after the other, so one `departure` at a time is enough."""

    lost = False
    departure: Callable[[], None] | None = None
    _reading = True  # a request, or the first one, has not arrived as a whole
    _in_head = _in_body = False
    _bare = 0  # bytes received since the last piece of a body
    _deaf = False  # what comes is no request any more: requests before it are answered, then the connection is closed
    _answered: RequestResponseCycle | None = None  # the request whose turn it is, or was last
    _deadline: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    @property
    def writable(self) -> bool:
        return not self.flow.write_paused

    @property
    def _answering(self) -> bool:
        """Whether the latest request is not answered to its end."""
        cycle = cast(RequestResponseCycle | None, self.cycle)
        return cycle is not None and not cycle.response_complete

    def drop(self) -> None:
        self._forget_callers()
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_reading()

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        self._bare += len(data)
        if not self._answering:
            self._reading = True  # also when it is only a line end: nothing keeps a connection open for ever
        self._feed(data)
        if self._bare > LARGEST_HEAD and self._reading:
            self.send_400_response("The request's headers are too large.")
        if self._reading or self._deadline is not None:
            self._watch_reading()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading = self._in_head = True
        cast(dict[str, object], self.scope)[CONNECTION] = self

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else it is a trailer: whatever it says, it comes too late to count
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if self.parser.get_method() == b"CONNECT":
            raise ValueError("There is no way through here.")
        if self.parser.should_upgrade():
            return  # see `_as_if_not_asked`
        if len(self.pipeline) >= MOST_WAITING:
            raise ValueError("Too many requests at once on one connection.")
        if mistake := mistake_of_head(self.parser.get_http_version(), self.headers):
            raise ValueError(mistake)
        super().on_headers_complete()
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        self._bare = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return
        self._reading = self._in_body = False
        self._bare = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse and close. Never in the midst of another answer, nor in the place of one that is yet to come."""
        if self._in_body and (self.cycle.response_started or self.pipeline):
            self._forget_callers()
            self.transport.close()
        elif self._answering and not self._in_body:
            self.cycle.keep_alive = self._reading = False
            self._deaf = True
        else:
            self.transport.write(cast(Refusing, self.config.app).unreadable(msg))
            self._forget_callers()
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answered = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._watch_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._watch_writing()

    def timeout_keep_alive_handler(self) -> None:
        self._hang_up()

    def eof_received(self) -> None:
        self._forget_callers()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost = True
        self._reading = False
        self._watch_reading()
        if self._stall is not None:
            self._stall.cancel()
        if self.departure is not None:
            self.departure()

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as pause:
            self._feed(self._as_if_not_asked() + data[pause.args[0] :])
        except HttpParserError as error:
            mistake = error.__context__
            self.send_400_response(str(mistake) if isinstance(mistake, ValueError) else "This is not HTTP/1.1.")

    def _as_if_not_asked(self) -> bytes:
        """The head of a request for another protocol without that wish, for a new parser.

        Who does not switch goes on as if not asked (RFC 9110, 7.8). The parser would read nothing more, no body either.
        """
        line = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        lines = [b"%b: %b" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = HttpRequestParser(self)
        return b"\r\n".join([line, *lines, b"", b""])

    def _watch_reading(self) -> None:
        """A timer runs while a request is incomplete: for the first from the connection on, else hardly ever."""
        if self._reading and self._deadline is None:
            self._deadline = self.loop.call_later(min(LONGEST_HEAD_S, LONGEST_READ_S), self._overdue)
        elif not self._reading and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _overdue(self) -> None:
        if self._in_body and self._answering:
            self._deadline = self.loop.call_later(max(LONGEST_READ_S - LONGEST_HEAD_S, 0.0), self._hang_up)
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        """Close, and do not wait for what the caller has left unread."""
        self._forget_callers()
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _watch_writing(self) -> None:
        """A timer runs while the caller leaves unread more than the connection takes."""
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None
        left = self.transport.get_write_buffer_size()
        if left:
            self._stall = self.loop.call_later(LONGEST_STALL_S, self._stalled, left)

    def _stalled(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._watch_writing()
        else:
            self.drop()

    def _forget_callers(self) -> None:
        """Nothing can be sent any more. The loop says so a moment later, and until then sending would be a fault."""
        for cycle in (self._answered, self.cycle, *(waiting for waiting, _ in self.pipeline)):
            if cycle is not None:
                cycle.disconnected = True
                cycle.message_event.set()


def mistake_of_head(version: str, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """What makes a head ambiguous though a parser takes it (RFC 9112: 2.3, 3.2, 6.1). Header names are lower case."""
    if version not in ("1.1", "1.0"):
        return "Only HTTP/1.1 is spoken here."
    hosts = codings = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1 if _HOST.fullmatch(value) else 2
        elif name == b"transfer-encoding":
            codings += 1 if version == "1.1" and value.lower().strip() == b"chunked" else 2
    if codings > 1:
        return "The only Transfer-Encoding that is understood is chunked, given once, in HTTP/1.1."
    return "A request names one Host." if hosts > 1 or (version == "1.1" and not hosts) else None
