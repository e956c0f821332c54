"""Responses that are kept, over HTTP: look at one, at its input, delete it. Making one is `wire.py`'s, as for any call.

GET, DELETE <surface>/responses/{id}
GET         <surface>/responses/{id}/input_items
POST        <surface>/responses/{id}/cancel

Whose they are is decided by the account the caller acts for; what another account has is not there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from msgspec import Raw, Struct

from penstock.access import Caller
from penstock.api.door import Endpoint
from penstock.api.http import Exchange
from penstock.api.surfaces import Place
from penstock.clock import Clock
from penstock.db.responses import KeptResponse, Link, conversation, drop, find, parts, turns
from penstock.db.store import Store
from penstock.dialects.json_fields import plain
from penstock.dialects.response_input import items_of, output_of, shown
from penstock.errors import Forbidden, InvalidRequest, MethodNotAllowed, NotFound

PATH = "/responses"
METHODS = {"": ("GET", "DELETE"), "input_items": ("GET",), "cancel": ("POST",)}  # by what stands behind the id
JSON = [(b"content-type", b"application/json")]
MOST_ITEMS, USUAL_ITEMS = 100, 20  # of a page, as published
AT_ONCE = 200  # items that are taken apart before others have their turn
_ID = re.compile(r"resp_[A-Za-z0-9]{1,100}")

Enter = Callable[[Place, Exchange], Awaitable[Caller]]


class KeptResponses:
    """Answers what is asked about responses that are kept. `enter` admits a caller to a surface."""

    def __init__(self, store: Store, clock: Clock, enter: Enter) -> None:
        self._store = store
        self._clock = clock
        self._enter = enter

    def __repr__(self) -> str:
        return f"KeptResponses({self._store!r})"

    def endpoints(self, place: Place) -> dict[str, Endpoint]:
        """What answers below a surface's `/responses/`, by method."""
        answers = {"GET": self._get, "DELETE": self._delete, "POST": self._cancel}
        return {method: self._endpoint(place, answer) for method, answer in answers.items()}

    def _endpoint(self, place: Place, answer: Callable[[str, str, Exchange, str], Awaitable[Any]]) -> Endpoint:
        async def serve(exchange: Exchange) -> None:
            caller = await self._enter(place, exchange)
            if "inference" not in caller.scopes:
                raise Forbidden("This key has no scope for inference.")
            id, rest = _named(exchange.path)
            if not _ID.fullmatch(id):
                raise _absent(id)
            value = await answer(caller.account, id, exchange, rest)
            exchange.whole(200, JSON, value if isinstance(value, bytes) else msgspec.json.encode(value))

        return serve

    async def _get(self, account: str, id: str, exchange: Exchange, rest: str) -> Any:
        query = dict(parse_qsl(exchange.query))
        if rest == "input_items":
            links = await self._links(account, id)
            wanted = _wanted(query)
            return await _page(self._input(account, links, newest_first=wanted.newest_first), wanted)
        _require(rest, "")
        if query.get("stream", "false") != "false":
            raise InvalidRequest("A response is kept whole; it cannot be streamed again.", param="stream")
        return (await self._find(account, id)).answer.encode()

    async def _delete(self, account: str, id: str, exchange: Exchange, rest: str) -> Any:
        _require(rest, "")
        if not await self._store.write(drop(account, id, self._clock.now_ms())):
            raise _absent(id)
        return {"id": id, "object": "response", "deleted": True}

    async def _cancel(self, account: str, id: str, exchange: Exchange, rest: str) -> Any:
        _require(rest, "cancel")
        await self._find(account, id)
        raise InvalidRequest("Only a background response can be cancelled; close the connection of another one.")

    async def _find(self, account: str, id: str) -> KeptResponse:
        found = await self._store.read(find(account, id, self._clock.now_ms()))
        if found is None:
            raise _absent(id)
        return found

    async def _links(self, account: str, id: str) -> list[Link]:
        """A response after the conversation before it, if that is still there."""
        links = await self._store.read(conversation(account, id, self._clock.now_ms()))
        return links or [Link(id, (await self._find(account, id)).size_bytes)]

    async def _input(self, account: str, links: list[Link], *, newest_first: bool) -> AsyncIterator[dict[str, Any]]:
        """All that the last of these responses was made from. It is read in parts, and taken apart item by item: a page
        has room for a few, a conversation may be all that an account has."""
        last = links[-1].id
        for part in parts(links[::-1] if newest_first else links):
            for turn in await self._store.read(turns(account, part)):
                items = _items(turn, with_output=turn.id != last)
                for number, (place, item) in enumerate(reversed(items) if newest_first else items, 1):
                    value = plain(item) if place is None else shown(item, turn.id, place)
                    if isinstance(value, dict):
                        yield value
                    if not number % AT_ONCE:
                        await asyncio.sleep(0)


def _items(turn: KeptResponse, *, with_output: bool) -> list[tuple[int | None, Raw]]:
    """The items of a turn, those of its input with their place in it."""
    own: list[tuple[int | None, Raw]] = list(enumerate(items_of(Raw(turn.input.encode()))))
    return own + [(None, item) for item in output_of(turn.answer)] if with_output else own


def _require(rest: str, wanted: str) -> None:
    if rest != wanted:
        raise MethodNotAllowed() if rest in METHODS else NotFound()


def methods(path: str) -> tuple[str, ...]:
    """What may be done at an address below `/responses/`; nothing where there is none."""
    return METHODS.get(_named(path)[1], ())


def _named(path: str) -> tuple[str, str]:
    """`(id, what of it)` in a path below `/responses/`."""
    id, _, rest = path.rpartition(f"{PATH}/")[2].partition("/")
    return id, rest


def _absent(id: str) -> NotFound:
    return NotFound(f"Response with id '{id[:100]}' not found.")


class _Wanted(Struct, frozen=True):
    """Which items a query asks for."""

    newest_first: bool
    limit: int
    after: str | None


def _wanted(query: dict[str, str]) -> _Wanted:
    """Of a query: the newest items first unless it says otherwise."""
    order, limit = query.get("order", "desc"), query.get("limit", str(USUAL_ITEMS))
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be 'asc' or 'desc'.", param="order")
    if not limit.isdecimal() or len(limit) > 3 or not 1 <= int(limit) <= MOST_ITEMS:
        raise InvalidRequest(f"'limit' must be a whole number from 1 to {MOST_ITEMS}.", param="limit")
    return _Wanted(order == "desc", int(limit), query.get("after"))


async def _page(items: AsyncIterator[dict[str, Any]], wanted: _Wanted) -> dict[str, Any]:
    """A page of items, as published."""
    after = wanted.after
    while after is not None:
        item = await anext(items, None)
        if item is None:
            raise InvalidRequest(f"There is no item with id '{after[:100]}'.", param="after")
        after = None if item.get("id") == after else after
    page: list[dict[str, Any]] = []
    while len(page) <= wanted.limit and (item := await anext(items, None)) is not None:
        page.append(item)
    shown = page[: wanted.limit]
    ends = (shown[0].get("id"), shown[-1].get("id")) if shown else (None, None)
    return {
        "object": "list",
        "data": shown,
        "first_id": ends[0],
        "last_id": ends[1],
        "has_more": len(page) > len(shown),
    }
