"""The store on PostgreSQL, for many processes and hosts: the same programs and the same groups, on asyncpg.

Each process has one connection that writes, so its groups follow each other. Groups of several processes run side by
side and meet at row locks, which all take in one order: idempotency keys, credentials, lots. A program of the other
kind (management, recovery) may lock whatever it likes, for it is alone with the database, as it is on SQLite: groups
share an advisory lock, and such a program has it to itself. Everything a transaction needs of its session is said in
the transaction (`SET LOCAL`), so a pooler such as pgbouncer may stand between.

A row is never a round trip. A statement that writes many rows gets them as one array a column: `INSERT … VALUES`
becomes `INSERT … SELECT … FROM unnest(…)`, derived from the same construct (`_Text`).

"Nothing was written" is only said when it is so. When a connection breaks during COMMIT, the server is asked what
became of the transaction by its number; only if it stays silent for `DOUBT_S` does the message say that it is unknown.

This is not the queue (`groups.py`), not the schema, not the rules of money, and not SQL of its own.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import asyncpg
from sqlalchemy import BindParameter, Delete, Insert, Update
from sqlalchemy.dialects.postgresql import dialect as postgres_dialect
from sqlalchemy.dialects.sqlite.dml import OnConflictDoNothing, OnConflictDoUpdate
from sqlalchemy.engine.interfaces import BindTyping
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import iterate

from penstock.clock import Clock
from penstock.db.groups import GroupedStore, Groups
from penstock.db.ledger import SEEN_KEYS
from penstock.db.migrate import server_name
from penstock.db.program import Program, Query, Row, Run, Statement, Together, Value
from penstock.db.store import READ_S
from penstock.errors import OutcomeUnknown, StoreUnavailable

T = TypeVar("T")

GATE = 0x70656E73746F636B  # "penstock" in ASCII: groups share this advisory lock, other programs have it alone
NUMBER = "pg_current_xact_id()::text"  # of a transaction: by it the server knows later what became of it
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

_logger = logging.getLogger("penstock.store")
_dialect = postgres_dialect(paramstyle="numeric_dollar")  # type: ignore[no-untyped-call]
_dialect.bind_typing = BindTyping.NONE  # the server knows what type each place is; the driver asks it


class PostgresStore(GroupedStore):
    """The store in the PostgreSQL database at `url`, which has its tables already (`migrate.upgrade`)."""

    def __init__(self, url: str, *, clock: Clock) -> None:
        super().__init__(server_name(url))
        self._texts: dict[Statement, _Text] = {}
        self._writing = _pool(url, 1)
        self._reading = _pool(url, READERS)
        self._reading_long = _pool(url, LONG_READERS)
        self._group = _Kind("READ COMMITTED", "pg_advisory_xact_lock_shared", GROUP_S)
        self._alone = _Kind("READ COMMITTED", "pg_advisory_xact_lock", WRITE_S)
        self._groups = Groups(clock, commit=self._commit, write=self._write)

    def __repr__(self) -> str:
        return f"PostgresStore({self._name}, {self._groups!r})"

    async def read(self, program: Program[T], *, within_s: float = READ_S) -> T:
        pool = self._reading if within_s <= READ_S else self._reading_long
        return await self._transact(pool, _Kind("REPEATABLE READ", "", within_s, within_s, within_s), program)

    @property
    def _pools(self) -> tuple[asyncpg.Pool, ...]:
        return self._writing, self._reading, self._reading_long

    async def close(self) -> None:
        await self._groups.close()
        for pool in self._pools:
            try:
                await asyncio.wait_for((await pool).close(), CONNECT_S)
            except TimeoutError:
                pool.terminate()

    async def _commit(self, program: Program[T]) -> T:
        return await self._transact(self._writing, self._group, program)

    async def _write(self, program: Program[T]) -> T:
        return await self._transact(self._writing, self._alone, program)

    async def _transact(self, pool: asyncpg.Pool, kind: _Kind, program: Program[T]) -> T:
        """A program as one transaction; one that asks nothing needs none."""
        work = _Work(program)
        until_s = asyncio.get_running_loop().time() + kind.bound_s
        try:
            for attempt in range(ATTEMPTS):
                try:
                    await self._attempt(pool, kind, work, until_s)
                except UNDONE:
                    if attempt == ATTEMPTS - 1:
                        raise
                else:
                    break
        except Exception as error:
            raise await self._translated(kind, error) from error
        self._note(kind.name, None)
        return work.value

    async def _attempt(self, pool: asyncpg.Pool, kind: _Kind, work: _Work[Any], until_s: float) -> None:
        if work.done:
            return
        async with _connected(pool) as connection:
            try:
                async with asyncio.timeout_at(until_s):
                    await kind.begin(connection)
                    session = _Session(connection, self._texts, kind.silence_s)
                    await work.carry_on(session)
                    number = await session.transaction() if kind.gate else None
            except BaseException as error:
                await _roll_back(connection, error)
                raise
            if number is None:
                await _roll_back(connection, None)
                return
            try:
                await connection.execute("COMMIT", timeout=SILENCE_S)
                return
            except Exception as error:
                _logger.warning("asking what became of transaction %s: %s", number, error)
                _terminate(connection)
        await self._resolve(pool, number)

    async def _resolve(self, pool: asyncpg.Pool, number: str) -> None:
        """Find out whether the transaction of that number was committed. StoreUnavailable when it was not."""
        state = None
        with suppress(TimeoutError):
            async with asyncio.timeout(DOUBT_S):
                while state not in ("committed", "aborted"):
                    with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError, StoreUnavailable):
                        async with _connected(pool) as connection:
                            state = await connection.fetchval("SELECT pg_xact_status($1::text::xid8)", number)
                    if state not in ("committed", "aborted"):
                        await asyncio.sleep(DOUBT_PAUSE_S)
        if state == "aborted":
            raise StoreUnavailable
        if state != "committed":
            raise OutcomeUnknown

    async def _translated(self, kind: _Kind, error: Exception) -> Exception:
        """What a driver's error means: the database is not there for us now, or the program is at fault."""
        if not _is_absence(error):
            return error
        cause = error.__cause__ or error
        if _is_loss(cause):
            for pool in self._pools:
                await pool.expire_connections()  # before the next use they are made anew
        self._note(kind.name, f"{type(cause).__name__}: {cause}")
        return error if isinstance(error, StoreUnavailable) else StoreUnavailable()


