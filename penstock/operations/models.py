"""Models: what can be called, by which names, at which prices. They come from the configuration and are only shown
here.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from penstock.catalogue import Contract, Model, Offer
from penstock.operations.actor import Actor
from penstock.operations.office import Office
from penstock.operations.values import Amount, Listing, amount, show_instant


@dataclass(frozen=True, slots=True)
class PriceView:
    """USD per million tokens, and per request."""

    version: str
    input: Amount
    cached_input: Amount
    cache_write: Amount
    cache_write_1h: Amount
    output: Amount
    reasoning: Amount
    per_request: Amount


@dataclass(frozen=True, slots=True)
class OfferView:
    """A model at a provider: the name it has there, and its price; null when it is paid by contract only."""

    provider: str
    model: str
    price: PriceView | None


@dataclass(frozen=True, slots=True)
class ContractView:
    """Tokens at one locked price, in USD per million, for prompt and completion alike, until `expires`."""

    id: str
    name: str
    price: Amount
    minimum_tokens: int
    expires: str


@dataclass(frozen=True, slots=True)
class NameView:
    """What a model is called on a surface, its id aside."""

    surface: str
    name: str


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model. `surfaces` are those it is on; in `names` the surface `*` stands for all of these."""

    id: str
    kind: str
    owned_by: str
    surfaces: tuple[str, ...]
    names: tuple[NameView, ...]
    offers: tuple[OfferView, ...]
    contract: ContractView | None
    context_length: int | None
    planned: bool


async def list_models(office: Office, actor: Actor) -> Listing[ModelView]:
    """List every model with its names, offers, prices and contract, in the order of the configuration.

    What serves other accounts alone is not shown.
    """
    models = [each for each in office.catalogue.models if actor.sees is None or each.is_for(actor.sees)]
    return Listing(tuple(_view(each, actor) for each in models))


def _view(model: Model, actor: Actor) -> ModelView:
    offers = [each for each in model.offers if actor.sees is None or each.is_for(actor.sees)]
    return ModelView(
        id=model.id,
        kind=model.kind,
        owned_by=model.owned_by,
        surfaces=tuple(sorted(model.surfaces)),
        names=tuple(NameView(surface, name) for surface, names in model.names for name in names),
        offers=tuple(_offer(each, priced=model.priced) for each in offers),
        contract=_contract(model.contract) if model.contract else None,
        context_length=model.context_length,
        planned=model.planned,
    )


def _offer(offer: Offer, *, priced: bool) -> OfferView:
    price = offer.price
    names = [field.name for field in fields(PriceView) if field.name != "version"]
    parts = {name: amount(getattr(price, name)) for name in names}
    return OfferView(offer.provider, offer.model, PriceView(version=price.version, **parts) if priced else None)


def _contract(each: Contract) -> ContractView:
    price = amount(each.price_nano_per_mtok)
    return ContractView(each.id, each.name, price, each.minimum_tokens, show_instant(each.expires_ms))
