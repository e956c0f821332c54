"""Routing: which model is meant, which lane pays, in which order offers are tried, and what the input may come to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.access import Caller, Surface
from penstock.catalogue import Catalogue
from penstock.clock import Clock
from penstock.config import (
    ContractSettings,
    HealthSettings,
    ModelSettings,
    OfferSettings,
    PriceSettings,
    ProviderSettings,
    SecretSettings,
    Settings,
)
from penstock.dialects import Wish, openai_chat, openai_embeddings
from penstock.errors import InvalidRequest, ModelUnknown, PenstockError
from penstock.money.prices import Price, TokenTariff, UsdTariff
from penstock.relay.ask import Ask
from penstock.relay.route import Plan, route
from penstock.routing.health import Health
from penstock.routing.upstreams import Upstreams

TRUST = Surface("trust", frozenset({"account"}), "trust", "credits")
FORWARD = Surface("forward", frozenset({"inference"}), "key", "contract")
CALLER = Caller("acc_1", ("key_1",), "account", None, frozenset({"inference"}), None)
CHEAP, DEAR = PriceSettings(input=100, output=900), PriceSettings(input=200, output=800, per_request=7)
OFFERS = (OfferSettings("one", "m-at-one", CHEAP), OfferSettings("two", "m-at-two", DEAR))
MODELS = (
    ModelSettings("Llama", offers=OFFERS, aliases=(("*", ("llama-latest",)), ("trust", ("big",))), contract="C"),
    ModelSettings("free", offers=(OfferSettings("one", "f"),), price=PriceSettings(free=True)),
    ModelSettings("priceless", offers=(OfferSettings("one", "p"),), contract="C"),
    ModelSettings("half-priced", offers=(OFFERS[0], OfferSettings("two", "h"))),
    ModelSettings("embed", kind="embeddings", offers=OFFERS),
    ModelSettings("coming", planned=True),
    ModelSettings("router-only", offers=OFFERS, surfaces=("router",)),
    ModelSettings("seeing", offers=OFFERS, input_bytes_per_token=2, image_tokens=1_000, default_output_tokens=77),
)
CATALOGUE = Catalogue(
    Settings(
        secrets=SecretSettings(b"p" * 32, b"a" * 32),
        providers=(ProviderSettings("one", base_url="http://one"), ProviderSettings("two", base_url="http://two")),
        models=MODELS,
        contracts=(ContractSettings("C", "C", 140_000_000, 1, 2_000_000_000_000),),
    )
)


def wish(model: str, **fields: Any) -> Wish:
    plain: dict[str, Any] = {
        "stream": False, "output_limit": None, "choices": 1, "include_usage": False, "input_bytes": 101,
        "text_bytes": 90, "images": 0, "fields": {},
    }  # fmt: skip
    return Wish(model=model, **(plain | fields))


def plan(
    model: str,
    *,
    surface: Surface = TRUST,
    kind: str = "chat",
    lane: str | None = None,
    caller: Caller = CALLER,
    catalogue: Catalogue = CATALOGUE,
    upstreams: Upstreams | None = None,
    **fields: Any,
) -> Plan:
    dialect = openai_chat if kind == "chat" else openai_embeddings
    ask = Ask("req_1", surface, kind, dialect, None, None, lane, None, no_body)
    upstreams = upstreams or Upstreams({}, Health(HealthSettings(), Clock(), str))
    return route(wish(model, **fields), ask, caller, catalogue, upstreams, most=3)


async def no_body() -> bytes:
    raise AssertionError("routing reads no body")


def refusal(model: str, **how: Any) -> PenstockError:
    with pytest.raises(InvalidRequest) as refused:
        plan(model, **how)
    return refused.value


@pytest.mark.parametrize("name", ["Llama", "llama", "LLAMA", "llama-latest", "Llama-Latest", "big"])
def test_a_model_is_found_by_any_of_its_names_in_any_case(name: str) -> None:
    assert plan(name).model.id == "Llama"


def test_offers_are_tried_in_the_operators_order_and_reckoned_at_the_dearest_price() -> None:
    made = plan("Llama")
    assert [(offer.provider, offer.model) for offer in made.offers] == [("one", "m-at-one"), ("two", "m-at-two")]
    assert made.tariff == UsdTariff(Price(200, 900, 200, 900, 7))


@pytest.mark.parametrize(
    ("model", "how"),
    [
        pytest.param("nothing", {}, id="unknown"),
        pytest.param("big", {"surface": FORWARD}, id="an alias of another surface"),
        pytest.param("router-only", {}, id="a model of another surface"),
        pytest.param("Llama", {"caller": replace(CALLER, models=frozenset({"free"}))}, id="not on the key's list"),
        pytest.param("Llama", {"caller": replace(CALLER, models=frozenset())}, id="nothing on the key's list"),
        pytest.param("priceless", {}, id="no price on a lane that counts USD"),
        pytest.param("half-priced", {}, id="an offer without a price"),
        pytest.param("free", {"surface": FORWARD}, id="no contract on the lane that counts tokens"),
    ],
)
def test_a_model_that_cannot_be_had_here_is_unknown(model: str, how: dict[str, Any]) -> None:
    error = refusal(model, **how)
    assert isinstance(error, ModelUnknown)
    assert error.param == "model"


def test_a_key_reaches_the_models_on_its_list_by_any_name() -> None:
    assert plan("big", caller=replace(CALLER, models=frozenset({"Llama"}))).model.id == "Llama"


def test_a_planned_model_is_refused_as_such() -> None:
    assert (refusal("coming").status, refusal("coming").code) == (400, "model_not_available")


@pytest.mark.parametrize(("model", "kind"), [("embed", "chat"), ("Llama", "embeddings")])
def test_a_model_serves_its_own_kind_of_call_alone(model: str, kind: str) -> None:
    assert not isinstance(refusal(model, kind=kind), ModelUnknown)


@pytest.mark.parametrize(
    ("surface", "asked", "lane"),
    [
        (TRUST, None, "credits"),
        (TRUST, "credits", "credits"),
        (TRUST, "contract", "contract"),
        (FORWARD, None, "contract"),
        (FORWARD, "credits", "contract"),
        (FORWARD, "nonsense", "contract"),
    ],
)
def test_the_header_chooses_the_lane_unless_the_surface_knows_only_its_own(
    surface: Surface, asked: str | None, lane: str
) -> None:
    made = plan("Llama", surface=surface, lane=asked)
    assert made.lane == lane
    assert isinstance(made.tariff, TokenTariff if lane == "contract" else UsdTariff)


@pytest.mark.parametrize("lane", ["", "x402", "Credits"])
def test_a_lane_that_is_not_there_is_refused(lane: str) -> None:
    assert refusal("Llama", lane=lane).param == "X-Payment-Lane"


def test_a_contract_counts_tokens_at_its_locked_price() -> None:
    assert plan("priceless", surface=FORWARD).tariff == TokenTariff("C", 140_000_000)


def test_a_model_declared_free_is_served_and_its_bound_is_nothing() -> None:
    assert plan("free").tariff.bound(10**6, 10**6) == 0


@pytest.mark.parametrize(
    ("model", "fields", "bound", "estimate"),
    [
        pytest.param("Llama", {"input_bytes": 101, "text_bytes": 90}, 101, 23, id="a token is at least a byte"),
        pytest.param("seeing", {"input_bytes": 101, "text_bytes": 90}, 51, 23, id="or as many as the operator knows"),
        pytest.param("seeing", {"input_bytes": 100, "text_bytes": 88, "images": 3}, 3_050, 3_022, id="and images"),
        pytest.param("Llama", {"input_bytes": 0, "text_bytes": 0}, 0, 0, id="nothing"),
    ],
)
def test_the_input_is_bounded_from_above_and_estimated(
    model: str, fields: dict[str, Any], bound: int, estimate: int
) -> None:
    made = plan(model, **fields)
    assert (made.input_bound, made.input_estimate) == (bound, estimate)


@pytest.mark.parametrize(("model", "kind", "output"), [("seeing", "chat", 77), ("embed", "embeddings", 0)])
def test_a_call_without_a_limit_is_reckoned_at_the_models_own(model: str, kind: str, output: int) -> None:
    assert plan(model, kind=kind).default_output_tokens == output
