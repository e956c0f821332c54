"""Commands about keys."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from penstock.cli.desk import PAGE, Desk, every_page
from penstock.cli.show import show_fields, show_json, show_table, show_text
from penstock.operations.choices import KeyKind

KeyId = Annotated[str, typer.Argument(help="Key id (key_…), not the key itself.", metavar="KEY")]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", metavar="SCOPE", help="read, management, operator; for workers shared; repeat for more."),
]
Models = Annotated[
    list[str] | None,
    typer.Option("--model", metavar="MODEL", help="A model it may use; repeat for more. All when left out."),
]
Limit = Annotated[str | None, typer.Option(help="What it may spend in all, in dollars.", metavar="DOLLARS")]
Expires = Annotated[str | None, typer.Option(help="When it ends: a date or an instant, UTC.", metavar="TIME")]
Rate = Annotated[int | None, typer.Option("--requests-per-minute", help="Its rate limit.", metavar="N")]


def create(
    desk: Desk,
    kind: Annotated[
        KeyKind,
        typer.Option(
            help="personal: a user's own; team; account: for X-Trust; inference: contracts; worker, tools_worker"
        ),
    ],
    name: Annotated[str, typer.Option(help="Name, for people to read.")],
    user: Annotated[str | None, typer.Option(help="The user it belongs to (personal, account, workers).")] = None,
    account: Annotated[str | None, typer.Option(help="The account it belongs to (all but personal).")] = None,
    scopes: Scopes = None,
    models: Models = None,
    limit: Limit = None,
    expires: Expires = None,
    requests_per_minute: Rate = None,
) -> None:
    """Create a key. It is shown once."""
    made = desk.perform(
        "keys.create",
        kind=kind,
        name=name,
        user=user,
        account=account,
        scopes=scopes or None,
        models=models or None,
        limit=limit,
        expires=expires,
        requests_per_minute=requests_per_minute,
    )
    _show_made(desk, made)


def child(
    desk: Desk,
    key: KeyId,
    name: Annotated[str, typer.Option(help="Name, for people to read.")],
    scopes: Scopes = None,
    models: Models = None,
    limit: Limit = None,
    expires: Expires = None,
    requests_per_minute: Rate = None,
) -> None:
    """Mint a key from a key, which can do no more than that one. It is shown once."""
    made = desk.perform(
        "keys.child",
        key=key,
        name=name,
        scopes=scopes or None,
        models=models or None,
        limit=limit,
        expires=expires,
        requests_per_minute=requests_per_minute,
    )
    _show_made(desk, made)


def list_keys(
    desk: Desk, account: Annotated[str | None, typer.Option(help="Keys of this account only.")] = None
) -> None:
    """List keys, all of them, without their secrets."""
    keys = every_page(lambda cursor: desk.perform("keys.list", account=account, limit=PAGE, cursor=cursor))
    if desk.as_json:
        return show_json(keys)
    return show_table(keys["data"], ("id", "display", "kind", "name", "account", "limit", "spent", "state"))


def revoke(desk: Desk, key: KeyId) -> None:
    """Revoke a key and all keys minted from it, for good."""
    revoked = desk.perform("keys.revoke", key=key)
    show_json(revoked) if desk.as_json else show_fields(revoked)


def _show_made(desk: Desk, made: dict[str, Any]) -> None:
    if desk.as_json:
        return show_json(made)
    show_fields({name: value for name, value in made.items() if name != "key"})
    show_text(f"\n{made['key']}")
    return typer.echo("This is the key. It is not shown again.", err=True)
