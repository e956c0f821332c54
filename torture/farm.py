"""What a history runs on: an upstream, a database, and gateways that are started, killed and told to stop.

The gateways are `penstock serve` on a configuration file, as an operator starts them; several share one database.
Nothing here knows what the calls are, or what must be true of them.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from httpx2 import AsyncClient

from penstock.db import migrate
from tests.postgres import Server, find_server
from tests.stories.gateway import plain_client
from tests.stories.process import Process, serving_process
from torture.script import INPUT_NANO, OUTPUT_NANO, Told

ROOT = Path(__file__).resolve().parents[1]
SQLITE, POSTGRESQL = "sqlite", "postgresql"
CONTRACT = "TORTURE"
SECRETS = {"PENSTOCK_KEY_PEPPER": "p" * 32, "PENSTOCK_AUTH_SECRET": "a" * 32}  # of databases that live for seconds
_read_told = msgspec.json.Decoder(list[Told]).decode


class Upstream:
    """The process that keeps the truth."""

    def __init__(self, url: str, http: AsyncClient) -> None:
        self.url = url
        self._http = http

    def __repr__(self) -> str:
        return f"Upstream({self.url})"

    async def told(self, history: str) -> dict[str, list[Told]]:
        """What it kept of a history, by marker, in the order in which requests came."""
        found: dict[str, list[Told]] = {}
        for told in _read_told((await self._http.get(f"{self.url}/told/{history}")).content):
            found.setdefault(told.marker, []).append(told)
        return found

    async def forget(self, history: str) -> None:
        await self._http.delete(f"{self.url}/told/{history}")


@asynccontextmanager
async def upstream_process() -> AsyncIterator[Upstream]:
    """`python -m torture.upstream`, until the block is left."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "torture.upstream", stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        url = (await process.stdout.readline()).decode().strip()
        async with plain_client() as http:
            yield Upstream(url, http)
    finally:
        process.terminate()
        await process.wait()


class Databases:
    """Makes databases with their tables and nothing in them, on either engine; they are gone afterwards."""

    def __init__(self, folder: Path, server: Server | None) -> None:
        self._folder = folder
        self._server = server
        self._empty = folder / "empty.db"
        migrate.upgrade(f"sqlite:///{self._empty}")
        self.engines = (SQLITE, POSTGRESQL) if server else (SQLITE,)

    def __repr__(self) -> str:
        return f"Databases({', '.join(self.engines)})"

    @contextmanager
    def new(self, engine: str) -> Iterator[Ground]:
        """A database and a folder for what belongs to it."""
        with tempfile.TemporaryDirectory(dir=self._folder) as name:
            folder = Path(name)
            if engine == SQLITE:
                shutil.copy(self._empty, folder / "penstock.db")
                yield Ground(folder, f"sqlite:///{folder}/penstock.db")
                return
            assert self._server is not None
            with self._server.database() as url:
                yield Ground(folder, url)


