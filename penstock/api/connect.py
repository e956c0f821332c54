"""Where workers dial in: the addresses that speak WebSocket, and who may connect there.

    GET /api/workers/v1/connect    a GPU worker, with a key of kind `worker`
    GET /api/tools/v1/connect      a tools worker, with a key of kind `tools_worker`

The key is checked before the connection becomes a WebSocket; what is refused is refused as any request. Such a key does
nothing else anywhere, and no other key opens these addresses.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from penstock.access import Access, Caller, Surface
from penstock.api.door import Endpoint, Route
from penstock.api.http import Exchange
from penstock.errors import InvalidRequest, RateLimited
from penstock.hub.hub import Hub
from penstock.hub.peer import Peer
from penstock.hub.seats import PeerKind

if TYPE_CHECKING:
    from penstock.api.websocket import WebSocket

WORKERS = Surface("workers", frozenset({"worker"}), account_rule="own", lane="credits")
TOOLS = Surface("tools", frozenset({"tools_worker"}), account_rule="own", lane="credits")


class Connect:
    """Admits peers. `reachable` has the hub be asked by other processes, before the first peer is there."""

    def __init__(self, access: Access, hub: Hub, reachable: Callable[[], Awaitable[None]]) -> None:
        self._access = access
        self._hub = hub
        self._reachable = reachable

    def __repr__(self) -> str:
        return f"Connect({self._hub!r})"

    def routes(self) -> dict[str, Route]:
        """Both addresses, exactly."""
        return {
            "/api/workers/v1/connect": self._route(WORKERS, "worker"),
            "/api/tools/v1/connect": self._route(TOOLS, "tools_worker"),
        }

    def _route(self, surface: Surface, kind: PeerKind) -> Route:
        return Route(surface.name, {}, {"GET": self._endpoint(surface, kind)}, switches=True)

    def _endpoint(self, surface: Surface, kind: PeerKind) -> Endpoint:
        async def connect(exchange: Exchange) -> None:
            from penstock.api.websocket import WebSocket, accepts  # noqa: PLC0415 -- a start takes long enough

            caller = await self._access.enter(exchange.header(b"authorization"), None, surface)
            accept = accepts(exchange.headers) if exchange.switches else None
            if accept is None:
                raise InvalidRequest("Connect here by WebSocket, version 13.")
            if self._hub.full_for(caller.credential, caller.account):
                raise RateLimited("Too many workers are connected.", retry_after_s=30)
            await self._reachable()
            join = partial(self._join, kind, caller)
            exchange.switch(accept, WebSocket(exchange.connections, join))

        return connect

    def _join(self, kind: PeerKind, caller: Caller, socket: WebSocket) -> Peer:
        shared = "shared" in caller.scopes
        return self._hub.join(socket, kind=kind, key=caller.credential, account=caller.account, shared=shared)
