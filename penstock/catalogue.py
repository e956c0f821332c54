"""What is on offer: models, their names on each surface, their offers at providers, prices and contracts.

Built from the settings, never changed; a reload builds another and swaps it. It answers look-ups and knows nothing of
requests, callers or health (that is `relay/route.py`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace

from penstock.config import (
    SURFACE_NAMES,
    AutoSettings,
    ContractSettings,
    ModelSettings,
    OfferSettings,
    PriceSettings,
    ProviderSettings,
    Settings,
)
from penstock.money.prices import UNSAID, Price, Tariff, TokenTariff, UsdTariff, dearest
from penstock.vendors import image_tokens


@dataclass(frozen=True, slots=True)
class Contract:
    """A forward contract: tokens at one locked price for prompt and completion, until `expires_ms`."""

    id: str
    name: str
    price_nano_per_mtok: int
    minimum_tokens: int
    expires_ms: int
    type: str


@dataclass(frozen=True, slots=True)
class Offer:
    """A model at a provider at a price: what can be called. `model` is its name there, `model_id` ours.

    `speaks` are the dialects it is called in, `accounts` those it serves (none: all of them), `capabilities` what it is
    able to do of `tools`, `images` and `json_schema`, `max_output_tokens` is its model's. What is `dropped` of a
    request, or refused because it is `priced` apart, is by name of the field; priced tools and dropped betas go by how
    they begin; `tailored` says whether there is anything of fields and tools. With `shared_files` a request may name
    what the provider keeps. With `per_account` who serves it is somebody else for each account: whoever has dialled in.
    """

    provider: str
    model: str
    price: Price
    limit_field: str
    ask_usage: bool
    model_id: str
    speaks: tuple[str, ...]
    provider_class: str
    accounts: frozenset[str]
    context_length: int | None
    capabilities: frozenset[str]
    max_output_tokens: int | None
    thinking_in_total: bool = False
    dropped_fields: frozenset[str] = frozenset()
    priced_fields: tuple[str, ...] = ()
    priced_tools: tuple[str, ...] = ()
    dropped_betas: tuple[str, ...] = ()
    shared_files: bool = False
    per_account: bool = False
    tailored: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tailored", bool(self.dropped_fields or self.priced_fields or self.priced_tools))

    def is_for(self, accounts: Collection[str]) -> bool:
        """Whether it serves any of these accounts."""
        return not self.accounts or not self.accounts.isdisjoint(accounts)


@dataclass(frozen=True, slots=True)
class Model:
    """A model as callers know it. `offers` are as the operator lists them; a planned model has none.

    An image has `image_tokens` at most, and `usual_image_tokens` where nobody has counted it.

    A model whose offers have no price is not callable on a lane that counts USD, which is what `priced` tells (a
    price may be declared free). `tariffs` are those of the lanes that can pay for it.
    """

    id: str
    kind: str
    offers: tuple[Offer, ...]
    contract: Contract | None
    priced: bool
    tariffs: dict[str, Tariff]
    names: tuple[tuple[str, tuple[str, ...]], ...]
    surfaces: frozenset[str]
    owned_by: str
    created: int
    context_length: int | None
    default_output_tokens: int
    max_output_tokens: int | None
    input_bytes_per_token: int
    image_tokens: int
    usual_image_tokens: int
    planned: bool

    def is_for(self, accounts: Collection[str]) -> bool:
        """Whether any of these accounts has something of it: an offer that serves it, or the prospect of one."""
        return self.planned or any(offer.is_for(accounts) for offer in self.offers)

    def name_on(self, surface: str) -> str:
        """The name to list on a surface: its first alias there, else the id."""
        for place, aliases in self.names:
            if place == surface and aliases:
                return aliases[0]
        return self.id


AUTO = "auto"


class Catalogue:
    """Every model by every name, and what `auto` chooses among: `classes` is the order of classes for all."""

    def __init__(self, settings: Settings) -> None:
        self.contracts = {each.id: _contract(each) for each in settings.contracts}
        providers = {each.name: each for each in settings.providers}
        self.models = tuple(
            _model(each, providers, self.contracts, settings.limits.default_output_tokens) for each in settings.models
        )
        self._exact: dict[tuple[str, str], Model] = {}
        self._folded: dict[tuple[str, str], Model] = {}
        for model in self.models:
            for surface, name in _names(model):
                self._exact.setdefault((surface, name), model)
                self._folded.setdefault((surface, name.lower()), model)
        self.classes: tuple[str, ...] = settings.auto.order
        self._auto: dict[str, tuple[Model, ...]] = {
            surface: tuple(self._choice(settings.auto, surface)) for surface in SURFACE_NAMES
        }

    def __repr__(self) -> str:
        return f"Catalogue({len(self.models)} models, {len(self.contracts)} contracts)"

    def find(self, name: str, surface: str) -> Model | None:
        """The model of that name on a surface: exact, then whatever the case."""
        return self._exact.get((surface, name)) or self._folded.get((surface, name.lower()))

    def auto(self, name: str, surface: str) -> tuple[Model, ...]:
        """What `auto` chooses among on a surface. Nothing for any other name, or where a model is called so."""
        if name.lower() != AUTO or self.find(AUTO, surface) is not None:
            return ()
        return self._auto.get(surface, ())

    def listed(self, surface: str) -> Iterator[Model]:
        """The models of a surface, in the operator's order. Planned ones are listed on the trust surface alone."""
        return (m for m in self.models if surface in m.surfaces and (not m.planned or surface == "trust"))

    def _choice(self, auto: AutoSettings, surface: str) -> Iterator[Model]:
        for model in self.models if auto.enabled else ():
            chosen = not auto.models or model.id in auto.models
            if chosen and surface in model.surfaces and model.kind == "chat" and model.offers and model.priced:
                yield model

    def price_versions(self) -> dict[str, str]:
        """Every price in force, as JSON by version: the store keeps them beside the charges made with them."""
        prices = {offer.price for model in self.models for offer in model.offers}
        return {price.version: _price_text(price) for price in prices}


