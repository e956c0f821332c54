"""Looking at every provider at once: `Provider.check()` of each, none of them for longer than its time-out.

For people who ask (`penstock pulse`), and for upkeep, which looks at those whose turn it is and tells `Health`. What
people ask does not open a breaker: an upstream may keep no list of models and serve all the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import Struct

from penstock.config import ProviderSettings
from penstock.errors import PenstockError, UpstreamError, UpstreamFailed, UpstreamTimeout
from penstock.ports import Provider
from penstock.routing.health import Health, Trouble
from penstock.routing.upstreams import Upstreams

LOOK_S = 8.0  # for one provider; all of them are looked at within ten seconds
MOST_AT_ONCE = 64
REMEMBER_S = 1.0  # whoever asks again and again does not become a burden to the upstreams


class Look(Struct, frozen=True, gc=False):
    """What one check came to: the models it listed, or why it failed, as an error and as it may be shown."""

    models: tuple[str, ...]
    took_s: float
    error: UpstreamError | None = None
    trouble: Trouble | None = None


class WorkerSeen(Struct, frozen=True, gc=False):
    """A worker that has dialled in. Only its `account` may use it, unless it is `shared`."""

    id: str
    account: str
    shared: bool
    models: tuple[str, ...]
    slots: int
    outstanding: int


class Pulse:
    """Looks. Those who ask at the same time, or within a second, share one look. Where no providers are running, `make`
    makes them for the first to ask."""

    def __init__(
        self,
        upstreams: Upstreams,
        make: Callable[[], Mapping[str, Provider]],
        workers: Callable[[], Sequence[WorkerSeen]],
    ) -> None:
        self._upstreams = upstreams
        self._make = make
        self.workers = workers
        self.look_s = LOOK_S
        self._looking: asyncio.Task[dict[str, Look]] | None = None
        self._looked_at: Mapping[str, Provider] = {}
        self._looked_s = float("-inf")

    def __repr__(self) -> str:
        return f"Pulse({self._upstreams!r})"

    async def look(self) -> Mapping[str, Look]:
        """A look at every provider, by name."""
        clock = self._upstreams.health.clock
        looking = self._looking
        stale = self._looked_at is not self._upstreams.providers or clock.monotonic() - self._looked_s > REMEMBER_S
        if looking is None or (looking.done() and stale):
            looking = self._looking = asyncio.create_task(self._look(), name="look at every provider")
        return await asyncio.shield(looking)

    def close(self) -> None:
        """Nobody looks any more."""
        if self._looking is not None:
            self._looking.cancel()

    async def look_at_due(self, settings: Iterable[ProviderSettings]) -> None:
        """Check the providers whose turn it is, and tell their health."""
        health = self._upstreams.health
        due = [each.name for each in settings if each.name in self._upstreams.providers and _is_due(each, health)]
        for name, look in (await self._look_at(due)).items():
            if look.error is None:
                health.checked(name, look.models)
            else:
                health.check_failed(name, look.error)

    async def _look(self) -> dict[str, Look]:
        if not self._upstreams.providers:
            self._upstreams.providers = self._make()
        self._looked_at = self._upstreams.providers
        looks = await self._look_at(list(self._looked_at))
        self._looked_s = self._upstreams.health.clock.monotonic()
        return looks

    async def _look_at(self, names: Sequence[str]) -> dict[str, Look]:
        turns = asyncio.Semaphore(MOST_AT_ONCE)
        providers = self._upstreams.providers
        looks = await asyncio.gather(*(self._check(providers[name], turns) for name in names))
        return dict(zip(names, looks, strict=True))

    async def _check(self, provider: Provider, turns: asyncio.Semaphore) -> Look:
        monotonic = self._upstreams.health.clock.monotonic
        began_s = monotonic()
        try:
            async with asyncio.timeout(self.look_s), turns:
                return Look(await provider.check(), monotonic() - began_s)
        except TimeoutError:
            error: UpstreamError = UpstreamTimeout(f"It did not answer within {self.look_s:g} s.")
        except UpstreamError as failure:
            error = failure
        except PenstockError as failure:  # an engine that is not installed
            error = UpstreamFailed(failure.message)
        return Look((), monotonic() - began_s, error, self._upstreams.health.trouble(error, None))


def _is_due(settings: ProviderSettings, health: Health) -> bool:
    every_s = settings.checked_every_s
    if not every_s:
        return False
    checked_s = health.of(settings.name).checked_s
    return checked_s is None or health.clock.monotonic() - checked_s >= every_s
