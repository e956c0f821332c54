"""What is remembered from one call to the next: nothing, but for responses (decision 0010).

A call with a memory has its body completed before anything reads it: what it continues, and what it refers to, comes
out of the store of its account and into the input. When its answer is written off, the response is kept, so that it can
be continued. Upstreams remember nothing: the conversation goes to whichever serves.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from msgspec import Raw

from penstock.access import Caller
from penstock.clock import Clock
from penstock.config import ResponseSettings
from penstock.db.program import Program
from penstock.db.responses import KeptResponse, answer_of, conversation, holders, keep, parts, turns
from penstock.db.store import Store
from penstock.dialects import json_fields
from penstock.dialects.response_input import (
    REFERENCE,
    is_id,
    item_ids,
    items_named,
    items_of,
    output_of,
    reference_in,
    response_in,
)
from penstock.errors import InvalidRequest, StoreUnavailable

DAY_MS = 24 * 3600 * 1000
KEEP_S = 1.0  # that an answer waits until its response is kept

_logger = logging.getLogger("penstock.relay")


class Memory(Protocol):
    """What one call remembers of others, and leaves for them."""

    async def recall(self, caller: Caller, body: bytes) -> bytes:
        """The body with all that it continues in it. InvalidRequest when that is not there for this caller."""
        ...

    async def keep(self, caller: Caller, last: bytes) -> None:
        """Remember the answer whose last bytes these are. Never raises: the answer is paid for, and goes out."""
        ...


class Conversations:
    """Makes a memory for each call for a response."""

    def __init__(self, store: Store, clock: Clock, settings: ResponseSettings, *, most_body_bytes: int) -> None:
        self.store = store
        self.clock = clock
        self.settings = settings
        self.most_body_bytes = most_body_bytes
        self._writing: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"Conversations({self.settings!r})"

    async def write(self, response: str, program: Program[None]) -> None:
        """Have a response kept. Its answer waits for that a moment, so that it can be continued at once; where the
        store takes longer the answer leaves, and it is kept when the store comes to it."""
        writing = asyncio.create_task(self._write(response, program))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        with suppress(asyncio.CancelledError):  # the caller has gone, or the process is to stop: what is there goes out
            await asyncio.wait([writing], timeout=KEEP_S)

    async def _write(self, response: str, program: Program[None]) -> None:
        try:
            await self.store.write(program)
        except StoreUnavailable as error:
            _logger.warning("response %s is not kept: %s", response, error.message)

    def memory(self) -> ResponseMemory:
        """The memory of one call."""
        return ResponseMemory(self)


class ResponseMemory:
    """One call for a response. `_own` are the items that are new with it, `_ancestors` the responses it continues."""

    def __init__(self, conversations: Conversations) -> None:
        self._conversations = conversations
        self._own: list[Raw] = []
        self._ancestors: list[str] = []
        self._keeps = False

    def __repr__(self) -> str:
        return f"ResponseMemory({len(self._own)} items after {len(self._ancestors)} responses, keeps={self._keeps})"

    async def recall(self, caller: Caller, body: bytes) -> bytes:
        """The body with the conversation in its input. InvalidRequest for what this account has no such thing of."""
        fields = json_fields.request_fields(body)
        previous = json_fields.plain(fields.get("previous_response_id"))
        self._keeps = json_fields.plain(fields.get("store")) is not False
        try:
            own = items_of(fields["input"])
        except (KeyError, ValueError, RecursionError):
            return body  # whoever reads it next says what is wrong with it
        self._own = await self._resolved(caller.account, own) if REFERENCE in body else own
        before = await self._before(caller.account, previous) if isinstance(previous, str) else []
        if not before and self._own == own:
            return body
        items = [*before, *self._own]
        self._require_room(_size(items))  # before they are put together: one item may be named any number of times
        return json_fields.join({**fields, "input": items})

    def _require_room(self, size_bytes: int) -> None:
        most = self._conversations.most_body_bytes
        if size_bytes > most:
            raise InvalidRequest(
                f"With what it continues the request has more than {most} bytes.",
                param="previous_response_id",
                code="context_length_exceeded",
            )

    async def keep(self, caller: Caller, last: bytes) -> None:
        """Keep the response, unless it was not to be kept or is too large for that."""
        response = response_in(last) if self._keeps else None
        if response is None:
            return
        kept = self._kept(caller.account, response)
        most = self._conversations.settings.largest_bytes
        if kept.size_bytes > most:
            _logger.warning("response %s is not kept: %d bytes are more than %d", kept.id, kept.size_bytes, most)
            return
        items = item_ids(response.get("output"))
        await self._conversations.write(kept.id, keep(kept, items=items, ancestors=self._ancestors))

    async def _before(self, account: str, previous: str) -> list[Raw]:
        """The items of the conversation that ends with response `previous`. It is read in parts, for a request of a few
        bytes may continue all that an account has."""
        store, now_ms = self._conversations.store, self._conversations.clock.now_ms()
        links = await store.read(conversation(account, previous, now_ms)) if is_id(previous) else []
        self._ancestors = [link.id for link in links]
        items: list[Raw] = []
        read, size_bytes = 0, 0
        for part in parts(links):
            for turn in await store.read(turns(account, part)):
                here = [*items_of(Raw(turn.input.encode())), *output_of(turn.answer)]
                items += [item.copy() for item in here]  # which keep nothing else of their response
                read, size_bytes = read + 1, size_bytes + _size(here)
            self._require_room(size_bytes)
        if not links or read < len(links):  # or deleted meanwhile
            raise InvalidRequest(
                f"Previous response with id '{previous[:100]}' not found.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return items

    async def _resolved(self, account: str, items: list[Raw]) -> list[Raw]:
        """The items, those in place of references that these name."""
        names = [reference_in(item) for item in items]
        if all(name is None for name in names):
            return items
        wanted = [name for name in names if name is not None and is_id(name)]
        found = await self._named(account, wanted)
        return [
            item if name is None else _found(found.get(name), name, place)
            for place, (item, name) in enumerate(zip(items, names, strict=True))
        ]

    async def _named(self, account: str, names: list[str]) -> dict[str, Raw]:
        """The items of these names that are kept. Answers are read one by one, each once: a question of a few bytes
        may name all that an account has."""
        store, now_ms = self._conversations.store, self._conversations.clock.now_ms()
        found: dict[str, Raw] = {}
        size_bytes = 0
        for response, items in (await store.read(holders(account, names))).items():
            answer = await store.read(answer_of(account, response, now_ms))
            here = items_named(answer, items) if answer is not None else {}
            size_bytes += _size(here.values())
            self._require_room(size_bytes)
            found |= here
        return found

    def _kept(self, account: str, response: Any) -> KeptResponse:
        input, answer = json_fields.join(self._own), json_fields.join(response)
        now_ms = self._conversations.clock.now_ms()
        return KeptResponse(
            account_id=account,
            id=str(json_fields.plain(response.get("id"))),
            previous_id=_last(self._ancestors),
            input=input.decode(),
            answer=answer.decode(),
            size_bytes=len(input) + len(answer),
            created_ms=now_ms,
            expires_ms=now_ms + self._conversations.settings.keep_days * DAY_MS,
        )


def _found(item: Raw | None, name: str, place: int) -> Raw:
    if item is None:
        raise InvalidRequest(f"Item with id '{name[:100]}' not found.", param=f"input[{place}]", code="item_not_found")
    return item


def _size(items: Iterable[Raw]) -> int:
    return sum(map(len, items))


def _last(ids: Sequence[str]) -> str | None:
    return ids[-1] if ids else None