def _names(model: Model) -> Iterator[tuple[str, str]]:
    for surface in model.surfaces:
        yield surface, model.id
        for place, aliases in model.names:
            if place in ("*", surface):
                yield from ((surface, alias) for alias in aliases)


def _model(
    settings: ModelSettings, providers: dict[str, ProviderSettings], contracts: dict[str, Contract], output_tokens: int
) -> Model:
    prices = [offer.price or settings.price for offer in settings.offers]
    offers = tuple(
        _offer(settings, offer, price, providers[offer.provider])
        for offer, price in zip(settings.offers, prices, strict=True)
    )
    contract = contracts[settings.contract] if settings.contract else None
    usual, most = (max(each) for each in zip(*[image_tokens(offer.model) for offer in offers] or [(0, 0)], strict=True))
    most = most if settings.image_tokens is None else settings.image_tokens
    priced = all(price is not None for price in prices)
    return Model(
        id=settings.id,
        kind=settings.kind,
        offers=offers,
        contract=contract,
        priced=priced,
        tariffs=_tariffs(offers if priced else (), contract),
        names=settings.aliases,
        surfaces=frozenset(settings.surfaces),
        owned_by=settings.owned_by,
        created=settings.created,
        context_length=settings.context_length,
        default_output_tokens=settings.default_output_tokens or output_tokens,
        max_output_tokens=settings.max_output_tokens,
        input_bytes_per_token=settings.input_bytes_per_token,
        image_tokens=most,
        usual_image_tokens=min(usual, most),
        planned=settings.planned,
    )


def _tariffs(priced: tuple[Offer, ...], contract: Contract | None) -> dict[str, Tariff]:
    tariffs: dict[str, Tariff] = {}
    if priced:
        tariffs["credits"] = UsdTariff(dearest([offer.price for offer in priced]))
    if contract:
        tariffs["contract"] = TokenTariff(contract.id, contract.price_nano_per_mtok)
    return tariffs


def _offer(
    model: ModelSettings, offer: OfferSettings, price: PriceSettings | None, provider: ProviderSettings
) -> Offer:
    return Offer(
        provider=provider.name,
        model=offer.model,
        price=_price(price or PriceSettings()),
        limit_field=provider.output_limit_field,
        ask_usage=provider.stream_usage,
        model_id=model.id,
        speaks=provider.speaks,
        provider_class=provider.ranks_as,
        accounts=frozenset(provider.accounts),
        context_length=offer.context_length or model.context_length,
        capabilities=_capabilities(model, offer, provider),
        max_output_tokens=model.max_output_tokens,
        thinking_in_total=provider.thinking_in_total,
        dropped_fields=frozenset(provider.dropped_fields),
        priced_fields=provider.priced_fields,
        priced_tools=provider.priced_tools,
        dropped_betas=provider.dropped_betas,
        shared_files=provider.shared_files,
        per_account=provider.kind == "worker",
    )


def _capabilities(model: ModelSettings, offer: OfferSettings, provider: ProviderSettings) -> frozenset[str]:
    """What an offer is able to do. A command carries words alone, whatever the model behind it can do."""
    if provider.kind == "cli":
        return frozenset()
    return frozenset(model.capabilities if offer.capabilities is None else offer.capabilities)


def _price(settings: PriceSettings) -> Price:
    price = Price(
        input=settings.input,
        output=settings.output,
        cached_input=settings.input if settings.cached_input is None else settings.cached_input,
        reasoning=settings.output if settings.reasoning is None else settings.reasoning,
        per_request=settings.per_request,
        cache_write=UNSAID if settings.cache_write is None else settings.cache_write,
        cache_write_1h=UNSAID if settings.cache_write_1h is None else settings.cache_write_1h,
    )
    return replace(price, version=hashlib.sha256(_price_text(price).encode()).hexdigest()[:12])


def _price_text(price: Price) -> str:
    names = ("input", "output", "cached_input", "reasoning", "cache_write", "cache_write_1h", "per_request")
    return json.dumps({name: getattr(price, name) for name in names})


def _contract(each: ContractSettings) -> Contract:
    return Contract(each.id, each.name, each.price_nano_per_mtok, each.minimum_tokens, each.expires_ms, each.type)
