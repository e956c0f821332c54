"""What a well-known key in the environment switches on: `GROQ_API_KEY` and the provider groq with its models is there.

Prices are those of the genai-prices package as installed; nothing is fetched. A model is left out when its price is
unknown or is not one exact figure a kind of token (it hangs on the length of the prompt, or sound or pictures cost
extra). Where it hangs on the hour it is the dearest hour's. For anything else there is the file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from penstock.config import ModelSettings, OfferSettings, PriceSettings, ProviderSettings, SurfaceName
from penstock.config_value import to_nano
from penstock.vendors import VENDORS, VendorName

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice

# What such a model can cost; a price with any other part is one we could not charge. Searches are tools of the
# provider's other endpoints, no part of a completion.
_TOKEN_PARTS = {
    "input_mtok": "input",
    "output_mtok": "output",
    "cache_read_mtok": "cached_input",
    "cache_write_mtok": "cache_write",
    "cache_write_1h_mtok": "cache_write_1h",
    "output_reasoning_mtok": "reasoning",
}
_OTHER_ENDPOINTS = {"web_searches_kcount", "storage_searches_kcount"}
_NOT_TEXT_ONLY = re.compile(r"audio|image|banana|live|omni-|realtime|search|transcribe|tts|:batch|(^|[.:-])ft[:-]")
_OF_ANOTHER_KIND = {
    "anthropic": re.compile(r"claude-(v?[123]|instant)"),  # no longer served
    "gemini": re.compile(r"(?!gemini-(\d|embedding))|gemini-1"),  # what its cloud sells of others, or no longer
    "openrouter": re.compile(r"~|[^/]*$"),
}
_SURFACES: tuple[SurfaceName, ...] = ("trust", "router")  # the forward surface sells by contract


@dataclass(frozen=True, slots=True)
class WellKnown:
    """A provider: the vendor it is of, whose name it has, the variables its key is looked for in, and its name in the
    price list, if it is in there."""

    name: VendorName
    variables: tuple[str, ...]
    listed_as: str | None


WELL_KNOWN = (
    WellKnown("anthropic", ("ANTHROPIC_API_KEY",), "anthropic"),
    WellKnown("openai", ("OPENAI_API_KEY",), "openai"),
    WellKnown("deepseek", ("DEEPSEEK_API_KEY",), "deepseek"),
    WellKnown("groq", ("GROQ_API_KEY",), "groq"),
    WellKnown("together", ("TOGETHER_API_KEY",), "together"),
    WellKnown("mistral", ("MISTRAL_API_KEY",), "mistral"),
    WellKnown("xai", ("XAI_API_KEY",), "x-ai"),
    WellKnown("cerebras", ("CEREBRAS_API_KEY",), "cerebras"),
    WellKnown("moonshot", ("MOONSHOT_API_KEY",), "moonshotai"),
    WellKnown("openrouter", ("OPENROUTER_API_KEY",), "openrouter"),
    WellKnown("deepinfra", ("DEEPINFRA_API_KEY", "DEEPINFRA_TOKEN"), None),
    WellKnown("gemini", ("GEMINI_API_KEY",), "google"),
)


def well_known_catalogue(
    providers: tuple[ProviderSettings, ...], models: tuple[ModelSettings, ...], environ: Mapping[str, str], now_ms: int
) -> tuple[tuple[ProviderSettings, ...], tuple[ModelSettings, ...]]:
    """What keys in `environ` switch on besides these providers and models, whose names are not taken again."""
    names = {provider.name for provider in providers}
    keys = {known: key for known in WELL_KNOWN if known.name not in names and (key := _key(known, environ))}
    if not keys:
        return (), ()
    switched_on = tuple(_provider(known.name, key) for known, key in keys.items())
    day = datetime.fromtimestamp(now_ms / 1000, UTC).date()
    return switched_on, tuple(_named_apart(_listed_models(keys, day), models))


def _key(known: WellKnown, environ: Mapping[str, str]) -> str | None:
    found = (environ.get(variable, "").strip() for variable in known.variables)
    return next((key for key in found if key and key.isascii() and key.isprintable()), None)


def _provider(vendor: VendorName, key: str) -> ProviderSettings:
    of_vendor: dict[str, Any] = {
        name: tuple(said) if isinstance(said, list) else said for name, said in VENDORS[vendor].items()
    }
    return ProviderSettings(name=vendor, vendor=vendor, api_key=key, **of_vendor)


def _listed_models(switched_on: Iterable[WellKnown], day: date) -> Iterator[ModelSettings]:
    """The models of these providers that have a price on that day, under `<provider>/<model>`."""
    from genai_prices.data import providers as price_list  # noqa: PLC0415 - 0.3 s that only such a key costs

    by_id = {provider.id: provider for provider in price_list}
    for known in switched_on:
        for model in by_id[known.listed_as].models if known.listed_as in by_id else ():
            price = listed_price(model, day)
            if price is not None and _can_be_called(known, model):
                yield ModelSettings(
                    id=f"{known.name}/{model.id}",
                    kind="chat" if price.output else "embeddings",
                    offers=(OfferSettings(known.name, model.id),),
                    price=price,
                    surfaces=_SURFACES,
                    owned_by=known.name,
                    context_length=model.context_window,
                )


def _can_be_called(known: WellKnown, model: ModelInfo) -> bool:
    """Whether the id is a name that the provider answers to, with text alone; the price list has others as well."""
    other = _OF_ANOTHER_KIND.get(known.name)
    return not (model.deprecated or _NOT_TEXT_ONLY.search(model.id) or (other and other.match(model.id)))


def listed_price(model: ModelInfo, day: date) -> PriceSettings | None:
    """The model's price on that day; None when it has none that is exact here."""
    in_force = _in_force(model, day)
    exact = [price for listed in in_force if (price := _exact(listed))]
    if not exact or len(exact) < len(in_force):
        return None
    is_embedding = "embed" in model.id
    if any(not price.input or (price.output == 0) != is_embedding for price in exact):
        return None
    return PriceSettings(
        input=max(price.input for price in exact),
        output=max(price.output for price in exact),
        cached_input=_dearest(price.cached_input for price in exact),
        reasoning=_dearest(price.reasoning for price in exact),
        cache_write=_dearest_besides((price.cache_write, price.input) for price in exact),
        cache_write_1h=_dearest_besides((price.cache_write_1h, price.cache_write or price.input) for price in exact),
    )


