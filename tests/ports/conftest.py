"""Fixtures of the store: in memory and on a file, with an account, a key and a serving process in it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.db.sqlite import SqliteStore
from tests.ledger import HandClock, furnish, make_tables


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture(params=["memory", "file"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: HandClock) -> AsyncIterator[SqliteStore]:
    path = None
    if request.param == "file":
        path = str(tmp_path / "penstock.db")
        make_tables(path)
    opened = SqliteStore(path, clock=clock)
    await opened.write(furnish())
    yield opened
    await opened.close()
