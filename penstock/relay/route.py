"""From a wish to a plan: which model is meant, who may serve it in which order, and which money pays.

A plain function: how everybody stands is asked of `Upstreams`, which asks nobody. A call of a model with one offer,
which is nearly every call, takes the short way (`_only`); all others are ranked (`penstock/routing/rank.py`).

`auto` is a name for many models. Its plan holds offers of several, in one order, and the money is reckoned at the
dearest of them; which of them serves, and what that costs, shows when one has answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NoReturn

from msgspec import Struct
from msgspec.structs import replace

from penstock.access import Caller, Surface
from penstock.catalogue import AUTO, Catalogue, Model, Offer
from penstock.dialects import Dialect, Wish
from penstock.dialects.pairs import PAIRS, between
from penstock.errors import InvalidRequest, ModelUnknown, NoHealthyProvider
from penstock.money.prices import Tariff, UsdTariff, dearest
from penstock.money.units import ceil_div
from penstock.relay.ask import Ask
from penstock.routing.health import retry_after_s
from penstock.routing.rank import Away, Demand, LeftOut, Place, Ranking, rank
from penstock.routing.upstreams import Upstreams

LANES = ("credits", "contract")
ESTIMATED_BYTES_PER_TOKEN = 4  # of prompt text; what is charged when nobody counted
LARGEST_CONTEXT = 1_048_576  # tokens; what the largest contexts that are sold have, for models whose own is not told
ONLY: tuple[str, ...] = ("only",)
NOBODY_ANSWERS = frozenset[Away]({"open", "not_ready"})
NOT_FOR_YOU = frozenset[Away]({"account", "key", "denied"})


class Plan(Struct, frozen=True, gc=False):
    """What will be tried, and how it is counted. `model` is that of the first offer, `reasons` are a word for each.

    `input_bound` is never below the prompt's tokens (a token is at least `input_bytes_per_token` bytes);
    `input_estimate` is what is charged for the prompt of a call that was cut before anybody counted.
    """

    model: Model
    offers: tuple[Offer, ...]
    reasons: tuple[str, ...]
    auto: bool
    lane: str
    tariff: Tariff
    input_bound: int
    input_estimate: int
    default_output_tokens: int
    max_output_tokens: int | None


def route(wish: Wish, ask: Ask, caller: Caller, catalogue: Catalogue, upstreams: Upstreams, *, most: int) -> Plan:
    """The plan for a call, of at most `most` offers. InvalidRequest, ModelUnknown and NoHealthyProvider."""
    model = catalogue.find(wish.model, ask.surface.name)
    if model is None:
        return _auto(wish, ask, caller, catalogue, upstreams, most=most)
    if caller.models is not None and model.id not in caller.models:
        raise _unknown(wish)
    if model.planned:
        raise InvalidRequest(
            f"The model '{model.id}' is planned and not served yet.", param="model", code="model_not_available"
        )
    if model.kind != ask.kind:
        raise InvalidRequest(f"The model '{model.id}' does not serve {ask.kind}.", param="model")
    lane = _lane(ask.said.lane, ask.surface)
    tariff = model.tariffs.get(lane) or _unpaid(model.id, lane)
    if _only(model, wish, ask.dialect, caller, upstreams):
        offers, reasons = model.offers, ONLY
    else:
        offers, reasons = _pinned(model, wish, ask, caller, catalogue, upstreams, most=most)
    bound, estimate = _input(wish, model)
    default = model.default_output_tokens if ask.kind == "chat" else 0
    return Plan(model, offers, reasons, False, lane, tariff, bound, estimate, default, model.max_output_tokens)


def _only(model: Model, wish: Wish, dialect: Dialect, caller: Caller, upstreams: Upstreams) -> bool:
    """Whether there is one offer and nothing to think about."""
    if len(model.offers) > 1 or caller.routing is not None:
        return False
    offer = model.offers[0]
    return (
        dialect.NAME in offer.speaks
        and not offer.accounts
        and wish.needs <= offer.capabilities
        and upstreams.is_well(offer, caller.account)
    )


def _pinned(
    model: Model, wish: Wish, ask: Ask, caller: Caller, catalogue: Catalogue, upstreams: Upstreams, *, most: int
) -> tuple[tuple[Offer, ...], tuple[str, ...]]:
    """The offers of one model, in order, with the reasons. Of its context an upstream has the last word, not we."""
    demand = demand_of(wish, ask, caller, catalogue.classes, tokens=_tokens(wish, ask.kind, [model]))
    ranking = rank(model.offers, demand, partial(upstreams.standing, account=caller.account))
    if not ranking.places and any(each.why == "context" for each in ranking.left_out):
        demand = demand_of(wish, ask, caller, catalogue.classes, tokens=0)
        ranking = rank(model.offers, demand, partial(upstreams.standing, account=caller.account))
    if not ranking.places:
        raise _nobody(wish, ranking, upstreams, caller.account)
    return _first(ranking.places, ask.dialect, most)


def _auto(wish: Wish, ask: Ask, caller: Caller, catalogue: Catalogue, upstreams: Upstreams, *, most: int) -> Plan:
    """The plan for `auto`, which is paid in USD: offers of whatever models there are, of each at its own price."""
    models = catalogue.auto(wish.model, ask.surface.name)
    if not models or ask.kind != "chat":
        raise _unknown(wish)
    lane = _lane(ask.said.lane, ask.surface)
    if lane != "credits":
        _unpaid(AUTO, lane)
    demand = demand_of(wish, ask, caller, catalogue.classes, tokens=_tokens(wish, ask.kind, models))
    ranking = rank(
        [offer for model in models for offer in model.offers],
        demand,
        partial(upstreams.standing, account=caller.account),
    )
    if not ranking.places:
        raise _nobody(wish, ranking, upstreams, caller.account)
    offers, reasons = _first(ranking.places, ask.dialect, most)
    by_id = {model.id: model for model in models}
    planned = [by_id[offer.model_id] for offer in offers]
    inputs = [_input(wish, model) for model in planned]
    limits = [model.max_output_tokens for model in planned]
    known = [limit for limit in limits if limit is not None]
    return Plan(
        model=planned[0],
        offers=offers,
        reasons=reasons,
        auto=True,
        lane=lane,
        tariff=UsdTariff(dearest([offer.price for offer in offers])),
        input_bound=max(bound for bound, _ in inputs),
        input_estimate=inputs[0][1],
        default_output_tokens=planned[0].default_output_tokens,
        max_output_tokens=max(known) if len(known) == len(limits) else None,
    )


def demand_of(wish: Wish, ask: Ask, caller: Caller, classes: tuple[str, ...], *, tokens: int) -> Demand:
    """What the call asks of an offer."""
    return Demand(
        account=caller.account,
        models=caller.models,
        routing=caller.routing,
        needs=wish.needs,
        speaks=frozenset((ask.dialect.NAME, *(name for name, _ in PAIRS.get(ask.dialect.NAME, ())))),
        tokens=tokens,
        classes=classes,
    )


def _first(places: tuple[Place, ...], dialect: Dialect, most: int) -> tuple[tuple[Offer, ...], tuple[str, ...]]:
    """The first `most` places, and of those behind the first for each way to translate that is not among them, and each
    list of what costs extra: what one has nothing for another may."""
    ways: list[object] = []
    chosen: list[Place] = []
    for place in places:
        offer = place.offer
        priced = offer.priced_fields, offer.priced_tools, offer.shared_files
        way = between(dialect, offer.speaks), priced
        if len(chosen) < most or way not in ways:
            chosen.append(place)
            ways.append(way)
    return tuple(place.offer for place in chosen), tuple(place.why for place in chosen)


def _input(wish: Wish, model: Model) -> tuple[int, int]:
    """`(bound, estimate)` of the prompt's tokens for a model."""
    bound = max(ceil_div(wish.input_bytes, model.input_bytes_per_token), wish.token_ids)
    estimate = wish.token_ids or ceil_div(wish.text_bytes, ESTIMATED_BYTES_PER_TOKEN)
    if wish.images:
        context = max(offer.context_length or LARGEST_CONTEXT for offer in model.offers)
        bound += min(wish.images * model.image_tokens, context)  # there is no more room than that
        estimate += wish.images * model.usual_image_tokens
        if wish.unmeasured:  # a small document may fill the context
            bound = max(bound, context)
    return bound, min(bound, estimate)