def _in_force(model: ModelInfo, day: date) -> list[ModelPrice]:
    """The prices that hold at some hour of the day: the last one dated, and each that is bound to hours."""
    if not isinstance(model.prices, list):
        return [model.prices]
    dated: list[ModelPrice] = []
    hourly: list[ModelPrice] = []
    for conditional in model.prices:
        start = getattr(conditional.constraint, "start_date", None)
        if conditional.constraint is not None and start is None:
            hourly.append(conditional.prices)
        elif start is None or start <= day:
            dated = [conditional.prices]
    return dated + hourly


def _exact(price: ModelPrice) -> PriceSettings | None:
    """The price in our unit, or None when it has a part we cannot charge or a figure that is not whole."""
    parts = {name: value for name, value in vars(price).items() if value is not None and name not in _OTHER_ENDPOINTS}
    nano = {name: to_nano(value) for name, value in parts.items() if isinstance(value, Decimal)}
    if len(nano) < len(parts) or not nano.keys() <= _TOKEN_PARTS.keys() or None in nano.values():
        return None
    found: dict[str, Any] = {_TOKEN_PARTS[name]: amount for name, amount in nano.items()}
    return PriceSettings(**found)


def _dearest(amounts: Iterable[int | None]) -> int | None:
    """None, which falls back to the full price, is dearer than any."""
    given = list(amounts)
    return None if None in given else max(amount for amount in given if amount is not None)


def _dearest_besides(amounts: Iterable[tuple[int | None, int]]) -> int | None:
    """The highest of amounts that fall back to another one, which may be lower; None when all of them do."""
    given = list(amounts)
    if all(amount is None for amount, _ in given):
        return None
    return max(other if amount is None else amount for amount, other in given)


def _named_apart(listed: Iterable[ModelSettings], taken: tuple[ModelSettings, ...]) -> Iterator[ModelSettings]:
    """The models whose ids are free, each with its bare name as an alias where that means no other model."""
    names = {
        name.lower() for model in taken for name in (model.id, *(a for _, aliases in model.aliases for a in aliases))
    }
    free = [model for model in listed if model.id.lower() not in names]
    names |= {model.id.lower() for model in free}
    bare = Counter(model.offers[0].model.lower() for model in free)
    for model in free:
        alias = model.offers[0].model
        is_free = bare[alias.lower()] == 1 and alias.lower() not in names
        yield replace(model, aliases=(("*", (alias,)),)) if is_free else model
