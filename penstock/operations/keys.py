"""Keys: credentials for programs, shown in full once. How one is minted from another is `child_keys.py`.

kind         belongs to                       may
personal     a user                           call models, paid by the user's personal account
team         a team account                   call models, paid by that account
inference    an account                       call models, paid by its contract lots
account      a user, or one account           call models for any account of the user (X-Trust), or for that one
management   an account                       manage it; with scope `operator`, everything
worker       a user, or an account            connect a GPU worker that serves that account's calls (of a user: of the
                                              personal account); with scope `shared`, everybody's
tools_worker a user, or an account            the same for a tools worker
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import cast

from penstock.access import BODY_CHARACTERS, CHECK_CHARACTERS, Kind
from penstock.db.accounts import find_account, find_user
from penstock.db.credentials import (
    Credential,
    NewCredential,
    find_lineage,
    insert_credential,
    minted_from,
    read_credentials,
    revoke,
)
from penstock.db.program import Program
from penstock.errors import Forbidden, InvalidRequest, NotFound
from penstock.operations.actor import Actor
from penstock.operations.choices import KeyKind, KeyScope
from penstock.operations.key_views import KeyView, MintedKey, key_view, minted_key
from penstock.operations.office import Office
from penstock.operations.values import (
    MOST_ON_A_PAGE,
    Listing,
    page_of,
    parse_instant,
    parse_name,
    parse_usd,
    require_filled,
    within,
)

MANAGEMENT_SCOPES = frozenset({"read", "management", "operator"})
CONNECTING = frozenset({"worker", "tools_worker"})
CALLS_NOTHING = CONNECTING | {"management"}
MOST_PER_MINUTE = 1_000_000_000
REVOKE_AT_ONCE = 500  # keys in one transaction, so that nobody waits long behind it
SHOWN_CHARACTERS = 4


async def create_key(
    office: Office,
    actor: Actor,
    *,
    kind: KeyKind,
    name: str,
    user: str | None = None,
    account: str | None = None,
    scopes: Sequence[KeyScope] | None = None,
    models: Sequence[str] | None = None,
    limit: str | None = None,
    expires: str | None = None,
    requests_per_minute: int | None = None,
) -> MintedKey:
    """Create a key and show it in full, once.

    `personal` keys take a user; `account`, `worker` and `tools_worker` keys a user or an account; all others an
    account. `scopes` are for management keys (`read`, `management`, `operator`; `management` when left out) and for
    workers' (`connect`; with `shared`, which the operator alone can give, the worker serves every account). `limit` is
    what the key may spend in all, in dollars. Without `models` every model is allowed; keys that call none, of
    management and of workers, have neither. A key that makes another gives it at most its own rate and end, which are
    also what that has when they are left out; the operator's key is so bound only where it makes another operator's.
    """
    if actor.child:
        raise Forbidden("A key that was minted from another mints only children of its own.")
    _check_binding(kind, user, account)
    check_spends(kind, models, limit)
    held = _scopes(actor, kind, scopes)
    bounds = await office.store.read(bounds_of(office, actor, held))
    usual = min(office.settings.limits.requests_per_minute, bounds.per_minute)
    key, new = mint(
        office,
        NewCredential(
            id=office.ids.new("key"),
            kind=kind,
            name=parse_name(name),
            display="",
            digest=None,
            user_id=user,
            account_id=account,
            scopes=held,
            created_ms=office.clock.now_ms(),
            requests_per_minute=bounds.rate(usual if requests_per_minute is None else requests_per_minute),
            environment=_environment(office, kind),
            models=parse_models(office, actor, models),
            limit_nano=None if limit is None else parse_usd(limit, "limit"),
            expires_ms=bounds.expiry(parse_expiry(office, expires)),
        ),
    )
    return minted_key(key, await office.store.write(_enter(actor, new)))


async def list_keys(
    office: Office, actor: Actor, *, account: str | None = None, limit: int = 100, cursor: str | None = None
) -> Listing[KeyView]:
    """List keys, revoked ones too, oldest first: those of one account, or all that the caller may see.

    `limit` (1 to 1000) at a time; `cursor` is the `next` of the page before.
    """
    within(limit, "limit", most=MOST_ON_A_PAGE)
    require_filled(account=account, cursor=cursor)
    if account is not None:
        actor.check_sees(account)
    accounts, user = (actor.sees, actor.user) if account is None else (frozenset({account}), None)
    found = await office.store.read(read_credentials(accounts, user, after=cursor or "", most=limit + 1))
    now_ms = office.clock.now_ms()
    return page_of([key_view(each, now_ms) for each in found], limit)


async def revoke_key(office: Office, actor: Actor, *, key: str) -> KeyView:
    """Revoke the key with the id `key`, and every key minted from it, for good. Calls under way are finished.

    Should it break off, none of them is good any more; repeated, it marks those that were left.
    """
    now_ms = office.clock.now_ms()
    revoked = await office.store.write(_revoke(actor, key, now_ms))  # from here on none of them is admitted
    minted = await office.store.read(minted_from(key))
    for start in range(0, len(minted), REVOKE_AT_ONCE):
        await office.store.write(revoke(minted[start : start + REVOKE_AT_ONCE], now_ms))
    return key_view(revoked, now_ms)


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that a new key may have: requests a minute, and an end in milliseconds, None when it needs none."""

    per_minute: int
    expires_ms: int | None

    def rate(self, asked: int) -> int:
        """Requests a minute. InvalidRequest when there are none, or too many."""
        return within(asked, "requests_per_minute", most=self.per_minute)

    def expiry(self, asked: int | None) -> int | None:
        """When the key ends: as asked, else as late as it may. InvalidRequest when it is asked to be later."""
        return at_most(self.expires_ms, asked, "expires")


