"""Commands about people: users, sessions, accounts and who belongs to them."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from penstock.cli.desk import PAGE, Desk, every_page
from penstock.cli.show import show_fields, show_json, show_table, show_text
from penstock.operations.choices import Role

AccountId = Annotated[str, typer.Argument(help="Account id (acc_…).", metavar="ACCOUNT")]
UserId = Annotated[str, typer.Argument(help="User id (usr_…).", metavar="USER")]


def create_user(desk: Desk, name: Annotated[str, typer.Argument(help="Name, for people to read.")]) -> None:
    """Create a user and a personal account."""
    user = desk.perform("users.create", name=name)
    show_json(user) if desk.as_json else show_fields(user)


def list_users(desk: Desk) -> None:
    """List every user."""
    users = every_page(lambda cursor: desk.perform("users.list", limit=PAGE, cursor=cursor))
    show_json(users) if desk.as_json else show_table(users["data"], ("id", "name", "account", "created", "disabled"))


def issue_token(
    desk: Desk,
    user: UserId,
    seconds: Annotated[int | None, typer.Option(help="How long it is good for; at most, and else, seven days.")] = None,
) -> None:
    """Issue a session token for a user. On the gateway's own machine only."""
    session = desk.perform("sessions.issue", user=user, seconds=seconds)
    show_json(session) if desk.as_json else show_text(session["token"])


def create_account(
    desk: Desk,
    name: Annotated[str, typer.Argument(help="Name, for people to read.")],
    owner: Annotated[str | None, typer.Option(help="Id of the user who owns it.")] = None,
) -> None:
    """Create a team account."""
    _show_account(desk, desk.perform("accounts.create", name=name, owner=owner))


def list_accounts(desk: Desk) -> None:
    """List accounts."""
    accounts = every_page(lambda cursor: desk.perform("accounts.list", limit=PAGE, cursor=cursor))
    if desk.as_json:
        return show_json(accounts)
    rows = [each | {"members": len(each["members"])} for each in accounts["data"]]
    return show_table(rows, ("id", "kind", "name", "members", "created"))


def add_member(
    desk: Desk,
    account: AccountId,
    user: UserId,
    role: Annotated[Role | None, typer.Option(help="What he may do: members look and spend, owners manage.")] = None,
) -> None:
    """Make a user a member of a team account."""
    _show_account(desk, desk.perform("accounts.add_member", account=account, user=user, role=role))


def remove_member(desk: Desk, account: AccountId, user: UserId) -> None:
    """End a user's membership in a team account."""
    _show_account(desk, desk.perform("accounts.remove_member", account=account, user=user))


def _show_account(desk: Desk, account: dict[str, Any]) -> None:
    if desk.as_json:
        return show_json(account)
    show_fields(account)
    return show_table(account["members"], ("user", "role", "since"))
