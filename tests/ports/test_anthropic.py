"""The anthropic provider: how its key and the version go along, and its list of models, page by page."""

from __future__ import annotations

import json
from contextlib import aclosing

import pytest

from penstock.config import ProviderSettings
from penstock.errors import UpstreamFailed
from penstock.ports import Call
from penstock.providers.anthropic import MOST_PAGES, Anthropic
from tests.ports.test_http1_script import OK, Request, answering, serving
from tests.upstream import Raw, Refusal, ScriptedUpstream
from tests.upstream_messages import UsualMessages


async def received(*headers: tuple[bytes, bytes], **settings: object) -> Request:
    """What the upstream received of a call with these headers."""
    async with serving(answering(OK)) as server:
        made = ProviderSettings("up", kind="anthropic", base_url=server.url, api_key="sk-ant-1", **settings)  # type: ignore[arg-type]
        async with aclosing(_Opened(made)) as opened:
            answer = await opened.provider.open(Call("messages", b"{}", False, headers))
            await answer.read(10)
            answer.close()
    [request] = server.requests
    return request


class _Opened:
    def __init__(self, settings: ProviderSettings) -> None:
        self.provider = Anthropic(settings)

    async def aclose(self) -> None:
        await self.provider.close()


async def test_the_key_goes_where_anthropic_looks_for_it() -> None:
    request = await received()
    assert request.start == b"POST /v1/messages HTTP/1.1"
    assert request.headers[b"x-api-key"] == b"sk-ant-1"
    assert b"authorization" not in request.headers
    assert request.headers[b"anthropic-version"] == b"2023-06-01"


async def test_the_callers_version_and_betas_go_along_and_its_key_does_not() -> None:
    request = await received(
        (b"anthropic-version", b"2027-01-01"), (b"anthropic-beta", b"new-2027"), (b"x-api-key", b"of-the-caller")
    )
    assert request.headers[b"anthropic-version"] == b"2027-01-01"
    assert request.head.lower().count(b"anthropic-version") == 1
    assert (request.headers[b"anthropic-beta"], request.headers[b"x-api-key"]) == (b"new-2027", b"sk-ant-1")


async def test_the_settings_headers_win() -> None:
    request = await received((b"anthropic-beta", b"callers"), headers=(("anthropic-beta", "ours"),))
    assert request.headers[b"anthropic-beta"] == b"ours"


def page(*ids: str, more: bool) -> Raw:
    data = [{"type": "model", "id": id} for id in ids]
    return Raw(json.dumps({"data": data, "has_more": more, "first_id": ids[0], "last_id": ids[-1]}).encode())


async def listed(*scripts: Raw | Refusal) -> tuple[tuple[str, ...], list[str]]:
    """The models, and the addresses that were asked for them."""
    async with ScriptedUpstream(UsualMessages()) as upstream:
        upstream.script(*scripts)
        settings = ProviderSettings("up", kind="anthropic", base_url=upstream.base_url)
        async with aclosing(_Opened(settings)) as opened:
            found = await opened.provider.check()
        return found, [request.path for request in upstream.requests]


async def test_models_are_listed_page_by_page() -> None:
    assert await listed() == (("scripted",), ["/v1/models?limit=1000"])
    found, asked = await listed(page("a", "b", more=True), page("c", more=False))
    assert (found, asked[1]) == (("a", "b", "c"), "/v1/models?limit=1000&after_id=b")


async def test_a_list_without_end_is_left_after_some_pages() -> None:
    found, asked = await listed(*[page("a", more=True)] * (MOST_PAGES + 1))
    assert len(found) == len(asked) == MOST_PAGES


@pytest.mark.parametrize("script", [Refusal(401), Refusal(404), Raw(b"<html>"), Raw(b'{"data":5}')])
async def test_what_is_no_list_is_an_upstream_that_failed(script: Raw | Refusal) -> None:
    with pytest.raises(UpstreamFailed):
        await listed(script)
