"""What a server knows of its connections: which are open, which have something to do, and what their answers share."""

from __future__ import annotations

import asyncio
import logging
from email.utils import formatdate
from typing import Protocol

_logger = logging.getLogger("penstock.server")


class Served(Protocol):
    """A connection, as its server sees it, whatever is spoken on it."""

    transport: asyncio.Transport

    @property
    def idle(self) -> bool:
        """Whether nothing is under way, or arriving."""
        ...

    def shutdown(self) -> None:
        """The server ends: end with what is under way, at once when there is nothing."""
        ...

    def retire(self) -> None:
        """A successor serves: end with what is under way, and have the caller know it. May be told again."""
        ...

    def check(self, now_s: float) -> None:
        """Hang up on a caller who is late, by the event loop's clock."""
        ...


class Connections:
    """Those of one server. They come and go by themselves, in `open` and, with the task that answers, in `tasks`."""

    __slots__ = ("common_headers", "open", "tasks")

    def __init__(self) -> None:
        self.open: set[Served] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self.common_headers = b""  # lines of every answer's head

    def __repr__(self) -> str:
        return f"Connections({len(self.open)} open, {len(self.tasks)} at work)"

    def all(self) -> list[Served]:
        """Those that are open now."""
        return list(self.open)

    def date(self, now_s: float) -> None:
        """Have answers be dated with this time, in seconds since 1970."""
        self.common_headers = f"date: {formatdate(now_s, usegmt=True)}\r\n".encode()

    def check(self, now_s: float) -> None:
        """Have all of them look whether somebody is late. One that cannot is cut, and keeps no other from it."""
        for each in self.all():
            try:
                each.check(now_s)
            except Exception:
                _logger.exception("%r is cut, for it cannot be looked at", each)
                self.open.discard(each)
                each.transport.abort()
