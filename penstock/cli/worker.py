"""`penstock worker`: serve a gateway's calls with an engine on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.desk import Desk, ExitCode
from penstock.errors import ConfigError

VARIABLE = "PENSTOCK_WORKER_KEY"
KEY_HELP = "The worker's key [PENSTOCK_WORKER_KEY; better, for others can see a process's arguments]."


def worker(
    desk: Desk,
    gateway: Annotated[str, typer.Option(help="Where the gateway is: https://host.", metavar="URL")],
    engine: Annotated[
        str,
        typer.Option(help="The engine: its URL, a .gguf file, or a command with {port} in it.", metavar="ENGINE"),
    ],
    key: Annotated[str | None, typer.Option("--key", help=KEY_HELP, metavar="KEY")] = None,
    key_file: Annotated[Path | None, typer.Option(help="The file that holds the key.", metavar="FILE")] = None,
    slots: Annotated[int | None, typer.Option(help="Calls at once, in place of what the engine says.", min=1)] = None,
    context: Annotated[int | None, typer.Option(help="Tokens for each call, with a .gguf file.", min=1)] = None,
    grace: Annotated[float, typer.Option(help="Seconds for calls under way, after SIGTERM.", min=0)] = 30.0,
) -> None:
    """Dial in to a gateway and serve its calls with an engine here, until SIGTERM and the last call's end."""
    import asyncio
    import logging
    import sys

    from penstock.hub.dialer import RefusedError
    from penstock.log import Redactor, configure
    from penstock.outlet import outlet
    from penstock.worker.worker import Options, work

    secret = worker_key(key, key_file, VARIABLE)
    configure(outlet(sys.stderr), Redactor([secret]))
    options = Options(gateway, secret, engine, os.environ.get("PENSTOCK_ENGINE_KEY"), slots, context, grace)
    try:
        asyncio.run(work(options))
    except RefusedError as error:
        logging.getLogger("penstock.worker").error("the gateway refuses this worker: %s", error)
        raise typer.Exit(ExitCode.REFUSED) from None


def worker_key(given: str | None, file: Path | None, variable: str) -> str:
    """The worker's key, from wherever it is. ConfigError when it is nowhere."""
    if file is not None:
        try:
            given = file.read_text()
        except (OSError, ValueError) as error:
            raise ConfigError([f"key-file: {file} cannot be read: {error}"]) from None
    key = (given or os.environ.get(variable) or "").strip()
    if not key.isascii() or not key.isprintable() or not key:
        raise ConfigError([f"key: give {variable}, --key-file or --key"])
    return key
