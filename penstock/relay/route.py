"""From a wish to a plan: which model is meant, who may serve it in which order, and which money pays.

A plain function of values. Nothing is asked of the world here; whether an offer is healthy is found out in
`attempt.py`.
"""

from __future__ import annotations

from typing import NoReturn

from msgspec import Struct
from msgspec.structs import replace

from penstock.access import Caller, Surface
from penstock.catalogue import Catalogue, Model, Offer
from penstock.dialects import Wish
from penstock.errors import InvalidRequest, ModelUnknown
from penstock.money.prices import Tariff
from penstock.money.units import ceil_div

LANES = ("credits", "contract")
ESTIMATED_BYTES_PER_TOKEN = 4  # of prompt text; what is charged when nobody counted


class Plan(Struct, frozen=True, gc=False):
    """What will be tried, and how it is counted.

    `input_bound` is never below the prompt's tokens (a token is at least `input_bytes_per_token` bytes);
    `input_estimate` is what is charged for the prompt of a call that was cut before anybody counted.
    """

    model: Model
    offers: tuple[Offer, ...]
    lane: str
    tariff: Tariff
    input_bound: int
    input_estimate: int
    default_output_tokens: int


def route(wish: Wish, kind: str, caller: Caller, surface: Surface, lane: str | None, catalogue: Catalogue) -> Plan:
    """The plan for a call of this `kind` (`chat`, `embeddings`). InvalidRequest and ModelUnknown."""
    model = catalogue.find(wish.model, surface.name)
    if model is None or (caller.models is not None and model.id not in caller.models):
        raise ModelUnknown(f"The model '{wish.model[:200]}' does not exist or is not available to you.", param="model")
    if model.planned:
        raise InvalidRequest(
            f"The model '{model.id}' is planned and not served yet.", param="model", code="model_not_available"
        )
    if model.kind != kind:
        raise InvalidRequest(f"The model '{model.id}' does not serve {kind}.", param="model")
    offers = tuple(offer for offer in model.offers if not offer.accounts or caller.account in offer.accounts)
    if not offers:
        raise ModelUnknown(f"The model '{model.id}' does not exist or is not available to you.", param="model")
    chosen = _lane(lane, surface)
    media = wish.images * model.image_tokens
    bound = max(ceil_div(wish.input_bytes, model.input_bytes_per_token), wish.token_ids) + media
    estimate = wish.token_ids or ceil_div(wish.text_bytes, ESTIMATED_BYTES_PER_TOKEN)
    return Plan(
        model=model,
        offers=offers,
        lane=chosen,
        tariff=model.tariffs.get(chosen) or _unpaid(model, chosen),
        input_bound=bound,
        input_estimate=min(bound, estimate + media),
        default_output_tokens=model.default_output_tokens if kind == "chat" else 0,
    )


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


def _unpaid(model: Model, lane: str) -> NoReturn:
    if lane == "contract":
        raise ModelUnknown(f"The model '{model.id}' is not mapped to a contract.", param="model")
    raise ModelUnknown(f"The model '{model.id}' has no price on this lane.", param="model")
