"""The way back to the caller, as the data path sees it. What is sent to a caller who has gone is dropped."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

from penstock.db.records import KeptAnswer

Headers = list[tuple[bytes, bytes]]


class Reply(Protocol):
    """One response: `start` once, `send` any number of times, `finish` once. None of them waits for the caller to read;
    whoever sends more than a caller takes waits for `drained`."""

    @property
    def ready(self) -> bool:
        """Whether the caller takes what is sent."""
        ...

    def when_gone(self, departure: Callable[[], None]) -> None:
        """Call `departure` once, should the caller go before `finish`."""
        ...

    def start(self, status: int, headers: Headers) -> None:
        """Status and headers; the body follows in pieces."""
        ...

    def send(self, data: bytes) -> None:
        """A piece of the body."""
        ...

    def finish(self, data: bytes) -> None:
        """The last piece of the body."""
        ...

    async def drained(self) -> None:
        """Wait until the caller has read enough to take more, or has gone."""
        ...

    async def give_up(self) -> None:
        """Give up on a caller that does not read: afterwards he has gone."""
        ...


class Copied:
    """A reply that is also remembered, for an idempotency key; more than `most` bytes are sent but not kept."""

    def __init__(self, reply: Reply, most: int) -> None:
        self._reply = reply
        self._most = most
        self._size = 0
        self._pieces: list[bytes] = []
        self._status = 0
        self._headers: Headers = []

    def __repr__(self) -> str:
        return f"Copied({self._reply!r}, {self._size} bytes)"

    @property
    def ready(self) -> bool:
        return self._reply.ready

    def when_gone(self, departure: Callable[[], None]) -> None:
        self._reply.when_gone(departure)

    def start(self, status: int, headers: Headers) -> None:
        self._status, self._headers = status, headers
        self._reply.start(status, headers)

    def send(self, data: bytes) -> None:
        self._keep(data)
        self._reply.send(data)

    def finish(self, data: bytes) -> None:
        self._reply.finish(data)

    async def drained(self) -> None:
        await self._reply.drained()

    async def give_up(self) -> None:
        await self._reply.give_up()

    def kept(self, last: bytes) -> KeptAnswer:
        """All that was sent, and the last bytes that are about to be."""
        self._keep(last)
        headers = json.dumps([[name.decode(), text.decode()] for name, text in self._headers])
        body = b"".join(self._pieces) if self._size <= self._most else None
        return KeptAnswer(self._status, headers, body)

    def _keep(self, data: bytes) -> None:
        self._size += len(data)
        if self._size <= self._most:
            self._pieces.append(data)
        else:
            self._pieces.clear()


def replay(kept: KeptAnswer, reply: Reply) -> bytes:
    """Begin to send a kept answer again, marked as such; its body, for `finish`."""
    headers = [(name.encode(), text.encode()) for name, text in json.loads(kept.headers)]
    reply.start(kept.status, [*headers, (b"idempotent-replayed", b"true")])
    return kept.body or b""
