"""What stories share: a gateway, its upstreams, and the event loop that production runs on. See `gateway.py`.

A module with other needs overrides `settings`, or opens a gateway of its own with `running`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import uvloop

from penstock.config import Settings
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


@pytest.fixture
def settings(store_url: str, upstream: ScriptedUpstream, spare: ScriptedUpstream) -> Settings:
    return settings_for(store_url, upstream=upstream.base_url, spare=spare.base_url)


@pytest.fixture
async def gateway(settings: Settings) -> AsyncIterator[Running]:
    async with running(settings) as gateway:
        yield gateway
