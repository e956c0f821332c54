"""The store: the one place that remembers, as the rest of Penstock sees it.

Two kinds of work. *Operations* are the ledger's hot path: they are grouped with whatever else is waiting. *Programs*
are everything else, one transaction each. Two engines, one schema: `sqlite.py` and `postgres.py`.
"""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, TypeVar

from penstock.db.ledger import Operation, Outcome, Settlement
from penstock.db.program import Program
from penstock.db.slips import Slips

T = TypeVar("T")


READ_S = 5.0  # to look something up
LONG_READ_S = 600.0  # to go through whole tables


class Decision(asyncio.Future[T]):
    """What the store will have decided. It cannot be cancelled: a task that is told to stop while it waits stops when
    the decision is here, so that nothing is granted to nobody."""

    __slots__ = ()

    def cancel(self, msg: object = None) -> bool:
        return False


class Store(Protocol):
    """What an engine does. `StoreUnavailable` means that nothing was written, unless it is an `OutcomeUnknown`.

    Nobody waits for ever: a read is bounded by what its caller gives it, everything else by `groups.WAIT_S`.
    """

    @property
    def slips(self) -> Slips | None:
        """Where settlements are noted before they are written; None when they wait for the database."""
        ...

    @property
    def backlog(self) -> int:
        """Jobs that wait for the writer."""
        ...

    def commit(self, operation: Operation) -> Decision[Outcome]:
        """Carry out one operation, durably, together with others."""
        ...

    def post(self, settlement: Settlement) -> asyncio.Future[Any]:
        """Settle. Tried until the database takes it. The future resolves once that will happen even if this process is
        killed: with the slip, else when it is written, or after `groups.WRITE_S`. It never raises."""
        ...

    async def settled(self) -> None:
        """Wait until everything posted so far is written: reads that follow see it."""
        ...

    async def read(self, program: Program[T], *, within_s: float = READ_S) -> T:
        """Run a program that does not write, on one snapshot. Given more than `READ_S`, it is in nobody's way."""
        ...

    async def write(self, program: Program[T]) -> T:
        """Run a program in a transaction of its own: all of it happens, durably, or none."""
        ...

    async def close(self) -> None:
        """Write what is queued, then let go."""
        ...
