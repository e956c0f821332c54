"""Users: people. Making one makes a personal account that belongs to nobody else."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.db.accounts import Account, Membership, User, insert_account, insert_membership, insert_user, read_users
from penstock.db.program import Program
from penstock.operations.actor import Actor
from penstock.operations.office import Office
from penstock.operations.values import (
    MOST_ON_A_PAGE,
    Listing,
    page_of,
    parse_name,
    require_filled,
    show_instant,
    within,
)


@dataclass(frozen=True, slots=True)
class UserView:
    """A user. `account` is the id of the personal account."""

    id: str
    name: str
    account: str
    created: str
    disabled: str | None


async def create_user(office: Office, actor: Actor, *, name: str) -> UserView:
    """Create a user and a personal account of the same name."""
    shown, now_ms = parse_name(name), office.clock.now_ms()
    user = User(office.ids.new("usr"), shown, office.ids.new("acc"), now_ms)
    await office.store.write(_enter(user))
    return _view(user)


async def list_users(office: Office, actor: Actor, *, limit: int = 100, cursor: str | None = None) -> Listing[UserView]:
    """List every user, oldest first.

    `limit` (1 to 1000) at a time; `cursor` is the `next` of the page before.
    """
    within(limit, "limit", most=MOST_ON_A_PAGE)
    require_filled(cursor=cursor)
    found = await office.store.read(read_users(after=cursor or "", most=limit + 1))
    return page_of(list(map(_view, found)), limit)


def _enter(user: User) -> Program[None]:
    account = user.personal_account_id
    yield from insert_user(user)
    yield from insert_account(Account(account, "personal", user.name, user.created_ms))
    yield from insert_membership(Membership(account, user.id, "owner", user.created_ms))


def _view(user: User) -> UserView:
    created, disabled = show_instant(user.created_ms), show_instant(user.disabled_ms)
    return UserView(user.id, user.name, user.personal_account_id, created, disabled)
