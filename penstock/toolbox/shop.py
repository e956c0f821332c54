"""From settings to a toolbox that is ready: built-ins made, the jail tried, MCP servers connected and kept so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from penstock.errors import ConfigError
from penstock.toolbox.code_execution import CodeExecution
from penstock.toolbox.settings import McpSettings, ToolsSettings
from penstock.toolbox.source import Source, Toolbox
from penstock.toolbox.web_fetch import WebFetch
from penstock.toolbox.web_search import WebSearch

READY_S = 30.0  # for MCP servers to be there before the tools are announced; late ones are announced when they come

_logger = logging.getLogger("penstock.tools")


@asynccontextmanager
async def open_toolbox(settings: ToolsSettings, changed: Callable[[], None]) -> AsyncIterator[Toolbox]:
    """A toolbox; `changed` is called whenever it has other tools than before. ConfigError without the extra for MCP."""
    sources = await _built_in(settings)
    tasks: list[asyncio.Task[None]] = []
    try:
        if settings.mcp:
            sources += await _connected(settings.mcp, changed, tasks)
        yield Toolbox(sources)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _built_in(settings: ToolsSettings) -> list[Source]:
    sources: list[Source] = []
    if settings.web_fetch.enabled:
        sources.append(WebFetch(settings.web_fetch))
    if settings.web_search is not None:
        sources.append(WebSearch(settings.web_search))
    if settings.code_execution.enabled:
        execution = CodeExecution(settings.code_execution)
        reason = await execution.able()
        if reason is None:
            sources.append(execution)
        else:
            _logger.warning("code_execution is not offered: %s", reason.strip())
    return sources


async def _connected(
    servers: tuple[McpSettings, ...], changed: Callable[[], None], tasks: list[asyncio.Task[None]]
) -> list[Source]:
    try:
        from penstock.toolbox.mcp_servers import McpServer  # noqa: PLC0415 -- comes with an extra
    except ImportError as error:
        raise ConfigError([f"MCP servers need the extra 'tools': {error}"]) from None
    kept = [McpServer(each, changed) for each in servers]
    tasks += [asyncio.create_task(each.keep()) for each in kept]
    waiting = [asyncio.create_task(each.listed.wait()) for each in kept]
    _, late = await asyncio.wait(waiting, timeout=READY_S)
    for task in late:
        task.cancel()
    return list(kept)
