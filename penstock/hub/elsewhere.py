"""Peers that another process has the connection to, as that process wrote them down (`db/workers.py`).

A job for one of them goes to its process, by `Reach`, which relays the bytes. What is known here is up to a second old:
the process that has the peer may refuse, and then somebody else is asked.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import msgspec

from penstock.clock import Clock
from penstock.db.workers import TOLD_TO_LEAVE, WorkerRow
from penstock.hub.messages import NonsenseError, Offer
from penstock.hub.peer import BREATHER_S
from penstock.hub.seats import Lost, Overloaded, Request, Unreachable
from penstock.ports import Answer, Timeouts

_offer = msgspec.json.Decoder(Offer)


class Reach(Protocol):
    """The way to other processes."""

    async def open(self, address: str, peer: str, request: Request, limits: Timeouts) -> Answer:
        """Have the process at `address` give `peer` a job. Errors as of `Seat.open`."""
        ...

    async def close(self) -> None: ...


class Elsewhere:
    """One of them. A `Seat`. NonsenseError when its offer is none that we know, as a newer process may write it."""

    def __init__(self, row: WorkerRow, reach: Reach, clock: Clock) -> None:
        self.row = row
        self.offer = _read(row)
        self._silent = False  # its row has not changed for long
        self._missed: int | None = None  # the beat at which it was not to be reached
        self._reach = reach
        self._clock = clock
        self._mine = 0
        self._refused_s = float("-inf")

    def __repr__(self) -> str:
        return f"Elsewhere({self.id} at {self.row.address}, {self.outstanding} jobs)"

    @property
    def silent(self) -> bool:
        """Whether nobody is there any more: its row stands still, or has since it could not be reached."""
        return self._silent or self._missed == self.row.beat

    def update(self, row: WorkerRow, *, silent: bool) -> None:
        """It stands so now. NonsenseError."""
        if row.offer != self.row.offer:
            self.offer = _read(row)
        self._silent = silent
        self.row = row

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def kind(self) -> str:
        return self.row.kind

    @property
    def account(self) -> str:
        return self.row.account_id

    @property
    def shared(self) -> bool:
        return bool(self.row.shared)

    @property
    def leaving(self) -> bool:
        """See `Seat.leaving`."""
        return self.row.draining == TOLD_TO_LEAVE

    @property
    def outstanding(self) -> int:
        """Jobs it had when last written down, or those it has from here, whichever is more."""
        return max(self.row.outstanding, self._mine)

    @property
    def room(self) -> int:
        """Jobs it could take now, as far as is known."""
        resting = self._clock.monotonic() - self._refused_s < BREATHER_S
        if self.silent or self.row.draining or resting:
            return 0
        return max(0, self.offer.slots - self.outstanding)

    async def open(self, request: Request, limits: Timeouts) -> Answer:
        """See `Seat.open`."""
        self._mine += 1
        try:
            return _Counted(await self._reach.open(self.row.address, self.id, request, limits), self)
        except BaseException as error:
            self.done()
            if isinstance(error, Unreachable):
                self._missed = self.row.beat
            if isinstance(error, Overloaded | Lost):
                self._refused_s = self._clock.monotonic()
            raise

    def done(self) -> None:
        """A job from here is over."""
        self._mine -= 1


def _read(row: WorkerRow) -> Offer:
    try:
        return _offer.decode(row.offer)
    except (ValueError, RecursionError) as error:
        raise NonsenseError(f"no offer: {error}"[:120]) from None


class _Counted:
    """An answer that counts as a job of its seat until it is closed."""

    def __init__(self, answer: Answer, seat: Elsewhere) -> None:
        self.status = answer.status
        self.headers: Mapping[str, str] = answer.headers
        self._answer = answer
        self._seat: Elsewhere | None = seat

    def __repr__(self) -> str:
        return f"_Counted({self._answer!r})"

    def __aiter__(self) -> AsyncIterator[bytes]:
        return aiter(self._answer)

    async def read(self, limit: int) -> bytes:
        """See `Answer.read`."""
        return await self._answer.read(limit)

    def close(self) -> None:
        """See `Answer.close`."""
        self._answer.close()
        seat, self._seat = self._seat, None
        if seat is not None:
            seat.done()
