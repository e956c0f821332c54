"""What well-known keys in the environment switch on, with the prices of the installed price list."""

from __future__ import annotations

import subprocess
import sys
from datetime import date, time
from decimal import Decimal
from pathlib import Path

import pytest
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)

from penstock.config import PriceSettings, Settings
from penstock.config_file import load
from penstock.well_known import WELL_KNOWN, WellKnown, listed_price

IN_MEMORY = {"PENSTOCK_DATABASE_URL": "sqlite://"}


def switched_on(*variables: str) -> Settings:
    return load(None, IN_MEMORY | dict.fromkeys(variables, "k"))


def price(**parts: Decimal | TieredPrices) -> PriceSettings | None:
    return listed_price(ModelInfo("m", ClauseEquals("m"), prices=ModelPrice(**parts)), date(2026, 11, 20))


def priced(*prices: ConditionalPrice) -> ModelInfo:
    return ModelInfo("m", ClauseEquals("m"), prices=list(prices))


def flat(amount: str) -> ModelPrice:
    return ModelPrice(input_mtok=Decimal(amount), output_mtok=Decimal(amount))


ONE = Decimal(1)
TODAY = date(2026, 11, 20)
TIERED = TieredPrices(base=ONE, tiers=[Tier(start=200_000, price=Decimal(2))])


@pytest.mark.parametrize("known", WELL_KNOWN, ids=lambda known: known.name)
def test_each_of_its_keys_switches_a_provider_on(known: WellKnown) -> None:
    for variable in known.variables:
        assert [provider.name for provider in switched_on(variable).providers] == ["demo", known.name]


def test_models_have_exact_prices_and_two_names() -> None:
    models = {model.id: model for model in switched_on("OPENAI_API_KEY").models}
    model = models["openai/gpt-4o"]
    assert model.price == PriceSettings(input=2_500_000_000, output=10_000_000_000, cached_input=1_250_000_000)
    assert (model.aliases, model.surfaces) == ((("*", ("gpt-4o",)),), ("trust", "router"))
    assert models["openai/text-embedding-3-small"].kind == "embeddings"


def test_anthropics_key_switches_claude_on_with_what_its_cache_costs() -> None:
    settings = switched_on("ANTHROPIC_API_KEY")
    provider = settings.providers[1]
    assert (provider.kind, provider.speaks) == ("anthropic", ("anthropic_messages",))
    model = next(each for each in settings.models if each.id == "anthropic/claude-opus-4-8")
    assert model.price == PriceSettings(
        input=5 * 10**9,
        output=25 * 10**9,
        cached_input=500_000_000,
        cache_write=6_250_000_000,
        cache_write_1h=10 * 10**9,
    )
    assert not any(each.id.startswith("anthropic/claude-3") for each in settings.models)


def test_a_vendors_quirks_come_with_its_key() -> None:
    mistral = switched_on("MISTRAL_API_KEY").providers[1]
    assert (mistral.vendor, mistral.stream_usage, "stream_options" in mistral.dropped_fields) == (
        "mistral",
        False,
        True,
    )


def test_openai_gets_its_own_output_limit() -> None:
    assert switched_on("OPENAI_API_KEY").providers[1].output_limit_field == "max_completion_tokens"


def test_no_name_means_two_models_when_every_key_is_there() -> None:
    settings = switched_on(*(known.variables[0] for known in WELL_KNOWN))
    names = [
        name.lower() for m in settings.models for name in (m.id, *(a for _, aliases in m.aliases for a in aliases))
    ]
    assert len(names) == len(set(names)) > 500
    assert all(m.price and (m.price.input or m.price.free) for m in settings.models)


def test_a_configured_provider_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    path.write_text('well_known = true\n[providers.groq]\nbase_url = "http://127.0.0.1:9"\n')
    settings = load(path, IN_MEMORY | {"GROQ_API_KEY": "k", "XAI_API_KEY": "k"})
    assert [(provider.name, provider.api_key) for provider in settings.providers] == [("groq", None), ("xai", "k")]


def test_the_environment_moves_a_switched_on_provider() -> None:
    environ = IN_MEMORY | {"GROQ_API_KEY": "k", "PENSTOCK_PROVIDER_GROQ_BASE_URL": "http://127.0.0.1:9"}
    assert load(None, environ).providers[1].base_url == "http://127.0.0.1:9"


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"input_mtok": ONE},
        {"output_mtok": ONE},
        {"input_mtok": TIERED, "output_mtok": ONE},
        {"input_mtok": ONE, "output_mtok": Decimal("0.0000000001")},
        {"input_mtok": ONE, "output_mtok": ONE, "input_audio_mtok": ONE},
        {"input_mtok": ONE, "output_mtok": ONE, "requests_kcount": ONE},
    ],
)
def test_a_price_we_could_not_charge_is_none(parts: dict[str, Decimal | TieredPrices]) -> None:
    assert price(**parts) is None


def test_searches_of_other_endpoints_do_not_matter() -> None:
    assert price(input_mtok=ONE, output_mtok=ONE, web_searches_kcount=ONE) == PriceSettings(10**9, 10**9)


def test_writing_to_a_cache_has_its_own_price() -> None:
    listed = price(input_mtok=ONE, output_mtok=ONE, cache_write_mtok=Decimal("1.25"), cache_write_1h_mtok=Decimal(2))
    assert listed == PriceSettings(10**9, 10**9, cache_write=1_250_000_000, cache_write_1h=2 * 10**9)


def test_writing_costs_the_dearest_hours_price_also_where_another_hour_says_nothing_of_it() -> None:
    night = TimeOfDateConstraint(start_time=time(1), end_time=time(4))
    written = ModelPrice(input_mtok=ONE, output_mtok=ONE, cache_write_mtok=Decimal(2))
    listed = listed_price(priced(ConditionalPrice(prices=written), ConditionalPrice(night, prices=flat("3"))), TODAY)
    assert listed == PriceSettings(3 * 10**9, 3 * 10**9, cache_write=3 * 10**9)


def test_the_last_price_that_has_begun_counts() -> None:
    later = StartDateConstraint(start_date=date(2026, 11, 1))
    model = priced(ConditionalPrice(prices=flat("1")), ConditionalPrice(later, prices=flat("0.5")))
    assert listed_price(model, date(2026, 10, 31)) == PriceSettings(10**9, 10**9)
    assert listed_price(model, date(2026, 11, 1)) == PriceSettings(10**9 // 2, 10**9 // 2)


def test_the_dearest_hour_is_the_price_of_the_day() -> None:
    night = TimeOfDateConstraint(start_time=time(1), end_time=time(4))
    dear = ModelPrice(input_mtok=Decimal(3), output_mtok=Decimal("0.5"), cache_read_mtok=ONE)
    model = priced(ConditionalPrice(prices=flat("1")), ConditionalPrice(night, prices=dear))
    assert listed_price(model, date(2026, 11, 20)) == PriceSettings(3 * 10**9, 10**9)


def test_the_price_list_is_loaded_for_nobody_without_a_key() -> None:
    program = (
        "import sys; from penstock.config_file import load;"
        f"load(None, {IN_MEMORY}); print('genai_prices' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=root)
    assert ran.stdout == "False\n"
