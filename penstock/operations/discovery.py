"""Discovery: the models that upstreams list, and which of them are on offer here. Nothing is added by looking; what is
to be sold has a price, and that is in the configuration. Keys and addresses are not shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.catalogue import Catalogue
from penstock.errors import NotFound
from penstock.operations.actor import Actor
from penstock.operations.office import Office
from penstock.operations.values import Listing
from penstock.routing.pulse import Look


@dataclass(frozen=True, slots=True)
class ListedView:
    """A model by its upstream's name, and the ids it is offered under here; none when it is not."""

    name: str
    models: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DiscoveryView:
    """A provider: what it lists, what is offered here and not listed there, and why it could not be asked.

    One that keeps no list has an empty one, and then nothing counts as missing.
    """

    provider: str
    vendor: str | None
    listed: tuple[ListedView, ...]
    missing: tuple[str, ...]
    error: str | None


async def discover_models(office: Office, actor: Actor, *, provider: str | None = None) -> Listing[DiscoveryView]:
    """Ask every provider, or one, which models it has, and show which of them are on offer here."""
    known = {each.name: each for each in office.settings.providers}
    if provider is not None and provider not in known:
        raise NotFound(f"There is no provider '{provider[:100]}'.")
    looks = await office.pulse.look()
    return Listing(
        tuple(
            _view(name, settings.vendor, looks[name], _offered(office.catalogue, name))
            for name, settings in known.items()
            if name in looks and provider in (None, name)
        )
    )


def _offered(catalogue: Catalogue, provider: str) -> dict[str, list[str]]:
    """What a provider is called for: its name for the model -> ours."""
    offered: dict[str, list[str]] = {}
    for model in catalogue.models:
        for offer in model.offers:
            if offer.provider == provider:
                offered.setdefault(offer.model, []).append(model.id)
    return offered


def _view(name: str, vendor: str | None, look: Look, offered: dict[str, list[str]]) -> DiscoveryView:
    listed = tuple(ListedView(each, tuple(offered.get(each, ()))) for each in sorted(look.models))
    return DiscoveryView(
        provider=name,
        vendor=vendor,
        listed=listed,
        missing=tuple(each for each in offered if look.models and each not in look.models),
        error=None if look.trouble is None else look.trouble.message,
    )
