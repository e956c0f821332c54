"""Routing: which model is meant, which lane pays, in which order offers are tried, and what the input may come to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penstock.access import Caller, Surface
from penstock.catalogue import Catalogue
from penstock.clock import Clock
from penstock.config import (
    AutoSettings,
    ContractSettings,
    HealthSettings,
    ModelSettings,
    OfferSettings,
    PriceSettings,
    ProviderSettings,
    SecretSettings,
    Settings,
)
from penstock.db.routing import Routing
from penstock.dialects import Wish, openai_chat, openai_embeddings
from penstock.errors import InvalidRequest, ModelUnknown, NoHealthyProvider, PenstockError, UpstreamFailed
from penstock.money.prices import Price, TokenTariff, UsdTariff
from penstock.relay.ask import Ask, Said
from penstock.relay.route import Plan, route
from penstock.routing.health import Health
from penstock.routing.upstreams import Upstreams
from penstock.vendors import image_tokens

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
    ModelSettings("looking", offers=OFFERS),
    ModelSettings("looking-dearly", offers=(OfferSettings("one", "openai/GPT-4o-mini-2024-07-18", CHEAP), *OFFERS)),
    ModelSettings("reading", offers=OFFERS, image_tokens=1_000, context_length=5_000),
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
    ask = Ask("req_1", surface, kind, dialect, Said(None, None, lane, None), no_body)
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


def test_the_cheaper_offer_is_tried_first_and_all_are_reckoned_at_the_dearest_price() -> None:
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
        pytest.param("looking", {"images": 2}, 101 + 32_768, 4_023, id="which may be large"),
        pytest.param("looking-dearly", {"images": 2}, 101 + 96_338, 51_025, id="and dear"),
        pytest.param("reading", {"images": 9}, 5_101, 5_101, id="and do not fit"),
        pytest.param("reading", {"images": 1, "unmeasured": 1}, 5_000, 1_023, id="a document may fill the context"),
        pytest.param("reading", {"images": 1}, 1_101, 1_023, id="and nothing else does"),
        pytest.param("seeing", {"images": 1, "unmeasured": 1}, 1_048_576, 1_023, id="a context that is not told"),
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


# `auto`, and offers that are not all well.

CHOICE = (
    ModelSettings("dear", offers=(OfferSettings("one", "d"),), price=PriceSettings(input=900, output=900)),
    ModelSettings(
        "small",
        offers=(OfferSettings("two", "s"),),
        price=PriceSettings(input=100, output=100),
        input_bytes_per_token=4,
        max_output_tokens=50,
        default_output_tokens=20,
    ),
    ModelSettings("large", offers=(OfferSettings("three", "l"),), price=PriceSettings(input=300, output=50)),
    ModelSettings("priceless", offers=(OfferSettings("one", "p"),), contract="C"),
    ModelSettings("embed", kind="embeddings", offers=OFFERS),
    ModelSettings("coming", planned=True),
    ModelSettings("elsewhere", offers=OFFERS, surfaces=("router",)),
)


def choosing(auto: AutoSettings = AutoSettings(), more: tuple[ModelSettings, ...] = ()) -> Catalogue:  # noqa: B008
    providers = tuple(ProviderSettings(name, base_url=f"http://{name}") for name in ("one", "two", "three"))
    contracts = (ContractSettings("C", "C", 140_000_000, 1, 2_000_000_000_000),)
    secrets = SecretSettings(b"p" * 32, b"a" * 32)
    return Catalogue(
        Settings(secrets=secrets, providers=providers, models=CHOICE + more, contracts=contracts, auto=auto)
    )


def chosen(made: Plan) -> list[str]:
    return [offer.model_id for offer in made.offers]


def test_auto_chooses_among_the_priced_chat_models_of_the_surface() -> None:
    assert chosen(plan("auto", catalogue=choosing())) == ["small", "large", "dear"]
    assert chosen(plan("AUTO", catalogue=choosing())) == ["small", "large", "dear"]
    assert chosen(plan("auto", catalogue=choosing(AutoSettings(models=("dear", "large"))))) == ["large", "dear"]
    mine = replace(CALLER, models=frozenset({"dear", "priceless"}))
    assert chosen(plan("auto", catalogue=choosing(), caller=mine)) == ["dear"]


def test_the_money_for_auto_is_reckoned_at_the_dearest_of_what_may_be_tried() -> None:
    made = plan("auto", catalogue=choosing(), input_bytes=100, text_bytes=100)
    assert made.tariff == UsdTariff(Price(900, 900, 900, 900))
    assert (made.input_bound, made.input_estimate) == (100, 25)
    assert (made.auto, made.model.id, made.default_output_tokens, made.max_output_tokens) == (True, "small", 20, None)
    small = plan("auto", catalogue=choosing(AutoSettings(models=("small",))), input_bytes=100, text_bytes=100)
    assert (small.input_bound, small.max_output_tokens, small.tariff.bound(10**6, 0)) == (25, 50, 100)


@pytest.mark.parametrize(
    ("auto", "how"),
    [
        pytest.param(AutoSettings(enabled=False), {}, id="switched off"),
        pytest.param(AutoSettings(models=("elsewhere",)), {}, id="nothing on this surface"),
        pytest.param(AutoSettings(), {"surface": FORWARD}, id="contracts pay for models by name"),
        pytest.param(AutoSettings(), {"kind": "embeddings"}, id="it chats"),
        pytest.param(AutoSettings(), {"caller": replace(CALLER, models=frozenset({"nothing"}))}, id="the key's list"),
        pytest.param(AutoSettings(), {"caller": replace(CALLER, routing=Routing(deny=("*",)))}, id="all is denied"),
    ],
)
def test_where_there_is_nothing_to_choose_auto_is_unknown(auto: AutoSettings, how: dict[str, Any]) -> None:
    assert isinstance(refusal("auto", catalogue=choosing(auto), **how), ModelUnknown)


def test_a_model_that_is_called_auto_is_that_model() -> None:
    own = ModelSettings("mine", offers=OFFERS, aliases=(("trust", ("Auto",)),))
    made = plan("auto", catalogue=choosing(more=(own,)))
    assert (made.auto, made.model.id) == (False, "mine")


def unwell(*providers: str) -> Upstreams:
    """Upstreams of which some have just refused our key."""
    health = Health(HealthSettings(pause_s=30), Clock(), str)
    for offer in (offer for model in choosing().models for offer in model.offers if offer.provider in providers):
        health.note(offer, UpstreamFailed(upstream_status=401))
    return Upstreams({}, health)


def test_who_is_not_well_is_not_in_the_plan_and_nobody_is_503() -> None:
    assert chosen(plan("auto", catalogue=choosing(), upstreams=unwell("two"))) == ["large", "dear"]
    for model, out in (("auto", ("one", "two", "three")), ("dear", ("one",))):
        with pytest.raises(NoHealthyProvider) as refused:
            plan(model, catalogue=choosing(), upstreams=unwell(*out))
        assert refused.value.retry_after_s == 30


def test_a_plan_has_no_more_offers_than_may_be_tried_but_one_for_each_way_to_translate() -> None:
    assert len(plan("auto", catalogue=choosing()).offers) == 3
    crowd = tuple(
        ModelSettings(f"m{number}", offers=(OfferSettings("one", "m"),), price=PriceSettings(input=number, output=1))
        for number in range(9)
    )
    assert chosen(plan("auto", catalogue=choosing(more=crowd))) == ["m0", "m1", "m2"]


@pytest.mark.parametrize(
    ("model", "most"),
    [
        ("gpt-4o-mini", 48_169),
        ("openai/GPT-4o-mini-2024-07-18", 48_169),
        ("ft:gpt-4o-mini-2024-07-18:acme::1", 48_169),
        ("gpt-4o", 16_384),
    ],
)
def test_an_image_is_bounded_by_what_its_model_counts_at_most(model: str, most: int) -> None:
    assert image_tokens(model)[1] == most
