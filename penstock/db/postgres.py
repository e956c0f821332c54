"""The store on PostgreSQL, for many processes and hosts: the same programs and the same groups, on asyncpg.

Each process has one connection that writes, so its groups follow each other. (One whose outcome the process could not
wait for may still be about to write; the next waits for it at an advisory lock of the process.) Groups of several
processes run side by side and meet at row locks, which all take in one order: idempotency keys, credentials, lots. A
program of the other kind (management, recovery) may lock whatever it likes, for it is alone with the database, as it is
on SQLite: groups share an advisory lock, and such a program has it to itself. Everything a transaction needs of its
session is said in the transaction (`SET LOCAL`), so a pooler such as pgbouncer may stand between.

A row is never a round trip: a statement gets many as one list, and several statements go as one where the program
allows (`postgres_text.py`). So a group is four round trips: begin, load, write, commit.

"Nothing was written" is only said when it is so, and "written" likewise. When a connection breaks during COMMIT, the
server is asked what became of the transaction by its number. That it was committed is believed only if a row of ours
bears that number: a server that crashed before the transaction was on its disk, or a replica that took over, gives the
number to another one. If it stays silent for `DOUBT_S`, or no row can tell, the message says that it is unknown.

This is not the queue (`groups.py`), not the schema, not the rules of money, and not SQL of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from secrets import randbits
from typing import Any, Generic, Literal, TypeVar

import asyncpg
import msgspec

from penstock.clock import Clock
from penstock.db.groups import GroupedStore, Groups
from penstock.db.ledger import SEEN_KEYS
from penstock.db.migrate import server_name
from penstock.db.postgres_text import NUMBER, Text, Texts, as_json
from penstock.db.program import Fetch, Program, Query, Row, Run, Together, Value
from penstock.db.store import READ_S
from penstock.errors import OutcomeUnknown, StoreUnavailable

T = TypeVar("T")

GATE = 0x70656E73746F636B  # "penstock" in ASCII: groups share this advisory lock, other programs have it alone
LOOK_UP, TURN = 1, 2  # and these, each with a number: of a credential, of a process
READERS = 4  # connections for look-ups
LONG_READERS = 2  # and for what goes through whole tables, which would keep look-ups of keys waiting
CONNECT_S = 2.0  # to connect, or to wait for a free connection: bounds how late it is noticed that the server is back
GROUP_S = 5.0  # for a group as a whole, short of its COMMIT
WRITE_S = 15.0  # for another program that writes
STATEMENT_S = 4.0  # what the server gives one statement, and a lock: less than we do, so that it can still say so
SILENCE_S = 5.0  # what we give the server for one statement, and for a COMMIT
DOUBT_S = 4.0  # how long the server is asked what became of a commit
DOUBT_PAUSE_S = 0.05
ATTEMPTS = 3  # at a transaction that PostgreSQL has undone to resolve a conflict
TEXTS = 512  # prepared statements a connection keeps: more than there are

# Classes of SQLSTATE that say the program is at fault: values and constraints. Whatever else the server says (it goes
# away, is full, read-only or busy, has no such table while somebody restores it) means that it is not there for us now.
AT_FAULT = ("22", "23")
LOST = ("08", "57P", "25006")  # of these, the ones that are about the connection or the whole server
UNDONE = (asyncpg.TransactionRollbackError, asyncpg.InvalidCachedStatementError)  # and may be done again

Connected = Callable[[], AbstractAsyncContextManager[asyncpg.Connection]]

_HOW = {
    "timeout": CONNECT_S,
    "statement_cache_size": TEXTS,
    "max_cached_statement_lifetime": 0,
    "server_settings": {"application_name": "penstock"},
}
_logger = logging.getLogger("penstock.store")


class PostgresStore(GroupedStore):
    """The store in the PostgreSQL database at `url`, which has its tables already (`migrate.upgrade`)."""

    def __init__(self, url: str, *, clock: Clock) -> None:
        super().__init__(server_name(url))
        self._texts = Texts()
        self._writing = _Line(url)
        self._reading = _pool(url, READERS)
        self._reading_long = _pool(url, LONG_READERS)
        turn = f"pg_advisory_xact_lock({TURN}, {randbits(31)})"
        self._group = _Kind("READ COMMITTED", f"{turn}, pg_advisory_xact_lock_shared({GATE})", GROUP_S)
        self._alone = _Kind("READ COMMITTED", f"pg_advisory_xact_lock({GATE})", WRITE_S)
        self._groups = Groups(clock, commit=self._commit, write=self._write)

    def __repr__(self) -> str:
        return f"PostgresStore({self._name}, {self._groups!r})"

    async def read(self, program: Program[T], *, within_s: float = READ_S) -> T:
        pool = self._reading if within_s <= READ_S else self._reading_long
        kind = _Kind("REPEATABLE READ", "", within_s, within_s, within_s)
        return await self._transact(partial(_connected, pool), kind, _Work(program).begun())

    async def close(self) -> None:
        await self._groups.close()
        await self._writing.close()
        for pool in (self._reading, self._reading_long):
            try:
                await asyncio.wait_for((await pool).close(), CONNECT_S)
            except TimeoutError:
                pool.terminate()

    async def _commit(self, program: Program[T]) -> T:
        return await self._transact(self._writing.connected, self._group, _Work(program))

    async def _write(self, program: Program[T]) -> T:
        return await self._transact(self._writing.connected, self._alone, _Work(program).begun())

    async def _transact(self, connected: Connected, kind: _Kind, work: _Work[T]) -> T:
        """A program as one transaction; one that has begun and asks nothing needs none."""
        until_s = asyncio.get_running_loop().time() + kind.bound_s
        try:
            for attempt in range(ATTEMPTS):
                try:
                    await self._attempt(connected, kind, work, until_s)
                except UNDONE:
                    if attempt == ATTEMPTS - 1:
                        raise
                else:
                    break
        except Exception as error:
            raise await self._translated(kind, error) from error
        self._note(kind.name, None)
        return work.value

    async def _attempt(self, connected: Connected, kind: _Kind, work: _Work[Any], until_s: float) -> None:
        if work.done:
            return
        async with connected() as connection:
            try:
                async with asyncio.timeout_at(until_s):
                    await connection.execute(kind.begin)
                    session = _Session(connection, self._texts, kind.patience_s)
                    await work.carry_on(session)
                    if kind.gate:
                        await session.transaction()
            except BaseException as error:
                await _roll_back(connection, error)
                raise
            if not kind.gate:
                await _roll_back(connection, None)
                return
            try:
                await connection.execute("COMMIT", timeout=SILENCE_S)
                return
            except Exception as error:
                _logger.warning("asking what became of transaction %s: %s", session.number, error)
                _terminate(connection)
        await self._resolve(connected, session)

    async def _resolve(self, connected: Connected, session: _Session) -> None:
        """Find out what became of a transaction. StoreUnavailable when it was not committed, OutcomeUnknown when nobody
        can say."""
        fate = None
        with suppress(TimeoutError):
            async with asyncio.timeout(DOUBT_S):
                while fate is None:
                    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, StoreUnavailable):
                        async with connected() as connection:
                            fate = await session.fate(connection)
                    if fate is None:
                        await asyncio.sleep(DOUBT_PAUSE_S)
        if fate == "aborted":
            raise StoreUnavailable
        if fate != "committed":
            raise OutcomeUnknown

    async def _translated(self, kind: _Kind, error: Exception) -> Exception:
        """What a driver's error means: the database is not there for us now, or the program is at fault."""
        if not _is_absence(error):
            return error
        cause = error.__cause__ or error
        if _is_loss(cause):
            self._writing.expire()
            for pool in (self._reading, self._reading_long):
                await pool.expire_connections()  # before the next use they are made anew
        self._note(kind.name, f"{type(cause).__name__}: {cause}")
        return error if isinstance(error, StoreUnavailable) else StoreUnavailable()


