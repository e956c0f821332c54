"""The store on SQLite: groups are decided on the event loop, and made durable in a thread.

A group's statements touch pages in memory and take microseconds; what takes long is the commit with its fsync, and
waiting for another process to let go of the database. Those two happen in the writer's thread, everything else of a
group on the loop: rows do not change threads, and nobody waits for the interpreter. Programs of the management side
may take longer, so they run in the thread as a whole, and reads in a thread and on a connection of their own. Several
processes may share one file: `BEGIN IMMEDIATE` makes each transaction alone with the database.

This is not the queue (`groups.py`), not the schema (`schema.py`), not the rules (`money/books.py`) and not SQL
(`ledger.py` and its neighbours).
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar, cast

from sqlalchemy import Delete, delete, select
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.sql.visitors import iterate

from penstock.clock import Clock
from penstock.db.groups import GroupedStore, Groups
from penstock.db.ledger import Settlement
from penstock.db.migrate import create_tables
from penstock.db.program import EACH, Fetch, Program, Query, Row, Statement, Together, Value, each_of
from penstock.db.slips import Slips
from penstock.db.store import READ_S
from penstock.errors import StoreUnavailable

T = TypeVar("T")

BUSY_MS = 5_000  # how long another process may keep the write lock before the store counts as unavailable
BUSY_PAUSE_S = 0.001  # between looks whether it has let go
CHECKPOINT_PAGES = 4_000  # 16 MB of log between checkpoints: fewer fsyncs of the main file than the default 1,000
LONG_READS = 2  # at once, as on PostgreSQL: each has a thread of those that look up the names of upstreams as well
WIDTHS = (1, 8, 64, 512)  # of lists of values in a statement; a shorter list is filled up with its last value

AT_FAULT = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.ProgrammingError)

_dialect = sqlite_dialect(paramstyle="qmark")


class SqliteStore(GroupedStore):
    """The store in one SQLite file, or in memory (`path=None`) where reads share the writer's connection."""

    def __init__(
        self, path: str | None, *, clock: Clock, synchronous: str = "FULL", slips: Slips | None = None
    ) -> None:
        super().__init__(path or "in memory")
        self.path = path
        self.slips = slips
        self._loop = asyncio.get_running_loop()
        self._left = self._loop.create_future()  # of a settlement that nobody need wait for
        self._left.set_result(None)
        self._writer = _Connection(path, synchronous)
        self._reader = self._writer if path is None else _Connection(path, synchronous, busy_s=READ_S)
        if path is None:
            create_tables(self._writer.driver)
        self._writing = _Worker(self._loop, "penstock-writer")
        self._reading = _Worker(self._loop, "penstock-reader")
        self._reading_long = asyncio.Semaphore(LONG_READS)
        self._groups = Groups(clock, commit=self._commit, write=self._write)

    def __repr__(self) -> str:
        return f"SqliteStore({self.path or 'in memory'}, {self._groups!r})"

    async def read(self, program: Program[T], *, within_s: float = READ_S) -> T:
        if self.path is None:
            return await self.write(program)
        return await self._noted("reading", self._read(self.path, program, within_s))

    def post(self, settlement: Settlement) -> asyncio.Future[Any]:
        slip = None if self.slips is None else self.slips.leave(settlement)
        if slip is None:
            return self._groups.post(settlement)
        self._groups.post_slip(settlement, slip)
        return self._left

    async def close(self) -> None:
        if await self._groups.close() and self.slips is not None:
            self.slips.close()
        for worker, connection in ((self._writing, self._writer), (self._reading, self._reader)):
            await worker.do(connection.driver.close)
            worker.end()

    async def _commit(self, program: Program[T]) -> T:
        return await self._noted("writing", self._commit_group(program))

    async def _write(self, program: Program[T]) -> T:
        return await self._noted("writing", self._writing.do(self._writer.transact, program))

    async def _commit_group(self, program: Program[T]) -> T:
        """Begun and decided here, made durable in the thread."""
        self._writer.find()
        try:
            if not self._writer.begin():
                await self._writing.do(self._writer.begin_patiently)
            value = self._writer.drive(program)
            await self._writing.do(self._writer.commit)
        except BaseException:  # in the thread: were we told to stop, the commit may still be going on there
            await self._writing.do(self._writer.roll_back)
            raise
        return value

    async def _read(self, path: str, program: Program[T], within_s: float) -> T:
        self._reader.find()
        async with asyncio.timeout(within_s):
            if within_s > READ_S:
                await self._reading_long.acquire()
                reading = self._loop.run_in_executor(None, _read_apart, path, program)
                reading.add_done_callback(self._read_long)
                return await asyncio.shield(reading)
            return cast(T, await self._reading.do(self._reader.read, program))

    def _read_long(self, reading: asyncio.Future[Any]) -> None:
        """A long read has ended, which it does whoever has stopped waiting for it."""
        self._reading_long.release()
        if not reading.cancelled():
            reading.exception()

    async def _noted(self, what: str, work: Awaitable[T]) -> T:
        """What a driver's error means: the database is not there for us now (it is locked, full, damaged, gone:
        StoreUnavailable), or the program is at fault."""
        try:
            value = await work
        except AT_FAULT:
            raise
        except (sqlite3.DatabaseError, OSError) as error:
            self._note(what, str(error) or "it does not answer")
            raise StoreUnavailable from error
        self._note(what, None)
        return value


