"""Routes: how an account or a key wants its calls routed, and where a call would go and why.

A pattern means offers by class (`gpu`), provider (`groq`) or model (`meta-llama/*`); `*` and `?` stand for characters.
What is wanted of routing is the caller's to choose inside what the operator offers: it opens nothing that is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import get_args

from penstock.catalogue import AUTO, Offer
from penstock.db.accounts import find_account
from penstock.db.credentials import Credential
from penstock.db.program import Program
from penstock.db.routing import Routing, Wanted, clear_routing, combined, read_routing, write_routing
from penstock.errors import InvalidRequest, ModelUnknown, NotFound
from penstock.operations.actor import Actor
from penstock.operations.choices import Need, SurfaceChoice
from penstock.operations.keys import find_managed, find_seen
from penstock.operations.office import Office
from penstock.operations.values import show_instant, within
from penstock.routing.rank import Demand, LeftOut, Place, rank

MOST_PATTERNS = 64
LONGEST_PATTERN = 200
MOST_TOKENS = 100_000_000
WHY = {
    "only": "no other offer is left",
    "order": "it comes first in the order of the account or key",
    "class": "its class goes first",
    "load": "it has fewer calls under way",
    "price": "it is cheaper",
    "listed": "it is listed first in the configuration",
    "trial": "it has failed, its pause is over, and a call is to find out",
}


@dataclass(frozen=True, slots=True)
class RouteView:
    """What an account or a key wants of routing. Empty lists say nothing; `updated` is null when nothing is wanted."""

    subject: str
    order: tuple[str, ...]
    allow: tuple[str, ...]
    deny: tuple[str, ...]
    updated: str | None


@dataclass(frozen=True, slots=True)
class PlaceView:
    """An offer that would be tried, and why it stands where it does. `state` is its breaker's in this process."""

    place: int
    provider: str
    provider_class: str
    model: str
    upstream_model: str
    why: str
    reason: str
    state: str
    outstanding: int


