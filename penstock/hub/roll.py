"""Who is there, by whom they may serve, and the jobs that wait for one of them. No I/O.

However many peers and jobs there are, those of one account cost the others nothing: a job looks only at seats that its
account may use, and a seat that has room wakes only as many jobs as it has room for, who waits longest first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

from penstock.errors import UpstreamBusy
from penstock.hub.seats import Seat, Wanted

MOST_WAITING = 4096  # jobs without a seat
MOST_WAITING_EACH = 256  # of one account: who has more calls than that would wait longer than it is patient

AnySeat = TypeVar("AnySeat", bound=Seat)


class Roll(Generic[AnySeat]):
    """Seats, by kind and account; those that serve everybody are apart."""

    def __init__(self) -> None:
        self._seats: dict[tuple[str, str], dict[str, AnySeat]] = {}

    def __repr__(self) -> str:
        return f"Roll({sum(map(len, self._seats.values()))} seats)"

    def enter(self, seat: AnySeat) -> None:
        """It is there from now on."""
        self._seats.setdefault(_place(seat), {})[seat.id] = seat

    def strike(self, seat: AnySeat) -> None:
        """It is there no more."""
        place = _place(seat)
        seats = self._seats.get(place, {})
        seats.pop(seat.id, None)
        if not seats:
            self._seats.pop(place, None)

    def of(self, kind: str, account: str) -> Iterator[AnySeat]:
        """Those that the account may use, its own first."""
        for owner in (account, ""):
            yield from self._seats.get((kind, owner), {}).values()


def _place(seat: Seat) -> tuple[str, str]:
    return seat.kind, "" if seat.shared else seat.account


class Waiting:
    """Jobs for which no seat has room now, in the order they came."""

    def __init__(self) -> None:
        self._turns: dict[Turn, None] = {}
        self._by_account: dict[str, dict[Turn, None]] = {}

    def __repr__(self) -> str:
        return f"Waiting({len(self)} jobs)"

    def __len__(self) -> int:
        return len(self._turns)

    @contextmanager
    def waits(self, wanted: Wanted) -> Iterator[Turn]:
        """A job waits while the block runs. UpstreamBusy when too many do."""
        if len(self) >= MOST_WAITING:
            raise UpstreamBusy("Too many jobs wait for a worker.")
        if len(self._by_account.get(wanted.account, ())) >= MOST_WAITING_EACH:
            raise UpstreamBusy(f"{MOST_WAITING_EACH} calls of this account wait for a worker; no more may.")
        turn = Turn(wanted)
        self._turns[turn] = None
        self._by_account.setdefault(wanted.account, {})[turn] = None
        try:
            yield turn
        finally:
            self._leaves(turn)

    def wishes(self) -> set[Wanted]:
        """What is waited for."""
        return {turn.wanted for turn in self._turns}

    def call(self, seat: Seat) -> None:
        """Wake as many as this seat has room for."""
        if not self._turns:
            return
        room = seat.room
        for turn in self._turns if seat.shared else self._by_account.get(seat.account, ()):
            if room <= 0:
                return
            if turn.seat is seat or (turn.asleep and turn.wanted.may(seat)):
                turn.wake(seat)
                room -= 1

    def dismiss(self, wanted: Wanted) -> None:
        """Wake all who wait for this, to see that it is in vain."""
        for turn in self._by_account.get(wanted.account, ()):
            if turn.asleep and turn.wanted == wanted:
                turn.wake(None)

    def _leaves(self, turn: Turn) -> None:
        """It has a seat, or waits no longer. The one it was woken for, if it took another, is the next one's."""
        del self._turns[turn]
        others = self._by_account[turn.wanted.account]
        del others[turn]
        if not others:
            del self._by_account[turn.wanted.account]
        if turn.seat is not None and turn.seat is not turn.taken:
            self.call(turn.seat)


class Turn:
    """One job that waits. `seat` is the one it was woken for and has not looked at yet, `taken` the one it got."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.seat: Seat | None = None
        self.taken: Seat | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"Turn({self.wanted}, asleep={self.asleep})"

    @property
    def asleep(self) -> bool:
        """Whether it waits to be woken."""
        return self._waiter is not None and not self._waiter.done()

    def wake(self, seat: Seat | None) -> None:
        """Have it look whether this seat, or any, is there for it."""
        if self._waiter is not None and not self._waiter.done():
            self.seat = seat
            self._waiter.set_result(None)

    async def comes(self, most_s: float) -> None:
        """Wait to be woken, or for so long."""
        self.seat = None
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(most_s):
                await self._waiter
        except TimeoutError:
            pass
        finally:
            self._waiter = None