@dataclass(frozen=True)
class _Kind:
    """A kind of transaction: how it begins, and its limits in seconds. Without a gate it is for reading."""

    isolation: str
    gate: str
    bound_s: float
    statement_s: float = STATEMENT_S
    silence_s: float = SILENCE_S

    @property
    def name(self) -> str:
        return "writing" if self.gate else "reading"

    @cached_property
    def begin(self) -> str:
        """Begin, and wait at the gate if there is one, in one round trip.

        A client that falls silent loses its transaction, or its locks would keep everybody waiting.
        """
        limits = {
            "statement_timeout": self.statement_s,
            "lock_timeout": self.statement_s,
            "idle_in_transaction_session_timeout": SILENCE_S,
        }
        words = "".join(f"; SET LOCAL {name} = {limit * 1000:.0f}" for name, limit in limits.items())
        words += f"; SELECT {self.gate}" if self.gate else ""
        return f"BEGIN ISOLATION LEVEL {self.isolation}; SET LOCAL synchronous_commit = on{words}"

    @cached_property
    def patience_s(self) -> float | None:
        """How long a statement may be silent; None where the bound of the whole is no longer."""
        return self.silence_s if self.silence_s < self.bound_s else None


class _Work(Generic[T]):
    """A program under way, and what it has been told.

    A program cannot be begun anew, but what it knows of the world is only what it was told. When its transaction was
    undone, another one that tells it the same can carry on with it.
    """

    def __init__(self, program: Program[T]) -> None:
        self._program = program
        self._told: list[tuple[Query, list[Any]]] = []
        self._asks: Query | None = None
        self._begun = False
        self.value: T

    def __repr__(self) -> str:
        return f"_Work({len(self._told)} queries answered, done={self.done})"

    @property
    def done(self) -> bool:
        return self._begun and not self._told and self._asks is None

    def begun(self) -> _Work[T]:
        """The same, with its first question known."""
        if not self._begun:
            self._begun = True
            self._tell(None)
        return self

    async def carry_on(self, session: _Session) -> None:
        """Go on to the end. StoreUnavailable when this transaction does not tell what the one before has told."""
        self.begun()
        for query, rows in self._told:
            if await session.execute(query) != rows:
                raise StoreUnavailable("The ledger had to begin anew and found something else; nothing was charged.")
        while self._asks is not None:
            rows = await session.execute(self._asks)
            self._told.append((self._asks, rows))
            self._tell(rows)

    def _tell(self, rows: Any) -> None:
        try:
            self._asks = self._program.send(rows)
        except StopIteration as end:
            self._asks, self.value = None, end.value


