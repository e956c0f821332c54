"""The gateway as a process of its own, started as an operator starts it: `penstock serve` and a configuration file.

config = configuration(tmp_path, upstream.base_url, store=store_url)
async with running(settings_of(config)) as gateway:     # the same database, in the test's own process
    ada = await gateway.person(usd="1")
async with serving_process(config) as process:
    ...                                                 # call process.url
    process.signal(signal.SIGTERM)
    assert await process.ended() == 0
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from penstock.config import Settings
from penstock.config_file import load
from tests.engines import SECRETS
from tests.stories.caller import PATIENCE_S, eventually

START_S = 45.0  # seconds, of which a start takes one; on a machine whose disk is held up by others, many
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")} | SECRETS
MODEL = """
[[models]]
id = "{id}"
offers = [{{ provider = "main" }}]
price = {{ input = 0.1, output = 2 }}
"""


def configuration(
    folder: Path,
    upstream: str,
    *,
    store: str | None = None,
    models: tuple[str, ...] = ("metered",),
    grace_s: float = 1.0,
    workers: int = 1,
) -> Path:
    """Write a file with these models at one upstream, for $0.10 and $2 a million tokens, and this database, or a SQLite
    one in `folder`."""
    path = folder / "penstock.toml"
    head = f"""
[server]
port = 0
grace_s = {grace_s}
workers = {workers}
[store]
url = "{store or f"sqlite:///{folder}/penstock.db"}"
[providers.main]
base_url = "{upstream}"
"""
    path.write_text(head + "".join(MODEL.format(id=id) for id in models))
    return path


def settings_of(config: Path) -> Settings:
    """What a process with this file would run with."""
    return load(config, SECRETS)


class Process:
    """A serving process. `log` is what it has said on standard error, line by line."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.url = ""
        self.log: list[str] = []
        self.pid = process.pid
        self._process = process

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        """Wait for its end: the exit code, negative when a signal ended it."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._process.wait()

    async def said(self, words: str, *, patience_s: float = PATIENCE_S) -> str:
        """Wait for a line with these words in it; the line. It fails with the log when there is none."""

        async def line() -> str:
            found = next((line for line in self.log if words in line), "")
            if not found and self._process.returncode is not None:
                raise AssertionError(f"it ended with {self._process.returncode}: {self.log}")
            return found

        try:
            return await eventually(line, patience_s=patience_s)
        except TimeoutError:
            raise AssertionError(f"it did not say '{words}': {self.log}") from None

    async def listen(self) -> None:
        """Keep what it says, to its end."""
        assert self._process.stderr is not None
        while line := await self._process.stderr.readline():
            self.log.append(line.decode())


@asynccontextmanager
async def serving_process(
    config: Path, *words: str, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Process]:
    """`penstock serve`, ready to be called; killed at the end if it still runs."""
    started = await _penstock("serve", "--config", str(config), *words, environ=environ)
    process = Process(started)
    listening = asyncio.create_task(process.listen())
    try:
        line = await process.said("serves at", patience_s=START_S)
        process.url = line.partition("serves at ")[2].split()[0]
        yield process
    finally:
        if started.returncode is None:
            started.kill()
        await started.wait()
        await listening


async def verified(config: Path, environ: Mapping[str, str] | None = None) -> bool:
    """Whether `penstock ledger verify` ends well."""
    process = await _penstock("ledger", "verify", "--config", str(config), environ=environ)
    _, said = await process.communicate()
    assert process.returncode in (0, 5), said
    return process.returncode == 0


async def _penstock(*words: str, environ: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "penstock",
        *words,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT | dict(environ or {}),
        cwd=Path(__file__).parents[2],
    )


async def ended(pid: int) -> bool:
    """Whether there is no such process, or only what is left of one."""
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: ASYNC230 -- it is no disk
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True
