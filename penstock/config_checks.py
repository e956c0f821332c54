"""Whether the parts of a configuration fit together: names that are referred to exist, names that must differ do, and
everything that can be called has a price. Whether each part is sound by itself is not asked here.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from ipaddress import ip_address
from itertools import combinations
from urllib.parse import urlsplit

from penstock.config import (
    AutoSettings,
    ContractSettings,
    KeyPrefixes,
    LimitSettings,
    ModelSettings,
    PriceSettings,
    ProviderSettings,
)
from penstock.config_tables import Mistakes
from penstock.config_value import did_you_mean
from penstock.toml_lines import Path

CREDITS = "USD"  # the asset of credits; those of contracts are their ids
_OVERRIDE = "PENSTOCK_PROVIDER_"
_OVERRIDABLE = ("BASE_URL", "API_KEY")


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What is offered, by path in the file. Entries with a mistake of their own are left out of the first three, but
    the names know of them, so that one mistake is not reported as two."""

    providers: Mapping[Path, ProviderSettings]
    models: Mapping[Path, ModelSettings]
    contracts: Mapping[Path, ContractSettings]
    provider_names: frozenset[str]
    contract_ids: frozenset[str]


def check_catalogue(catalogue: Catalogue, mistakes: Mistakes) -> None:
    """Note what does not fit together."""
    _check_providers(catalogue, mistakes)
    _check_contracts(catalogue, mistakes)
    _check_ids(catalogue, mistakes)
    _check_names(catalogue, mistakes)
    for path, model in catalogue.models.items():
        _check_references(model, path, catalogue, mistakes)
        _check_dialects(model, path, catalogue, mistakes)
        _check_prices(model, path, mistakes)
        _check_limits(model, path, mistakes)


def check_auto(auto: AutoSettings, models: Iterable[ModelSettings], mistakes: Mistakes) -> None:
    """What `auto` is to choose among is there and can chat; each class is in the order once."""
    kinds = {model.id: model.kind for model in models}
    for name in auto.models:
        if name not in kinds:
            mistakes.at(("auto", "models"), f"there is no model '{name}'{did_you_mean(name, kinds)}")
        elif kinds[name] != "chat":
            mistakes.at(("auto", "models"), f"the model '{name}' does not serve chat")
    if len(set(auto.order)) < len(auto.order):
        mistakes.at(("auto", "order"), "names a class twice")


def check_prefixes(prefixes: KeyPrefixes, written: Container[str], mistakes: Mistakes) -> None:
    """A key shows its kind by its start, so no prefix may start another, nor make a key look like a session token.

    Of two that clash, the mistake is in the one that is `written`.
    """
    by_name = [(field.name, getattr(prefixes, field.name)) for field in fields(prefixes)]
    for name, prefix in by_name:
        if prefix.startswith("ey") and prefix.count(".") == 2:
            mistakes.at(("prefixes", name), "makes keys that would be taken for session tokens: ey… with two dots")
    for (first, one), (second, other) in combinations(by_name, 2):
        if one.startswith(other) or other.startswith(one):
            wrong, right = (second, first) if second in written or first not in written else (first, second)
            mistakes.at(("prefixes", wrong), f"cannot be told from the prefix of '{right}': one starts with the other")


def check_limits(limits: LimitSettings, written: Container[str], mistakes: Mistakes) -> None:
    """What is `written` as the usual output of a call may be put out by one."""
    if "default_output_tokens" in written and limits.default_output_tokens > limits.max_output_tokens:
        mistakes.at(("limits", "default_output_tokens"), "is more than max_output_tokens")


def override_variables(provider: str) -> tuple[str, str]:
    """The variables that override a provider's base URL and key."""
    name = provider.upper().replace("-", "_")
    return f"{_OVERRIDE}{name}_BASE_URL", f"{_OVERRIDE}{name}_API_KEY"


def unused_overrides(environ: Iterable[str], providers: Iterable[str]) -> list[str]:
    """A warning for each variable that would override a provider there is not."""
    used = {variable for provider in providers for variable in override_variables(provider)}
    strays = sorted(v for v in environ if v.startswith(_OVERRIDE) and v.endswith(_OVERRIDABLE) and v not in used)
    return [f"{variable} has no effect: there is no provider of that name" for variable in strays]


def unencrypted(providers: Iterable[ProviderSettings]) -> list[str]:
    """A warning for each provider whose key would cross a network in the clear."""
    return [
        f"provider {provider.name} is sent its key without encryption; use https"
        for provider in providers
        if provider.api_key and provider.base_url.startswith("http:") and not _is_here(provider.base_url)
    ]


