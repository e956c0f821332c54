"""uvicorn's HTTP protocol, and one thing more: a call learns at once, without a task, that its caller has gone.

ASGI would have every call wait for a message that hardly ever comes; that costs a task a call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

CONNECTION = "penstock.connection"  # where a scope holds its connection


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

    @property
    def writable(self) -> bool:
        return not self.flow.write_paused

    def on_message_begin(self) -> None:
        super().on_message_begin()
        cast(dict[str, object], self.scope)[CONNECTION] = self

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.lost = True
        if self.departure is not None:
            self.departure()
