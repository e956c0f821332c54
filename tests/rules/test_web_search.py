"""How each search engine is asked and read, against a server that answers as they do."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from penstock.toolbox.settings import WebSearchSettings
from penstock.toolbox.source import Toolbox
from penstock.toolbox.web_search import ENGINES, WebSearch, shown
from penstock.tools import ToolResult

RESULTS = [
    {"title": "One", "url": "https://one.example/", "content": "First.", "description": "First."},
    {"title": None, "url": "https://two.example/", "content": None, "description": None},
    {"title": "No address", "content": "x"},
    "nonsense",
    {"title": "Three", "url": "https://three.example/", "content": "Third.", "description": "Third."},
]
SHOWN = "1. One\nhttps://one.example/\nFirst.\n\n2. \nhttps://two.example/\n"


async def asked(settings: WebSearchSettings, answer: Any, status: int = 200) -> tuple[ToolResult, bytes]:
    """The result of a search for `a b`, and the request that the engine got."""
    requests: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line[:15] == b"content-length:"), 0)
        requests.append(head + await reader.readexactly(length))
        body = json.dumps(answer).encode() if not isinstance(answer, bytes) else answer
        writer.write(b"HTTP/1.1 %d X\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%s" % (status, len(body), body))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        tool = WebSearch(replace(settings, url=url))
        result = await Toolbox([tool]).run("web_search", {"query": "a b"}, within_s=5)
    return result, requests[0]


async def test_searxng_is_asked_for_json_without_a_key() -> None:
    result, request = await asked(WebSearchSettings("searxng", results=2), {"results": RESULTS})
    assert result == ToolResult(SHOWN)
    assert request.startswith(b"GET /search?q=a+b&format=json HTTP/1.1\r\n")


async def test_brave_gets_its_key_in_a_header_of_its_own() -> None:
    settings = WebSearchSettings("brave", results=2, api_key="brave-key-0123456789")
    result, request = await asked(settings, {"web": {"results": RESULTS}})
    assert result == ToolResult(SHOWN)
    assert b"?q=a+b&count=2 " in request
    assert b"x-subscription-token: brave-key-0123456789" in request.lower()


async def test_tavily_is_posted_to_with_a_bearer_token() -> None:
    settings = WebSearchSettings("tavily", results=2, api_key="tvly-0123456789")
    result, request = await asked(settings, {"results": RESULTS})
    assert result == ToolResult(SHOWN)
    assert request.startswith(b"POST / HTTP/1.1\r\n")
    assert b"authorization: bearer tvly-0123456789" in request.lower()
    assert json.loads(request.partition(b"\r\n\r\n")[2]) == {"query": "a b", "max_results": 2}


@pytest.mark.parametrize(("answer", "status"), [({"error": "no"}, 401), (b"<html>", 200), (b"x" * 2_100_000, 200)])
async def test_an_engine_that_does_not_answer_is_a_failed_result_without_its_key(answer: Any, status: int) -> None:
    settings = WebSearchSettings("tavily", api_key="tvly-0123456789")
    result, _ = await asked(settings, answer, status)
    assert result.failed
    assert "tvly" not in result.text


@pytest.mark.parametrize("answer", [None, [], {}, {"results": None}, {"results": {}}, {"results": [1, {"url": 7}]}])
def test_what_is_not_of_the_expected_shape_is_nothing_found(answer: Any) -> None:
    assert shown(answer, ENGINES["searxng"], 5) == "Nothing was found."
