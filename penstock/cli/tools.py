"""Commands about the rules for tools."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from penstock.cli.desk import Desk
from penstock.cli.show import show_fields, show_json

AccountId = Annotated[str, typer.Argument(help="Account id (acc_…).", metavar="ACCOUNT")]
Enabled = Annotated[bool | None, typer.Option("--enabled/--disabled", help="Whether models get tools at all.")]
Allow = Annotated[list[str] | None, typer.Option(help="A tool that is allowed, or a pattern: web_*.", metavar="NAME")]
Deny = Annotated[list[str] | None, typer.Option(help="A tool that is not, or a pattern.", metavar="NAME")]
Rounds = Annotated[int | None, typer.Option(help="How often one completion may call tools.", metavar="N")]
Definitions = Annotated[int | None, typer.Option(help="How many tools a model is told of.", metavar="N")]
Timeout = Annotated[float | None, typer.Option(help="Seconds for one call of a tool.", metavar="S")]
ResultBytes = Annotated[int | None, typer.Option(help="Of one result; the rest is cut.", metavar="N")]
PerMinute = Annotated[int | None, typer.Option(help="Calls of tools a minute.", metavar="N")]


def policy(desk: Desk, account: AccountId) -> None:
    """Show an account's rules for tools."""
    _show(desk, desk.perform("tools.show_policy", account=account))


def set_policy(
    desk: Desk,
    account: AccountId,
    enabled: Enabled = None,
    allow: Allow = None,
    deny: Deny = None,
    rounds: Rounds = None,
    definitions: Definitions = None,
    timeout: Timeout = None,
    result_bytes: ResultBytes = None,
    calls_per_minute: PerMinute = None,
) -> None:
    """Give an account rules of its own for tools."""
    changed = desk.perform(
        "tools.set_policy",
        account=account,
        enabled=enabled,
        allow=allow or None,
        deny=deny or None,
        rounds=rounds,
        definitions=definitions,
        timeout_s=timeout,
        result_bytes=result_bytes,
        calls_per_minute=calls_per_minute,
    )
    _show(desk, changed)


def clear_policy(desk: Desk, account: AccountId) -> None:
    """Drop an account's own rules for tools; those configured apply."""
    _show(desk, desk.perform("tools.clear_policy", account=account))


def _show(desk: Desk, found: dict[str, Any]) -> None:
    show_json(found) if desk.as_json else show_fields(found)