class _Worker:
    """A thread that does one thing after another for the event loop. Half the cost of an executor's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self._loop = loop
        self._work: SimpleQueue[tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]] | None] = SimpleQueue()
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def do(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """Call `function` in the thread, whatever becomes of the future."""
        future = self._loop.create_future()
        self._work.put((future, function, arguments))
        return future

    def end(self) -> None:
        """Let the thread go once it has done what it was given."""
        self._work.put(None)

    def _run(self) -> None:
        while (job := self._work.get()) is not None:
            future, function, arguments = job
            try:
                value, error = function(*arguments), None
            except BaseException as raised:
                value, error = None, raised
            with suppress(RuntimeError):  # the loop has been closed meanwhile: nobody waits
                self._loop.call_soon_threadsafe(_resolve, future, value, error)


def _resolve(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


class _Connection:
    """A connection, and programs run on it. Used by one thread at a time."""

    def __init__(self, path: str | None, synchronous: str, *, busy_s: float = 0) -> None:
        self._path = os.path.abspath(path) if path is not None else None
        self.driver = sqlite3.connect(path or ":memory:", isolation_level=None, check_same_thread=False, timeout=busy_s)
        self._texts: dict[Statement, _Text] = {}
        self._patiently("PRAGMA journal_mode = WAL")
        self.driver.execute(f"PRAGMA synchronous = {synchronous}")
        self.driver.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        self._file = _identity(path)

    def __repr__(self) -> str:
        return f"_Connection(in_transaction={self.driver.in_transaction})"

    def find(self) -> None:
        """FileNotFoundError when our file has lost its name: what is written into it now would be lost with it."""
        if _identity(self._path) != self._file:
            raise FileNotFoundError("the file is gone, or another one has its name; put it back, or restart")

    def begin(self) -> bool:
        """Begin to write, if nobody else is writing."""
        try:
            self.driver.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if _is_busy(error):
                return False
            raise
        return True

    def begin_patiently(self) -> None:
        """Begin to write as soon as nobody else does; sqlite3.OperationalError after `BUSY_MS`."""
        self._patiently("BEGIN IMMEDIATE")

    def drive(self, program: Program[T]) -> T:
        """Run a program to its result."""
        try:
            query = next(program)
            while True:
                query = program.send(self._execute(query))
        except StopIteration as end:
            return cast(T, end.value)

    def commit(self) -> None:
        self.driver.execute("COMMIT")

    def roll_back(self) -> None:
        """Leave the transaction. When even that fails, the next one fails too, and tries this again; or the connection
        has been closed, which has left it."""
        with suppress(sqlite3.Error):
            if self.driver.in_transaction:
                self.driver.execute("ROLLBACK")

    def transact(self, program: Program[T]) -> T:
        """A program as one transaction."""
        self.find()
        try:
            self.begin_patiently()
            value = self.drive(program)
            self.commit()
        except BaseException:
            self.roll_back()
            raise
        return value

    def read(self, program: Program[T]) -> T:
        """A program that does not write, on one snapshot."""
        try:
            self.driver.execute("BEGIN")
            return self.drive(program)
        finally:
            self.roll_back()

    def _patiently(self, sql: str) -> None:
        deadline_s = time.monotonic() + BUSY_MS / 1000
        while True:
            try:
                self.driver.execute(sql)
            except sqlite3.OperationalError as error:
                if not _is_busy(error) or time.monotonic() >= deadline_s:
                    raise
                time.sleep(BUSY_PAUSE_S)
            else:
                return

    def _execute(self, query: Query) -> list[Row]:
        if isinstance(query, Together):
            return [self._execute(each) for each in query.queries]
        text = self._texts.get(query.statement)
        if text is None:
            text = self._texts[query.statement] = _Text(query.statement)
        if isinstance(query, Fetch):
            return text.fetch(self.driver, query.values)
        self.driver.executemany(text.sql, text.arrange_all(query.rows))
        return []


def _read_apart(path: str, program: Program[T]) -> T:
    """A read on a connection of its own, for one that takes long."""
    connection = _Connection(path, "OFF", busy_s=READ_S)
    try:
        return connection.read(program)
    finally:
        connection.driver.close()


def _identity(path: str | None) -> tuple[int, int] | None:
    """Which file has this name now; None for none."""
    try:
        found = os.stat(path) if path is not None else None
    except OSError:
        return None
    return found and (found.st_dev, found.st_ino)


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


class _Text:
    """A statement in SQLite's words, and how its values are laid out for the driver."""

    __slots__ = ("_constants", "_delete", "_each", "_places", "_wide", "sql")

    def __init__(self, statement: Statement) -> None:
        construct: Any = statement.construct
        order = statement.order
        self._delete: _Text | None = None
        if (
            isinstance(construct, Delete) and construct._returning and construct.whereclause is not None
        ):  # as one statement it is twice as dear
            self._delete = _Text(Statement(delete(construct.table).where(construct.whereclause), *order))
            statement = Statement(select(*construct._returning).where(construct.whereclause), *order)
        self.sql, names, self._constants = statement.text(_dialect)
        places = [order.index(name) if name in order else name for name in names]
        self._places = None if places == list(range(len(order))) else places
        each = [found.parameter.key for found in iterate(construct) if isinstance(found, each_of)]
        self._each = (order.index(each[0]), names.index(each[0])) if each else None
        self._wide: dict[int, str] = {}

    def __repr__(self) -> str:
        return f"_Text({self.sql!r})"

    def fetch(self, driver: sqlite3.Connection, values: Sequence[Value]) -> list[Row]:
        """The rows; for a list to find each value of, in as few goes as its length allows."""
        rows: list[Row] = []
        for sql, arranged in self._goes(values):
            rows += driver.execute(sql, arranged).fetchall()
        if self._delete is not None:
            for sql, arranged in self._delete._goes(values):
                driver.execute(sql, arranged)
        return rows

    def _goes(self, values: Sequence[Value]) -> Iterator[tuple[str, Sequence[Any]]]:
        """SQL and its values, go by go."""
        if self._each is None:
            yield self.sql, self._arrange(_plain(values))
            return
        given, place = self._each
        each: Any = values[given]
        arranged = self._arrange(_plain([*values[:given], None, *values[given + 1 :]]))
        before, after = arranged[:place], arranged[place + 1 :]
        for start in range(0, len(each), WIDTHS[-1]):
            some = each[start : start + WIDTHS[-1]]
            width = next(width for width in WIDTHS if width >= len(some))
            yield self._of_width(width), [*before, *some, *[some[-1]] * (width - len(some)), *after]

    def _of_width(self, width: int) -> str:
        """The SQL for so many values. They come in few widths, so that the driver can keep what it has prepared."""
        sql = self._wide.get(width)
        if sql is None:
            sql = self._wide[width] = self.sql.replace(f"{EACH}?", ", ".join("?" * width))
        return sql

    def arrange_all(self, rows: Sequence[Sequence[Value]]) -> Sequence[Sequence[Any]]:
        return rows if self._places is None else [self._arrange(row) for row in rows]

    def _arrange(self, row: Sequence[Any]) -> Sequence[Any]:
        if self._places is None:
            return row
        return [row[place] if isinstance(place, int) else self._constants[place] for place in self._places]


def _plain(values: Sequence[Value]) -> Sequence[Any]:
    """Values as the driver takes them: a list is JSON to SQLite."""
    return [json.dumps(value) if isinstance(value, list) else value for value in values]
