"""The store on SQLite: one writer thread, one reader thread, commits in groups.

Operations of the ledger that arrive while the writer is busy wait together and are committed together
(`ledger.commit_group`), so the price of making a hold durable, one fsync, is shared by all of them. Nothing waits for
a timer: a group is whatever came while the last one was being written. Programs of the management side take their
turn in the same thread, each in a transaction of its own. Several processes may share one file: `BEGIN IMMEDIATE`
makes each group alone with the database.

This is not the schema (`schema.py`), not the rules (`money/books.py`) and not SQL (`ledger.py` and its neighbours).
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from types import GeneratorType
from typing import Any, TypeVar, cast

from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect

from penstock.clock import Clock
from penstock.db.ledger import Operation, Outcome, Settlement, commit_group
from penstock.db.migrate import create_in_memory
from penstock.db.program import Fetch, Program, Row, Run, Statement, Value
from penstock.db.store import Decision
from penstock.errors import StoreUnavailable

T = TypeVar("T")

GROUP_LIMIT = 512  # operations in a transaction: bounds how long one group keeps others waiting
BUSY_MS = 5_000  # how long another process may keep the write lock before the store counts as unavailable
RETRY_S = 0.05  # between attempts to write settlements the database did not take
CHECKPOINT_PAGES = 4_000  # 16 MB of log between checkpoints: fewer fsyncs of the main file than the default 1,000

_logger = logging.getLogger("penstock.store")
_dialect = sqlite_dialect(paramstyle="qmark")

Job = tuple[Operation | Program[Any], Decision[Any] | None]
Result = tuple[Job, Any, BaseException | None]


class SqliteStore:
    """The store in one SQLite file, or in memory (`path=None`) where reads share the writer's connection."""

    def __init__(self, path: str | None, *, clock: Clock, synchronous: str = "FULL") -> None:
        self.path = path
        self._clock = clock
        self._synchronous = synchronous
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Job] = []
        self._busy = False
        self._closing = False
        self._idle = asyncio.Event()
        self._handoff: SimpleQueue[list[Job] | None] = SimpleQueue()
        self._texts: dict[Statement, _Text] = {}
        self._reader: sqlite3.Connection | None = None
        self._reading = ThreadPoolExecutor(1, "penstock-reader")
        self._connection = self._connect()
        if path is None:
            create_in_memory(self._connection)
        self._writing = threading.Thread(target=self._write_forever, name="penstock-writer", daemon=True)
        self._writing.start()

    def __repr__(self) -> str:
        return f"SqliteStore({self.path or 'in memory'}, {len(self._waiting)} waiting, busy={self._busy})"

    @property
    def backlog(self) -> int:
        """Jobs that wait for the writer."""
        return len(self._waiting)

    def commit(self, operation: Operation) -> Decision[Outcome]:
        return self._submit(operation)

    def post(self, settlement: Settlement) -> None:
        self._queue((settlement, None))

    async def settled(self) -> None:
        await self._submit(_nothing())

    async def write(self, program: Program[T]) -> T:
        return cast(T, await self._submit(program))

    async def read(self, program: Program[T]) -> T:
        if self.path is None:
            return await self.write(program)
        return await self._loop.run_in_executor(self._reading, self._read, program)

    async def close(self) -> None:
        self._closing = True
        while self._waiting or self._busy:
            self._idle.clear()
            await self._idle.wait()
        self._handoff.put(None)
        await self._loop.run_in_executor(self._reading, self._writing.join)
        await self._loop.run_in_executor(self._reading, self._close_reader)
        self._reading.shutdown()
        self._connection.close()

    # on the event loop: queue, hand over, deliver

    def _submit(self, work: Operation | Program[Any]) -> Decision[Any]:
        future: Decision[Any] = Decision(loop=self._loop)
        if self._closing:
            future.set_exception(StoreUnavailable("Penstock is shutting down; nothing was charged."))
        else:
            self._queue((work, future))
        return future

    def _queue(self, job: Job) -> None:
        self._waiting.append(job)
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        jobs, self._waiting = self._waiting[:GROUP_LIMIT], self._waiting[GROUP_LIMIT:]
        self._handoff.put(jobs)

    def _deliver(self, results: list[Result]) -> None:
        again = []
        for job, value, error in results:
            future = job[1]
            if future is None:
                if isinstance(error, StoreUnavailable):
                    again.append(job)
            elif future.done():
                continue
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(value)
        self._waiting[:0] = again
        if not self._waiting:
            self._busy = False
            self._idle.set()
        elif again:
            self._loop.call_later(RETRY_S, self._hand_over)
        else:
            self._hand_over()

    # in the writer's thread

    def _write_forever(self) -> None:
        while (jobs := self._handoff.get()) is not None:
            operations = [job for job in jobs if not isinstance(job[0], GeneratorType)]
            results = self._commit(operations) if operations else []
            down = next((error for _, _, error in results if isinstance(error, StoreUnavailable)), None)
            for job in jobs:
                if isinstance(job[0], GeneratorType):  # it must not overtake settlements that are still to be written
                    results += [(job, None, down)] if down else self._attempt([job], job[0])
            self._loop.call_soon_threadsafe(self._deliver, results)

    def _commit(self, jobs: list[Job]) -> list[Result]:
        """One transaction for all; one for each when something among them cannot be written."""
        operations = cast(list[Operation], [job[0] for job in jobs])
        results = self._attempt(jobs, commit_group(operations, self._clock.now_ms()))
        error = results[0][2]
        if error is None or isinstance(error, StoreUnavailable):
            return results
        if len(jobs) > 1:
            return [result for job in jobs for result in self._commit([job])]
        _logger.error("an operation of the ledger failed: %r", operations[0], exc_info=error)
        return results

    def _attempt(self, jobs: list[Job], program: Program[Any]) -> list[Result]:
        try:
            values = self._transact(program)
        except sqlite3.OperationalError as error:
            _logger.warning("the database did not take %d operations: %s", len(jobs), error)
            unavailable = StoreUnavailable()
            return [(job, None, unavailable) for job in jobs]
        except Exception as error:
            return [(job, None, error) for job in jobs]
        if isinstance(jobs[0][0], GeneratorType):
            return [(jobs[0], values, None)]
        return [(job, value, None) for job, value in zip(jobs, values, strict=True)]

    def _transact(self, program: Program[T]) -> T:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            value = self._drive(self._connection, program)
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return value

    # in either thread

    def _drive(self, connection: sqlite3.Connection, program: Program[T]) -> T:
        try:
            query = next(program)
            while True:
                query = program.send(self._execute(connection, query))
        except StopIteration as end:
            return cast(T, end.value)

    def _execute(self, connection: sqlite3.Connection, query: Fetch | Run) -> list[Row]:
        text = self._texts.get(query.statement)
        if text is None:
            text = self._texts[query.statement] = _Text(query.statement)
        if isinstance(query, Fetch):
            return connection.execute(text.sql, text.arrange(query.values)).fetchall()
        connection.executemany(text.sql, text.arrange_all(query.rows))
        return []

    def _read(self, program: Program[T]) -> T:
        if self._reader is None:
            self._reader = self._connect()
            self._reader.execute("PRAGMA query_only = ON")
        self._reader.execute("BEGIN")
        try:
            return self._drive(self._reader, program)
        except sqlite3.OperationalError as error:
            raise StoreUnavailable() from error
        finally:
            self._reader.execute("ROLLBACK")

    def _close_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path or ":memory:", isolation_level=None, check_same_thread=False, timeout=BUSY_MS / 1000
        )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {self._synchronous}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        return connection


class _Text:
    """A statement in SQLite's words, and how its values are laid out for the driver."""

    __slots__ = ("_constants", "_places", "sql")

    def __init__(self, statement: Statement) -> None:
        self.sql, names, self._constants = statement.text(_dialect)
        places = [statement.order.index(name) if name in statement.order else name for name in names]
        self._places = None if places == list(range(len(statement.order))) else places

    def __repr__(self) -> str:
        return f"_Text({self.sql!r})"

    def arrange(self, values: Sequence[Value]) -> Sequence[Any]:
        plain = [json.dumps(value) if isinstance(value, list) else value for value in values]
        return self._arrange(plain)

    def arrange_all(self, rows: Sequence[Sequence[Value]]) -> Sequence[Sequence[Any]]:
        return rows if self._places is None else [self._arrange(row) for row in rows]

    def _arrange(self, row: Sequence[Any]) -> Sequence[Any]:
        if self._places is None:
            return row
        return [row[place] if isinstance(place, int) else self._constants[place] for place in self._places]


def _nothing() -> Program[None]:
    """A program that asks nothing: waiting for it is waiting for everything before it."""
    yield from ()
