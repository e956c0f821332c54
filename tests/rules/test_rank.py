"""The order in which offers are tried, as tables: offers and how they stand in, places with their reasons out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.catalogue import Offer
from penstock.db.routing import Routing
from penstock.routing.rank import WELL, Demand, Ranking, Standing, means, rank
from tests.rules.offers import offer

GPU, CLI, CLOUD = offer("den", "gpu"), offer("claude", "cli"), offer("groq", "cloud")
GPU2, CLOUD2 = offer("attic", "gpu"), offer("deepinfra", "cloud", model="n", price=50)
OPEN, TRIAL, NOT_READY = Standing("open"), Standing("half_open"), Standing(ready=False)


def ranked(*offers: Offer, stands: dict[str, Standing] | None = None, **demand: Any) -> Ranking:
    return rank(offers, Demand(**demand), lambda each: (stands or {}).get(each.provider, WELL))


def places(ranking: Ranking) -> list[tuple[str, str]]:
    return [(each.offer.provider, each.why) for each in ranking.places]


@pytest.mark.parametrize(
    ("offers", "stands", "expected"),
    [
        pytest.param((GPU,), {}, [("den", "only")], id="one offer"),
        pytest.param(
            (CLOUD, CLI, GPU), {}, [("den", "class"), ("claude", "class"), ("groq", "class")], id="gpu, cli, cloud"
        ),
        pytest.param(
            (CLOUD, CLI, GPU), {"den": OPEN}, [("claude", "class"), ("groq", "class")], id="who is out is out"
        ),
        pytest.param((GPU, CLOUD), {"den": OPEN, "groq": OPEN}, [], id="nobody is well"),
        pytest.param((GPU, CLI), {"den": NOT_READY}, [("claude", "only")], id="no worker is connected"),
        pytest.param(
            (GPU, CLOUD), {"den": TRIAL}, [("den", "trial"), ("groq", "class")], id="a trial is made in its own place"
        ),
        pytest.param(
            (GPU, GPU2, CLOUD),
            {"den": Standing(load=2), "attic": Standing(load=1)},
            [("attic", "load"), ("den", "class"), ("groq", "class")],
            id="inside a class the one with less to do",
        ),
        pytest.param(
            (CLOUD, CLOUD2), {}, [("deepinfra", "price"), ("groq", "price")], id="with the same to do the cheaper"
        ),
        pytest.param(
            (CLOUD, CLOUD2),
            {"deepinfra": Standing(load=1)},
            [("groq", "load"), ("deepinfra", "load")],
            id="load goes before price",
        ),
        pytest.param(
            (offer("b"), offer("a")), {}, [("b", "listed"), ("a", "listed")], id="all the same: as they are listed"
        ),
        pytest.param(
            (CLOUD, GPU),
            {"den": Standing(load=50)},
            [("den", "class"), ("groq", "class")],
            id="load is compared inside a class alone",
        ),
    ],
)
def test_offers_stand_by_class_then_load_then_price(
    offers: tuple[Offer, ...], stands: dict[str, Standing], expected: list[tuple[str, str]]
) -> None:
    assert places(ranked(*offers, stands=stands)) == expected


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        pytest.param((), ["den", "claude", "deepinfra", "groq"], id="none"),
        pytest.param(("cloud",), ["deepinfra", "groq", "den", "claude"], id="a class"),
        pytest.param(("groq", "cli"), ["groq", "claude", "den", "deepinfra"], id="a provider and a class"),
        pytest.param(("n", "cl*"), ["deepinfra", "claude", "den", "groq"], id="a model and a pattern"),
        pytest.param(("nothing-like-it",), ["den", "claude", "deepinfra", "groq"], id="what there is not"),
    ],
)
def test_an_order_of_ones_own_goes_before_all(order: tuple[str, ...], expected: list[str]) -> None:
    ranking = ranked(GPU, CLI, CLOUD, CLOUD2, routing=Routing(order=order))
    assert [each.offer.provider for each in ranking.places] == expected


def test_the_operator_may_order_the_classes() -> None:
    ranking = ranked(GPU, CLI, CLOUD, classes=("cloud", "gpu"))
    assert [each.offer.provider for each in ranking.places] == ["groq", "den", "claude"]


@pytest.mark.parametrize(
    ("demand", "left_out"),
    [
        pytest.param({"models": frozenset({"m"})}, {"deepinfra": "key"}, id="models of the key"),
        pytest.param({"routing": Routing(deny=("gro*",))}, {"groq": "denied"}, id="a denied provider"),
        pytest.param({"routing": Routing(deny=("N",))}, {"deepinfra": "denied"}, id="a denied model, in any case"),
        pytest.param({"routing": Routing(deny=("cloud",))}, {"groq": "denied", "deepinfra": "denied"}, id="a class"),
        pytest.param(
            {"routing": Routing(allow=(("groq", "gpu"),))}, {"claude": "denied", "deepinfra": "denied"}, id="allowed"
        ),
        pytest.param(
            {"routing": Routing(allow=(("groq", "gpu"), ("cloud",)))},
            {"den": "denied", "claude": "denied", "deepinfra": "denied"},
            id="every list has to allow",
        ),
        pytest.param(
            {"routing": Routing(allow=(("cloud",),), deny=("groq",))},
            {"den": "denied", "claude": "denied", "groq": "denied"},
            id="to deny is stronger",
        ),
    ],
)
def test_what_is_not_allowed_is_left_out_with_its_reason(demand: dict[str, Any], left_out: dict[str, str]) -> None:
    ranking = ranked(GPU, CLI, CLOUD, CLOUD2, **demand)
    assert {each.offer.provider: each.why for each in ranking.left_out} == left_out
    assert {each.offer.provider for each in ranking.places}.isdisjoint(left_out)
    assert len(ranking.places) + len(ranking.left_out) == 4
    assert all(each.words for each in ranking.left_out)


SIGHTED = offer("s", capabilities=frozenset({"tools", "images"}))


@pytest.mark.parametrize(
    ("of", "demand", "why"),
    [
        pytest.param(SIGHTED, {"needs": frozenset({"tools"})}, None, id="it can"),
        pytest.param(SIGHTED, {"needs": frozenset({"tools", "json_schema"})}, "capability", id="it cannot"),
        pytest.param(
            GPU, {"speaks": frozenset({"openai_chat", "anthropic_messages"})}, None, id="it speaks our dialect"
        ),
        pytest.param(GPU, {"speaks": frozenset({"anthropic_messages"})}, "dialect", id="no way from our dialect"),
        pytest.param(
            offer("s", capabilities=frozenset()), {"needs": frozenset({"images"})}, "capability", id="nothing"
        ),
        pytest.param(offer("s", context_length=100), {"tokens": 100}, None, id="it fits"),
        pytest.param(offer("s", context_length=100), {"tokens": 101}, "context", id="it does not fit"),
        pytest.param(GPU, {"tokens": 10**9}, None, id="no context is given"),
        pytest.param(offer("s", accounts=frozenset({"acc_1"})), {"account": "acc_1"}, None, id="ours"),
        pytest.param(offer("s", accounts=frozenset({"acc_1"})), {"account": "acc_2"}, "account", id="another's"),
        pytest.param(offer("s", accounts=frozenset({"acc_1"})), {}, "account", id="nobody's in particular"),
    ],
)
def test_who_cannot_serve_is_left_out(of: Offer, demand: dict[str, Any], why: str | None) -> None:
    ranking = ranked(of, **demand)
    assert [each.why for each in ranking.left_out] == ([] if why is None else [why])
    assert places(ranking) == ([(of.provider, "only")] if why is None else [])


def test_why_it_may_not_goes_before_how_it_is() -> None:
    ranking = ranked(CLOUD, stands={"groq": OPEN}, routing=Routing(deny=("groq",)))
    assert [each.why for each in ranking.left_out] == ["denied"]


@pytest.mark.parametrize(
    ("pattern", "it_does"),
    [
        ("gpu", True),
        ("den", True),
        ("d?n", True),
        ("m", True),
        ("M", True),
        ("*", True),
        ("cloud", False),
        ("de", False),
    ],
)
def test_a_pattern_means_a_class_a_provider_or_a_model(pattern: str, it_does: bool) -> None:
    assert means(pattern, GPU) is it_does


offers_drawn = st.lists(
    st.builds(
        lambda name, kind, price: offer(name, kind, price=price),
        st.sampled_from("abcdef"),
        st.sampled_from(["gpu", "cli", "cloud"]),
        st.integers(0, 3),
    ),
    max_size=8,
)
standings_drawn = st.dictionaries(
    st.sampled_from("abcdef"),
    st.builds(Standing, st.sampled_from(["closed", "open", "half_open"]), st.booleans(), st.integers(0, 3)),
)


@given(offers_drawn, standings_drawn)
def test_every_offer_has_a_place_or_a_reason_and_classes_never_mix(
    offers: list[Offer], stands: dict[str, Standing]
) -> None:
    ranking = ranked(*offers, stands=stands)
    told = [each.offer for each in ranking.places] + [each.offer for each in ranking.left_out]
    assert sorted(map(id, told)) == sorted(map(id, offers))
    classes = [("gpu", "cli", "cloud").index(each.offer.provider_class) for each in ranking.places]
    assert classes == sorted(classes)
    assert all(each.standing.state != "open" and each.standing.ready for each in ranking.places)