@dataclass(frozen=True, slots=True)
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

    async def begin(self, connection: asyncpg.Connection) -> None:
        """Begin, and wait at the gate if there is one, in one round trip.

        A client that falls silent loses its transaction, or its locks would keep everybody waiting.
        """
        limits = {
            "statement_timeout": self.statement_s,
            "lock_timeout": self.statement_s,
            "idle_in_transaction_session_timeout": SILENCE_S,
        }
        words = "".join(f"; SET LOCAL {name} = {limit * 1000:.0f}" for name, limit in limits.items())
        words += f"; SELECT {self.gate}({GATE})" if self.gate else ""
        await connection.execute(f"BEGIN ISOLATION LEVEL {self.isolation}; SET LOCAL synchronous_commit = on{words}")


class _Work(Generic[T]):
    """A program under way, and what it has been told.

    A program cannot be begun anew, but what it knows of the world is only what it was told. When its transaction was
    undone, another one that tells it the same can carry on with it.
    """

    def __init__(self, program: Program[T]) -> None:
        self._program = program
        self._told: list[tuple[Query, list[Row]]] = []
        self._asks: Query | None = None
        self.value: T
        self._tell(None)

    def __repr__(self) -> str:
        return f"_Work({len(self._told)} queries answered, done={self.done})"

    @property
    def done(self) -> bool:
        return not self._told and self._asks is None

    async def carry_on(self, session: _Session) -> None:
        """Go on to the end. StoreUnavailable when this transaction does not tell what the one before has told."""
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
    what writes together brings it along."""

    connection: asyncpg.Connection
    texts: dict[Statement, _Text]
    silence_s: float
    number: str | None = None

    async def transaction(self) -> str:
        """The transaction's number."""
        if self.number is None:
            self.number = str(await self.connection.fetchval(f"SELECT {NUMBER}", timeout=self.silence_s))
        return self.number

    async def execute(self, query: Query) -> list[Row]:
        if isinstance(query, Together):
            await self._run_together(query.runs)
            return []
        text = self._text(query.statement)
        if isinstance(query, Run):
            for columns in text.columns(query.rows):
                await self.connection.execute(text.many, *columns, timeout=self.silence_s)
            return []
        if query.statement is SEEN_KEYS:
            await self._look_up_alone(query.values[0])
        found = await self.connection.fetch(text.sql, *text.arrange(query.values), timeout=self.silence_s)
        return [tuple(row) for row in found]

    def _text(self, statement: Statement) -> _Text:
        text = self.texts.get(statement)
        if text is None:
            text = self.texts[statement] = _Text(statement)
        return text

    async def _run_together(self, runs: Sequence[Run]) -> None:
        """Runs as parts of one statement, but for those that need several, because their rows mean the same row."""
        parts: list[str] = []
        values: list[tuple[Any, ...]] = []
        for run in runs:
            text = self._text(run.statement)
            first, *others = text.columns(run.rows)
            if others:
                await self.execute(run)
                continue
            parts.append(f"part{len(parts)} AS ({text.shifted(len(values))})")
            values += first
        if parts:
            sql = f"WITH {', '.join(parts)} SELECT {NUMBER}"
            self.number = str(await self.connection.fetchval(sql, *values, timeout=self.silence_s))

    async def _look_up_alone(self, credentials: Value) -> None:
        """Let one group at a time look up idempotency keys of a credential, so that the next one sees what it wrote.

        Rows cannot be locked that are not there yet. In the order of what is locked, as everything is.
        """
        await self.connection.execute(
            "SELECT pg_advisory_xact_lock(1, id) FROM"
            " (SELECT DISTINCT hashtext(name) AS id FROM unnest($1::text[]) AS name ORDER BY id) AS credential",
            credentials,
            timeout=self.silence_s,
        )


