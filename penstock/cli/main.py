"""The tree of commands. Nothing heavy is imported until a command runs, so that `--help` is instant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from penstock import __version__
from penstock.cli import keys, money, people, process, routes, tools, tools_worker
from penstock.cli import worker as gpu_worker
from penstock.cli.desk import open_desk_here, open_empty_desk, with_desk

EPILOG = (
    "Exit codes: 0 done, 1 refused, 2 wrong usage, 3 wrong configuration, 4 gateway or database unreachable, "
    "5 the ledger does not add up, 6 no provider is healthy."
)


def program() -> typer.Typer:
    """The whole command line."""
    app = _typer("Run and manage Penstock, the metering gate between agents and inference.", epilog=EPILOG)
    app.callback()(_options)
    app.command("demo")(with_desk(process.demo, open_empty_desk))
    app.command("worker")(with_desk(gpu_worker.worker, open_empty_desk))
    app.command("tools-worker")(with_desk(tools_worker.tools_worker, open_empty_desk))
    for name, function in (
        ("serve", process.serve),
        ("check-config", process.check_config),
        ("migrate", process.migrate),
        ("accept-secrets", process.accept_secrets),
    ):
        app.command(name)(with_desk(function, open_desk_here))
    _add(app, balance=money.balance, grant=money.grant, models=money.models, discover=money.discover)
    _group(
        app,
        "route",
        "Where calls go.",
        show=routes.show,
        set=routes.set_route,
        clear=routes.clear,
        explain=routes.explain,
    )
    _add(app, pulse=routes.pulse)
    _group(app, "users", "People.", create=people.create_user, list=people.list_users)
    accounts = _group(app, "accounts", "Whose money it is.", create=people.create_account, list=people.list_accounts)
    _add(accounts, add_member=people.add_member, remove_member=people.remove_member)
    _group(
        app,
        "keys",
        "What programs sign in with.",
        create=keys.create,
        list=keys.list_keys,
        child=keys.child,
        revoke=keys.revoke,
    )
    _group(app, "usage", "What was used.", list=money.list_usage, summary=money.summarize_usage)
    _group(app, "ledger", "The books.", verify=money.verify)
    _group(
        app,
        "tools",
        "What models may do with workers' tools.",
        policy=tools.policy,
        set_policy=tools.set_policy,
        clear_policy=tools.clear_policy,
    )
    sessions = _group(app, "sessions", "What people sign in with.")
    sessions.command("token")(with_desk(people.issue_token, open_desk_here))
    return app


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    """What comes before the command."""


def _typer(help: str, epilog: str | None = None) -> typer.Typer:
    # Without rich in help: it alone would take longer than all the rest.
    return typer.Typer(
        help=help,
        epilog=epilog,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def _group(app: typer.Typer, name: str, help: str, **commands: Callable[..., Any]) -> typer.Typer:
    group = _typer(help)
    _add(group, **commands)
    app.add_typer(group, name=name)
    return group


def _add(app: typer.Typer, **commands: Callable[..., Any]) -> None:
    for name, function in commands.items():
        app.command(name.replace("_", "-"))(with_desk(function))