@contextmanager
def databases() -> Iterator[Databases]:
    """Both engines, or SQLite alone where there is no PostgreSQL."""
    server = find_server()
    try:
        with tempfile.TemporaryDirectory(prefix="penstock-torture-") as folder:
            yield Databases(Path(folder), server)
    finally:
        if server is not None:
            server.close()


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider of the gateway: the scripted upstream under a name of its own. `hasty` ones have short time-outs."""

    name: str
    on_cancel: str = "stop"
    hasty: bool = False

    def text(self, upstream: str) -> str:
        limits = (0.8, 0.8, 2) if self.hasty else (60, 60, 120)
        first_byte_s, idle_s, total_s = limits
        return (
            f'[providers.{self.name}]\nbase_url = "{upstream}/{self.name}/v1"\non_cancel = "{self.on_cancel}"\n'
            f"first_byte_timeout_s = {first_byte_s}\nidle_timeout_s = {idle_s}\ntotal_timeout_s = {total_s}\n"
            "connect_timeout_s = 60\nmax_connections = 8000\n"
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """How the gateways of a history are set up. `models` maps a model to the providers that offer it, in order."""

    providers: tuple[Provider, ...]
    models: Mapping[str, tuple[str, ...]]
    grace_s: float = 10
    slice_tokens: int = 256
    drain_s: float = 30
    draining_calls: int = 10_000
    hold_wait_s: float = 1.0

    def text(self, database: str, upstream: str) -> str:
        """The configuration file."""
        return "\n".join(
            [
                f'[server]\nport = 0\ngrace_s = {self.grace_s}\n[store]\nurl = "{database}"',
                f"[limits]\nrequests_per_minute = 1000000000\nstream_slice_tokens = {self.slice_tokens}",
                f"drain_s = {self.drain_s}\ndraining_calls = {self.draining_calls}\nhold_wait_s = {self.hold_wait_s}",
                "[health]\nfailures = 0",  # upstreams break all the time here, and every call is to meet it
                *(provider.text(upstream) for provider in self.providers),
                f'[[contracts]]\nid = "{CONTRACT}"\nname = "Torture"\nprice = 0.2\nminimum_tokens = 1',
                "expires = 2999-01-01",
                *(_model(name, offers) for name, offers in self.models.items()),
            ]
        )


@dataclass(frozen=True, slots=True)
class Ground:
    """A database and a folder beside it."""

    folder: Path
    database: str

    def configure(self, plan: Plan, upstream: Upstream) -> Path:
        """Write the configuration file."""
        path = self.folder / "penstock.toml"
        path.write_text(plan.text(self.database, upstream.url))
        return path


@dataclass(slots=True)
class Farm:
    """The gateways of one history. `alive` are those that take calls; `anyone` is set while there is one."""

    config: Path
    alive: list[Process] = field(default_factory=list)
    everyone: list[Process] = field(default_factory=list)
    anyone: asyncio.Event = field(default_factory=asyncio.Event)
    _stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def start(self, count: int) -> None:
        """Start so many more, at once."""
        await asyncio.gather(*(self._start() for _ in range(count)))

    async def _start(self) -> None:
        process = await self._stack.enter_async_context(serving_process(self.config, environ=SECRETS))
        self.alive.append(process)
        self.everyone.append(process)
        self.anyone.set()

    async def kill(self, process: Process) -> None:
        """SIGKILL; gone when this returns."""
        process.signal(signal.SIGKILL)
        self._gone(process)
        if await process.ended() != -signal.SIGKILL:
            raise AssertionError(f"a gateway ended by itself: {process.log}")

    async def stop(self) -> list[str]:
        """SIGTERM to all: who did not end well, and what any of them has logged as an error."""
        stopping = list(self.alive)
        for process in stopping:
            process.signal(signal.SIGTERM)
            self._gone(process)
        codes = [await process.ended() for process in stopping]
        found = [f"a gateway ended with {code}" for code in codes if code]
        return found + [f"a gateway says: {line}" for each in self.everyone for line in each.log if _is_alarm(line)]

    async def close(self) -> None:
        await self._stack.aclose()

    def _gone(self, process: Process) -> None:
        self.alive.remove(process)
        if not self.alive:
            self.anyone.clear()


@asynccontextmanager
async def farm(config: Path, count: int) -> AsyncIterator[Farm]:
    """So many gateways; whatever runs at the end is killed."""
    running = Farm(config)
    try:
        await running.start(count)
        yield running
    finally:
        await running.close()


def _is_alarm(line: str) -> bool:
    """Whether a log line tells of a defect. That calls were cut at the end of the grace time does not."""
    alarm = '"level": "error"' in line or line.startswith("Traceback")
    return alarm and "graceful shutdown exceeded" not in line


def environment() -> dict[str, str]:
    """For processes beside the gateways: this one's, without settings of Penstock, and the secrets."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_")} | SECRETS


def _model(name: str, offers: tuple[str, ...]) -> str:
    listed = ", ".join(f'{{ provider = "{offer}" }}' for offer in offers)
    price = f"{{ input = {INPUT_NANO / 1000}, output = {OUTPUT_NANO / 1000} }}"
    return f'[[models]]\nid = "{name}"\ncontract = "{CONTRACT}"\noffers = [{listed}]\nprice = {price}'
