"""A provider that speaks Anthropic's Messages API: as any other over HTTP, but with its key in `x-api-key`, and a
version with every call.

The version is the caller's where the caller's dialect is the same and names one, else the one that we speak.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import msgspec

from penstock.errors import UpstreamFailed
from penstock.ports import Answer, Call
from penstock.providers.openai_compatible import LARGEST_LIST, OpenAICompatible

VERSION = (b"anthropic-version", b"2023-06-01")
PAGE = 1_000  # models: the most that the API puts on one
MOST_PAGES = 10  # of a list that never ends, these are enough to see


class _Entry(msgspec.Struct):
    id: str


class _Page(msgspec.Struct):
    data: list[_Entry]
    has_more: bool = False
    last_id: str | None = None


class Anthropic(OpenAICompatible):
    """Implements `ports.Provider`."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"Anthropic({self.name}, {self._client!r})"

    def open(self, call: Call) -> Coroutine[Any, Any, Answer]:
        """Send the call. Errors: see `ports.Provider`."""
        if all(name.lower() != VERSION[0] for name, _ in call.headers):
            call = msgspec.structs.replace(call, headers=(*call.headers, VERSION))
        return super().open(call)

    async def check(self) -> tuple[str, ...]:
        """Have the upstream list its models, page by page."""
        found: list[str] = []
        after = ""
        for _ in range(MOST_PAGES):
            page = await self._page(after)
            found += [entry.id for entry in page.data]
            if not (page.has_more and page.last_id and page.last_id.isascii() and page.last_id.isprintable()):
                break
            after = f"&after_id={page.last_id}"
        return tuple(found)

    async def _page(self, after: str) -> _Page:
        answer = await self.open(Call(f"models?limit={PAGE}{after}", b"", stream=False, method="GET"))
        try:
            if answer.status != 200:
                raise UpstreamFailed(f"The provider answered with status {answer.status}.")
            return msgspec.json.decode(await answer.read(LARGEST_LIST), type=_Page)
        except (ValueError, RecursionError):
            raise UpstreamFailed("The provider's list of models is not one.", began=True) from None
        finally:
            answer.close()
