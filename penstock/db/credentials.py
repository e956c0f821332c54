"""Who a credential belongs to, as rows: look-ups for admission, and the writes of key management."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BindParameter, Integer, bindparam, or_, select, update
from sqlalchemy.dialects.sqlite import insert

from penstock.db.program import Program, Row, Run, Statement, any_of, each_of, fetch, run
from penstock.db.routing import Wanted, read_routing
from penstock.db.schema import credentials, memberships, users

DEEPEST = 8  # generations of child keys

_identity_columns = (
    credentials.c.id,
    credentials.c.kind,
    credentials.c.user_id,
    credentials.c.account_id,
    credentials.c.parent_id,
    credentials.c.scopes,
    credentials.c.models,
    credentials.c.environment,
    credentials.c.expires_ms,
    credentials.c.revoked_ms,
)
BY_DIGEST = Statement(
    select(*_identity_columns, credentials.c.digest).where(each_of(credentials.c.digest, "digests")), "digests"
)
BY_ID = Statement(select(*_identity_columns).where(each_of(credentials.c.id, "ids")), "ids")
USERS = Statement(
    select(users.c.id, users.c.personal_account_id, users.c.disabled_ms).where(each_of(users.c.id, "users")), "users"
)
ACCOUNTS_OF_USERS = Statement(
    select(memberships.c.user_id, memberships.c.account_id).where(each_of(memberships.c.user_id, "users")), "users"
)
_names = tuple(column.name for column in credentials.columns)
_insert = insert(credentials).values({name: bindparam(name) for name in _names})
WRITE_CREDENTIAL = Statement(_insert, *_names)
WRITE_SESSION = Statement(_insert.on_conflict_do_nothing(index_elements=[credentials.c.id]), *_names)
_shown_columns = tuple(column for column in credentials.columns if column.name not in ("digest", "tat_us"))
CREDENTIAL_BY_ID = Statement(select(*_shown_columns).where(credentials.c.id == bindparam("id")), "id")
_after: BindParameter[str] = bindparam("after")
_most = bindparam("most", type_=Integer)
ALL_CREDENTIALS = Statement(
    select(*_shown_columns).where(credentials.c.id > _after).order_by(credentials.c.id).limit(_most), "after", "most"
)
CREDENTIALS_OF = Statement(
    select(*_shown_columns)
    .where(
        or_(
            any_of(credentials.c.account_id, "accounts"),
            credentials.c.account_id.is_(None) & (credentials.c.user_id == bindparam("user")),
        ),
        credentials.c.id > _after,
    )
    .order_by(credentials.c.id)
    .limit(_most),
    "accounts", "user", "after", "most",
)  # fmt: skip
_minted = (
    select(credentials.c.id, credentials.c.revoked_ms)
    .where(credentials.c.parent_id == bindparam("key"))
    .cte("minted", recursive=True)
)
_minted = _minted.union_all(
    select(credentials.c.id, credentials.c.revoked_ms).join(_minted, credentials.c.parent_id == _minted.c.id)
)
MINTED = Statement(select(_minted.c.id).where(_minted.c.revoked_ms.is_(None)), "key")
REVOKE = Statement(
    update(credentials)
    .where(credentials.c.id == bindparam("key"), credentials.c.revoked_ms.is_(None))
    .values(revoked_ms=bindparam("now")),
    "now", "key",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Identity:
    """Who presents a credential. `keys` are its id and those of the keys it was minted from, itself first.

    `accounts` are those the user behind it is a member of; `own_account` is that user's personal one. Empty and None
    for a key that belongs to an account and to nobody in particular. `wanted` is how any of these keys and accounts
    want their calls routed.
    """

    keys: tuple[str, ...]
    kind: str
    user: str | None
    account: str | None
    own_account: str | None
    accounts: frozenset[str]
    scopes: frozenset[str]
    models: frozenset[str] | None
    environment: str
    wanted: dict[str, Wanted]


@dataclass(frozen=True, slots=True)
class NewCredential:
    """What a new row of `credentials` says; the rest of it starts at zero."""

    id: str
    kind: str
    name: str
    display: str
    digest: str | None
    user_id: str | None
    account_id: str | None
    scopes: tuple[str, ...]
    created_ms: int
    requests_per_minute: int
    environment: str = "live"
    parent_id: str | None = None
    models: tuple[str, ...] | None = None
    limit_nano: int | None = None
    expires_ms: int | None = None

    def row(self) -> tuple[Any, ...]:
        """The values in the order of the table's columns."""
        values = {name: getattr(self, name, None) for name in _names}
        values["scopes"] = json.dumps(self.scopes)
        values["models"] = None if self.models is None else json.dumps(self.models)
        values |= {"spent_nano": 0, "held_nano": 0, "tat_us": 0}
        return tuple(values.values())


