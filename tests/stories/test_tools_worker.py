"""`penstock tools-worker` as a process of its own: dials in, offers what it has, runs it, ends when told to."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from penstock.hub.dialer import Dialer, GivenJob
from penstock.hub.messages import Offer
from penstock.operations.actor import LOCAL
from penstock.operations.keys import revoke_key
from penstock.toolbox.code_execution import CodeExecution
from penstock.toolbox.settings import CodeExecutionSettings
from tests import mcp_server, toolcalls
from tests.stories.caller import PATIENCE_S, eventually
from tests.stories.gateway import ROUTER, Person, Running
from tests.stories.process import ENVIRONMENT
from tests.toolcalls import Turn, call
from tests.upstream import ScriptedUpstream

TOOLS = f"""
[web_fetch]
enabled = true
[mcp.box]
command = ["{sys.executable}", "{mcp_server.__file__}"]
"""


@asynccontextmanager
async def tools_worker(gateway: Running, key: str, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """The process; killed at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "penstock",
        "tools-worker",
        "--gateway",
        gateway.url,
        *words,
        stderr=asyncio.subprocess.PIPE,
        env=ENVIRONMENT | {"PENSTOCK_TOOLS_WORKER_KEY": key},
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def offered(gateway: Running, person: Person, *names: str) -> None:
    """Wait until these tools are offered to somebody."""

    async def all_there() -> bool:
        there = {tool.name for tool in gateway.gateway.relay.tools.on_offer(person.account)}
        return there.issuperset(names)

    await eventually(all_there, patience_s=60)


async def test_a_model_uses_the_tools_of_a_real_worker(
    gateway: Running, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    ada = await gateway.person(usd="1")
    key = await gateway.key("tools_worker", user=ada.user)
    config = tmp_path / "tools.toml"
    config.write_text(TOOLS)
    calls = [call("box__add", {"a": 2, "b": 40}), call("web_fetch", {"url": "http://169.254.169.254/latest"})]
    if await CodeExecution(CodeExecutionSettings()).able() is None:
        calls.append(call("code_execution", {"code": "print(6 * 7)"}))
    upstream.script(toolcalls.chat_stream(Turn("Let me see.", tuple(calls))), toolcalls.chat_stream(Turn("It is 42.")))
    async with tools_worker(gateway, key.key, "--config", str(config)) as process:
        await offered(gateway, ada, "box__add", "web_fetch")
        answer = await gateway.chat(ROUTER, ada, stream=True)
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(PATIENCE_S):
            assert await process.wait() == 0
    assert answer.status_code == 200
    assert b'" 42."' in answer.content
    results = {each["tool_call_id"]: each["content"] for each in upstream.requests[1].json["messages"][2:]}
    assert results["call_box__add"] == "42"
    assert "not on the public internet" in results["call_web_fetch"]
    assert results.get("call_code_execution", "42\n") == "42\n"
    assert gateway.gateway.relay.tools.on_offer(ada.account) == ()
    (record,) = await gateway.usage(ada)
    assert {used.name: used.ok for used in record.tools} == {name: name != "web_fetch" for _, name, _ in calls}


async def test_a_tools_worker_with_another_key_is_refused(gateway: Running) -> None:
    ada = await gateway.person()
    for key in (ada.personal_key.key, (await gateway.key("worker", user=ada.user)).key, "tls_nonsense"):
        async with tools_worker(gateway, key) as process:
            _, said = await process.communicate()
        assert process.returncode == 1
        assert b"the gateway refuses this worker: 401" in said
        assert key.encode() not in said


async def test_a_worker_without_a_key_or_with_a_wrong_file_does_not_start(gateway: Running, tmp_path: Path) -> None:
    config = tmp_path / "tools.toml"
    config.write_text("[web_fetc]\n")
    for key, words in (("", ()), ("tls_x", ("--config", str(config)))):
        async with tools_worker(gateway, key, *words) as process:
            _, said = await process.communicate()
        assert process.returncode == 3, said


@pytest.mark.parametrize("location", ["https://elsewhere.example/", "http://[x"])
async def test_a_redirect_to_what_is_no_gateway_is_logged_and_tried_again(
    location: str, caplog: pytest.LogCaptureFixture
) -> None:
    asked = asyncio.Semaphore(0)

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()
        asked.release()

    async def nothing(job: GivenJob) -> None:
        raise AssertionError

    async with await asyncio.start_server(redirect, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        dialer = Dialer(f"http://127.0.0.1:{port}", "/connect", "tls_x", Offer(), nothing, agent="test")
        running = asyncio.create_task(dialer.run())
        async with asyncio.timeout(PATIENCE_S):
            for _ in range(2):
                asking = asyncio.create_task(asked.acquire())
                await asyncio.wait([asking, running], return_when=asyncio.FIRST_COMPLETED)
                assert asking.done()
        dialer.drain()
        await running
    assert "the gateway cannot be reached" in caplog.text


async def test_when_its_key_is_revoked_its_tools_are_gone(gateway: Running) -> None:
    ada = await gateway.person()
    key = await gateway.key("tools_worker", user=ada.user)
    async with tools_worker(gateway, key.key) as process:
        await offered(gateway, ada, "web_fetch")
        await revoke_key(gateway.office, LOCAL, key=key.id)
        _, said = await process.communicate()
    assert process.returncode == 1, said
    assert gateway.gateway.relay.tools.on_offer(ada.account) == ()
