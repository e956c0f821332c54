"""The tools endpoints: what a credential may use, and running one tool without a model.

    GET  /api/tools/v1/tools       definitions of the tools that connected workers offer and the account's rules allow
    POST /api/tools/v1/execute     {"name", "arguments"} -> {"name", "text", "failed", "ms"}

For the credentials of the router surface, and in its words. A request counts against the key's rate limit and against
the account's tool calls a minute; each one that was run leaves a usage record without a cost.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from penstock.access import Access, Caller
from penstock.api.door import Route
from penstock.api.http import Exchange
from penstock.api.surfaces import ROUTER
from penstock.clock import Clock
from penstock.db.records import UsageRecord
from penstock.db.store import Store
from penstock.db.tools import note_use
from penstock.errors import Forbidden, InvalidRequest, PenstockError
from penstock.money.units import USD
from penstock.relay.tools import Note, Tools
from penstock.tools import ToolResult

ROOT = "/api/tools/v1"
JSON = [(b"content-type", b"application/json")]


class _Wanted(Struct):
    """The body of `execute`."""

    name: str
    arguments: dict[str, Any] = {}


class ToolDoor:
    """Answers the tools endpoints."""

    def __init__(self, access: Access, tools: Tools, store: Store, clock: Clock) -> None:
        self._access = access
        self._tools = tools
        self._store = store
        self._clock = clock

    def __repr__(self) -> str:
        return f"ToolDoor({self._tools!r})"

    def routes(self) -> dict[str, Route]:
        """Both addresses, exactly."""
        return {
            f"{ROOT}/tools": Route("tools", ROUTER.shapes, {"GET": self._list}),
            f"{ROOT}/execute": Route("tools", ROUTER.shapes, {"POST": self._execute}),
        }

    async def _list(self, exchange: Exchange) -> None:
        caller = await self._caller(exchange)
        bench = await self._tools.bench(caller.account)
        data = [
            {"type": "function", "function": {"name": t.name, "description": t.description, "parameters": t.parameters}}
            for t in (bench.tools if bench is not None else ())
        ]
        exchange.whole(200, JSON, msgspec.json.encode({"object": "list", "data": data}))

    async def _execute(self, exchange: Exchange) -> None:
        caller = await self._caller(exchange)
        wanted = _wanted(await exchange.body())
        started_s, created_ms = self._clock.monotonic(), self._clock.now_ms()
        try:
            result = await self._tools.use(caller.account, wanted.name, wanted.arguments)
        except PenstockError as error:
            if error.status >= 500:
                failed = ToolResult(error.message, failed=True)
                await self._note(exchange, caller, wanted.name, failed, started_s, created_ms, error.status)
            raise
        ms = await self._note(exchange, caller, wanted.name, result, started_s, created_ms, 200)
        answer = {"name": wanted.name, "text": result.text, "failed": result.failed, "ms": ms}
        exchange.whole(200, JSON, msgspec.json.encode(answer))

    async def _caller(self, exchange: Exchange) -> Caller:
        authorization = exchange.header(b"authorization")
        if authorization is None and b"x-api-key" in exchange.headers:
            authorization = f"Bearer {exchange.header(b'x-api-key')}"
        caller = await self._access.enter(authorization, None, ROUTER.surface)
        if "inference" not in caller.scopes:
            raise Forbidden("This key has no scope for inference.")
        return caller

    async def _note(
        self,
        exchange: Exchange,
        caller: Caller,
        name: str,
        result: ToolResult,
        started_s: float,
        created_ms: int,
        status: int,
    ) -> int:
        """Write the usage record; how many milliseconds the tool took."""
        took_s = self._clock.monotonic() - started_s
        note = Note(name[:64], 1, int(took_s * 1000), not result.failed, len(result.text.encode("utf-8", "replace")))
        record = UsageRecord(
            exchange.id,
            caller.account,
            caller.credential,
            "tools",
            "tools",
            model="",
            provider="",
            attempts=1,
            lane="credits",
            asset=USD,
            price_version="",
            status=status,
            ended="answer" if status == 200 else "upstream_failed",
            total_us=int(took_s * 1e6),
            created_ms=created_ms,
            tools=msgspec.json.encode([note]).decode(),
        )
        await self._store.write(note_use(record))
        return note.ms


def _wanted(body: bytes) -> _Wanted:
    try:
        return msgspec.json.decode(body, type=_Wanted)
    except (ValueError, RecursionError) as error:
        reason = f": {error}" if isinstance(error, msgspec.ValidationError) else ""
        raise InvalidRequest(
            f"The body must be a JSON object with a 'name' and, if the tool takes any, 'arguments'{reason}."
        ) from None