@dataclass(frozen=True, slots=True)
class Credential:
    """A credential as it stands, without what identifies it. `scopes` and `models` are lists; all other fields as in
    the table.
    """

    id: str
    kind: str
    name: str
    display: str
    user_id: str | None
    account_id: str | None
    parent_id: str | None
    scopes: tuple[str, ...]
    models: tuple[str, ...] | None
    environment: str
    requests_per_minute: int
    limit_nano: int | None
    spent_nano: int
    held_nano: int
    created_ms: int
    last_used_ms: int | None
    expires_ms: int | None
    revoked_ms: int | None

    def alive(self, now_ms: int) -> bool:
        return self.revoked_ms is None and (self.expires_ms is None or now_ms < self.expires_ms)


def insert_credential(new: NewCredential) -> Program[None]:
    """Enter a credential."""
    yield from run(WRITE_CREDENTIAL, *new.row())


def read_credentials(
    accounts: Collection[str] | None, user: str | None, *, after: str = "", most: int
) -> Program[list[Credential]]:
    """The credentials of these accounts, and of this user those of no account; all of them when `accounts` is None. At
    most so many, oldest first, from the one behind the id `after` on."""
    if accounts is None:
        rows = yield from fetch(ALL_CREDENTIALS, after, most)
    else:
        rows = yield from fetch(CREDENTIALS_OF, sorted(accounts), user, after, most)
    return [_credential(row) for row in rows]


def find_lineage(id: str) -> Program[list[Credential]]:
    """The credential of that id, its parent, and so on up; nothing when there is none."""
    lineage: list[Credential] = []
    next_id: str | None = id
    while next_id is not None:
        rows = yield from fetch(CREDENTIAL_BY_ID, next_id)
        lineage += map(_credential, rows)
        next_id = lineage[-1].parent_id if rows else None
    return lineage


def revoke(ids: Sequence[str], now_ms: int) -> Program[None]:
    """Revoke credentials; what is revoked already keeps its time. What was minted from them is good no more, whatever
    its own row says."""
    yield Run(REVOKE, [(now_ms, id) for id in ids])


def minted_from(id: str) -> Program[list[str]]:
    """All that were minted from a credential, and from those, and are not revoked themselves."""
    return [row[0] for row in (yield from fetch(MINTED, id))]


def identify(digests: list[str], now_ms: int) -> Program[dict[str, Identity]]:
    """Whose keys have these digests, each given once; not those that (or whose parents) are revoked or expired."""
    rows = yield from fetch(BY_DIGEST, digests)
    found = yield from _identities(rows, now_ms)
    return {row[-1]: found[row[0]] for row in rows if row[0] in found}


def still_good(ids: Collection[str], now_ms: int) -> Program[set[str]]:
    """Those of these credentials that are alive, and whose parents and users are."""
    rows = yield from fetch(BY_ID, sorted(ids))
    return {lineage[0][0] for lineage, _, _ in (yield from _good(rows, now_ms))}


def find_session(id: str, user: str, now_ms: int) -> Program[tuple[Identity | None, bool]]:
    """Who acts with a user's session credential, if it is good; and whether it is yet to be entered, because the user
    may have one and has none."""
    rows = yield from fetch(BY_ID, [id])
    if not rows:
        return None, user in (yield from _people([user]))
    return (yield from _identities(rows, now_ms)).get(id), False


