"""A serving process with people's money in its database, spoken to over bare sockets, whose books add up in the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.stories.gateway import Person, running
from tests.stories.process import Process, configuration, serving_process, settings_of, verified
from tests.upstream import ScriptedUpstream


@dataclass(frozen=True)
class Served:
    """A serving process with somebody's money in its database."""

    process: Process
    config: Path
    people: list[Person]

    async def said(self, request: bytes, *, who: int = 0, cuts: random.Random | None = None) -> bytes:
        """Everything that comes back on one connection until it is closed, for a request in one piece or in many."""
        request = request.replace(b"%(key)s", self.people[who].personal_key.key.encode())
        reader, writer = await asyncio.open_connection("127.0.0.1", int(self.process.url.rpartition(":")[2]))
        answer = b""
        with suppress(ConnectionError):  # it may hang up on us while we are speaking
            async with asyncio.timeout(30):
                for piece in _pieces(request, cuts):
                    writer.write(piece)
                    await writer.drain()
                answer = await reader.read(-1)
        writer.transport.abort()
        return answer


@asynccontextmanager
async def served(folder: Path, upstream: ScriptedUpstream, *, people: int = 1) -> AsyncIterator[Served]:
    """A process that takes calls, and afterwards books that add up."""
    config = configuration(folder, upstream.base_url)
    async with running(settings_of(config)) as gateway:
        some = [await gateway.person(usd="1") for _ in range(people)]
    async with serving_process(config) as process:
        yield Served(process, config, some)
    assert await verified(config)


def _pieces(request: bytes, cuts: random.Random | None) -> list[bytes]:
    if cuts is None:
        return [request]
    places = sorted(cuts.sample(range(1, len(request)), min(5, len(request) - 1)))
    return [request[start:end] for start, end in zip([0, *places], [*places, len(request)], strict=True)]
