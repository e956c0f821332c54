"""The pulse: a look at every provider at once, beside what this process has met of it. What is secret is not in it.

The operator sees all of it. Others see the providers that their accounts may use, and of failures the kind and the
time, not an upstream's words.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penstock.catalogue import Offer
from penstock.config import ProviderSettings
from penstock.operations.actor import Actor
from penstock.operations.office import Office
from penstock.operations.values import show_instant
from penstock.routing.health import Condition, Health, Trouble
from penstock.routing.pulse import Look, WorkerSeen


@dataclass(frozen=True, slots=True)
class TroubleView:
    """A failure. `message` is the operator's to see."""

    at: str
    kind: str
    model: str | None
    message: str | None


@dataclass(frozen=True, slots=True)
class ProviderPulse:
    """A provider: whether it is healthy (its check went well and it is not left alone), its offers, how it has been.

    `check_ms` is how long the check took, `latency_ms` a running mean of how long answers take to begin, `listed` how
    many models it named when it was checked. `out` are models that are left alone there while the provider is not.
    """

    provider: str
    provider_class: str
    healthy: bool
    state: str
    retry_in_s: float | None
    check_ms: int
    check_error: TroubleView | None
    models: tuple[str, ...]
    listed: int
    out: tuple[str, ...]
    outstanding: int
    latency_ms: int | None
    last_success: str | None
    errors: tuple[TroubleView, ...]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker that has dialled in. `account` is null when it is somebody else's, who shares it."""

    worker: str
    account: str | None
    shared: bool
    models: tuple[str, ...]
    slots: int
    outstanding: int


@dataclass(frozen=True, slots=True)
class PulseView:
    """How everybody is. `healthy` counts the providers that are."""

    at: str
    healthy: int
    providers: tuple[ProviderPulse, ...]
    workers: tuple[WorkerView, ...]


async def show_pulse(office: Office, actor: Actor) -> PulseView:
    """Check every provider at once, and show how each is: healthy or not, models, latency, breaker, last failures.

    Each check has eight seconds. Breaker, latency and failures are what the answering process has met.
    """
    looks = await office.pulse.look()
    offers = [offer for model in office.catalogue.models for offer in model.offers]
    seen: list[ProviderPulse] = []
    for settings in office.settings.providers:
        theirs = [each for each in offers if each.provider == settings.name]
        if settings.name in looks and _may_see(actor, settings):
            seen.append(_provider(settings, theirs, looks[settings.name], office.upstreams.health, actor))
    return PulseView(
        at=show_instant(office.clock.now_ms()),
        healthy=sum(each.healthy for each in seen),
        providers=tuple(seen),
        workers=tuple(_worker(each, actor) for each in office.pulse.workers() if _may_see_worker(actor, each)),
    )


def _may_see(actor: Actor, settings: ProviderSettings) -> bool:
    return actor.sees is None or not settings.accounts or not actor.sees.isdisjoint(settings.accounts)


def _may_see_worker(actor: Actor, worker: WorkerSeen) -> bool:
    return actor.sees is None or worker.shared or worker.account in actor.sees


def _provider(
    settings: ProviderSettings, offers: list[Offer], look: Look, health: Health, actor: Actor
) -> ProviderPulse:
    condition, now_s = health.of(settings.name), health.clock.monotonic()
    state = condition.breaker.state(now_s)
    until_s = condition.breaker.until_s
    return ProviderPulse(
        provider=settings.name,
        provider_class=settings.ranks_as,
        healthy=look.error is None and state != "open",
        state=state,
        retry_in_s=None if until_s is None or state == "closed" else round(max(0.0, until_s - now_s), 1),
        check_ms=round(look.took_s * 1000),
        check_error=None if look.trouble is None else _trouble(look.trouble, actor),
        models=tuple(dict.fromkeys(each.model_id for each in offers)),
        listed=len(look.models),
        out=tuple(dict.fromkeys(each.model_id for each in offers if _is_out(each, health))),
        outstanding=condition.outstanding,
        latency_ms=None if condition.latency_s is None else round(condition.latency_s * 1000),
        last_success=show_instant(condition.succeeded_ms),
        errors=_troubles(condition, actor),
    )


def _is_out(offer: Offer, health: Health) -> bool:
    own = health.offers.get((offer.provider, offer.model))
    return own is not None and own.state(health.clock.monotonic()) == "open"


def _troubles(condition: Condition, actor: Actor) -> tuple[TroubleView, ...]:
    newest_first: Iterable[Trouble] = reversed(condition.errors)
    return tuple(_trouble(each, actor) for each in newest_first)


def _trouble(trouble: Trouble, actor: Actor) -> TroubleView:
    message = trouble.message if actor.everywhere else None
    return TroubleView(show_instant(trouble.at_ms), trouble.kind, trouble.model, message)


def _worker(seen: WorkerSeen, actor: Actor) -> WorkerView:
    account = seen.account if actor.sees is None or seen.account in actor.sees else None
    return WorkerView(seen.id, account, seen.shared, seen.models, seen.slots, seen.outstanding)
