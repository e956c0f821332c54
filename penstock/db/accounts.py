"""Who there is: users, accounts and which user belongs to which account, as rows.

What may be done with them is decided in `penstock/operations`; here are the reads and writes it is made of.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import astuple, dataclass

from sqlalchemy import BindParameter, Integer, bindparam, delete, select

from penstock.db.program import Program, Statement, any_of, fetch, run
from penstock.db.schema import accounts, memberships, users

_user_names = tuple(column.name for column in users.columns)
WRITE_USER = Statement(users.insert().values({name: bindparam(name) for name in _user_names}), *_user_names)
_after: BindParameter[str] = bindparam("after")
_most = bindparam("most", type_=Integer)
ALL_USERS = Statement(select(users).where(users.c.id > _after).order_by(users.c.id).limit(_most), "after", "most")
USER_BY_ID = Statement(select(users).where(users.c.id == bindparam("user")), "user")
_account_names = tuple(column.name for column in accounts.columns)
WRITE_ACCOUNT = Statement(accounts.insert().values({name: bindparam(name) for name in _account_names}), *_account_names)
ALL_ACCOUNTS = Statement(
    select(accounts).where(accounts.c.id > _after).order_by(accounts.c.id).limit(_most), "after", "most"
)
ACCOUNTS_BY_ID = Statement(
    select(accounts)
    .where(any_of(accounts.c.id, "accounts"), accounts.c.id > _after)
    .order_by(accounts.c.id)
    .limit(_most),
    "accounts", "after", "most",
)  # fmt: skip
_membership_names = tuple(column.name for column in memberships.columns)
WRITE_MEMBERSHIP = Statement(
    memberships.insert().values({name: bindparam(name) for name in _membership_names}), *_membership_names
)
DROP_MEMBERSHIP = Statement(
    delete(memberships).where(
        memberships.c.account_id == bindparam("account"), memberships.c.user_id == bindparam("user")
    ),
    "account", "user",
)  # fmt: skip
_by_age = (memberships.c.created_ms, memberships.c.user_id)
MEMBERSHIPS_OF_ACCOUNTS = Statement(
    select(memberships).where(any_of(memberships.c.account_id, "accounts")).order_by(*_by_age), "accounts"
)
MEMBERSHIPS_OF_USER = Statement(
    select(memberships).where(memberships.c.user_id == bindparam("user")).order_by(*_by_age), "user"
)


@dataclass(frozen=True, slots=True)
class User:
    """A person. Column for column the table `users`."""

    id: str
    name: str
    personal_account_id: str
    created_ms: int
    disabled_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Account:
    """Whose money it is: `personal` or `team`. Column for column the table `accounts`."""

    id: str
    kind: str
    name: str
    created_ms: int


@dataclass(frozen=True, slots=True)
class Membership:
    """That a user belongs to an account, as `owner` or `member`. Column for column the table `memberships`."""

    account_id: str
    user_id: str
    role: str
    created_ms: int


def insert_user(user: User) -> Program[None]:
    """Enter a user. The personal account has to be entered with it."""
    yield from run(WRITE_USER, *astuple(user))


def insert_account(account: Account) -> Program[None]:
    """Enter an account."""
    yield from run(WRITE_ACCOUNT, *astuple(account))


def insert_membership(membership: Membership) -> Program[None]:
    """Make a user, who is not one yet, a member of an account."""
    yield from run(WRITE_MEMBERSHIP, *astuple(membership))


def delete_membership(*, account: str, user: str) -> Program[None]:
    """End a membership; nothing happens when there is none."""
    yield from run(DROP_MEMBERSHIP, account, user)


def read_users(*, after: str = "", most: int) -> Program[list[User]]:
    """At most so many users, oldest first, from the one behind the id `after` on."""
    return [User(*row) for row in (yield from fetch(ALL_USERS, after, most))]


def find_user(id: str) -> Program[User | None]:
    """The user of that id."""
    rows = yield from fetch(USER_BY_ID, id)
    return User(*rows[0]) if rows else None


def read_accounts(ids: Collection[str] | None, *, after: str = "", most: int) -> Program[list[Account]]:
    """The accounts of these ids, or of all: at most so many, oldest first, from the one behind the id `after` on."""
    if ids is None:
        rows = yield from fetch(ALL_ACCOUNTS, after, most)
    else:
        rows = yield from fetch(ACCOUNTS_BY_ID, sorted(ids), after, most)
    return [Account(*row) for row in rows]


def find_account(id: str) -> Program[Account | None]:
    """The account of that id."""
    found = yield from read_accounts([id], most=1)
    return found[0] if found else None


def read_memberships(accounts: Collection[str]) -> Program[list[Membership]]:
    """The memberships in these accounts, oldest first."""
    return [Membership(*row) for row in (yield from fetch(MEMBERSHIPS_OF_ACCOUNTS, sorted(accounts)))]


def memberships_of_user(user: str) -> Program[list[Membership]]:
    """The memberships of one user, oldest first."""
    return [Membership(*row) for row in (yield from fetch(MEMBERSHIPS_OF_USER, user))]