class _Text:
    """A statement in PostgreSQL's words: `sql` for one set of values; `many` for rows, given as an array a column."""

    __slots__ = ("_arrays", "_constants", "_identity", "_names", "_order", "_places", "many", "sql")

    def __init__(self, statement: Statement) -> None:
        self.sql, self._names, self._constants = statement.text(_dialect)
        self._order = statement.order
        self._places = [self._order.index(name) if name in self._order else name for name in self._names]
        self.many = ""
        self._identity: list[int] = []
        if isinstance(statement.construct, Insert | Update | Delete) and self._names:
            self.many = self._for_many(statement.construct)
            self._identity = [self._order.index(name) for name in _identity(statement.construct, self._order)]

    def __repr__(self) -> str:
        return f"_Text({self.sql!r})"

    def arrange(self, values: Sequence[Value]) -> list[Any]:
        """The values as `sql` wants them."""
        return [values[place] if isinstance(place, int) else self._constants[place] for place in self._places]

    def columns(self, rows: Sequence[Sequence[Value]]) -> Iterable[list[tuple[Any, ...]]]:
        """The rows as `many` wants them. More than one set when rows mean the same row, which then is written as often
        as they say, in their order: one statement can touch a row but once."""
        seen: Counter[tuple[Value, ...]] = Counter()
        rounds: list[list[list[Any]]] = []
        for number, row in enumerate(rows):
            same = tuple(row[place] for place in self._identity) if self._identity else (number,)
            if seen[same] == len(rounds):
                rounds.append([])
            rounds[seen[same]].append(self.arrange(row))
            seen[same] += 1
        return [list(zip(*each, strict=True)) for each in rounds]

    def shifted(self, by: int) -> str:
        """`many`, for values that stand behind `by` others."""
        return re.sub(r"\$(\d+)", lambda place: f"${int(place[1]) + by}", self.many)

    def _for_many(self, construct: Insert | Update | Delete) -> str:
        """The same statement with its parameters taken from arrays."""
        single: Any = (construct.inline() if isinstance(construct, Insert) else construct).compile(dialect=_dialect)
        types = [single.binds[name].type.compile(_dialect) for name in self._names]
        arrays = ", ".join(f"${number}::{type}[]" for number, type in enumerate(types, 1))
        given = f"unnest({arrays}) AS given({', '.join(f'p{number}' for number in range(1, len(types) + 1))})"
        sql = re.sub(r"\$(\d+)", r"given.p\1", str(single))
        if isinstance(construct, Insert):
            place, instead = r" VALUES \((.*?)\)", rf" SELECT \1 FROM {given}"  # noqa: S608 -- values are bound
        else:
            word = "FROM" if isinstance(construct, Update) else "USING"
            place, instead = r"\s+WHERE ", f" {word} {given} WHERE "
        many, changes = re.subn(place, instead, sql, count=1)
        if not changes:
            raise LookupError(f"{self!r} cannot be run for many rows at once")
        return many


def _identity(construct: Insert | Update | Delete, order: Sequence[str]) -> list[str]:
    """The parameters that say which row is meant; none when every row is a new one."""
    if isinstance(construct, Insert):
        key = [column.name for column in construct.table.primary_key.columns]  # type: ignore[attr-defined]
        return key if set(key) <= set(order) else []
    found = {each.key for each in iterate(construct.whereclause) if isinstance(each, BindParameter)}
    return [name for name in order if name in found]


@compiles(OnConflictDoUpdate, "postgresql")
@compiles(OnConflictDoNothing, "postgresql")
def _on_conflict(element: Any, compiler: SQLCompiler, **kw: Any) -> str:
    """The clause is the same on both engines; PostgreSQL could name a constraint as well, which ours never do."""
    element.constraint_target = None
    return str(getattr(compiler, f"visit_{element.__visit_name__}")(element, **kw))


def _pool(url: str, size: int) -> asyncpg.Pool:
    """Connections that are made when they are needed, and again when they were lost."""
    return asyncpg.create_pool(
        url,
        min_size=0,
        max_size=size,
        max_queries=2**62,  # a connection does not wear out
        reset=_keep_as_it_is,
        timeout=CONNECT_S,
        statement_cache_size=TEXTS,
        max_cached_statement_lifetime=0,
        server_settings={"application_name": "penstock"},
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
