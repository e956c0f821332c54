"""`penstock tools-worker`: run tools for a gateway's models on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.desk import Desk, ExitCode
from penstock.cli.worker import worker_key

VARIABLE = "PENSTOCK_TOOLS_WORKER_KEY"
KEY_HELP = f"The worker's key [{VARIABLE}; better, for others can see a process's arguments]."


def tools_worker(
    desk: Desk,
    gateway: Annotated[str, typer.Option(help="Where the gateway is: https://host.", metavar="URL")],
    config: Annotated[Path | None, typer.Option(help="tools.toml: which tools, and their limits.")] = None,
    key: Annotated[str | None, typer.Option("--key", help=KEY_HELP, metavar="KEY")] = None,
    key_file: Annotated[Path | None, typer.Option(help="The file that holds the key.", metavar="FILE")] = None,
    slots: Annotated[int, typer.Option(help="Tools that run at once.", min=1, max=4096)] = 16,
    grace: Annotated[float, typer.Option(help="Seconds for tools under way, after SIGTERM.", min=0)] = 10.0,
) -> None:
    """Dial in to a gateway and run tools for its models here, until SIGTERM."""
    import asyncio
    import logging
    import sys

    from penstock.hub.dialer import RefusedError
    from penstock.log import Redactor, configure
    from penstock.outlet import outlet
    from penstock.toolbox.settings import load
    from penstock.toolbox.worker import Options, work

    secret = worker_key(key, key_file, VARIABLE)
    settings = load(config, os.environ)
    secrets = [secret, *settings.secrets()]
    configure(outlet(sys.stderr), Redactor(secrets))
    try:
        asyncio.run(work(Options(gateway, secret, settings, slots, grace)))
    except RefusedError as error:
        logging.getLogger("penstock.tools").error("the gateway refuses this worker: %s", error)
        raise typer.Exit(ExitCode.REFUSED) from None
