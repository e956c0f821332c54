"""What stories share: a gateway, its upstreams, and the event loop that production runs on. See `gateway.py`.

A module with other needs overrides `settings`, or opens a gateway of its own with `running`.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import uvloop

from penstock.config import Settings
from penstock.db import migrate
from tests.stories.gateway import Running, running, settings_for
from tests.upstream import ScriptedUpstream


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture
async def upstream() -> AsyncIterator[ScriptedUpstream]:
    """The provider `main`."""
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
async def spare() -> AsyncIterator[ScriptedUpstream]:
    """The provider `spare`, the second offer of `DEEPSEEK`."""
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables and nothing in them: copying it is faster than making it."""
    path = tmp_path_factory.mktemp("database") / "penstock.db"
    migrate.upgrade(f"sqlite:///{path}")
    return path


@pytest.fixture(params=["sqlite", "postgres"])
def shared_store(request: pytest.FixtureRequest, tmp_path: Path, empty_database: Path) -> str:
    """The address of an empty database that several processes can share, of either engine."""
    if request.param == "postgres":
        return str(request.getfixturevalue("database"))
    shutil.copy(empty_database, tmp_path)
    return f"sqlite:///{tmp_path}/penstock.db"


@pytest.fixture
def settings(tmp_path: Path, upstream: ScriptedUpstream, spare: ScriptedUpstream, empty_database: Path) -> Settings:
    shutil.copy(empty_database, tmp_path)
    return settings_for(tmp_path, upstream=upstream.base_url, spare=spare.base_url)


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Running]:
    async with running(settings) as gateway:
        yield gateway
