"""What all tests share: how they are spread over processes, how hypothesis draws its examples, and a database for each
test on each engine."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from penstock.app import open_office
from penstock.config import Settings
from penstock.config_file import load
from penstock.db import migrate
from penstock.operations.office import Office
from tests.engines import EACH, SECRETS
from tests.postgres import ABSENT, Server, find_server
from tests.together import Together

# No deadline: a slow machine is no counterexample. In CI the same examples every time, elsewhere new ones.
settings.register_profile("explore", deadline=None, max_examples=100)
settings.register_profile("repeat", deadline=None, max_examples=100, derandomize=True, print_blob=True)
settings.load_profile("repeat" if os.environ.get("CI") else "explore")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """How many processes `-n auto` is: two for each core, since half of what tests do is wait. None beside this one
    for a choice of few tests, where starting them would take longer than the tests."""
    few = config.option.keyword or config.option.collectonly or config.args_source.name == "ARGS"
    return 0 if few else min(8, 2 * (os.cpu_count() or 1))


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> Together:
    """Which tests go to which process."""
    return Together(config, log)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have the garbage collector leave alone what was imported so far: looking through it again and again is a twelfth
    of the time of a test."""
    gc.freeze()


@pytest.fixture(params=EACH)
def engine(request: pytest.FixtureRequest) -> str:
    """The engine this test runs on: each in turn, see `engines.py`."""
    return str(request.param)


@pytest.fixture
def store_url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database of this test's own, which has its tables and nothing in them."""
    if engine == "postgres":
        return str(request.getfixturevalue("database"))
    shutil.copy(request.getfixturevalue("empty_file"), tmp_path)
    return f"sqlite:///{tmp_path}/penstock.db"


@pytest.fixture
def new_store_url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database of this test's own with nothing in it, no tables either."""
    if engine == "postgres":
        with request.getfixturevalue("server").database(tables=False) as url:
            yield url
    else:
        yield f"sqlite:///{tmp_path}/new.db"


@pytest.fixture
def plain_settings(engine: str, request: pytest.FixtureRequest) -> Settings:
    """The built-in configuration and a database of this test's own; SQLite's is in memory, which is fastest."""
    url = request.getfixturevalue("database") if engine == "postgres" else "sqlite://"
    return load(None, SECRETS | {"PENSTOCK_DATABASE_URL": url})


@pytest.fixture
async def office(plain_settings: Settings) -> AsyncIterator[Office]:
    """What operations work with."""
    async with open_office(plain_settings) as opened:
        yield opened


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with tables and nothing in them: copying it is faster than making it."""
    path = tmp_path_factory.mktemp("database") / "penstock.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server. Without one the test is skipped, but not where it decides about a change."""
    found = find_server()
    if found is None:
        give_up = pytest.fail if os.environ.get("CI") else pytest.skip
        give_up(ABSENT)
    yield found
    found.close()


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The URL of an empty PostgreSQL database that has its tables."""
    with server.database() as url:
        yield url