def bounds_of(
    office: Office, actor: Actor, scopes: Collection[str], parent: Credential | None = None
) -> Program[Bounds]:
    """What a key of these scopes may have that the actor makes: no more than the key, or session, it acts with, and
    than `parent` when it is minted from one. The operator's key bounds only another operator's; a session, whose rate
    is of when the user first came, no key of the usual rate."""
    usual = office.settings.limits.requests_per_minute
    makers = [] if parent is None else [parent]
    if actor.key is not None and ("operator" in scopes or not actor.may("operator")):
        makers += (yield from find_lineage(actor.key))[:1]
    ends = [each.expires_ms for each in makers if each.expires_ms is not None]
    rates = [max(each.requests_per_minute, usual if each.kind == "session" else 0) for each in makers]
    return Bounds(min(rates, default=MOST_PER_MINUTE), min(ends, default=None))


def at_most(most: int | None, asked: int | None, param: str) -> int | None:
    """What is asked, else as much as there may be. InvalidRequest when it is more than that."""
    if asked is not None and most is not None and asked > most:
        raise InvalidRequest(f"'{param}' is more than a key has that this one comes from.", param=param)
    return most if asked is None else asked


def mint(office: Office, asked: NewCredential) -> tuple[str, NewCredential]:
    """A new secret, and the row that knows it by its digest."""
    key = office.keyring.mint(cast(Kind, asked.kind), asked.environment)
    display = f"{key[: -BODY_CHARACTERS - CHECK_CHARACTERS]}…{key[-SHOWN_CHARACTERS:]}"
    return key, replace(asked, display=display, digest=office.keyring.digest(key))


def find_seen(actor: Actor, key: str) -> Program[list[Credential]]:
    """The key and its ancestors. NotFound when it is not the actor's."""
    lineage = yield from find_lineage(key)
    if not lineage or not _sees(actor, lineage[0]):
        raise NotFound("There is no such key.")
    return lineage


def find_managed(actor: Actor, key: str) -> Program[list[Credential]]:
    """The same; Forbidden when the actor may only look at it, or is a child key of another line."""
    lineage = yield from find_seen(actor, key)
    actor.check_line([each.id for each in lineage])
    if lineage[0].account_id is not None:
        actor.check_manages(lineage[0].account_id)
    check_within(actor, lineage[0].scopes)
    return lineage


def check_within(actor: Actor, scopes: Collection[str]) -> None:
    """Forbidden when a key with these scopes could manage more than the actor itself: nobody rises by minting."""
    for scope in scopes:
        needed = "operator" if scope == "shared" else scope
        if needed in MANAGEMENT_SCOPES and not actor.may(needed):
            raise Forbidden(f"The scope '{scope}' is more than the caller has.")