def _is_here(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name, and names may begin with anything
        return host == "localhost"


def _check_providers(catalogue: Catalogue, mistakes: Mistakes) -> None:
    seen: dict[str, str] = {}
    for path, provider in catalogue.providers.items():
        if provider.kind in ("openai_compatible", "anthropic") and not provider.base_url:
            mistakes.at((*path, "base_url"), "is missing")
        if provider.kind == "llamacpp" and not provider.model_path:
            mistakes.at((*path, "model_path"), "is missing")
        if provider.kind == "cli":
            _check_command(provider, path, mistakes)
        variable = override_variables(provider.name)[0]
        first = seen.setdefault(variable, provider.name)
        if first != provider.name:
            mistakes.at(path, f"cannot be told from '{first}' in the environment: both are {variable}")


def _check_command(provider: ProviderSettings, path: Path, mistakes: Mistakes) -> None:
    """A command runs with somebody's subscription and on our machine: whose calls it serves has to be said."""
    if not provider.accounts:
        mistakes.at((*path, "accounts"), "is missing: a command serves the accounts of its owner, and no others")
    if not provider.template and not provider.command:
        mistakes.at((*path, "command"), "is missing: give a command, or a template")
    if provider.dialects not in ((), ("openai_chat",)):
        mistakes.at((*path, "dialects"), "is of no use: a command is called in openai_chat")


def check_environments(
    catalogue: Catalogue, providers: Iterable[ProviderSettings], environ: Mapping[str, str], mistakes: Mistakes
) -> None:
    """No command is given a key that the gateway itself calls a provider with, nor a secret of the gateway's own."""
    keys = {each.api_key: each.name for each in providers if each.api_key}
    for path, provider in catalogue.providers.items():
        for index, variable in enumerate(provider.environment):
            where = (*path, "environment", index)
            if variable.startswith("PENSTOCK_"):
                mistakes.at(where, f"{variable} is the gateway's own")
            elif owner := keys.get(environ.get(variable, "").strip()):
                mistakes.at(where, f"{variable} is the key of the provider '{owner}', which a command must not have")


def _check_contracts(catalogue: Catalogue, mistakes: Mistakes) -> None:
    seen: set[str] = set()
    for path, contract in catalogue.contracts.items():
        if contract.id.lower() in seen:
            mistakes.at((*path, "id"), f"there is a contract '{contract.id}' already")
        if contract.id.upper() == CREDITS:
            mistakes.at(
                (*path, "id"), f"'{CREDITS}' is what credits are counted in; its tokens could not be told from them"
            )
        seen.add(contract.id.lower())


def _check_ids(catalogue: Catalogue, mistakes: Mistakes) -> None:
    seen: set[str] = set()
    for path, model in catalogue.models.items():
        if model.id.lower() in seen:
            mistakes.at((*path, "id"), f"there is a model '{model.id}' already")
        seen.add(model.id.lower())


def _check_names(catalogue: Catalogue, mistakes: Mistakes) -> None:
    """On one surface a name means one model, in whatever case it is written. Ids go first: an alias gives way."""
    owners: dict[tuple[str, str], str] = {
        (surface, model.id.lower()): model.id for model in catalogue.models.values() for surface in model.surfaces
    }
    for path, model in catalogue.models.items():
        for surface, alias in _aliases(model):
            where = (*path, "aliases", *(() if surface == "*" else (surface,)))
            if surface != "*" and surface not in model.surfaces:
                mistakes.at(where, f"the model is not on the surface '{surface}'")
                continue
            on = model.surfaces if surface == "*" else (surface,)
            owner = next((o for s in on if (o := owners.setdefault((s, alias.lower()), model.id)) != model.id), None)
            if owner:
                mistakes.at(where, f"'{alias}' is a name of the model '{owner}' already")


def _aliases(model: ModelSettings) -> Iterator[tuple[str, str]]:
    """Each alias with its surface, or `*`."""
    for surface, aliases in model.aliases:
        for alias in aliases:
            yield surface, alias


def _check_references(model: ModelSettings, path: Path, catalogue: Catalogue, mistakes: Mistakes) -> None:
    if not model.offers and not model.planned:
        mistakes.at((*path, "offers"), "is missing: no provider serves this model (or say planned = true)")
    for index, offer in enumerate(model.offers):
        if offer.provider not in catalogue.provider_names:
            hint = did_you_mean(offer.provider, catalogue.provider_names)
            mistakes.at((*path, "offers", index, "provider"), f"there is no provider '{offer.provider}'{hint}")
    if model.contract is not None and model.contract not in catalogue.contract_ids:
        hint = did_you_mean(model.contract, catalogue.contract_ids)
        mistakes.at((*path, "contract"), f"there is no contract '{model.contract}'{hint}")
    if model.contract is not None and "forward" not in model.surfaces:
        mistakes.at((*path, "contract"), "pays on the surface 'forward' only, and the model is not on it")


def _check_dialects(model: ModelSettings, path: Path, catalogue: Catalogue, mistakes: Mistakes) -> None:
    """Each provider is called in a dialect that can ask for what the model does."""
    speaks = {provider.name: provider.speaks for provider in catalogue.providers.values()}
    for index, offer in enumerate(model.offers):
        dialects = speaks.get(offer.provider, ())
        if dialects and not any(
            (dialect == "openai_embeddings") == (model.kind == "embeddings") for dialect in dialects
        ):
            said = f"'{offer.provider}' is called in no dialect for {model.kind}"
            mistakes.at((*path, "offers", index, "provider"), said)


def _check_prices(model: ModelSettings, path: Path, mistakes: Mistakes) -> None:
    """What is called is paid for, unless it is called free: a forgotten price must not give a model away."""
    places: list[tuple[Path, PriceSettings | None]] = [((*path, "price"), model.price)]
    places += [((*path, "offers", index, "price"), offer.price) for index, offer in enumerate(model.offers)]
    for where, price in places:
        if price and (mistake := _wrong_price(price, model.kind)):
            mistakes.at(where, mistake)
    priced = model.price is not None or (model.offers and all(offer.price for offer in model.offers))
    if not priced and not model.contract and not model.planned:
        mistakes.at((*path, "price"), "is missing: give a price, a contract, or price = { free = true }")


def _wrong_price(price: PriceSettings, kind: str) -> str | None:
    amounts = [amount for name, amount in asdict(price).items() if name != "free"]
    if price.free:
        return "is free and has amounts; only one of the two can be meant" if any(amounts) else None
    if not any(amounts):
        return "is nothing; say free = true if that is meant"
    if kind == "chat" and not price.per_request and not (price.input and price.output):
        return "needs both input and output"
    return None


def _check_limits(model: ModelSettings, path: Path, mistakes: Mistakes) -> None:
    most = model.max_output_tokens
    if most is not None and model.default_output_tokens is not None and model.default_output_tokens > most:
        mistakes.at((*path, "default_output_tokens"), "is more than max_output_tokens")
