"""The built-in tool `web_search`: pages on a subject, found by an engine that the operator chose.

An engine is a row of data: where to ask, with which parameters, and where in the answer the results are. The engine is
the operator's and may be on a private network; what it returns is text for the model and is not fetched here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import httpx2
import msgspec
from msgspec import Struct

from penstock.toolbox.settings import WebSearchSettings
from penstock.toolbox.source import ToolError, arguments_as, schema_of
from penstock.tools import Tool, ToolResult

NAME = "web_search"
MOST_ANSWER = 2_000_000  # bytes of an engine's answer
LONGEST_QUERY = 1_000
LONGEST_SNIPPET = 1_000  # characters of one result


class Engine(Struct, frozen=True):
    """How to ask one. `key_header` and `key_prefix` say where the key goes; `results` is the path to the list of
    results, `title`, `url` and `text` are the fields of one."""

    method: Literal["GET", "POST"]
    url: str
    query: str
    count: str | None
    results: tuple[str, ...]
    text: str
    title: str = "title"
    link: str = "url"
    key_header: str | None = None
    key_prefix: str = ""
    fixed: tuple[tuple[str, str], ...] = ()


ENGINES = {
    "searxng": Engine(
        "GET", "", query="q", count=None, results=("results",), text="content", fixed=(("format", "json"),)
    ),
    "brave": Engine(
        "GET",
        "https://api.search.brave.com/res/v1/web/search",
        query="q",
        count="count",
        results=("web", "results"),
        text="description",
        key_header="x-subscription-token",
    ),
    "tavily": Engine(
        "POST",
        "https://api.tavily.com/search",
        query="query",
        count="max_results",
        results=("results",),
        text="content",
        key_header="authorization",
        key_prefix="Bearer ",
    ),
}


class _Wanted(Struct, forbid_unknown_fields=True):
    query: str


class WebSearch:
    """Implements `source.Source`."""

    def __init__(self, settings: WebSearchSettings) -> None:
        self._settings = settings
        self._engine = ENGINES[settings.provider]
        self._url = _address(settings, self._engine)

    def __repr__(self) -> str:
        return f"WebSearch({self._settings.provider}, {self._url})"

    def tools(self) -> tuple[Tool, ...]:
        schema = schema_of(_Wanted, query="What to look for.")
        return (Tool(NAME, "Search the web; returns titles, addresses and excerpts of pages.", schema),)

    async def run(self, name: str, arguments: Mapping[str, Any], *, within_s: float) -> ToolResult:
        wanted = arguments_as(_Wanted, arguments)
        if not 0 < len(wanted.query) <= LONGEST_QUERY:
            raise ToolError(f"A query has 1 to {LONGEST_QUERY} characters.")
        try:
            async with httpx2.AsyncClient(trust_env=False, timeout=within_s) as client:
                found = await self._ask(client, wanted.query)
        except (httpx2.HTTPError, ValueError, RecursionError) as error:
            raise ToolError(f"The search engine did not answer ({type(error).__name__}).") from None
        return ToolResult(shown(found, self._engine, self._settings.results))

    async def _ask(self, client: httpx2.AsyncClient, query: str) -> Any:
        engine = self._engine
        given: dict[str, Any] = {engine.query: query, **dict(engine.fixed)}
        if engine.count is not None:
            given[engine.count] = self._settings.results
        headers = {"accept": "application/json"}
        if engine.key_header is not None:
            headers[engine.key_header] = engine.key_prefix + (self._settings.api_key or "")
        is_get = engine.method == "GET"
        async with client.stream(
            engine.method,
            self._url,
            headers=headers,
            params=given if is_get else None,
            json=None if is_get else given,
        ) as response:
            body = bytearray()
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MOST_ANSWER:
                    raise ToolError("The search engine's answer is too long.")
            if response.status_code != 200:
                raise ToolError(f"The search engine refused (status {response.status_code}).")
        return msgspec.json.decode(bytes(body))


def _address(settings: WebSearchSettings, engine: Engine) -> str:
    """Where to ask: the engine's own place, or the operator's. A SearXNG server is named by its root."""
    if settings.url is None:
        return engine.url
    return f"{settings.url.rstrip('/')}/search" if settings.provider == "searxng" else settings.url


def shown(answer: Any, engine: Engine, most: int) -> str:
    """The results as text for a model. What is not of the expected shape is left out."""
    found: Any = answer
    for name in engine.results:
        found = found.get(name) if isinstance(found, dict) else None
    lines: list[str] = []
    for result in found if isinstance(found, list) else []:
        if isinstance(result, dict) and isinstance(result.get(engine.link), str) and len(lines) < most:
            title, text = (str(result.get(field) or "")[:LONGEST_SNIPPET] for field in (engine.title, engine.text))
            lines.append(f"{len(lines) + 1}. {title}\n{result[engine.link][:2_000]}\n{text}")
    return "\n\n".join(lines) or "Nothing was found."
