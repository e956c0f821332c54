"""The upstreams of this process, by name, and how each stands now: what ranking is told of the world.

A reload swaps `providers`; a call under way keeps the one it has.
"""

from __future__ import annotations

from collections.abc import Mapping

from penstock.catalogue import Offer
from penstock.ports import Provider
from penstock.routing.health import Health
from penstock.routing.rank import WELL, Standing


class Upstreams:
    """Providers and their health. Where none are running (a command line on the database) all count as well."""

    def __init__(self, providers: Mapping[str, Provider], health: Health) -> None:
        self.providers = providers
        self.health = health

    def __repr__(self) -> str:
        return f"Upstreams({', '.join(self.providers)}; {self.health!r})"

    def is_well(self, offer: Offer, account: str) -> bool:
        """Whether a call of this account's could begin at an offer now, as far as is known."""
        provider = self.providers.get(offer.provider)
        if provider is not None and not provider.ready(offer.model, account):
            return False
        return not self.health.out or self.health.state(offer, account) != "open"

    def standing(self, offer: Offer, account: str) -> Standing:
        """How an offer stands now for this account."""
        condition = self.health.of(offer.provider)
        provider = self.providers.get(offer.provider)
        ready = provider is None or provider.ready(offer.model, account)
        if ready and not condition.outstanding and not self.health.out:
            return WELL
        return Standing(self.health.state(offer, account), ready, condition.outstanding)
