"""A serving process that has a supervisor: what it says to it, and that it does what it is told.

It knows neither gateway nor server; what each order means is given to it. The words are in `channel.py`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from penstock.channel import Channel
from penstock.figures import Figures

SUM_S = 3.0  # for the supervisor to add everybody's figures up; then our own will do

_logger = logging.getLogger("penstock")


@dataclass(frozen=True, slots=True)
class Post:
    """What a worker is given: its number, the socket it takes calls from, and the line to its supervisor."""

    number: int
    listener: socket.socket
    line: socket.socket


class Supervised:
    """The worker's end of the line. `orders` has what to do at `announce`, `reload`, `retire` and `stop`."""

    def __init__(
        self, channel: Channel, *, figures: Callable[[], Figures], orders: Mapping[str, Callable[[], Awaitable[None]]]
    ) -> None:
        self._channel = channel
        self._figures = figures
        self._orders = orders
        self._sums: list[asyncio.Future[Figures]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._attending = asyncio.create_task(self._attend())

    def __repr__(self) -> str:
        return f"Supervised({self._channel!r}, {len(self._tasks)} orders under way)"

    def serves(self, grace_s: float) -> None:
        """Calls are taken from now on, and go on for up to so long when this process is told to stop."""
        self._channel.say("serving", grace_s=grace_s)

    async def total(self) -> Figures:
        """The figures of all workers; only our own when the supervisor does not answer in time."""
        waiting: asyncio.Future[Figures] = asyncio.get_running_loop().create_future()
        self._sums.append(waiting)
        self._channel.say("scrape")
        try:
            return await asyncio.wait_for(waiting, SUM_S)
        except TimeoutError:
            return self._figures()

    async def leave(self) -> None:
        """Say the last figures and close the line; this process is about to end."""
        self._attending.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(self._attending, *self._tasks, return_exceptions=True)
        self._channel.say("figures", self._figures())
        await self._channel.close()

    async def _attend(self) -> None:
        while (message := await self._channel.hear()) is not None:
            if message.word == "report":
                self._channel.say("figures", self._figures())
            elif message.word == "sum":
                sums, self._sums = self._sums, []
                for waiting in sums:
                    if not waiting.done():
                        waiting.set_result(message.figures)
            else:
                self._do(message.word)
        self._do("stop")

    def _do(self, word: str) -> None:
        task = asyncio.ensure_future(self._carry_out(word))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry_out(self, word: str) -> None:
        try:
            await self._orders[word]()
        except Exception:
            _logger.exception("the order %s failed", word)
