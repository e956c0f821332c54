"""Each vendor's endpoint behind a gateway that was told its name alone: counted, charged and refused as it says."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from penstock.config import Settings
from penstock.config_file import load
from tests.stories.gateway import ANTHROPIC, AUTH_SECRET, HELLO, PEPPER, ROUTER, Running, events, running
from tests.stories.vendors import DOUBLES, Double
from tests.upstream import Raw, Received, Refusal, ScriptedUpstream
from tests.upstream_messages import MessagesPlain

BY_VENDOR = pytest.mark.parametrize("double", DOUBLES, ids=lambda double: double.vendor)
CONFIGURATION = """
[providers.up]
vendor = "%s"
[[models]]
id = "chat"
offers = [{ provider = "up", model = "m" }]
price = { input = 2, cached_input = 0.5, cache_write = 2.5, output = 10, reasoning = 20 }
"""
NANO = (2_000, 500, 10_000, 20_000, 2_500)  # a token in, one from the cache, one out, one thought, one written


def settings_of(vendor: str, folder: Path, store_url: str, base_url: str, more: str = "") -> Settings:
    """What a file comes to that names the vendor and nothing else, with the address of the test's upstream."""
    file = folder / "penstock.toml"
    file.write_text((CONFIGURATION % vendor).replace("[[models]]", f"{more}\n[[models]]"))
    secrets = {"PENSTOCK_KEY_PEPPER": PEPPER.decode(), "PENSTOCK_AUTH_SECRET": AUTH_SECRET.decode()}
    return load(file, {"PENSTOCK_DATABASE_URL": store_url, "PENSTOCK_PROVIDER_UP_BASE_URL": base_url, **secrets})


class Vendor:
    """A gateway with a vendor's double behind it, and somebody with a dollar."""

    def __init__(self, gateway: Running, upstream: ScriptedUpstream, ada: Any) -> None:
        self.gateway = gateway
        self.upstream = upstream
        self.ada = ada

    async def chat(self, *scripts: Any, **fields: Any) -> Any:
        self.upstream.script(*scripts)
        return await self.gateway.chat(ROUTER, self.ada, **{"model": "chat", "messages": HELLO, **fields})

    async def charged(self) -> tuple[Any, int]:
        """The record of the last call, and what has been taken of the dollar."""
        [record] = await self.gateway.usage(self.ada)
        return record, 10**9 - await self.gateway.nano(self.ada)


@pytest.fixture
def at(tmp_path: Path) -> Any:
    @asynccontextmanager
    async def opened(vendor: str, more: str = "") -> AsyncIterator[Vendor]:
        async with ScriptedUpstream() as upstream:
            settings = settings_of(vendor, tmp_path, "sqlite://", upstream.base_url, more)
            settings = replace(settings, server=replace(settings.server, port=0, grace_s=1.0))
            async with running(settings) as gateway:
                yield Vendor(gateway, upstream, await gateway.person(usd="1"))

    return opened


def owed(double: Double) -> int:
    """Nano-USD for what the double counted; what OpenRouter wrote to a cache is a part of the input."""
    into, cached, out, thought = double.counted
    written = 6 if double.vendor == "openrouter" else 0
    kinds = (into - cached - written, cached, out - thought, thought, written)
    return sum(tokens * nano for tokens, nano in zip(kinds, NANO, strict=True))


def counts_of(record: Any) -> tuple[int, int, int, int]:
    return record.input_tokens, record.cached_tokens, record.output_tokens, record.reasoning_tokens


@BY_VENDOR
async def test_a_plain_answer_is_charged_as_its_vendor_counts(at: Any, double: Double) -> None:
    async with at(double.vendor) as vendor:
        answer = await vendor.chat(Raw(double.plain()))
        said = answer.json()
        assert (answer.status_code, said["choices"][0]["message"]["content"]) == (200, "Hi you.")
        assert said["model"] == "chat"
        assert all(said[name] == value for name, value in double.extra.items()), "what a vendor adds passes"
        record, charged = await vendor.charged()
        assert (record.estimated, counts_of(record), charged) == (double.estimated, double.counted, owed(double))


@BY_VENDOR
async def test_a_stream_is_charged_as_its_vendor_counts_and_told_to_the_caller(at: Any, double: Double) -> None:
    async with at(double.vendor) as vendor:
        script = Raw(double.stream(), content_type="text/event-stream; charset=utf-8")
        answer = await vendor.chat(script, stream=True, stream_options={"include_usage": True})
        sent = events(answer.text)
        assert sent[-1] == "[DONE]"
        choices = [choice for event in sent[:-1] for choice in event["choices"]]
        assert "".join(choice["delta"].get("content", "") for choice in choices) == "Hi you."
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == ["stop"]
        assert any(event.get("usage") for event in sent[:-1])
        record, charged = await vendor.charged()
        assert (record.estimated, counts_of(record), charged) == (double.estimated, double.counted, owed(double))


@BY_VENDOR
async def test_a_refusal_reaches_the_caller_in_its_vendors_words_and_costs_nothing(at: Any, double: Double) -> None:
    status, body, words = double.refused
    async with at(double.vendor) as vendor:
        answer = await vendor.chat(Raw(body.encode(), status=status))
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (status, "invalid_request_error")
        assert words in error["message"]
        assert "{" not in error["message"]
        record, charged = await vendor.charged()
        assert (record.status, charged) == (status, 0)