def parse_models(office: Office, actor: Actor, asked: Sequence[str] | None) -> tuple[str, ...] | None:
    """An allow-list of model ids; None allows all. InvalidRequest when it is empty or names one that is unknown, as one
    is that serves other accounts alone."""
    if asked is None:
        return None
    known = {each.id for each in office.catalogue.models if actor.sees is None or each.is_for(actor.sees)}
    unknown = sorted(set(asked) - known)
    if unknown:
        raise InvalidRequest(f"There is no model '{unknown[0]}'.", param="models")
    if not asked:
        raise InvalidRequest("'models' must name a model; left out, it allows all.", param="models")
    return tuple(dict.fromkeys(asked))


def parse_expiry(office: Office, written: str | None) -> int | None:
    """When a new key ends, in milliseconds. InvalidRequest when that is past."""
    expires_ms = parse_instant(written, "expires")
    if expires_ms is not None and expires_ms <= office.clock.now_ms():
        raise InvalidRequest("'expires' is in the past.", param="expires")
    return expires_ms


def _check_binding(kind: str, user: str | None, account: str | None) -> None:
    """Whether what is given is what a key of that kind belongs to."""
    either = ("user", "account")
    takes = {"personal": ("user",), "account": either, "worker": either, "tools_worker": either}.get(kind, ("account",))
    given = [name for name, id in (("user", user), ("account", account)) if id is not None]
    if len(given) != 1 or given[0] not in takes:
        raise InvalidRequest(f"A key of kind {kind} belongs to one {' or '.join(takes)}.", param=takes[-1])


def check_spends(kind: str, models: Sequence[str] | None, limit: str | None) -> None:
    """Keys of management and of workers call nothing: what would bound calls is meant for another kind of key."""
    for name, given in (("models", models), ("limit", limit)):
        if kind in CALLS_NOTHING and given is not None:
            raise InvalidRequest(f"A key of kind {kind} calls no models and has no '{name}'.", param=name)


def _scopes(actor: Actor, kind: str, asked: Sequence[str] | None) -> tuple[str, ...]:
    usual, *more = {"management": ("management", "read", "operator")}.get(
        kind, ("connect", "shared") if kind in CONNECTING else ("inference",)
    )
    allowed = frozenset({usual, *more})
    scopes = (usual,) if asked is None else tuple(asked)
    if asked is not None and "shared" in scopes and kind in CONNECTING:
        scopes = (*scopes, usual)  # who serves everybody connects as well
    if not scopes or not allowed.issuperset(scopes):
        raise InvalidRequest(f"The scopes of a {kind} key are among {', '.join(sorted(allowed))}.", param="scopes")
    check_within(actor, scopes)
    return tuple(sorted(set(scopes)))


def _environment(office: Office, kind: str) -> str:
    """Management keys of a test deployment look different, so that nobody mistakes one for the other."""
    return "test" if kind == "management" and office.settings.server.environment == "test" else "live"


def _enter(actor: Actor, new: NewCredential) -> Program[Credential]:
    if new.user_id is not None:
        new = yield from _bind_to_user(actor, new, new.user_id)
    elif new.account_id is not None:
        yield from _check_account(actor, new.kind, new.account_id)
    yield from insert_credential(new)
    return (yield from find_lineage(new.id))[0]


def _bind_to_user(actor: Actor, new: NewCredential, user: str) -> Program[NewCredential]:
    """A personal key stays with the user's own account; an account key reaches all that the user belongs to."""
    found = yield from find_user(user)
    if found is None or not (actor.everywhere or actor.user == user):
        raise NotFound("There is no such user.")
    return replace(new, account_id=found.personal_account_id) if new.kind == "personal" else new


def _check_account(actor: Actor, kind: str, account: str) -> Program[None]:
    actor.check_manages(account)
    found = yield from find_account(account)
    if found is None:
        raise NotFound("There is no such account.")
    if kind == "team" and found.kind != "team":
        raise InvalidRequest("A key of kind team belongs to a team account.", param="account")


def _sees(actor: Actor, key: Credential) -> bool:
    if key.account_id is None:
        return actor.everywhere or (key.user_id is not None and key.user_id == actor.user)
    return actor.sees is None or key.account_id in actor.sees


def _revoke(actor: Actor, key: str, now_ms: int) -> Program[Credential]:
    yield from find_managed(actor, key)
    yield from revoke([key], now_ms)
    return (yield from find_lineage(key))[0]