@dataclass(slots=True)
class _Session:
    """A connection in a transaction, and the statements in its words. `number` is the transaction's, once it is known:
    what writes together brings it along. `witness` is the first row it inserts that can be found again."""

    connection: asyncpg.Connection
    texts: Texts
    patience_s: float | None
    number: str | None = None
    witness: tuple[Text, Sequence[Value]] | None = None

    async def transaction(self) -> str:
        """The transaction's number."""
        if self.number is None:
            self.number = str(await self.connection.fetchval(f"SELECT {NUMBER}", timeout=self.patience_s))
        return self.number

    async def fate(self, connection: asyncpg.Connection) -> Literal["committed", "aborted", "unknown"] | None:
        """What became of the transaction, asked on another connection; None while that is open."""
        number = await self.transaction()
        status = await connection.fetchval("SELECT pg_xact_status($1::text::xid8)", number)
        if status == "committed":
            return "committed" if await self._is_witnessed(connection, int(number) % 2**32) else "unknown"
        return "aborted" if status == "aborted" else None

    async def execute(self, query: Query) -> list[Any]:
        if isinstance(query, Together):
            return await self._execute_together(query.queries)
        text = self.texts.of(query.statement)
        if isinstance(query, Run):
            self._note_witness(query)
            for rows in text.rounds(query.rows):
                await self.connection.execute(text.many, as_json(rows), timeout=self.patience_s)
            return []
        if query.statement is SEEN_KEYS:
            await self._look_up_alone(query.values[0])
        found = await self.connection.fetch(text.sql, *text.arrange(query.values), timeout=self.patience_s)
        return [tuple(row) for row in found]

    async def _execute_together(self, queries: Sequence[Fetch | Run]) -> list[list[Row]]:
        """As one statement, unless one of them needs several, because its rows mean the same row."""
        for query in queries:
            if isinstance(query, Run) and len(self.texts.of(query.statement).rounds(query.rows)) > 1:
                return [await self.execute(each) for each in queries]
        if not queries:
            return []
        for query in queries:
            if isinstance(query, Run):
                self._note_witness(query)
        values = as_json([query.rows if isinstance(query, Run) else query.values for query in queries])
        number, found = await self.connection.fetchrow(self.texts.together(queries), values, timeout=self.patience_s)
        self.number = number or self.number
        return [rows or [] for rows in msgspec.json.decode(found)]

    def _note_witness(self, query: Run) -> None:
        text = self.texts.of(query.statement)
        if self.witness is None and text.can_witness and query.rows:
            self.witness = text, query.rows[0]

    async def _is_witnessed(self, connection: asyncpg.Connection, number: int) -> bool:
        if self.witness is None:
            return False
        text, row = self.witness
        question, values = text.witness(row)
        return bool(await connection.fetchval(question, *values) == str(number))

    async def _look_up_alone(self, credentials: Value) -> None:
        """Let one group at a time look up idempotency keys of a credential, so that the next one sees what it wrote.

        Rows cannot be locked that are not there yet. In the order of what is locked, as everything is.
        """
        await self.connection.execute(
            "SELECT pg_advisory_xact_lock($1, id) FROM (SELECT DISTINCT hashtext(name) AS id"
            " FROM jsonb_array_elements_text($2::jsonb) AS name ORDER BY id) AS credential",
            LOOK_UP,
            as_json(credentials),
            timeout=self.patience_s,
        )


