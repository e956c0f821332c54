"""Child keys: minted from a key, for handing on. In nothing can a child do more than the key it comes from.

At creation its scopes, models, limit, rate and expiry are within the parent's, and `operator` is not handed on. Later
the whole line counts: a call with a child is admitted only when every key above is alive and has room in its limits
(`money/books.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.db.credentials import DEEPEST, Credential, NewCredential, find_lineage, insert_credential
from penstock.db.program import Program
from penstock.errors import InvalidRequest, WrongState
from penstock.operations.actor import Actor, covered, handed_on
from penstock.operations.choices import KeyScope
from penstock.operations.key_views import MintedKey, minted_key
from penstock.operations.keys import (
    Bounds,
    at_most,
    bounds_of,
    check_spends,
    check_within,
    find_managed,
    mint,
    parse_expiry,
    parse_models,
)
from penstock.operations.office import Office
from penstock.operations.values import parse_name, parse_usd


@dataclass(frozen=True, slots=True)
class _Wish:
    """What a child is to be; None is as the parent."""

    name: str
    scopes: Sequence[str] | None
    models: tuple[str, ...] | None
    limit_nano: int | None
    expires_ms: int | None
    per_minute: int | None


async def create_child_key(
    office: Office,
    actor: Actor,
    *,
    key: str,
    name: str,
    scopes: Sequence[KeyScope] | None = None,
    models: Sequence[str] | None = None,
    limit: str | None = None,
    expires: str | None = None,
    requests_per_minute: int | None = None,
) -> MintedKey:
    """Mint a key from the key with the id `key`, and show it in full, once.

    It is of the same kind and account, with at most the scopes, models, limit (in dollars), rate and expiry of its
    parent, and at most the rate and expiry of the key that mints it; what is left out is as much as it may have. The
    scope `operator` is not handed on. What it spends counts for its parent too, and it ends with its parent.
    """
    wish = _Wish(
        name=parse_name(name),
        scopes=scopes,
        models=parse_models(office, actor, models),
        limit_nano=None if limit is None else parse_usd(limit, "limit"),
        expires_ms=parse_expiry(office, expires),
        per_minute=requests_per_minute,
    )
    parent, bounds = await office.store.read(_find_parent(office, actor, key))
    check_spends(parent.kind, models, limit)
    secret, new = mint(office, _child(parent, wish, bounds, id=office.ids.new("key"), now_ms=office.clock.now_ms()))
    return minted_key(secret, await office.store.write(_enter(actor, new, key)))


def _find_parent(office: Office, actor: Actor, key: str) -> Program[tuple[Credential, Bounds]]:
    parent = (yield from find_managed(actor, key))[0]
    return parent, (yield from bounds_of(office, actor, handed_on(frozenset(parent.scopes)), parent))


def _child(parent: Credential, wish: _Wish, bounds: Bounds, *, id: str, now_ms: int) -> NewCredential:
    if parent.kind == "session":
        raise WrongState("A session is no key to mint others from.")
    return NewCredential(
        id=id,
        kind=parent.kind,
        name=wish.name,
        display="",
        digest=None,
        user_id=parent.user_id,
        account_id=parent.account_id,
        parent_id=parent.id,
        scopes=_scopes(parent.scopes, wish.scopes),
        models=_models(parent.models, wish.models),
        created_ms=now_ms,
        requests_per_minute=bounds.rate(bounds.per_minute if wish.per_minute is None else wish.per_minute),
        limit_nano=at_most(parent.limit_nano, wish.limit_nano, "limit"),
        expires_ms=bounds.expiry(wish.expires_ms),
        environment=parent.environment,
    )


def _scopes(parents: tuple[str, ...], asked: Sequence[str] | None) -> tuple[str, ...]:
    most = handed_on(frozenset(parents))
    scopes = tuple(sorted(most if asked is None else set(asked)))
    if not scopes or not covered(most).issuperset(scopes):
        raise InvalidRequest(f"A child of this key has some of the scopes {', '.join(sorted(most))}.", param="scopes")
    return scopes


def _models(parents: tuple[str, ...] | None, asked: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if asked is None or parents is None:
        return asked or parents
    if not set(asked) <= set(parents):
        raise InvalidRequest(f"The key allows {', '.join(parents)}; a child allows some of them.", param="models")
    return asked


def _enter(actor: Actor, new: NewCredential, parent: str) -> Program[Credential]:
    """Enter it, unless its parent has died meanwhile or its family is too old."""
    lineage = yield from find_managed(actor, parent)
    check_within(actor, new.scopes)
    if not all(each.alive(new.created_ms) for each in lineage):
        raise WrongState("The key, or one it was minted from, is revoked or expired.")
    if len(lineage) >= DEEPEST:
        raise WrongState(f"Keys are minted from one another over {DEEPEST} generations at most.")
    yield from insert_credential(new)
    return (yield from find_lineage(new.id))[0]
