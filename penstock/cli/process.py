"""Commands that run the gateway or get it ready: serve, demo, check-config, migrate, accept-secrets."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from penstock.cli.desk import Desk
from penstock.cli.show import show_fields, show_json

if TYPE_CHECKING:
    from penstock.config import Settings

Host = Annotated[str | None, typer.Option(help="Address to listen on, in place of the configured one.")]
Port = Annotated[
    int | None, typer.Option(help="Port to listen on, in place of the configured one; 0 takes a free one.")
]
Workers = Annotated[
    int | None,
    typer.Option(help="Serving processes on the same address and database, in place of the configured number."),
]
SampleFlag = Annotated[
    bool, typer.Option("--sample", help="Make a sample account with some credit, and print keys and a call to try.")
]


def serve(
    desk: Desk, host: Host = None, port: Port = None, workers: Workers = None, sample: SampleFlag = False
) -> None:
    """Start the gateway. SIGHUP reads the configuration again, SIGUSR2 replaces the workers, SIGTERM ends it when its
    calls are done."""
    given = {
        "PENSTOCK_HOST": host,
        "PENSTOCK_PORT": None if port is None else str(port),
        "PENSTOCK_WORKERS": None if workers is None else str(workers),
    }
    settings = desk.settings(**given)
    run = _serve_alone if settings.server.workers == 1 else _supervise
    raise typer.Exit(run(desk, settings, given, sample))


def _serve_alone(desk: Desk, settings: Settings, given: dict[str, str | None], sample: bool) -> int:
    from penstock.app import serve as serve_forever
    from penstock.cli.welcome import welcome, welcome_with_sample

    announce = welcome_with_sample if sample else welcome
    return serve_forever(settings, reload=lambda: desk.look(**given), announce=announce)


def _supervise(desk: Desk, settings: Settings, given: dict[str, str | None], sample: bool) -> int:
    from penstock.cli.serving_process import command
    from penstock.supervisor import supervise

    start = command(desk.config, "sample" if sample else "")
    return supervise(settings, command=start, environ=desk.environ(**given), reload=lambda: desk.look(**given))


def demo(
    desk: Desk,
    engine: Annotated[
        Literal["demo", "llamacpp"], typer.Option(help="demo: built in; llamacpp: a real one, in a subprocess.")
    ] = "demo",
    model_file: Annotated[
        Path | None, typer.Option(help="GGUF file for llamacpp; else a tiny one is made.", metavar="FILE")
    ] = None,
) -> None:
    """Start a gateway with a built-in model and spend its prepaid money, without any key."""
    from penstock.cli.demo import run

    raise typer.Exit(run(typer.echo, engine=engine, model_file=model_file))


def check_config(desk: Desk) -> None:
    """Read the configuration and say what is wrong with it. Ends with 3 when something is."""
    settings = desk.look()
    report = {
        "config": str(desk.config) if desk.config else None,
        "providers": len(settings.providers),
        "models": len(settings.models),
        "contracts": len(settings.contracts),
        "warnings": list(settings.warnings),
    }
    show_json(report) if desk.as_json else show_fields(report)


def migrate(desk: Desk) -> None:
    """Bring the database up to date. Starting the gateway does the same."""
    from penstock.db.migrate import current, upgrade

    url = desk.settings().store.url
    report = {"before": upgrade(url), "revision": current(url)}
    show_json(report) if desk.as_json else show_fields(report)


def accept_secrets(desk: Desk) -> None:
    """Go on with the secrets that are set now, though the database was used with others; where its own are lost, make
    new ones. Keys made with another pepper stop working, another auth secret signs everyone out."""
    import asyncio

    from penstock.app import accept_secrets as accept
    from penstock.config_file import load
    from penstock.config_secrets import SECRET_VARIABLES, renewed_secrets

    changed = asyncio.run(accept(load(desk.config, desk.environ(), renewed_secrets)))
    report = {"changed": [SECRET_VARIABLES[name] for name in changed]}
    show_json(report) if desk.as_json else show_fields(report)
