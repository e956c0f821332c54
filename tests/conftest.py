"""What all tests share: how hypothesis draws its examples, and a PostgreSQL server.

Other fixtures live beside the tests that use them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.postgres import ABSENT, Server, find_server

# No deadline: a slow machine is no counterexample. In CI the same examples every time, elsewhere new ones.
settings.register_profile("explore", deadline=None, max_examples=100)
settings.register_profile("repeat", deadline=None, max_examples=100, derandomize=True, print_blob=True)
settings.load_profile("repeat" if os.environ.get("CI") else "explore")


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server; without one the test is skipped."""
    server = find_server()
    if server is None:
        pytest.skip(ABSENT)
    yield server
    server.close()


@pytest.fixture
def database(server: Server) -> Iterator[str]:
    """The URL of an empty PostgreSQL database that has its tables."""
    with server.database() as url:
        yield url