@dataclass(frozen=True, slots=True)
class LeftOutView:
    """An offer that would not be tried."""

    provider: str
    provider_class: str
    model: str
    why: str
    reason: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Where a call would go: the offers in the order in which they would be tried, and the others."""

    model: str
    surface: str
    account: str | None
    key: str | None
    order: tuple[PlaceView, ...]
    left_out: tuple[LeftOutView, ...]


async def show_route(office: Office, actor: Actor, *, account: str | None = None, key: str | None = None) -> RouteView:
    """Show what an account, or a key, wants of routing: its order, and what it allows and denies."""
    return await office.store.read(_show(actor, account, key))


async def set_route(
    office: Office,
    actor: Actor,
    *,
    account: str | None = None,
    key: str | None = None,
    order: Sequence[str] | None = None,
    allow: Sequence[str] | None = None,
    deny: Sequence[str] | None = None,
) -> RouteView:
    """Set how calls of an account, or of a key, are routed, in place of what was set before.

    Each list holds patterns for classes (`gpu`, `cli`, `cloud`), providers and models, such as `groq` or
    `meta-llama/*`. `order` is tried in that order and before all else. With `allow` nothing else is used; `deny` is
    never used. A key's order goes before its account's; lists of both hold.
    """
    lists = {"order": order or (), "allow": allow or (), "deny": deny or ()}
    wanted = Wanted(
        **{name: _patterns(patterns, name) for name, patterns in lists.items()}, updated_ms=office.clock.now_ms()
    )
    if not any(lists.values()):
        raise InvalidRequest("Give an order, an allow list or a deny list; to want nothing, clear the route.")
    return await office.store.write(_set(actor, account, key, wanted))


async def clear_route(office: Office, actor: Actor, *, account: str | None = None, key: str | None = None) -> RouteView:
    """Clear what an account, or a key, wants of routing."""
    return await office.store.write(_set(actor, account, key, None))


async def explain_route(
    office: Office,
    actor: Actor,
    *,
    model: str,
    account: str | None = None,
    key: str | None = None,
    needs: Sequence[Need] | None = None,
    tokens: int | None = None,
    surface: SurfaceChoice = "router",
) -> Explanation:
    """Explain where a call of a model, or of `auto`, would go now: offers in order, and those left out, with reasons.

    With an account or a key, as a call of theirs. `needs` is what the call asks of a model, `tokens` what prompt and
    answer come to. What is said of health is what the answering process has met; a command line on the database has met
    nobody.
    """
    unknown = sorted(set(needs or ()) - set(get_args(Need)))
    if unknown:
        raise InvalidRequest(f"'needs' must be among {', '.join(get_args(Need))}.", param="needs")
    if tokens is not None:
        within(tokens, "tokens", most=MOST_TOKENS)
    lineage = await office.store.read(find_seen(actor, key)) if key is not None else []
    account = account or (lineage[0].account_id if lineage else None)
    if account is not None:
        actor.check_sees(account)
    demand = await _demand(office, lineage, account, needs, tokens)
    ranking = rank(
        _offers(office, actor, model, surface), demand, partial(office.upstreams.standing, account=account or "")
    )
    return Explanation(
        model=model,
        surface=surface,
        account=account,
        key=key,
        order=tuple(_place(number, each) for number, each in enumerate(ranking.places, 1)),
        left_out=tuple(_left_out(each) for each in ranking.left_out if actor.everywhere or each.why != "account"),
    )


def _offers(office: Office, actor: Actor, name: str, surface: str) -> list[Offer]:
    """Every offer of the model of that name, or of all that `auto` chooses among. ModelUnknown also for one that serves
    other accounts alone."""
    found = office.catalogue.find(name, surface)
    if found is not None and actor.sees is not None and not found.is_for(actor.sees):
        found = None
    models = office.catalogue.auto(name, surface) if found is None else (found,)
    offers = [offer for model in models for offer in model.offers]
    if not offers and found is None:
        hint = " with a price" if name == AUTO else ""
        raise ModelUnknown(f"There is no model '{name[:200]}'{hint} on the surface '{surface}'.", param="model")
    return offers


async def _demand(
    office: Office, lineage: list[Credential], account: str | None, needs: Sequence[Need] | None, tokens: int | None
) -> Demand:
    subjects = [*(each.id for each in lineage), *([account] if account else [])]
    models = lineage[0].models if lineage else None
    return Demand(
        account=account,
        models=None if models is None else frozenset(models),
        routing=await _routing(office, subjects),
        needs=frozenset(needs or ()),
        tokens=tokens or 0,
        classes=office.catalogue.classes,
    )


async def _routing(office: Office, subjects: list[str]) -> Routing | None:
    return combined(subjects, await office.store.read(read_routing(subjects))) if subjects else None


def _place(number: int, place: Place) -> PlaceView:
    offer = place.offer
    return PlaceView(
        place=number,
        provider=offer.provider,
        provider_class=offer.provider_class,
        model=offer.model_id,
        upstream_model=offer.model,
        why=place.why,
        reason=WHY[place.why],
        state=place.standing.state,
        outstanding=place.standing.load,
    )


def _left_out(each: LeftOut) -> LeftOutView:
    return LeftOutView(each.offer.provider, each.offer.provider_class, each.offer.model_id, each.why, each.words)


def _show(actor: Actor, account: str | None, key: str | None) -> Program[RouteView]:
    if key is not None:
        _one_of(account, key)
        yield from find_seen(actor, key)
    else:
        actor.check_sees(_one_of(account, key))
        yield from _check_account(account or "")
    subject = _one_of(account, key)
    return _view(subject, (yield from read_routing([subject])).get(subject))


def _set(actor: Actor, account: str | None, key: str | None, wanted: Wanted | None) -> Program[RouteView]:
    subject = _one_of(account, key)
    if key is not None:
        yield from find_managed(actor, key)
    else:
        actor.check_governs(subject)
        yield from _check_account(subject)
    yield from clear_routing(subject) if wanted is None else write_routing(subject, wanted)
    return _view(subject, wanted)


def _one_of(account: str | None, key: str | None) -> str:
    """The subject. InvalidRequest unless one of the two is given."""
    given = [each for each in (account, key) if each is not None]
    if len(given) != 1:
        raise InvalidRequest("Give an account or a key, one of the two.", param="account")
    return given[0]


def _check_account(account: str) -> Program[None]:
    if (yield from find_account(account)) is None:
        raise NotFound("There is no such account.")


def _view(subject: str, wanted: Wanted | None) -> RouteView:
    if wanted is None:
        return RouteView(subject, (), (), (), None)
    return RouteView(subject, wanted.order, wanted.allow, wanted.deny, show_instant(wanted.updated_ms))


def _patterns(written: Sequence[str], param: str) -> tuple[str, ...]:
    patterns = tuple(dict.fromkeys(each.strip() for each in written))
    if len(patterns) > MOST_PATTERNS or not all(0 < len(each) <= LONGEST_PATTERN for each in patterns):
        raise InvalidRequest(
            f"'{param}' takes up to {MOST_PATTERNS} patterns of 1 to {LONGEST_PATTERN} characters.", param=param
        )
    return patterns
