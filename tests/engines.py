"""On which engine a test runs. Whatever takes the fixture `store_url` (or stands on one that does) runs on each.

What only SQLite has (a file with a mode and a log beside it) stays there with `only_on_sqlite`. One engine alone:
`make test ARGS="-m postgres"`, or `-m "not postgres"`, which is everything else.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tests.postgres import ask, in_thread

ON_POSTGRES = pytest.mark.postgres
EACH = ("sqlite", pytest.param("postgres", marks=ON_POSTGRES))
only_on_sqlite = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
only_on_postgres = pytest.mark.parametrize("engine", EACH[1:], indirect=True)

# Beside a server there is no place where secrets could be kept: a process on PostgreSQL has to be given them.
SECRETS = {
    "PENSTOCK_KEY_PEPPER": "pepper-for-tests-0123456789abcdef",
    "PENSTOCK_AUTH_SECRET": "auth-secret-for-tests-0123456789",
}


def is_postgres(store_url: str) -> bool:
    return store_url.startswith("postgresql:")


def file_of(store_url: str) -> str:
    """The path of a SQLite database."""
    return store_url.removeprefix("sqlite:///")


def tell(store_url: str, sql: str) -> None:
    """Give the database a command, as somebody else who works in it."""
    if is_postgres(store_url):
        in_thread(ask(store_url, sql))
        return
    with closing(sqlite3.connect(file_of(store_url), isolation_level=None)) as connection:
        connection.execute(sql)
