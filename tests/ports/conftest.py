"""The event loops of the tests, and fixtures of the store: in memory, on a file and on PostgreSQL, with an account, a
key and a serving process in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from penstock.db.sqlite import SqliteStore
from penstock.db.store import Store
from tests.ledger import HandClock, furnish, make_tables

# These name SQLite's own exception. `test_postgres.py` has each of them with PostgreSQL's.
ABOUT_SQLITE_ERRORS = (
    "test_money_for_nobody_and_nothing_are_not_granted",
    "test_an_operation_that_cannot_be_written_does_not_take_its_group_down",
    "test_a_program_that_fails_leaves_nothing_behind_and_the_next_one_works",
)


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """asyncio's own loop; what is marked `each_loop` runs on uvloop's as well."""
    own = {"asyncio": asyncio.new_event_loop}
    return own | {"uvloop": uvloop.new_event_loop} if item.get_closest_marker("each_loop") else own


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(params=["memory", "file", pytest.param("postgres", marks=pytest.mark.postgres)])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> AsyncIterator[Store]:
    opened = _open(request, tmp_path, clock)
    await opened.write(furnish())
    yield opened
    await opened.close()


def _open(request: pytest.FixtureRequest, folder: Path, clock: HandClock) -> Store:
    if request.param == "postgres":
        if request.node.originalname in ABOUT_SQLITE_ERRORS:
            pytest.skip("it is about SQLite's own exception")
        from penstock.db.postgres import PostgresStore

        return PostgresStore(request.getfixturevalue("database"), clock=clock)
    path = None
    if request.param == "file":
        path = str(folder / "penstock.db")
        make_tables(path)
    return SqliteStore(path, clock=clock)
