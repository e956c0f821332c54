"""Tools of MCP servers: processes on this machine (stdio) and servers elsewhere (Streamable HTTP).

Each server is kept by one task for as long as the worker runs: connected, its tools listed, connected again when it is
lost. A tool is named `server__tool`. Who runs servers here trusts them: they are not in the jail.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from typing import Any

import httpx2
import msgspec
from mcp import Client, MCPError, StdioServerParameters
from mcp import Tool as McpTool
from mcp.client import IncomingMessage
from mcp.client.streamable_http import streamable_http_client
from mcp_types import (
    CallToolResult,
    EmbeddedResource,
    ResourceLink,
    TextContent,
    TextResourceContents,
    ToolListChangedNotification,
)

from penstock.toolbox.settings import McpSettings
from penstock.toolbox.source import ToolError, cut, function_name
from penstock.tools import Tool, ToolResult

LARGEST_RESULT = 200_000  # bytes; the gateway cuts further
MOST_PAGES = 50  # of a server's list of tools
CONNECT_S = 20.0  # a server in another language may have to be compiled first
LOOK_S = 30.0  # between looks whether a quiet server is still there, and has the tools it had
STEADY_S = 60.0  # a server that was there for so long begins anew with the first pause
PAUSES_S = (1.0, 2.0, 5.0, 15.0, 60.0)  # between attempts to connect, the last one for good

_logger = logging.getLogger("penstock.tools")


class McpServer:
    """One server, as a `source.Source`. `changed` is called whenever its list of tools is another."""

    def __init__(self, settings: McpSettings, changed: Callable[[], None]) -> None:
        self.settings = settings
        self._changed = changed
        self._client: Client | None = None
        self._tools: dict[str, tuple[str, Tool]] = {}
        self._stale = asyncio.Event()
        self.listed = asyncio.Event()  # it has been tried once: its tools are known, or it is known to be away

    def __repr__(self) -> str:
        return f"McpServer({self.settings.name}, {len(self._tools)} tools)"

    def tools(self) -> tuple[Tool, ...]:
        return tuple(tool for _, tool in self._tools.values())

    async def run(self, name: str, arguments: Mapping[str, Any], *, within_s: float) -> ToolResult:
        client, known = self._client, self._tools.get(name)
        if client is None or known is None:
            raise ToolError("The server of this tool is away.")
        try:
            result = await client.call_tool(known[0], dict(arguments), read_timeout_seconds=within_s)
        except MCPError as error:
            self._stale.set()  # should the server be gone, that is found out now
            raise ToolError(cut(str(error), 2_000)) from None
        return ToolResult(cut(_text(result), LARGEST_RESULT), failed=bool(result.is_error))

    async def keep(self) -> None:
        """Stay connected until cancelled."""
        attempt = 0
        loop = asyncio.get_running_loop()
        while True:
            began_s = loop.time()
            try:
                await self._serve()
            except Exception as error:  # whatever a server does, the others go on
                _logger.warning("MCP server %s is away: %s", self.settings.name, _reason(error))
            finally:
                self._client = None
                self._show({})
            self.listed.set()
            if loop.time() - began_s >= STEADY_S:
                attempt = 0
            await asyncio.sleep(PAUSES_S[min(attempt, len(PAUSES_S) - 1)])
            attempt += 1

    async def _serve(self) -> None:
        """Connect and list, again whenever the server says that its tools have changed. Raises when it is lost."""
        async with AsyncExitStack() as stack:
            async with asyncio.timeout(CONNECT_S):
                client = await stack.enter_async_context(await self._connection(stack))
            self._client = client
            while True:
                self._stale.clear()
                self._show(await self._list(client))
                self.listed.set()
                with suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._stale.wait()

    async def _connection(self, stack: AsyncExitStack) -> Client:
        settings = self.settings
        if settings.url is None:
            command, *arguments = settings.command
            started = StdioServerParameters(command=command, args=arguments, env=dict(settings.variables))
            return Client(started, message_handler=self._heard)
        headers = {} if settings.bearer is None else {"authorization": f"Bearer {settings.bearer}"}
        http = await stack.enter_async_context(httpx2.AsyncClient(headers=headers, trust_env=False, timeout=30))
        return Client(streamable_http_client(settings.url, http_client=http), message_handler=self._heard)

    async def _list(self, client: Client) -> dict[str, tuple[str, Tool]]:
        """The tools by the name that callers see: what the server calls each, and its definition."""
        found: dict[str, tuple[str, Tool]] = {}
        cursor: str | None = None
        for _ in range(MOST_PAGES):
            async with asyncio.timeout(CONNECT_S):
                page = await client.list_tools(cursor=cursor, cache_mode="bypass")
            for tool in page.tools:
                name = function_name(self.settings.name, tool.name)
                found[name] = tool.name, _definition(name, tool)
            cursor = page.next_cursor
            if cursor is None:
                break
        return found

    def _show(self, tools: dict[str, tuple[str, Tool]]) -> None:
        before, self._tools = self._tools, tools
        if before != tools:
            self._changed()

    async def _heard(self, message: IncomingMessage) -> None:
        if isinstance(message, ToolListChangedNotification):
            self._stale.set()


def _definition(name: str, tool: McpTool) -> Tool:
    schema = tool.input_schema
    if schema.get("type") != "object":
        schema = {"type": "object", "properties": {}}
    return Tool(name, tool.description or tool.title or tool.name, schema)


def _text(result: CallToolResult) -> str:
    """A result as text. What is not text is named, not sent: models are given it by address or not at all."""
    parts = []
    for block in result.content:
        match block:
            case TextContent():
                parts.append(block.text)
            case EmbeddedResource(resource=TextResourceContents() as resource):
                parts.append(resource.text)
            case ResourceLink():
                parts.append(f"[{block.name}: {block.uri}]")
            case _:
                parts.append(f"[{block.type} that cannot be shown as text]")
    if not parts and result.structured_content is not None:
        parts.append(msgspec.json.encode(result.structured_content).decode())
    return "\n".join(parts)


def _reason(error: BaseException) -> str:
    """The words of an error, or of the first one in a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"[:500]
