"""The example files are read without a mistake, and the compatibility catalogue holds what its documents state."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from penstock.clock import iso
from penstock.config import ModelSettings, Settings
from penstock.config_file import BUILT_IN, load

EXAMPLES = Path(__file__).parents[2] / "examples"
ENVIRON = {
    "PENSTOCK_DATABASE_URL": "sqlite://",
    "DEEPINFRA_API_KEY": "k",
    "OPENROUTER_API_KEY": "k",
    "GROQ_API_KEY": "k",
    "ANTHROPIC_API_KEY": "k",
}


@pytest.fixture(scope="module")
def compatibility() -> Settings:
    return load(EXAMPLES / "compatibility.toml", ENVIRON)


def named(settings: Settings, surface: str, name: str) -> ModelSettings:
    """The model of that name on a surface."""
    (model,) = [
        m
        for m in settings.models
        if surface in m.surfaces
        and name in (m.id, *(alias for on, aliases in m.aliases if on in (surface, "*") for alias in aliases))
    ]
    return model


def test_the_starting_file_says_what_holds_without_a_file() -> None:
    started, built_in = (
        load(EXAMPLES / "penstock.toml", ENVIRON),
        load(None, ENVIRON | {"GROQ_API_KEY": "", "ANTHROPIC_API_KEY": ""}),
    )
    assert (started.models, started.contracts) == (built_in.models[:1], built_in.contracts)
    assert (started.server, started.limits, started.store) == (built_in.server, built_in.limits, built_in.store)
    assert BUILT_IN.count("[[models]]") == 1


def test_what_is_commented_out_in_the_starting_file_is_right_too(tmp_path: Path) -> None:
    text = (EXAMPLES / "penstock.toml").read_text(encoding="utf-8").partition("[server]")
    (tmp_path / "own-vllm.key").write_text("k")
    (tmp_path / "own-vllm.key").chmod(0o600)
    (tmp_path / "p.toml").write_text(text[1] + re.sub(r"(?m)^# (?!--)", "", text[2]), encoding="utf-8")
    settings = load(tmp_path / "p.toml", ENVIRON)
    assert (len(settings.models), settings.warnings) == (4, ())


@pytest.mark.parametrize(
    ("name", "dollars_in", "dollars_out"),
    [
        ("meta-llama/Meta-Llama-3.1-70B-Instruct", 0.59, 0.79),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", 0.055, 0.055),
        ("meta-llama/Meta-Llama-3.3-70B-Instruct", 0.59, 0.79),
        ("mistralai/Mistral-7B-Instruct-v0.3", 0.055, 0.055),
        ("Qwen/Qwen2.5-72B-Instruct", 0.35, 0.40),
        ("deepinfra/airoboros-70b", 0.70, 0.70),
    ],
)
def test_the_trust_surface_has_its_prices(
    compatibility: Settings, name: str, dollars_in: float, dollars_out: float
) -> None:
    model = named(compatibility, "trust", name)
    assert model.price
    assert (model.price.input, model.price.output) == (round(dollars_in * 10**9), round(dollars_out * 10**9))
    assert model.offers[0].provider == model.owned_by == "deepinfra"


@pytest.mark.parametrize("name", ["gpt-5", "claude-sonnet-4-6"])
def test_planned_models_are_on_the_trust_surface_only(compatibility: Settings, name: str) -> None:
    model = named(compatibility, "trust", name)
    assert (model.planned, model.surfaces) == (True, ("trust",))


@pytest.mark.parametrize(
    ("name", "contract"),
    [
        ("deepseek/deepseek-chat", "DEEPSEEK_JULY26"),
        ("deepseek/deepseek-coder", "DEEPSEEK_JULY26"),
        ("deepseek/deepseek-r1", "DEEPSEEK_JULY26"),
        ("meta-llama/llama-3.3-70b-instruct", "LLAMA_AUG26"),
        ("meta-llama/llama-3.1-70b-instruct", "LLAMA_AUG26"),
        ("meta-llama/llama-3.1-8b-instruct", "LLAMA_AUG26"),
    ],
)
def test_the_forward_surface_has_its_contracts(compatibility: Settings, name: str, contract: str) -> None:
    assert named(compatibility, "forward", name).contract == contract


def test_the_contracts_have_their_terms(compatibility: Settings) -> None:
    terms = {c.id: (c.price_nano_per_mtok, c.minimum_tokens, iso(c.expires_ms)) for c in compatibility.contracts}
    assert terms == {
        "DEEPSEEK_JULY26": (140_000_000, 1_000_000, "2026-07-31T00:00:00Z"),
        "LLAMA_AUG26": (180_000_000, 500_000, "2026-08-31T00:00:00Z"),
    }


def test_keys_have_their_prefixes(compatibility: Settings) -> None:
    p = compatibility.prefixes
    assert (p.inference, p.management, p.management_test) == ("auton_sk_", "auxen_live_", "auxen_test_")
    assert (p.instance, p.personal, p.team, p.account) == ("auxk_", "user.", "team.", "ak_")
