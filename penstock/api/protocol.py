"""uvicorn's HTTP protocol, and two things more: a call learns at once, without a task, that its caller has gone, and
the head of a request has an end.

ASGI would have every call wait for a message that hardly ever comes; that costs a task a call. A head without an end
would fill the memory before anybody could ask for a key.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTION = "penstock.connection"  # where a scope holds its connection
LARGEST_HEAD = 64 * 1024  # bytes of request line and headers, besides those that arrive first


class Connection(Protocol):
    """What a call knows of the connection it came by. `departure` is called once it is `lost`."""

    lost: bool
    departure: Callable[[], None] | None

    @property
    def writable(self) -> bool:
        """Whether what is sent now need not wait for the caller to read."""
        ...


class WatchedProtocol(HttpToolsProtocol):
    """One connection. The calls on it come one after the other, so one `departure` at a time is enough."""

    lost = False
    departure: Callable[[], None] | None = None
    _in_head = False
    _head_size = 0

    @property
    def writable(self) -> bool:
        return not self.flow.write_paused

    def data_received(self, data: bytes) -> None:
        in_head = self._in_head
        super().data_received(data)
        if in_head and self._in_head:
            self._head_size += len(data)
            if self._head_size > LARGEST_HEAD:
                self.send_400_response("The request's headers are too large.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_size = True, 0
        cast(dict[str, object], self.scope)[CONNECTION] = self

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost = True
        if self.departure is not None:
            self.departure()
