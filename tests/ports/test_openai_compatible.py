"""The openai_compatible provider: what reaches the upstream, and which settings are refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from penstock import __version__
from penstock.config import ProviderSettings
from penstock.errors import ConfigError, UpstreamTimeout
from penstock.ports import Call, Provider
from penstock.providers.openai_compatible import OpenAICompatible
from tests.ports.test_http1_script import OK, Request, Wire, answering, serving


@asynccontextmanager
async def opened(settings: ProviderSettings) -> AsyncIterator[Provider]:
    provider: Provider = OpenAICompatible(settings)
    try:
        yield provider
    finally:
        await provider.close()


async def received(call: Call, **settings: object) -> Request:
    """What the upstream received of a call."""
    async with serving(answering(OK)) as server:
        made = ProviderSettings("up", base_url=server.url, **settings)  # type: ignore[arg-type]
        async with opened(made) as provider:
            answer = await provider.open(call)
            assert (answer.status, await answer.read(10)) == (200, b"ok")
            answer.close()
    [request] = server.requests
    return request


async def test_a_call_is_sent_with_the_provider_s_credentials() -> None:
    request = await received(Call("chat/completions", b'{"model":"m"}', stream=False), api_key="sk-1")
    assert request.start == b"POST /v1/chat/completions HTTP/1.1"
    assert request.body == b'{"model":"m"}'
    headers = request.headers
    assert headers.pop(b"host").startswith(b"127.0.0.1:")
    assert headers == {
        b"accept-encoding": b"identity",
        b"content-type": b"application/json",
        b"user-agent": b"penstock/" + __version__.encode(),
        b"authorization": b"Bearer sk-1",
        b"content-length": b"13",
    }


async def test_without_a_key_no_credentials_are_sent() -> None:
    assert b"authorization" not in (await received(Call("models", b"", stream=False, method="GET"))).headers


async def test_the_settings_headers_are_added_and_replace_the_usual_ones() -> None:
    extra = (("Api-Key", "k2"), ("User-Agent", "mine"), ("Authorization", "Token t"))
    request = await received(Call("chat/completions", b"{}", stream=False), api_key="sk-1", headers=extra)
    assert request.headers[b"api-key"] == b"k2"
    assert request.headers[b"authorization"] == b"Token t"
    assert request.head.lower().count(b"user-agent") == request.head.lower().count(b"authorization") == 1


async def test_the_call_s_headers_are_sent_unless_they_are_the_provider_s() -> None:
    wished = ((b"openai-beta", b"x=1"), (b"Authorization", b"Bearer of-the-caller"), (b"content-type", b"text/plain"))
    request = await received(Call("chat/completions", b"{}", stream=True, headers=wished), api_key="sk-1")
    assert request.headers[b"openai-beta"] == b"x=1"
    assert b"caller" not in request.head
    assert b"text/plain" not in request.head


async def test_the_settings_time_limits_and_pool_are_the_client_s() -> None:
    async def silent(wire: Wire) -> None:
        await wire.gone()

    async with serving(silent) as server:
        settings = ProviderSettings("up", base_url=server.url, first_byte_timeout_s=0.05, max_connections=1)
        provider = OpenAICompatible(settings)
        with pytest.raises(UpstreamTimeout):
            await provider.open(Call("chat/completions", b"{}", stream=False))
        await server.gone.wait()
        assert (provider.name, provider.on_cancel) == ("up", "stop")
        assert (provider.open_connections, provider.idle_connections, provider.waiting) == (0, 0, 0)
        await provider.close()


@pytest.mark.parametrize(
    "settings",
    [
        ProviderSettings("up", base_url=""),
        ProviderSettings("up", base_url="http://a.test", api_key="s3cret\n"),
        ProviderSettings("up", base_url="http://a.test", api_key="s3cret…"),
        ProviderSettings("up", base_url="http://a.test", headers=(("x key", "s3cret"),)),
        ProviderSettings("up", base_url="http://a.test", proxy_url="http://u:s3cret@p.test:x"),
        ProviderSettings("up", base_url="https://a.test", ca_file="/nonexistent.pem"),
    ],
)
def test_settings_that_cannot_work_are_a_configuration_mistake_that_names_the_provider(
    settings: ProviderSettings,
) -> None:
    with pytest.raises(ConfigError) as refusal:
        OpenAICompatible(settings)
    [mistake] = refusal.value.mistakes
    assert mistake.startswith("provider up: ")
    assert "s3cret" not in mistake


async def test_its_secrets_are_not_shown() -> None:
    settings = ProviderSettings(
        "up", base_url="http://a.test", api_key="s3cret", headers=(("x", "s3cret"),), proxy_url="http://u:s3cret@p.test"
    )
    async with opened(settings) as provider:
        assert repr(provider) == "OpenAICompatible(up, Client(a.test: 0 open, 0 of them idle, 0 waiting))"
