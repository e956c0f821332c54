"""Responses that are kept, over HTTP: look at one, at its input, delete it. Making one is `wire.py`'s, as for any call.

GET, DELETE <surface>/responses/{id}
GET         <surface>/responses/{id}/input_items
POST        <surface>/responses/{id}/cancel

Whose they are is decided by the account the caller acts for; what another account has is not there.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from penstock.access import Caller
from penstock.api.door import Endpoint
from penstock.api.http import Exchange
from penstock.api.surfaces import Place
from penstock.clock import Clock
from penstock.db.responses import KeptResponse, conversation, drop, find
from penstock.db.store import Store
from penstock.dialects.response_input import items_of, output_of, shown
from penstock.errors import Forbidden, InvalidRequest, MethodNotAllowed, NotFound

PATH = "/responses"
JSON = [(b"content-type", b"application/json")]
MOST_ITEMS, USUAL_ITEMS = 100, 20  # of a page, as published
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
            id, _, rest = exchange.path.rpartition(f"{PATH}/")[2].partition("/")
            if not _ID.fullmatch(id):
                raise _absent(id)
            value = await answer(caller.account, id, exchange, rest)
            exchange.whole(200, JSON, value if isinstance(value, bytes) else msgspec.json.encode(value))

        return serve

    async def _get(self, account: str, id: str, exchange: Exchange, rest: str) -> Any:
        query = dict(parse_qsl(exchange.query))
        if rest == "input_items":
            return _page(await self._input(account, id), query)
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

    async def _input(self, account: str, id: str) -> list[Any]:
        """All that a response was made from, the conversation before it too, as far as that is still there."""
        turns = await self._store.read(conversation(account, id, self._clock.now_ms()))
        turns = turns or [await self._find(account, id)]
        items: list[Any] = []
        for turn in turns:
            own = items_of(msgspec.Raw(turn.input.encode()))
            items += [shown(item, turn.id, place) for place, item in enumerate(own)]
            if turn is not turns[-1]:
                items += output_of(turn.answer)
        return [item if isinstance(item, dict) else msgspec.json.decode(item) for item in items]


def _require(rest: str, wanted: str) -> None:
    if rest != wanted:
        raise MethodNotAllowed() if rest in ("", "cancel", "input_items") else NotFound()


def _absent(id: str) -> NotFound:
    return NotFound(f"Response with id '{id[:100]}' not found.")


def _page(items: list[Any], query: dict[str, str]) -> dict[str, Any]:
    """A page of items, the newest first unless asked otherwise."""
    order, limit, after = query.get("order", "desc"), query.get("limit", str(USUAL_ITEMS)), query.get("after")
    if order not in ("asc", "desc"):
        raise InvalidRequest("'order' must be 'asc' or 'desc'.", param="order")
    if not limit.isdecimal() or not 1 <= int(limit[:9]) <= MOST_ITEMS:
        raise InvalidRequest(f"'limit' must be a whole number from 1 to {MOST_ITEMS}.", param="limit")
    if order == "desc":
        items = items[::-1]
    if after is not None:
        begin = next((place for place, item in enumerate(items, 1) if item.get("id") == after), None)
        if begin is None:
            raise InvalidRequest(f"There is no item with id '{after[:100]}'.", param="after")
        items = items[begin:]
    page = items[: int(limit)]
    ends = (page[0].get("id"), page[-1].get("id")) if page else (None, None)
    return {
        "object": "list",
        "data": page,
        "first_id": ends[0],
        "last_id": ends[1],
        "has_more": len(items) > len(page),
    }