def _tokens(wish: Wish, kind: str, models: Sequence[Model]) -> int:
    """What must fit a context, by estimate: the prompt, and the answer as far as the caller says how long it may be.

    Bounds would be four times too large, and leave out offers that could serve. Each input of embeddings has the
    context to itself.
    """
    if kind != "chat":
        return 0
    return min(_input(wish, model)[1] for model in models) + (wish.output_limit or 1)


def with_definitions(plan: Plan, size: int) -> Plan:
    """The plan of a call whose model is told of `size` bytes of tools besides."""
    return replace(
        plan,
        input_bound=plan.input_bound + ceil_div(size, plan.model.input_bytes_per_token),
        input_estimate=plan.input_estimate + ceil_div(size, ESTIMATED_BYTES_PER_TOKEN),
    )


def _lane(asked: str | None, surface: Surface) -> str:
    """The lane that pays: what the header names, unless the surface knows only its own."""
    if asked is None or surface.lane == "contract":
        return surface.lane
    if asked not in LANES:
        raise InvalidRequest(f"X-Payment-Lane must be one of {', '.join(LANES)}.", param="X-Payment-Lane")
    return asked


def _unpaid(model: str, lane: str) -> NoReturn:
    if lane == "contract":
        raise ModelUnknown(f"The model '{model}' is not mapped to a contract.", param="model")
    raise ModelUnknown(f"The model '{model}' has no price on this lane.", param="model")


def _unknown(wish: Wish) -> ModelUnknown:
    return ModelUnknown(f"The model '{wish.model[:200]}' does not exist or is not available to you.", param="model")


def _nobody(wish: Wish, ranking: Ranking, upstreams: Upstreams, account: str) -> InvalidRequest | NoHealthyProvider:
    """Why no offer is left, in the words that help most: what would be served in a moment, what never will be."""
    left_out = ranking.left_out
    unwell = [each.offer for each in left_out if each.why in NOBODY_ANSWERS]
    if unwell:
        waits_s = [upstreams.health.wait_s(offer, account) for offer in unwell]
        return NoHealthyProvider(retry_after_s=retry_after_s(waits_s))
    unfit = [each for each in left_out if each.why not in NOT_FOR_YOU]
    return _unfit(wish.model[:200], unfit[0]) if unfit else _unknown(wish)


def _unfit(name: str, left_out: LeftOut) -> InvalidRequest:
    words = f"No provider of the model '{name}' can serve this request: {left_out.words}."
    if left_out.why == "context":
        return InvalidRequest(words, param="model", code="context_length_exceeded")
    if left_out.why == "capability":
        return InvalidRequest(words, param="model", code="model_not_capable")
    return InvalidRequest(words, param="model")
