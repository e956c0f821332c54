"""In which order offers are tried, and why: a plain function of values, the whole of what `auto` knows.

An offer is left out when it may not be used (account, key, allow and deny lists), when it cannot do what is asked
(capabilities, context) or when it is not well. The rest stand in the order of

    the caller's own order, if there is one      then class: gpu, cli, cloud (or the operator's order of classes)
    then load: fewest calls under way            then price            then as the configuration lists them

Nothing is asked of the world here; how an offer stands is a `Standing` that somebody has looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Literal

from msgspec import Struct

from penstock.catalogue import Offer
from penstock.db.routing import Routing

CLASSES = ("gpu", "cli", "cloud")
REFERENCE_INPUT, REFERENCE_OUTPUT = 3, 1  # tokens in for each token out, for one price to compare by: usual for chat

Away = Literal["account", "key", "denied", "dialect", "capability", "context", "open", "not_ready"]


class Standing(Struct, frozen=True, gc=False):
    """How an offer stands just now. `state` is its breaker's; `ready` says whether a call could begin at all; `load`
    counts the calls under way at its provider."""

    state: Literal["closed", "open", "half_open"] = "closed"
    ready: bool = True
    load: int = 0


WELL = Standing()


class Demand(Struct, frozen=True, gc=False):
    """What a call asks of an offer, and who asks.

    `tokens` is what prompt and answer come to by estimate; `speaks` are the dialects that the caller's can be carried
    over to, its own among them, None is any. `models` is the key's allow-list, None allows all. `account` None is
    nobody in particular. `classes` is the operator's order of classes.
    """

    account: str | None = None
    models: frozenset[str] | None = None
    routing: Routing | None = None
    needs: frozenset[str] = frozenset()
    speaks: frozenset[str] | None = None
    tokens: int = 0
    classes: tuple[str, ...] = CLASSES


class Place(Struct, frozen=True, gc=False):
    """An offer that may be tried. `why` is a word for what gave it its place: it is what is different from the place
    after it, or from the one before for the last."""

    offer: Offer
    why: str
    standing: Standing


class LeftOut(Struct, frozen=True, gc=False):
    """An offer that is not tried. `why` is for programs, `words` are for people."""

    offer: Offer
    why: Away
    words: str


class Ranking(Struct, frozen=True, gc=False):
    """Offers in the order in which they are tried, and those that are not."""

    places: tuple[Place, ...]
    left_out: tuple[LeftOut, ...]


def rank(offers: Iterable[Offer], demand: Demand, standing: Callable[[Offer], Standing]) -> Ranking:
    """Order the offers, each with the reason for its place; those left out with theirs."""
    found: list[tuple[tuple[int, ...], Offer, Standing]] = []
    left_out: list[LeftOut] = []
    for number, offer in enumerate(offers):
        stands = standing(offer)
        away = _unfit(offer, demand) or _unwell(stands)
        if away is not None:
            left_out.append(LeftOut(offer, *away))
        else:
            found.append((_key(offer, demand, stands, number), offer, stands))
    found.sort(key=_first)
    return Ranking(tuple(_places(found)), tuple(left_out))


_STEPS = ("order", "class", "load", "price", "listed")  # what the parts of a key are about


def _key(offer: Offer, demand: Demand, stands: Standing, number: int) -> tuple[int, ...]:
    own = _own_place(offer, demand.routing.order) if demand.routing is not None else 0
    classes = demand.classes
    place = classes.index(offer.provider_class) if offer.provider_class in classes else len(classes)
    price = offer.price.input * REFERENCE_INPUT + offer.price.output * REFERENCE_OUTPUT
    return own, place, stands.load, price, number


def _first(found: tuple[tuple[int, ...], Offer, Standing]) -> tuple[int, ...]:
    return found[0]


def _places(found: list[tuple[tuple[int, ...], Offer, Standing]]) -> Iterable[Place]:
    last = len(found) - 1
    for index, (key, offer, stands) in enumerate(found):
        if stands.state == "half_open":
            yield Place(offer, "trial", stands)
        elif last == 0:
            yield Place(offer, "only", stands)
        else:
            yield Place(offer, _difference(key, found[index + 1 if index < last else index - 1][0]), stands)


def _difference(one: tuple[int, ...], other: tuple[int, ...]) -> str:
    return next(step for step, mine, theirs in zip(_STEPS, one, other, strict=True) if mine != theirs)


def _own_place(offer: Offer, order: Sequence[str]) -> int:
    """The first entry of an order that means the offer; behind all of them when none does."""
    return next((place for place, pattern in enumerate(order) if means(pattern, offer)), len(order))


def means(pattern: str, offer: Offer) -> bool:
    """Whether a pattern (`gpu`, `groq`, `meta-llama/*`) is for this offer: for its class, its provider or its model."""
    return (
        pattern == offer.provider_class
        or fnmatchcase(offer.provider, pattern)
        or fnmatchcase(offer.model_id.lower(), pattern.lower())
    )


def _unfit(offer: Offer, demand: Demand) -> tuple[Away, str] | None:
    """Why the offer cannot serve the call, whoever is well."""
    if offer.accounts and demand.account not in offer.accounts:
        return "account", "it serves other accounts"
    if demand.models is not None and offer.model_id not in demand.models:
        return "key", f"the key does not allow the model {offer.model_id}"
    if demand.routing is not None and (words := _denied(offer, demand.routing)):
        return "denied", words
    if demand.speaks is not None and demand.speaks.isdisjoint(offer.speaks):
        return "dialect", f"there is no way to {', '.join(offer.speaks)}"
    if demand.needs and (missing := sorted(demand.needs - offer.capabilities)):
        return "capability", f"it cannot do {', '.join(missing)}"
    if offer.context_length is not None and demand.tokens > offer.context_length:
        return "context", f"some {demand.tokens:,} tokens do not fit its context of {offer.context_length:,}"
    return None


def _denied(offer: Offer, routing: Routing) -> str | None:
    for pattern in routing.deny:
        if means(pattern, offer):
            return f"'{pattern}' is on a deny list"
    if not all(any(means(pattern, offer) for pattern in allowed) for allowed in routing.allow):
        return "it is not on the allow list"
    return None


def _unwell(stands: Standing) -> tuple[Away, str] | None:
    if stands.state == "open":
        return "open", "it has failed and is left alone for a while"
    if not stands.ready:
        return "not_ready", "no call could begin there now"
    return None
