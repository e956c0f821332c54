"""Accounts: whose money it is. A personal account comes with its user; teams are made here, with members.

Owners of a team manage it, members may look and spend.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from penstock.db.accounts import (
    Account,
    Membership,
    delete_membership,
    find_account,
    find_user,
    insert_account,
    insert_membership,
    read_accounts,
    read_memberships,
)
from penstock.db.program import Program
from penstock.errors import NotFound, WrongState
from penstock.operations.actor import Actor
from penstock.operations.choices import Role
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
class MemberView:
    """A user's place in an account: `owner` or `member`."""

    user: str
    role: str
    since: str


@dataclass(frozen=True, slots=True)
class AccountView:
    """An account, `personal` or `team`, and who belongs to it."""

    id: str
    kind: str
    name: str
    created: str
    members: tuple[MemberView, ...]


async def create_account(office: Office, actor: Actor, *, name: str, owner: str | None = None) -> AccountView:
    """Create a team account, owned by the user `owner` when one is given."""
    account = Account(office.ids.new("acc"), "team", parse_name(name), office.clock.now_ms())
    return await office.store.write(_enter(account, owner))


async def list_accounts(
    office: Office, actor: Actor, *, limit: int = 100, cursor: str | None = None
) -> Listing[AccountView]:
    """List the accounts that the caller may see, with their members, oldest first.

    `limit` (1 to 1000) at a time; `cursor` is the `next` of the page before.
    """
    within(limit, "limit", most=MOST_ON_A_PAGE)
    require_filled(cursor=cursor)
    return page_of(await office.store.read(_listing(actor, after=cursor or "", most=limit + 1)), limit)


async def add_member(office: Office, actor: Actor, *, account: str, user: str, role: Role = "member") -> AccountView:
    """Make a user a member or an owner of a team account."""
    actor.check_governs(account)
    return await office.store.write(_add(Membership(account, user, role, office.clock.now_ms())))


async def remove_member(office: Office, actor: Actor, *, account: str, user: str) -> AccountView:
    """End a user's membership in a team account. Its last owner stays."""
    actor.check_governs(account)
    return await office.store.write(_remove(account, user))


def _enter(account: Account, owner: str | None) -> Program[AccountView]:
    yield from insert_account(account)
    if owner is not None:
        yield from _check_user(owner)
        yield from insert_membership(Membership(account.id, owner, "owner", account.created_ms))
    return _view(account, (yield from read_memberships([account.id])))


def _listing(actor: Actor, *, after: str, most: int) -> Program[list[AccountView]]:
    accounts = yield from read_accounts(actor.sees, after=after, most=most)
    members: dict[str, list[Membership]] = {}
    for each in (yield from read_memberships([account.id for account in accounts])):
        members.setdefault(each.account_id, []).append(each)
    return [_view(account, members.get(account.id, ())) for account in accounts]


def _add(new: Membership) -> Program[AccountView]:
    account, members = yield from _team(new.account_id)
    yield from _check_user(new.user_id)
    if any(each.user_id == new.user_id for each in members):
        raise WrongState("This user is a member already.")
    yield from insert_membership(new)
    return _view(account, [*members, new])


def _remove(account_id: str, user: str) -> Program[AccountView]:
    account, members = yield from _team(account_id)
    rest = [each for each in members if each.user_id != user]
    if len(rest) == len(members):
        raise NotFound("This user is not a member.")
    had_owner = any(each.role == "owner" for each in members)
    if had_owner and not any(each.role == "owner" for each in rest):
        raise WrongState("This user is the account's last owner.")
    yield from delete_membership(account=account_id, user=user)
    return _view(account, rest)


def _team(id: str) -> Program[tuple[Account, list[Membership]]]:
    account = yield from find_account(id)
    if account is None:
        raise NotFound("There is no such account.")
    if account.kind != "team":
        raise WrongState("A personal account belongs to its user alone.")
    return account, (yield from read_memberships([id]))


def _check_user(id: str) -> Program[None]:
    if (yield from find_user(id)) is None:
        raise NotFound("There is no such user.")


def _view(account: Account, members: Iterable[Membership]) -> AccountView:
    shown = tuple(MemberView(each.user_id, each.role, show_instant(each.created_ms)) for each in members)
    return AccountView(account.id, account.kind, account.name, show_instant(account.created_ms), shown)
