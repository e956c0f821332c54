"""What costs more than an offer's price is refused by name; what its provider refuses for nothing is left out."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from msgspec import Raw

from penstock.catalogue import Catalogue, Offer
from penstock.config import ModelSettings, OfferSettings, PriceSettings, ProviderSettings, SecretSettings, Settings
from penstock.dialects import Wish, openai_chat
from penstock.errors import InvalidRequest
from penstock.relay.tailor import cut, require_covered, without_betas
from penstock.vendors import VENDORS


def offer(vendor: str) -> Offer:
    """An offer at a provider of this vendor, as the configuration makes it."""
    said: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in VENDORS[vendor].items()}
    price = PriceSettings(free=True)
    settings = Settings(
        secrets=SecretSettings(b"p" * 32, b"a" * 32),
        providers=(ProviderSettings("up", **said),),
        models=(ModelSettings("m", offers=(OfferSettings("up", "m"),), price=price),),
    )
    return Catalogue(settings).models[0].offers[0]


def wish(**fields: Any) -> Wish:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return openai_chat.peek(json.dumps(body).encode(), max_output_tokens=100)


@pytest.mark.parametrize(
    ("vendor", "field", "value"),
    [
        ("openai", "service_tier", "priority"),
        ("openai", "web_search_options", {}),
        ("openai", "modalities", ["text", "audio"]),
        ("openrouter", "modalities", ["image", "text"]),
        ("openrouter", "plugins", [{"id": "web"}]),
        ("openrouter", "models", ["openai/gpt-5"]),
        ("anthropic", "speed", "fast"),
        ("groq", "service_tier", "performance"),
        ("xai", "search_parameters", {"mode": "on"}),
        ("perplexity", "web_search_options", {"search_context_size": "high"}),
    ],
)
def test_what_changes_the_price_is_refused_by_name_unless_the_operator_allows_it(
    vendor: str, field: str, value: Any
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        require_covered(wish(**{field: value}), offer(vendor))
    assert caught.value.param == field
    require_covered(wish(**{field: value}), replace(offer(vendor), priced_fields=()))


@pytest.mark.parametrize("vendor", ["anthropic", "openrouter"])
@pytest.mark.parametrize("beta", ["context-1m-2025-08-07", "claude-code-20250219, Context-1M-2027-01-01"])
def test_a_beta_that_changes_the_price_is_taken_out(vendor: str, beta: str) -> None:
    said = without_betas(((b"anthropic-beta", beta.encode()),), offer(vendor).dropped_betas)
    assert said == (((b"anthropic-beta", b"claude-code-20250219"),) if "," in beta else ())


def test_all_other_betas_pass() -> None:
    headers = (
        (b"anthropic-version", b"context-1m"),
        (b"anthropic-beta", b"claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27"),
    )
    assert without_betas(headers, offer("anthropic").dropped_betas) == headers


@pytest.mark.parametrize(
    ("vendor", "field", "value"),
    [
        ("openai", "service_tier", "auto"),
        ("openai", "service_tier", None),
        ("openai", "modalities", ["text"]),
        ("groq", "service_tier", "on_demand"),
        ("openrouter", "plugins", []),
        ("anthropic", "speed", "standard"),
        ("deepseek", "service_tier", "flex"),
    ],
)
def test_a_value_that_asks_for_the_usual_passes(vendor: str, field: str, value: Any) -> None:
    require_covered(wish(**{field: value}), offer(vendor))


def test_a_tool_that_the_provider_bills_apart_is_refused_by_its_place() -> None:
    function = {"type": "function", "function": {"name": "web_search", "parameters": {}}}
    search = {"type": "web_search_20260318", "name": "web_search"}
    require_covered(wish(tools=[function]), offer("anthropic"))
    require_covered(wish(tools=[search]), offer("vllm"))
    with pytest.raises(InvalidRequest) as caught:
        require_covered(wish(tools=[function, search]), offer("anthropic"))
    assert caught.value.param == "tools[1].type"


@pytest.mark.parametrize("place", ["container_auto", "container_reference"])
def test_a_shell_that_the_provider_runs_is_billed_apart_and_a_callers_own_is_not(place: str) -> None:
    local: list[dict[str, Any]] = [
        {"type": "shell"},
        {"type": "shell", "environment": {"type": "local"}},
        {"type": "local_shell"},
        {"type": "function", "function": {"name": "shell", "parameters": {"environment": {"type": place}}}},
    ]
    require_covered(wish(tools=local), offer("openai"))
    with pytest.raises(InvalidRequest) as caught:
        require_covered(wish(tools=[*local, {"type": "shell", "environment": {"type": place}}]), offer("openai"))
    assert caught.value.param == "tools[4].type"


def test_what_a_provider_refuses_and_nobody_misses_is_left_out() -> None:
    body = b'{"model":"m","user":"u","store":false,"temperature":0.5,"stream_options":{"include_usage":true}}'
    assert cut(body, offer("mistral")) == b'{"model":"m","temperature":0.5}'
    assert cut(body, offer("openai")) is body
    plain = b'{"model": "m",  "temperature":0.5}'
    assert cut(plain, offer("mistral")) is plain


@pytest.mark.parametrize(
    "tools",
    [
        '[{"type":"web\\u005fsearch"}]',
        '[{"type":null,"name":"mine"},{"type":"web_search"}]',
        '[{"type":5},{"type":"web_search","max":1e999}]',
        '[{"type":"web_search"},5]',
    ],
)
def test_a_tool_that_is_billed_apart_cannot_be_hidden(tools: str) -> None:
    asked = msgspec.structs.replace(wish(), fields={"tools": Raw(tools.encode())})
    with pytest.raises(InvalidRequest):
        require_covered(asked, offer("openai"))


def test_other_models_are_no_fallback_at_this_models_price() -> None:
    for vendor in ("anthropic", "openrouter"):
        with pytest.raises(InvalidRequest) as caught:
            require_covered(wish(fallbacks=[{"model": "dear"}]), offer(vendor))
        assert caught.value.param == "fallbacks"
        require_covered(wish(fallbacks="default"), offer(vendor))
        assert cut(b'{"model":"m","fallbacks":"default"}', offer(vendor)) == b'{"model":"m"}'
