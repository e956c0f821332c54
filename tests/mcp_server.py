"""A small MCP server for tests, over stdio: `python tests/mcp_server.py`. Over HTTP, take `app()`."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from mcp.server import MCPServer


def server() -> MCPServer:
    """Tools that add, fail, take for ever, tell the environment and end the process."""
    box = MCPServer("box", log_level="CRITICAL")

    @box.tool()
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    @box.tool(name="odd name!")
    def odd() -> str:
        return "odd"

    @box.tool()
    def fail() -> str:
        raise ValueError("no luck")

    @box.tool()
    async def wait() -> str:
        await asyncio.Event().wait()
        return "never"

    @box.tool()
    def environment() -> list[str]:
        return sorted(os.environ)

    @box.tool()
    def die() -> str:
        os._exit(1)

    return box


def app() -> Any:
    """The same as an ASGI application, at `/mcp`."""
    return server().streamable_http_app()


if __name__ == "__main__":
    server().run("stdio")
