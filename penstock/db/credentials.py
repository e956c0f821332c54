"""Who a credential belongs to, as rows: look-ups for admission, and the writes of key management."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import bindparam, or_, select, update
from sqlalchemy.dialects.sqlite import insert

from penstock.db.program import Program, Row, Statement, any_of, fetch, run
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
BY_DIGEST = Statement(select(*_identity_columns).where(credentials.c.digest == bindparam("digest")), "digest")
BY_ID = Statement(select(*_identity_columns).where(credentials.c.id == bindparam("id")), "id")
USER = Statement(
    select(users.c.personal_account_id, users.c.disabled_ms).where(users.c.id == bindparam("user")), "user"
)
ACCOUNTS_OF_USER = Statement(select(memberships.c.account_id).where(memberships.c.user_id == bindparam("user")), "user")
_names = tuple(column.name for column in credentials.columns)
_insert = insert(credentials).values({name: bindparam(name) for name in _names})
WRITE_CREDENTIAL = Statement(_insert, *_names)
WRITE_SESSION = Statement(_insert.on_conflict_do_nothing(index_elements=[credentials.c.id]), *_names)
_shown_columns = tuple(column for column in credentials.columns if column.name not in ("digest", "tat_us"))
CREDENTIAL_BY_ID = Statement(select(*_shown_columns).where(credentials.c.id == bindparam("id")), "id")
ALL_CREDENTIALS = Statement(select(*_shown_columns).order_by(credentials.c.id))
CREDENTIALS_OF = Statement(
    select(*_shown_columns)
    .where(
        or_(
            any_of(credentials.c.account_id, "accounts"),
            credentials.c.account_id.is_(None) & (credentials.c.user_id == bindparam("user")),
        )
    )
    .order_by(credentials.c.id),
    "accounts", "user",
)  # fmt: skip
CHILDREN = Statement(select(credentials.c.id).where(credentials.c.parent_id == bindparam("parent")), "parent")
STILL_GOOD = Statement(
    select(credentials.c.id)
    .outerjoin(users, users.c.id == credentials.c.user_id)
    .where(
        any_of(credentials.c.id, "ids"),
        credentials.c.revoked_ms.is_(None),
        credentials.c.expires_ms.is_(None) | (credentials.c.expires_ms > bindparam("now")),
        users.c.disabled_ms.is_(None),
    ),
    "ids", "now",
)  # fmt: skip
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
    for a key that belongs to an account and to nobody in particular.
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


def read_credentials(accounts: Collection[str] | None, user: str | None) -> Program[list[Credential]]:
    """The credentials of these accounts, and of this user those of no account; all of them when `accounts` is None."""
    if accounts is None:
        rows = yield from fetch(ALL_CREDENTIALS)
    else:
        rows = yield from fetch(CREDENTIALS_OF, sorted(accounts), user)
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


def revoke(id: str, now_ms: int) -> Program[None]:
    """Revoke a credential and all that were minted from it. What is revoked already keeps its time."""
    pending = [id]
    while pending:
        each = pending.pop()
        yield from run(REVOKE, now_ms, each)
        pending += [row[0] for row in (yield from fetch(CHILDREN, each))]


def identify(digest: str, now_ms: int) -> Program[Identity | None]:
    """Whose key has this digest; None for no key, or one that (or whose parent) is revoked or expired."""
    return (yield from _identity((yield from fetch(BY_DIGEST, digest)), now_ms))


def still_good(ids: Collection[str], now_ms: int) -> Program[set[str]]:
    """Those of these credentials that are alive, and whose users are. A parent's end is its children's as well."""
    return {row[0] for row in (yield from fetch(STILL_GOOD, sorted(ids), now_ms))}


def identify_session(session: NewCredential, now_ms: int) -> Program[Identity | None]:
    """The session credential of a user, entered on first sight so that limits and revocation have a row to stand in."""
    if not (yield from fetch(USER, session.user_id)):
        return None
    yield from run(WRITE_SESSION, *session.row())
    return (yield from _identity((yield from fetch(BY_ID, session.id)), now_ms))


def _identity(found: list[Row], now_ms: int) -> Program[Identity | None]:
    lineage: list[Row] = []
    while found and len(lineage) < DEEPEST:
        row = found[0]
        expires_ms, revoked_ms = row[8:]
        if revoked_ms is not None or (expires_ms is not None and expires_ms <= now_ms):
            return None
        lineage.append(row)
        found = (yield from fetch(BY_ID, row[4])) if row[4] else []
    if not lineage:
        return None
    _, kind, user, account, _, scopes, models, environment, _, _ = lineage[0]
    own_account, accounts = None, frozenset[str]()
    if user is not None:
        known = yield from fetch(USER, user)
        if not known or known[0][1] is not None:
            return None
        own_account = known[0][0]
        accounts = frozenset(row[0] for row in (yield from fetch(ACCOUNTS_OF_USER, user)))
    allowed = None if models is None else frozenset(json.loads(models))
    keys = tuple(row[0] for row in lineage)
    scope_set = frozenset(json.loads(scopes))
    return Identity(keys, kind, user, account, own_account, accounts, scope_set, allowed, environment)


def _credential(row: Row) -> Credential:
    values = dict(zip((column.name for column in _shown_columns), row, strict=True))
    values["scopes"] = tuple(json.loads(values["scopes"]))
    values["models"] = None if values["models"] is None else tuple(json.loads(values["models"]))
    return Credential(**values)
