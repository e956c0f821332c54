"""uvicorn's HTTP protocol, and two things more: a call learns at once, without a task, that its caller has gone, and a
request has an end, in size and in time.

ASGI would have every call wait for a message that hardly ever comes; that costs a task a call. A head without an end
would fill the memory before anybody could ask for a key, and a request that drips in would hold its socket for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTION = "penstock.connection"  # where a scope holds its connection
LONGEST_READ_S = 120.0  # from a request's first byte to its last: 20 MB over a slow line
LARGEST_HEAD = 64 * 1024  # bytes of request line and headers, besides those that arrive first


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


class WatchedProtocol(HttpToolsProtocol):
    """One connection. The calls on it come one after the other, so one `departure` at a time is enough."""

    lost = False
    departure: Callable[[], None] | None = None
    _reading = True  # a request, or the first one, has not arrived as a whole
    _in_head = False
    _head_size = 0
    _deadline: asyncio.TimerHandle | None = None

    @property
    def writable(self) -> bool:
        return not self.flow.write_paused

    def drop(self) -> None:
        self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch_reading()

    def data_received(self, data: bytes) -> None:
        in_head = self._in_head
        super().data_received(data)
        if in_head and self._in_head:
            self._head_size += len(data)
            if self._head_size > LARGEST_HEAD:
                self.send_400_response("The request's headers are too large.")
        if self._reading or self._deadline is not None:
            self._watch_reading()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._reading = True
        self._in_head, self._head_size = True, 0
        cast(dict[str, object], self.scope)[CONNECTION] = self

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._reading = False
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost = True
        self._reading = False
        self._watch_reading()
        if self.departure is not None:
            self.departure()

    def _watch_reading(self) -> None:
        """A timer runs while a request is incomplete: for the first from the connection on, else hardly ever."""
        if self._reading and self._deadline is None:
            self._deadline = self.loop.call_later(LONGEST_READ_S, self.transport.close)
        elif not self._reading and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
