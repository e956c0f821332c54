"""What every provider owes to `ports.Provider`: one suite, run against each adapter and a real upstream behind it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock.config import ProviderSettings
from penstock.errors import UpstreamFailed
from penstock.hub.dialer import Dialer
from penstock.ports import Call, Provider
from penstock.providers.anthropic import Anthropic
from penstock.providers.cli.provider import CliProvider
from penstock.providers.demo import DemoProvider
from penstock.providers.llamacpp import LlamaCppEngine, write_tiny_model
from penstock.providers.openai_compatible import OpenAICompatible
from tests.scripted_cli import claude, gone, seen, write_script
from tests.stories.caller import eventually
from tests.stories.gateway import running, settings_for
from tests.stories.workers import with_workers, worker
from tests.upstream import ScriptedUpstream, Stream

FIVE_WORDS = ("Paid", " for", " ahead", " of", " time.")

needs_engine = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None or importlib.util.find_spec("gguf") is None,
    reason="the extra [engine] is not installed",
)


@dataclass(frozen=True)
class Socket:
    """A provider, how to make its next stream a long one, and a wait for its upstream to have stopped working."""

    provider: Provider
    prolong: Callable[[], None]
    upstream_idle: Callable[[], Awaitable[None]]


async def _demo() -> AsyncIterator[Socket]:
    async def idle() -> None:
        assert len(asyncio.all_tasks()) == 1, "the demo engine runs nothing of its own"

    yield Socket(DemoProvider(), prolong=lambda: None, upstream_idle=idle)


async def _over_http(adapter: type[OpenAICompatible]) -> AsyncIterator[Socket]:
    async with ScriptedUpstream() as upstream:
        provider = adapter(ProviderSettings(name="scripted", base_url=upstream.base_url))

        async def idle() -> None:
            await upstream.requests[-1].over.wait()
            assert upstream.requests[-1].aborted_at is not None

        yield Socket(provider, prolong=lambda: upstream.script(Stream(tokens=2000, hold_after=3)), upstream_idle=idle)
        await provider.close()


async def _llamacpp(model: Path) -> AsyncIterator[Socket]:
    engine = LlamaCppEngine(model, slots=1, threads=1)

    async def idle() -> None:
        # With one slot another call is served only when the first has stopped; on its own it would run for a second.
        assert (await completion(engine))["usage"]["completion_tokens"] == 5

    yield Socket(engine, prolong=lambda: None, upstream_idle=idle)
    await engine.close()


async def _worker() -> AsyncIterator[Socket]:
    """A gateway's provider, whose calls go to a worker beside a scripted engine."""
    settings = with_workers(settings_for("sqlite://"))
    async with ScriptedUpstream() as upstream, running(settings) as gateway:
        account = (await gateway.person()).account
        key = await gateway.key("worker", account=account, scopes=["shared"])
        async with worker(gateway, key.key, upstream.base_url, slots=8) as dialer:

            async def idle() -> None:
                await upstream.requests[-1].over.wait()
                assert upstream.requests[-1].aborted_at is not None
                await eventually(lambda: is_idle(dialer))

            provider = gateway.gateway.relay.attempts.providers["gpus"]
            yield Socket(
                provider, prolong=lambda: upstream.script(Stream(tokens=2000, hold_after=3)), upstream_idle=idle
            )


async def is_idle(dialer: Dialer) -> bool:
    return dialer.running == 0


async def _cli(folder: Path) -> AsyncIterator[Socket]:
    script = folder / "script.json"
    command = write_script(
        script, {"asked": "2000 tokens", "do": [*claude(FIVE_WORDS)[:4], {"hang": True}]}, *claude(FIVE_WORDS)
    )
    provider = CliProvider(ProviderSettings("cli", kind="cli", template="claude_code", command=command, jobs=4))

    async def idle() -> None:
        await gone(seen(script)["pid"])

    yield Socket(provider, prolong=lambda: None, upstream_idle=idle)
    await provider.close()


@pytest.fixture(
    params=["demo", "openai_compatible", "anthropic", "cli", "worker", pytest.param("llamacpp", marks=needs_engine)]
)
async def plugged(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Socket]:
    if request.param == "llamacpp":
        write_tiny_model(tmp_path / "tiny.gguf")
        sockets = _llamacpp(tmp_path / "tiny.gguf")
    elif request.param == "cli":
        sockets = _cli(tmp_path)
    elif request.param == "demo":
        sockets = _demo()
    elif request.param == "worker":
        sockets = _worker()
    else:
        sockets = _over_http(Anthropic if request.param == "anthropic" else OpenAICompatible)
    async for socket in sockets:
        yield socket