def identify_session(session: NewCredential, now_ms: int) -> Program[Identity | None]:
    """The session credential of a user, entered on first sight so that limits and revocation have a row to stand in."""
    if not (yield from fetch(USERS, [str(session.user_id)])):
        return None
    yield from run(WRITE_SESSION, *session.row())
    found = yield from _identities((yield from fetch(BY_ID, [session.id])), now_ms)
    return found.get(session.id)


def _identities(rows: list[Row], now_ms: int) -> Program[dict[str, Identity]]:
    """Of these credentials the ones that are good, by their ids."""
    good = yield from _good(rows, now_ms)
    wanted = yield from read_routing({subject for each in good for subject in _subjects(*each)})
    return {lineage[0][0]: _identity(lineage, own, accounts, wanted) for lineage, own, accounts in good}


def _good(rows: list[Row], now_ms: int) -> Program[list[tuple[list[Row], str | None, frozenset[str]]]]:
    """Of these credentials the ones that are good: each with its ancestors, and what `_people` says of its user."""
    lineages = [lineage for lineage in (yield from _lineages(rows)) if all(_alive(row, now_ms) for row in lineage)]
    people = yield from _people(sorted({lineage[0][2] for lineage in lineages if lineage[0][2] is not None}))
    return [(lineage, *people[user]) for lineage in lineages if (user := lineage[0][2]) in people]


def _subjects(lineage: list[Row], own_account: str | None, accounts: frozenset[str]) -> set[str]:
    """Who may want something of how calls with this credential are routed: its keys, and any account it may be for."""
    return {*(row[0] for row in lineage), *accounts, *filter(None, (lineage[0][3], own_account))}


def _lineages(rows: list[Row]) -> Program[list[list[Row]]]:
    """Each credential with its parent, and so on up."""
    known = {row[0]: row for row in rows}
    for _ in range(DEEPEST - 1):
        parents = {row[4] for row in known.values() if row[4]} - known.keys()
        if not parents:
            break
        known |= {row[0]: row for row in (yield from fetch(BY_ID, sorted(parents)))}
    return [_lineage(row, known) for row in rows]


def _lineage(row: Row, known: dict[str, Row]) -> list[Row]:
    lineage = [row]
    while len(lineage) < DEEPEST and (parent := known.get(lineage[-1][4])):
        lineage.append(parent)
    return lineage


def _alive(row: Row, now_ms: int) -> bool:
    expires_ms, revoked_ms = row[8:10]
    return revoked_ms is None and (expires_ms is None or now_ms < expires_ms)


def _people(ids: list[str]) -> Program[dict[str | None, tuple[str | None, frozenset[str]]]]:
    """The personal account of each user who is not disabled, and the accounts he is a member of; nobody has none."""
    people: dict[str | None, tuple[str | None, frozenset[str]]] = {None: (None, frozenset())}
    if not ids:
        return people
    accounts: dict[str, set[str]] = {id: set() for id in ids}
    users = yield from fetch(USERS, ids)
    for user, account in (yield from fetch(ACCOUNTS_OF_USERS, ids)):
        accounts[user].add(account)
    enabled = {id: (own, frozenset(accounts[id])) for id, own, disabled_ms in users if disabled_ms is None}
    return people | enabled


def _identity(
    lineage: list[Row], own_account: str | None, accounts: frozenset[str], wanted: dict[str, Wanted]
) -> Identity:
    _, kind, user, account, _, scopes, models, environment = lineage[0][:8]
    allowed = None if models is None else frozenset(json.loads(models))
    keys = tuple(row[0] for row in lineage)
    scope_set = frozenset(json.loads(scopes))
    ours = {each: wanted[each] for each in _subjects(lineage, own_account, accounts) if each in wanted}
    return Identity(keys, kind, user, account, own_account, accounts, scope_set, allowed, environment, ours)


def _credential(row: Row) -> Credential:
    values = dict(zip((column.name for column in _shown_columns), row, strict=True))
    values["scopes"] = tuple(json.loads(values["scopes"]))
    values["models"] = None if values["models"] is None else tuple(json.loads(values["models"]))
    return Credential(**values)
