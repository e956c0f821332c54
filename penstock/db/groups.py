"""Group commit, whatever the engine: what waits together is written together.

Operations of the ledger that arrive while a group is being written wait, and then go together
(`ledger.commit_group`), so the price of making a hold durable is shared by all of them. Nothing waits for a timer: a
group is whatever came meanwhile, what the event loop brings for as long as each of its turns brings more, and what
comes while its transaction is begun: those whom the group before has told come back then. Programs of the management
side take their turn after the operations they came with, each in a transaction of its own.

When the engine does not take a group, callers who wait are told (StoreUnavailable), and settlements stay queued: they
are tried until they are written. Until then nothing else is begun: with each attempt that fails, all who wait are told.
So what is kept never grows beyond the calls that were under way. Nobody waits longer than `WAIT_S`, whatever the engine
does. When something in a group cannot be written, each operation is tried alone, so that one of them cannot spoil the
others.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable
from itertools import takewhile
from types import GeneratorType
from typing import Any, Protocol, TypeVar, cast

from penstock.clock import Clock
from penstock.db.ledger import Operation, Outcome, Settlement, commit_group
from penstock.db.program import Program
from penstock.db.slips import Slip, Slips
from penstock.db.store import Decision
from penstock.errors import OutcomeUnknown, StoreUnavailable

T = TypeVar("T")

GROUP_LIMIT = 512  # operations in a transaction: bounds how long one group keeps others waiting
RETRY_S = 0.05  # before settlements that were not taken are tried again
WAIT_S = 10.0  # for a decision: twice what an engine gives a group, for the group before may be taking as long
WRITE_S = 5.0  # for a settlement; it is tried on, but the answer that waits for it leaves: its caller is not to blame
LOOK_S = 0.5  # between looks who has waited too long
CLOSE_S = 10.0  # how long a closing store tries; after that crash recovery settles what is left

_logger = logging.getLogger("penstock.store")


class Waiter(Protocol):
    """Who is told what became of a job: a future, mostly."""

    def done(self) -> bool: ...

    def set_result(self, result: Any, /) -> None: ...

    def set_exception(self, exception: BaseException, /) -> None: ...


# Work, who waits for it, whether it is tried until it is written, and since when he has waited, if anybody does.
Job = tuple[Operation | Program[Any], Waiter, bool, float]
Result = tuple[Job, Any, BaseException | None]
Transact = Callable[[Program[Any]], Awaitable[Any]]


class Groups:
    """The queue before a store's writer. `commit` runs a group's program, `write` any other, each as one transaction.
    A group's program is not to be started before its transaction is begun.

    Both raise StoreUnavailable when nothing was written for want of a database, any other error when the program is
    at fault.
    """

    def __init__(self, clock: Clock, *, commit: Transact, write: Transact) -> None:
        self._loop = asyncio.get_running_loop()
        self._clock = clock
        self._commit = commit
        self._write = write
        self._waiting: list[Job] = []
        self._under_way: list[Job] = []
        self._owing = False  # settlements are waiting that the store has not taken
        self._closing = False
        self._work = asyncio.Event()
        self._idle = asyncio.Event()
        self._tasks = [
            asyncio.create_task(self._write_forever(), name="store writer"),
            asyncio.create_task(self._look_forever(), name="store watch"),
        ]

    def __repr__(self) -> str:
        return f"Groups({len(self._waiting)} waiting)"

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, work: Operation | Program[Any]) -> Decision[Any]:
        """Queue work whose outcome somebody waits for."""
        decision: Decision[Any] = Decision(loop=self._loop)
        if self._closing:
            decision.set_exception(StoreUnavailable("Penstock is shutting down; nothing was charged."))
        else:
            self._queue(work, decision, until_written=False, since_s=self._loop.time())
        return decision

    def post(self, settlement: Settlement) -> asyncio.Future[Any]:
        """Queue a settlement, to be tried until it is written. Its future resolves then, or after `WRITE_S`."""
        future = self._loop.create_future()
        self._queue(settlement, future, until_written=True, since_s=self._loop.time())
        return future

    def post_slip(self, settlement: Settlement, slip: Slip) -> None:
        """Queue a settlement that nobody waits for, because it has been noted; when it is written its slip is told."""
        self._queue(settlement, slip, until_written=True, since_s=math.inf)

    def _queue(self, work: Operation | Program[Any], waiter: Waiter, *, until_written: bool, since_s: float) -> None:
        self._waiting.append((work, waiter, until_written, since_s))
        if not self._work.is_set():
            self._work.set()

    async def close(self) -> bool:
        """Write what is queued, then stop. Whether all of it was written."""
        self._closing = True
        self._work.set()
        try:
            await asyncio.wait_for(self._idle.wait(), CLOSE_S)
        except TimeoutError:
            owed = sum(until_written for _, _, until_written, _ in (*self._under_way, *self._waiting))
            _logger.error("%d settlements were not written; recovery will settle these calls", owed)
        for task in self._tasks:
            task.cancel()
        return self._idle.is_set()

    async def _write_forever(self) -> None:
        try:  # here and not around a call: each step of a coroutine within one costs again
            while True:
                if not self._waiting:
                    self._work.clear()
                    if self._closing:
                        self._idle.set()
                    await self._work.wait()
                    continue
                waiting = 0
                while waiting < len(self._waiting) < GROUP_LIMIT:
                    waiting = len(self._waiting)
                    await asyncio.sleep(0)
                self._under_way = self._take()
                again = _deliver(await self._carry_out(self._under_way))
                self._under_way = []
                self._waiting[:0] = again
                self._owing = bool(again)
                if again:
                    self._refuse(self._loop.time())
                    await asyncio.sleep(RETRY_S)
        finally:
            self._abandon()

    def _take(self) -> list[Job]:
        """What is written next: whatever waits, or the settlements alone while some are owed."""
        first, later = self._waiting, []
        if self._owing:
            first, later = [job for job in first if job[2]], [job for job in first if not job[2]]
        self._waiting = first[GROUP_LIMIT:] + later
        return first[:GROUP_LIMIT]

    async def _look_forever(self) -> None:
        """Tell those who have waited too long: what is still queued has not been begun, and will not be."""
        while True:
            await asyncio.sleep(LOOK_S)
            now_s = self._loop.time()
            self._refuse(now_s - WAIT_S)
            for _, future, until_written, since_s in self._under_way:
                if since_s <= now_s - WAIT_S and not (until_written or future.done()):
                    future.set_exception(OutcomeUnknown())
            for _, future, until_written, since_s in (*self._under_way, *self._waiting):
                if until_written and since_s <= now_s - WRITE_S and not future.done():
                    future.set_result(None)

    def _refuse(self, until_s: float) -> None:
        """Drop what was queued until then and tell whoever waits for it; settlements stay."""
        kept = []
        for job in self._waiting:
            _, future, until_written, since_s = job
            if until_written or since_s > until_s:
                kept.append(job)
            else:
                future.set_exception(StoreUnavailable())
        self._waiting = kept

    def _abandon(self) -> None:
        """Nothing is written any more. Whoever still waits must be told, for no other end could reach him."""
        self._closing = True
        self._refuse(self._loop.time())
        for _, future, until_written, _ in self._under_way:
            if not (until_written or future.done()):
                future.set_exception(OutcomeUnknown())

    async def _carry_out(self, jobs: list[Job]) -> list[Result]:
        operations = [job for job in jobs if type(job[0]) is not GeneratorType]
        programs = len(operations) < len(jobs)
        results = await self._commit_together(operations) if operations else []
        if not programs:
            return results
        for job in jobs:
            if isinstance(job[0], GeneratorType):  # it must not overtake settlements that are still to be written
                down = next((error for _, _, error in results if isinstance(error, StoreUnavailable)), None)
                results.append((job, None, down) if down else await self._write_alone(job, job[0]))
        return results

    async def _commit_together(self, jobs: list[Job], *, alone: bool = False) -> list[Result]:
        try:
            outcomes: list[Outcome] = await self._commit(self._group(jobs, alone=alone))
        except StoreUnavailable as error:
            return [(job, None, error) for job in jobs]
        except Exception as error:
            if len(jobs) > 1:
                return [result for job in jobs for result in await self._commit_together([job], alone=True)]
            failed = jobs[0][0]  # named, not shown: it may hold a kept answer
            _logger.exception("%s %s failed", type(failed).__name__, getattr(failed, "request_id", ""))
            return [(jobs[0], None, error)]
        return [(job, outcome, None) for job, outcome in zip(jobs, outcomes, strict=True)]

    def _group(self, jobs: list[Job], *, alone: bool) -> Program[list[Outcome]]:
        """The program of these jobs, and of those that have come until it is begun."""
        if not (alone or self._owing):
            more = [*takewhile(_is_operation, self._waiting)][: GROUP_LIMIT - len(jobs)]
            del self._waiting[: len(more)]
            self._under_way += more
            jobs += more
        operations = cast(list[Operation], [job[0] for job in jobs])
        return (yield from commit_group(operations, self._clock.now_ms()))

    async def _write_alone(self, job: Job, program: Program[Any]) -> Result:
        try:
            return job, await self._write(program), None
        except Exception as error:
            return job, None, error


class GroupedStore:
    """What every store does with its queue (`store.Store`). An engine adds `read`, `close` and its two transactions."""

    _groups: Groups
    slips: Slips | None = None

    def __init__(self, name: str) -> None:
        self._name = name
        self._away: set[str] = set()

    @property
    def backlog(self) -> int:
        return len(self._groups)

    def commit(self, operation: Operation) -> Decision[Outcome]:
        return self._groups.submit(operation)

    def post(self, settlement: Settlement) -> asyncio.Future[Any]:
        return self._groups.post(settlement)

    async def settled(self) -> None:
        await self._groups.submit(_nothing())

    async def write(self, program: Program[T]) -> T:
        return cast(T, await self._groups.submit(program))

    def _note(self, what: str, trouble: str | None) -> None:
        """Log when the database goes away for reading or for writing, and when it is back; in between attempts are
        many."""
        if trouble and what not in self._away:
            _logger.warning("the database %s is away for %s: %s", self._name, what, trouble)
            self._away.add(what)
        elif what in self._away and not trouble:
            _logger.warning("the database %s is there for %s again", self._name, what)
            self._away.remove(what)


def _nothing() -> Program[None]:
    """A program that asks nothing: waiting for it is waiting for everything before it."""
    yield from ()


def _is_operation(job: Job) -> bool:
    return type(job[0]) is not GeneratorType


def _deliver(results: list[Result]) -> list[Job]:
    """Tell whoever waits; the settlements to try again."""
    again = []
    for job, value, error in results:
        _, future, until_written, _ = job
        if error is not None and until_written and isinstance(error, StoreUnavailable):
            again.append(job)
        elif future.done():  # nobody waits any more, or has been told that it is not known
            continue
        elif error is None or until_written:
            future.set_result(value)
        else:
            future.set_exception(error)
    return again