def chat(*, max_tokens: int = 5, **fields: Any) -> Call:
    messages = [{"role": "user", "content": "What is a prepaid token?"}]
    body = {"model": "any", "messages": messages, "max_tokens": max_tokens} | fields
    return Call("chat/completions", json.dumps(body).encode(), stream=bool(fields.get("stream")))


def long_stream() -> Call:
    messages = [{"role": "user", "content": "Write 2000 tokens."}]
    return chat(max_tokens=2000, stream=True, ignore_eos=True, messages=messages)


async def completion(provider: Provider) -> Any:
    answer = await provider.open(chat())
    try:
        return json.loads(await answer.read(100_000))
    finally:
        answer.close()


async def test_a_plain_answer_is_a_completion_within_its_limit_and_with_usage(plugged: Socket) -> None:
    answer = await plugged.provider.open(chat())
    document = json.loads(await answer.read(100_000))
    answer.close()
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/json")
    assert document["object"] == "chat.completion"
    assert document["usage"]["completion_tokens"] == 5


async def test_a_stream_is_events_up_to_the_terminator(plugged: Socket) -> None:
    answer = await plugged.provider.open(chat(stream=True, stream_options={"include_usage": True}))
    body = b"".join([piece async for piece in answer])
    answer.close()
    events = [event.removeprefix(b"data: ") for event in body.split(b"\n\n")]
    chunks = [json.loads(event) for event in events[:-2]]
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert events[-2:] == [b"[DONE]", b""]
    assert chunks[-1]["usage"]["completion_tokens"] == 5
    assert sum(bool(choice["delta"].get("content")) for chunk in chunks for choice in chunk["choices"]) == 5


async def test_closing_before_the_end_stops_the_upstream_at_once(plugged: Socket) -> None:
    plugged.prolong()
    answer = await plugged.provider.open(long_stream())
    await anext(aiter(answer))
    async with asyncio.timeout(0.5):  # 0.1 s is promised; the rest is for a busy machine
        answer.close()
        await plugged.upstream_idle()


async def test_a_closed_answer_gives_no_more_pieces(plugged: Socket) -> None:
    plugged.prolong()
    answer = await plugged.provider.open(long_stream())
    await anext(aiter(answer))
    answer.close()
    with pytest.raises(UpstreamFailed) as failure:
        await anext(aiter(answer))
    assert failure.value.began


async def test_closing_twice_is_harmless(plugged: Socket) -> None:
    answer = await plugged.provider.open(chat())
    await answer.read(100_000)
    answer.close()
    answer.close()
    plugged.prolong()
    unread = await plugged.provider.open(long_stream())
    unread.close()
    unread.close()
    assert (await completion(plugged.provider))["usage"]["completion_tokens"] == 5


async def test_reading_stops_at_the_limit(plugged: Socket) -> None:
    answer = await plugged.provider.open(chat())
    with pytest.raises(UpstreamFailed):
        await answer.read(100)
    assert (await completion(plugged.provider))["usage"]["completion_tokens"] == 5


async def test_an_unknown_path_is_answered_with_404(plugged: Socket) -> None:
    answer = await plugged.provider.open(Call("no/such/path", b"{}", stream=False))
    assert answer.status == 404
    assert "error" in json.loads(await answer.read(100_000))
    answer.close()


async def test_models_are_listed(plugged: Socket) -> None:
    answer = await plugged.provider.open(Call("models", b"", stream=False, method="GET"))
    assert answer.status == 200
    assert json.loads(await answer.read(100_000))["data"][0]["object"] == "model"
    answer.close()


async def test_calls_at_once_are_all_answered(plugged: Socket) -> None:
    documents = await asyncio.gather(*(completion(plugged.provider) for _ in range(8)))
    assert [document["usage"]["completion_tokens"] for document in documents] == [5] * 8


async def test_a_cancelled_open_leaves_the_provider_usable(plugged: Socket) -> None:
    opening = asyncio.create_task(plugged.provider.open(chat()))
    await asyncio.sleep(0)  # it has begun
    opening.cancel()
    await asyncio.wait([opening])
    assert (await completion(plugged.provider))["usage"]["completion_tokens"] == 5


async def test_close_ends_and_leaves_no_task_behind(plugged: Socket) -> None:
    before = asyncio.all_tasks()
    plugged.prolong()
    answer = await plugged.provider.open(long_stream())
    await anext(aiter(answer))
    answer.close()
    await plugged.upstream_idle()
    async with asyncio.timeout(10):
        await plugged.provider.close()
        await plugged.provider.close()

    async def no_more() -> bool:  # a gateway's own come and go
        return asyncio.all_tasks() <= before

    await eventually(no_more)
