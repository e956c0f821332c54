"""Child keys: minted from a key, for handing on. In nothing can a child do more than the key it comes from.

At creation its scopes, models, limit, rate and expiry are within the parent's. Later the whole line counts: a call
with a child is admitted only when every key above is alive and has room in its limits (`money/books.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from penstock.db.credentials import DEEPEST, Credential, NewCredential, find_lineage, insert_credential
from penstock.db.program import Program
from penstock.errors import InvalidRequest, WrongState
from penstock.operations.actor import Actor, covered
from penstock.operations.choices import KeyScope
from penstock.operations.key_views import MintedKey, minted_key
from penstock.operations.keys import (
    check_spends,
    check_within,
    find_managed,
    mint,
    parse_expiry,
    parse_models,
)
from penstock.operations.office import Office
from penstock.operations.values import parse_name, parse_usd, within


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
    parent; what is left out is as the parent has it. What it spends counts for its parent too, and it ends with its
    parent.
    """
    wish = _Wish(
        name=parse_name(name),
        scopes=scopes,
        models=parse_models(office, actor, models),
        limit_nano=None if limit is None else parse_usd(limit, "limit"),
        expires_ms=parse_expiry(office, expires),
        per_minute=requests_per_minute,
    )
    lineage = await office.store.read(find_managed(actor, key))
    check_spends(lineage[0].kind, models, limit)
    secret, new = mint(office, _child(lineage[0], wish, id=office.ids.new("key"), now_ms=office.clock.now_ms()))
    return minted_key(secret, await office.store.write(_enter(actor, new, key)))


def _child(parent: Credential, wish: _Wish, *, id: str, now_ms: int) -> NewCredential:
    if parent.kind == "session":
        raise WrongState("A session is no key to mint others from.")
    per_minute = parent.requests_per_minute if wish.per_minute is None else wish.per_minute
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
        requests_per_minute=within(per_minute, "requests_per_minute", most=parent.requests_per_minute),
        limit_nano=_at_most(parent.limit_nano, wish.limit_nano, "limit"),
        expires_ms=_at_most(parent.expires_ms, wish.expires_ms, "expires"),
        environment=parent.environment,
    )


def _scopes(parents: tuple[str, ...], asked: Sequence[str] | None) -> tuple[str, ...]:
    scopes = parents if asked is None else tuple(sorted(set(asked)))
    if not scopes or not covered(frozenset(parents)).issuperset(scopes):
        raise InvalidRequest(f"The key has the scopes {', '.join(parents)}; a child has some of them.", param="scopes")
    return scopes


def _models(parents: tuple[str, ...] | None, asked: tuple[str, ...] | None) -> tuple[str, ...] | None:
    if asked is None or parents is None:
        return asked or parents
    if not set(asked) <= set(parents):
        raise InvalidRequest(f"The key allows {', '.join(parents)}; a child allows some of them.", param="models")
    return asked


def _at_most(parents: int | None, asked: int | None, param: str) -> int | None:
    """What is asked, else what the parent has. InvalidRequest when it is more than that."""
    if asked is not None and parents is not None and asked > parents:
        raise InvalidRequest(f"'{param}' is more than the key's own.", param=param)
    return parents if asked is None else asked


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
