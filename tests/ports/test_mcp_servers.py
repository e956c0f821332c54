"""Tools of MCP servers: a real process over stdio, and a real server over Streamable HTTP."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn

from penstock.toolbox.mcp_servers import McpServer
from penstock.toolbox.settings import McpSettings, ToolsSettings
from penstock.toolbox.shop import open_toolbox
from penstock.toolbox.source import Toolbox
from penstock.tools import ToolResult
from tests import mcp_server

SCRIPT = str(Path(mcp_server.__file__))
STDIO = McpSettings("box", command=(sys.executable, SCRIPT), variables=(("SHOWN", "1"),))


@asynccontextmanager
async def kept(settings: McpSettings) -> AsyncIterator[tuple[McpServer, asyncio.Queue[int]]]:
    """A server that has been connected, and a queue with the number of its tools after each change."""
    changes: asyncio.Queue[int] = asyncio.Queue()
    server = McpServer(settings, lambda: changes.put_nowait(len(server.tools())))
    keeping = asyncio.create_task(server.keep())
    try:
        await server.listed.wait()
        yield server, changes
    finally:
        keeping.cancel()
        await asyncio.gather(keeping, return_exceptions=True)


async def test_a_servers_tools_are_named_after_it_and_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_SECRET_OF_THE_WORKER", "x")
    async with kept(STDIO) as (server, _):
        box = Toolbox([server])
        names = [tool.name for tool in box.tools()]
        assert names[0] == "box__add"
        assert names[1].startswith("box__odd_name__")  # not a valid name as it was, and still one of its own
        assert box.tools()[0].description == "Add two numbers."
        assert box.tools()[0].parameters["required"] == ["a", "b"]
        assert await box.run("box__add", {"a": 2, "b": 3}, within_s=5) == ToolResult("5")
        assert await box.run(names[1], {}, within_s=5) == ToolResult("odd")
        assert (await box.run("box__fail", {}, within_s=5)).failed
        assert (await box.run("box__add", {"a": "x"}, within_s=5)).failed
        assert await box.run("box__none", {}, within_s=5) == ToolResult("There is no tool 'box__none'.", failed=True)
        assert (await box.run("box__wait", {}, within_s=0.2)).failed
        environment = (await box.run("box__environment", {}, within_s=5)).text
    assert "SHOWN" in environment
    assert "PENSTOCK_SECRET_OF_THE_WORKER" not in environment


async def test_a_server_that_died_has_no_tools_until_it_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.toolbox.mcp_servers.PAUSES_S", (0.01,))
    async with kept(STDIO) as (server, changes):
        assert await changes.get() == 6
        result = await Toolbox([server]).run("box__die", {}, within_s=5)
        assert result.failed
        assert await changes.get() == 0
        assert await changes.get() == 6
        assert await Toolbox([server]).run("box__add", {"a": 2, "b": 3}, within_s=5) == ToolResult("5")


async def test_a_server_that_was_there_for_long_is_connected_to_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.toolbox.mcp_servers.PAUSES_S", (0.01, 100.0))
    monkeypatch.setattr("penstock.toolbox.mcp_servers.STEADY_S", 0.0, raising=False)
    async with kept(STDIO) as (server, changes), asyncio.timeout(20):
        assert await changes.get() == 6
        for _ in range(2):
            await Toolbox([server]).run("box__die", {}, within_s=5)
            assert [await changes.get(), await changes.get()] == [0, 6]


async def test_a_server_that_cannot_be_started_leaves_the_others_alone() -> None:
    missing = McpSettings("missing", command=("/no/such/command",))
    async with open_toolbox(ToolsSettings(mcp=(missing, STDIO)), lambda: None) as box:
        names = [tool.name for tool in box.tools()]
    assert "web_fetch" in names
    assert "box__add" in names
    assert not any(name.startswith("missing") for name in names)


async def test_a_server_over_streamable_http_is_used_the_same_way() -> None:
    listener = socket.create_server(("127.0.0.1", 0))  # takes connections before there is anybody to answer them
    port = listener.getsockname()[1]
    web = uvicorn.Server(uvicorn.Config(mcp_server.app(), log_level="critical", ws="none"))
    serving = asyncio.create_task(web.serve([listener]))
    try:
        async with kept(McpSettings("far", url=f"http://127.0.0.1:{port}/mcp")) as (server, _):
            assert await Toolbox([server]).run("far__add", {"a": 2, "b": 3}, within_s=5) == ToolResult("5")
    finally:
        web.should_exit = True
        await serving
