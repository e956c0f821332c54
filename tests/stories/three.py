"""Three providers, a machine of one's own, a command line and a cloud, and a gateway in front of them that may choose.

    async with scene(store_url, gpu={"capabilities": ()}) as here:      # changes to the fields of a class's model
        here.upstreams["gpu"].script(Refusal(500))
        assert (await here.ask()).json()["model"] == "cli-model"        # `auto`, on the router, for `here.ada`

Each class has a model of its own (`gpu-model`, `cli-model`, `cloud-model`), among which `auto` chooses; `everywhere` is
offered by all three. What is scripted is the upstreams.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import httpx2

from penstock.config import (
    AutoSettings,
    HealthSettings,
    ModelSettings,
    OfferSettings,
    PriceSettings,
    ProviderSettings,
)
from tests.stories.gateway import ROUTER, Person, Running, running, settings_for
from tests.upstream import ScriptedUpstream

CLASSES = ("gpu", "cli", "cloud")
GRANTED = 10**9
PRICE = {"gpu": 100_000_000, "cli": 200_000_000, "cloud": 300_000_000}  # nano-USD a million tokens, in and out
INPUT, OUTPUT = 7, 5  # tokens of an upstream's usual answer
ALL = "everywhere"  # the model that all three offer
QUICK = HealthSettings(failures=3, pause_s=0.02, longest_pause_s=0.05)
CHOOSING = AutoSettings(models=tuple(f"{name}-model" for name in CLASSES))
SLOW = HealthSettings(failures=3, pause_s=600, longest_pause_s=600)


@dataclass(frozen=True)
class Scene:
    """The three upstreams by class, and a gateway in front of them."""

    gateway: Running
    upstreams: dict[str, ScriptedUpstream]
    ada: Person

    async def ask(self, model: str = "auto", base: str = ROUTER, **more: Any) -> httpx2.Response:
        return await self.gateway.chat(base, self.ada, model=model, **more)

    def asked(self) -> dict[str, int]:
        """How many calls each upstream has got."""
        return {name: len(upstream.requests) for name, upstream in self.upstreams.items()}

    async def spent(self) -> int:
        return GRANTED - await self.gateway.nano(self.ada)


def models(**changes: dict[str, Any]) -> tuple[ModelSettings, ...]:
    """A model of each class and one of all; `changes` to the fields of some of them, by class."""
    own = tuple(
        ModelSettings(
            id=f"{name}-model",
            offers=(OfferSettings(name, f"{name}-upstream"),),
            price=PriceSettings(input=PRICE[name], output=PRICE[name]),
            **changes.get(name, {}),
        )
        for name in reversed(CLASSES)  # the operator lists them the other way round, which must not matter
    )
    offers = tuple(
        OfferSettings(name, f"{name}-all", PriceSettings(input=PRICE[name], output=PRICE[name]))
        for name in reversed(CLASSES)
    )
    return (*own, ModelSettings(id=ALL, offers=offers))


@asynccontextmanager
async def scene(
    store_url: str, *, health: HealthSettings = SLOW, auto: AutoSettings = CHOOSING, **changes: dict[str, Any]
) -> AsyncIterator[Scene]:
    """A gateway where `auto` chooses among the three models of one class each."""
    async with AsyncExitStack() as stack:
        upstreams = {name: await stack.enter_async_context(ScriptedUpstream()) for name in CLASSES}
        settings = replace(
            settings_for(store_url),
            providers=tuple(provider(name, upstream.base_url) for name, upstream in upstreams.items()),
            models=models(**changes),
            contracts=(),
            auto=auto,
            health=health,
        )
        gateway = await stack.enter_async_context(running(settings))
        yield Scene(gateway, upstreams, await gateway.person(usd="1"))


def provider(name: Any, base_url: str, **more: Any) -> ProviderSettings:
    return ProviderSettings(
        name, base_url=base_url, api_key=f"sk-{name}-0123456789abcdef", provider_class=name, health_check_s=0.0, **more
    )