class _Line:
    """A connection for one user, kept from one transaction to the next and made anew when it was lost. A pool would
    cost a group as much as its statements do."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection | None = None
        self._expired = False

    def __repr__(self) -> str:
        return f"_Line(connected={self._connection is not None})"

    def connected(self) -> _Line:
        return self

    async def __aenter__(self) -> asyncpg.Connection:
        connection = self._connection
        if connection is None or self._expired or connection.is_closed():
            connection = await self._connect()
        return connection

    async def __aexit__(self, *_: object) -> None:
        """It stays open."""

    def expire(self) -> None:
        """Have it made anew before its next use."""
        self._expired = True

    async def close(self) -> None:
        if self._connection is not None:
            try:
                await self._connection.close(timeout=CONNECT_S)
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                _terminate(self._connection)

    async def _connect(self) -> asyncpg.Connection:
        """StoreUnavailable when there is no server, whatever the reason: nothing was asked yet."""
        if self._connection is not None:
            _terminate(self._connection)
        try:
            self._connection = await asyncpg.connect(self._url, **_HOW)
        except Exception as error:
            raise StoreUnavailable from error
        self._expired = False
        return self._connection


def _pool(url: str, size: int) -> asyncpg.Pool:
    """Connections that are made when they are needed, and again when they were lost."""
    return asyncpg.create_pool(
        url,
        min_size=0,
        max_size=size,
        max_queries=2**62,  # a connection does not wear out
        reset=_keep_as_it_is,
        **_HOW,
    )


async def _keep_as_it_is(connection: asyncpg.Connection) -> None:
    """No transaction of ours leaves anything in the session, so nothing needs a round trip to be undone."""


@asynccontextmanager
async def _connected(pool: asyncpg.Pool) -> AsyncIterator[asyncpg.Connection]:
    """A connection for a while. StoreUnavailable when there is none, whatever the reason: nothing was asked yet."""
    try:
        connection = await (await pool).acquire(timeout=CONNECT_S)
    except Exception as error:
        raise StoreUnavailable from error
    try:
        yield connection
    finally:
        await pool.release(connection)


async def _roll_back(connection: asyncpg.Connection, error: BaseException | None) -> None:
    """End a transaction, with its connection when that may still be busy or is not answering."""
    if isinstance(error, OSError | asyncio.CancelledError):
        _terminate(connection)
        return
    try:
        await connection.execute("ROLLBACK", timeout=SILENCE_S)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        _terminate(connection)


def _terminate(connection: asyncpg.Connection) -> None:
    with suppress(asyncpg.InterfaceError):  # it has gone by itself
        connection.terminate()


def _is_absence(error: Exception) -> bool:
    if isinstance(error, asyncpg.PostgresError):
        return not str(error.sqlstate).startswith(AT_FAULT)
    if isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return not isinstance(error, ValueError)  # a value that does not fit its column is the program's
    return isinstance(error, OSError | StoreUnavailable)


def _is_loss(error: BaseException) -> bool:
    """Whether other connections are likely to be as dead, or to lead to a server that only reads from now on."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate).startswith(LOST)
    return isinstance(error, OSError)
