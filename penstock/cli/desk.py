"""How a command gets its operation done: at this machine on the database, or at a gateway over HTTP.

Every command has the same last options, which say where and how to show the outcome. `with_desk` adds them, makes a
`Desk` of them and turns errors into messages and exit codes; a command only asks the desk to `perform` and shows what
comes back.
"""

from __future__ import annotations

import functools
import inspect
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.show import json_text, show_text
from penstock.errors import ConfigError, PenstockError, StoreUnavailable

if TYPE_CHECKING:
    from penstock.config import Settings

CONFIG_FILE = Path("penstock.toml")
PAGE = 1000  # of a list, asked for at once
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
Config = Annotated[
    Path | None, typer.Option(help="Configuration file [PENSTOCK_CONFIG, else penstock.toml if it is there].")
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option(
        help="Database, in place of the configured one: sqlite:///path or postgresql://user@host/database.",
        metavar="URL",
    ),
]
Url = Annotated[str | None, typer.Option(help="Do it at a running gateway, over HTTP [PENSTOCK_URL].", metavar="URL")]
ManagementKey = Annotated[
    str | None, typer.Option("--key", help="Management key for --url [PENSTOCK_MANAGEMENT_KEY].", metavar="KEY")
]


class ExitCode(IntEnum):
    """What a command ends with; 2 is wrong usage, which typer finds."""

    DONE = 0
    REFUSED = 1
    CONFIG = 3
    UNREACHABLE = 4
    LEDGER_DIFFERS = 5
    NOBODY_HEALTHY = 6


class RefusedThereError(PenstockError):
    """A gateway refused; `envelope` is its answer."""

    def __init__(self, envelope: dict[str, Any]) -> None:
        super().__init__(envelope["error"]["message"])
        self.envelope = envelope


class UnreachableError(StoreUnavailable):
    """The gateway cannot be reached."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where operations are performed: at `url` with `key`, or else here, as `config` and `database_url` say."""

    as_json: bool
    config: Path | None
    database_url: str | None
    url: str | None
    key: str | None = field(repr=False)

    def settings(self, **overrides: str | None) -> Settings:
        """The configuration, with environment variables of `overrides` on top. ConfigError."""
        from penstock.config_file import load

        return load(self.config, self.environ(**overrides))

    def look(self, **overrides: str | None) -> Settings:
        """The same, and nothing is written: no secrets are made where a first start would make them."""
        from penstock.config_file import load
        from penstock.config_secrets import look_for_secrets

        return load(self.config, self.environ(**overrides), look_for_secrets)

    def environ(self, **overrides: str | None) -> dict[str, str]:
        """The environment with `overrides` and the database of the command line on top."""
        overrides |= {"PENSTOCK_DATABASE_URL": self.database_url}
        return os.environ | {name: value for name, value in overrides.items() if value is not None}

    def require_database(self) -> None:
        """StoreUnavailable when operations are performed here, and there is nothing yet to perform them on."""
        if self.url is None:
            from penstock.db.migrate import require

            require(self.look().store.url)

    def perform(self, name: str, /, **arguments: Any) -> Any:
        """Carry out the operation and return what it answers, as JSON has it. Arguments that are None are left out.

        Errors of `penstock/errors.py`, the same here as there.
        """
        given = {param: value for param, value in arguments.items() if value is not None}
        if self.url is None:
            import asyncio

            return asyncio.run(_perform_here(self.settings(), name, given))
        from penstock.cli.remote import perform_there

        return perform_there(self.url, self.key, name, given)


def every_page(ask: Callable[[str | None], dict[str, Any]]) -> dict[str, Any]:
    """All of a list as one page; `ask` gets a page behind a cursor."""
    page = ask(None)
    data = list(page["data"])
    while page["next"]:
        page = ask(page["next"])
        data += page["data"]
    return page | {"data": data}


async def _perform_here(settings: Settings, name: str, arguments: Mapping[str, Any]) -> Any:
    from penstock.app import open_office
    from penstock.operations.actor import LOCAL
    from penstock.operations.index import operation_named, perform

    async with open_office(settings) as office:
        return json.loads(json.dumps(asdict(await perform(office, LOCAL, operation_named(name), arguments))))


def with_desk(function: Callable[..., Any], opening: Callable[..., Desk] | None = None) -> Callable[..., Any]:
    """`function(desk, …)` as a command: the options of `opening` take the place of `desk`."""
    opening = opening or open_desk
    common = inspect.signature(opening, eval_str=True).parameters
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]

    @functools.wraps(function)
    def command(**values: Any) -> None:
        desk = opening(**{name: values.pop(name) for name in common})
        try:
            function(desk, **values)
        except PenstockError as error:
            raise typer.Exit(report(desk, error)) from None

    parameters = [each.replace(kind=each.KEYWORD_ONLY) for each in (*own, *common.values())]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    command.__annotations__ = {each.name: each.annotation for each in parameters}
    return command


def open_empty_desk() -> Desk:
    """No options: for a command that brings all it needs."""
    return Desk(as_json=False, config=None, database_url=None, url=None, key=None)


def open_desk_here(*, as_json: AsJson = False, config: Config = None, database_url: DatabaseUrl = None) -> Desk:
    """The options of a command that only makes sense on the gateway's own machine."""
    return Desk(as_json, config or _default_config(), database_url, url=None, key=None)


def open_desk(
    *,
    as_json: AsJson = False,
    config: Config = None,
    database_url: DatabaseUrl = None,
    url: Url = None,
    management_key: ManagementKey = None,
) -> Desk:
    """The options of all other commands. What is said on the command line goes before the environment."""
    if config is not None or database_url is not None:
        if url is not None:
            raise typer.BadParameter("--url is another gateway; --config and --database-url are about this one.")
        return open_desk_here(as_json=as_json, config=config, database_url=database_url)
    url = url or os.environ.get("PENSTOCK_URL") or None
    key = management_key or os.environ.get("PENSTOCK_MANAGEMENT_KEY") or None
    return Desk(as_json, _default_config(), None, url, key)


def _default_config() -> Path | None:
    named = os.environ.get("PENSTOCK_CONFIG")
    if named:
        return Path(named)
    return CONFIG_FILE if CONFIG_FILE.exists() else None


def report(desk: Desk, error: PenstockError) -> ExitCode:
    """Say what went wrong on standard error; the exit code for it."""
    show_text(json_text(_envelope(error)) if desk.as_json else f"error: {error.message}", err=True)
    if isinstance(error, ConfigError):
        return ExitCode.CONFIG
    return ExitCode.UNREACHABLE if isinstance(error, StoreUnavailable) else ExitCode.REFUSED


def _envelope(error: PenstockError) -> Any:
    """The error as the management API would send it."""
    if isinstance(error, RefusedThereError):
        return error.envelope
    if isinstance(error, ConfigError):  # never sent by a gateway: it does not start
        return {"error": {"message": error.message, "type": "config_error", "code": "config_error", "param": None}}
    from penstock.api.errors import render_openai

    return json.loads(render_openai(error, {})[1])
