"""A tools worker inside the test's own event loop, with tools that the test makes, dialled in to a real gateway.

    async with working(gateway, person, Shelf(double=lambda arguments: str(2 * arguments["n"]))) as worker: ...

`Shelf` is a source of tools like any built-in one; the line, the toolbox and the gateway are the real ones.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from penstock.hub.dialer import Dialer
from penstock.toolbox.source import Toolbox
from penstock.toolbox.worker import CONNECT, Run, offer_of
from penstock.tools import Tool, ToolResult
from tests.stories.gateway import Person, Running

Do = Callable[[Mapping[str, Any]], ToolResult | Awaitable[ToolResult]]


class Shelf:
    """Tools by name; what each does gets the arguments. `asked` is what was run, in order."""

    def __init__(self, **tools: Do) -> None:
        self._tools = tools
        self.asked: list[tuple[str, Mapping[str, Any]]] = []

    def tools(self) -> tuple[Tool, ...]:
        return tuple(Tool(name, f"Does {name}.", {"type": "object", "properties": {}}) for name in self._tools)

    async def run(self, name: str, arguments: Mapping[str, Any], *, within_s: float) -> ToolResult:
        self.asked.append((name, arguments))
        done = self._tools[name](arguments)
        return done if isinstance(done, ToolResult) else await done


def says(text: str) -> Do:
    """A tool that always finds the same."""
    return lambda arguments: ToolResult(text)


@asynccontextmanager
async def working(gateway: Running, person: Person, shelf: Shelf, slots: int = 8) -> AsyncIterator[Dialer]:
    """A worker of the person's account, until the block is left. It is known to the gateway when the block begins."""
    key = await gateway.key("tools_worker", account=person.account)
    toolbox = Toolbox([shelf])
    dialer = Dialer(gateway.url, CONNECT, key.key, offer_of(toolbox, slots), Run(toolbox), agent="test")
    running = asyncio.create_task(dialer.run())
    try:
        await dialer.connected.wait()
        yield dialer
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
