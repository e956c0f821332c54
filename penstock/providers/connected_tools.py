"""The tools of connected tools workers, wherever they are connected (`penstock/hub`).

A call is a job `execute` with a JSON body, and its answer is a result as JSON. Which tools an account's rules allow is
not known here. A tool that a worker has begun to run is run by nobody else, whatever becomes of it: it may have done
what it does.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

import msgspec

from penstock.errors import InvalidRequest, NotFound, UpstreamFailed, UpstreamTimeout
from penstock.hub.hub import Hub
from penstock.hub.messages import Offer
from penstock.hub.seats import Request, Seat, Wanted
from penstock.tools import Tool, ToolResult

MARGIN_S = 1.0  # that a worker is given beyond what is waited for here: its own limit is not what ends a call

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # of a function, for every provider
_result = msgspec.json.Decoder(ToolResult)


class ConnectedTools:
    """Implements `ports.Toolshop`."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        # By worker, as long as it is there: its offer, and what we make of it.
        self._read: WeakKeyDictionary[Seat, tuple[Offer, tuple[Tool, ...]]] = WeakKeyDictionary()

    def __repr__(self) -> str:
        return f"ConnectedTools({self._hub!r})"

    def tools(self, account: str) -> tuple[Tool, ...]:
        """Of several workers with a tool of the same name, any runs it; the first one's definition counts."""
        if self._hub.deserted:
            return ()
        seats = self._hub.seats("tools_worker", account)
        if len(seats) == 1:
            return self._sound(seats[0])
        found: dict[str, Tool] = {}
        for seat in seats:
            for tool in self._sound(seat):
                found.setdefault(tool.name, tool)
        return tuple(found.values())

    def _sound(self, seat: Seat) -> tuple[Tool, ...]:
        """What a worker offers, as far as providers take it: one bad definition would spoil every call."""
        offer, tools = self._read.get(seat, (None, ()))
        if offer is not seat.offer:
            found = {each.name: each for each in seat.offer.tools if _NAME.fullmatch(each.name)}
            tools = tuple(Tool(each.name, each.description, _schema(each.parameters)) for each in found.values())
            self._read[seat] = seat.offer, tools
        return tools

    async def execute(self, account: str, name: str, arguments: Mapping[str, Any], *, within_s: float) -> ToolResult:
        """See `ports.Toolshop.execute`."""
        wanted = Wanted("tools_worker", account, name)
        if not name or not any(wanted.may(seat) for seat in self._hub.seats("tools_worker", account)):
            raise NotFound(f"There is no tool '{name[:64]}'.", code="tool_not_found")
        job = {"name": name, "arguments": dict(arguments), "within_s": within_s + MARGIN_S}
        try:
            request = Request("execute", msgspec.json.encode(job), once=True)
        except (ValueError, RecursionError):  # nested almost as deep as can be read, and one deeper here
            raise InvalidRequest("The arguments are nested too deep.") from None
        try:
            async with asyncio.timeout(within_s):
                body = await self._hub.ask(wanted, request, within_s + MARGIN_S)
            return _result.decode(body)
        except TimeoutError:
            raise UpstreamTimeout(f"The tool took longer than {within_s:g} seconds and was stopped.") from None
        except (ValueError, RecursionError):
            raise UpstreamFailed("The tools worker's answer is no result.", began=True) from None


def _schema(parameters: dict[str, Any]) -> dict[str, Any]:
    return parameters if parameters.get("type") == "object" else {"type": "object", "properties": {}}