@BY_VENDOR
async def test_its_models_are_listed_in_whichever_shape(at: Any, double: Double) -> None:
    async with at(double.vendor) as vendor:
        listed = Raw(double.models.encode()) if double.models else Refusal(404)
        vendor.upstream.script(listed)
        found = await vendor.gateway.gateway.relay.attempts.providers["up"].check()
        assert found == (() if double.models is None else ("models/m" if double.vendor == "gemini" else "m",))


async def sent(at: Any, vendor_name: str, more: str = "", **fields: Any) -> tuple[int, Received | None, Any]:
    """Status, what the upstream received if it heard of it, and the answer."""
    async with at(vendor_name, more) as vendor:
        answer = await vendor.chat(**fields)
        received = vendor.upstream.requests[0] if vendor.upstream.requests else None
        return answer.status_code, received, answer.json() if not fields.get("stream") else None


async def test_a_strict_vendor_never_sees_what_it_would_refuse_for_nothing(at: Any) -> None:
    asked: Any = {"user": "u", "store": False, "metadata": {"a": "b"}, "temperature": 0.5, "seed": 1}
    status, received, _ = await sent(at, "mistral", stream=True, stream_options={"include_usage": True}, **asked)
    assert status == 200
    assert received is not None
    assert received.json.keys() == {"model", "messages", "stream", "temperature", "seed"}


async def test_openai_gets_its_own_name_for_the_limit(at: Any) -> None:
    _, received, _ = await sent(at, "openai", max_tokens=7)
    assert received is not None
    assert (received.json["max_completion_tokens"], "max_tokens" in received.json) == (7, False)


async def test_what_is_billed_apart_is_refused_before_the_upstream_hears_of_it(at: Any) -> None:
    asked: Any = (("openai", "service_tier", "priority"), ("openrouter", "plugins", [{"id": "web"}]))
    for vendor, field, value in asked:
        status, received, answer = await sent(at, vendor, **{field: value})
        assert (status, answer["error"]["param"], received) == (400, field, None)


async def test_of_a_beta_that_changes_the_price_the_upstream_hears_nothing(at: Any) -> None:
    body = {"model": "chat", "max_tokens": 5, "messages": HELLO}
    for more, heard in (("", "claude-code-20250219"), ("dropped_betas = []", None)):
        async with at("anthropic", more) as vendor:
            headers = {"anthropic-beta": "claude-code-20250219,context-1m-2025-08-07"}
            vendor.upstream.script(MessagesPlain(tokens=1))
            answer = await vendor.gateway.post(f"{ANTHROPIC}/v1/messages", vendor.ada, headers=headers, body=body)
            assert answer.status_code == 200
            seen = [received.headers["anthropic-beta"] for received in vendor.upstream.requests]
            assert seen == [heard or headers["anthropic-beta"]]


async def test_an_operator_may_let_callers_ask_for_it(at: Any) -> None:
    status, received, _ = await sent(at, "openai", "priced_fields = []", service_tier="flex")
    assert status == 200
    assert received is not None
    assert received.json["service_tier"] == "flex"


async def test_a_file_that_a_provider_keeps_is_nobodys_to_name_unless_the_operator_lets_callers_share_them(
    at: Any,
) -> None:
    theirs = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "gs://theirs/a.png"}}]}]
    status, received, answer = await sent(at, "openai", messages=theirs)
    assert (status, answer["error"]["param"], received) == (400, "messages[0].content[0].image_url", None)
    status, received, _ = await sent(at, "openai", "shared_files = true", messages=theirs)
    assert status == 200
    assert received is not None
    assert received.json["messages"] == theirs


@pytest.mark.parametrize(
    ("vendor_name", "status", "body"),
    [
        ("xai", 400, '{"code":"Client specified an invalid argument","error":"Incorrect API key provided: xa***"}'),
        ("gemini", 400, '[{"error":{"code":400,"message":"API key not valid. Please pass a valid API key."}}]'),
        ("openrouter", 402, '{"error":{"message":"Insufficient credits","code":402}}'),
    ],
)
async def test_what_is_our_keys_fault_is_never_the_callers(at: Any, vendor_name: str, status: int, body: str) -> None:
    async with at(vendor_name) as vendor:
        answer = await vendor.chat(Raw(body.encode(), status=status))
        assert (answer.status_code, answer.json()["error"]["type"]) == (502, "upstream_error")
        assert "API key" not in answer.text


async def test_an_error_under_status_200_is_an_error(at: Any) -> None:
    error = '{"error":{"message":"Upstream overloaded","code":502},"user_id":"u"}'
    async with at("openrouter") as vendor:
        assert (await vendor.chat(Raw(error.encode()))).status_code == 502
        streamed = f": OPENROUTER PROCESSING\n\ndata: {error}\n\n".encode()
        script = Raw(streamed, content_type="text/event-stream")
        answer = await vendor.chat(script, stream=True)
        assert (answer.status_code, answer.json()["error"]["message"]) == (502, "Upstream overloaded")
        assert await vendor.gateway.nano(vendor.ada) == 10**9
