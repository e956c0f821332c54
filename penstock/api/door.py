"""The HTTP door: which address is served by what.

The wire endpoints of every surface are found in one table by their exact path and answered here; everything else
(management API and its documentation) goes to the application behind, which is built when it is first asked for.
Errors of the wire endpoints are rendered here, each in its surface's own words; whatever happens, an answer goes out
or the caller has gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

from penstock.api.asgi import App, hand_on
from penstock.api.errors import Render, render_openai
from penstock.api.http import Exchange
from penstock.api.surfaces import Shape
from penstock.errors import Crowded, Internal, InvalidRequest, MethodNotAllowed, NotFound, PenstockError, ShuttingDown
from penstock.relay.observe import Observer

_logger = logging.getLogger("penstock.api")

Endpoint = Callable[[Exchange], Awaitable[None]]
Takes = Callable[[str], Collection[str]]


@dataclass(frozen=True, slots=True)
class Route:
    """What answers at an address, by method; and how its errors look. `surface` names it in logs and metrics.
    `id_header` is one more header that says the request's id; `switches` that a GET there may become a WebSocket;
    `takes` are the methods of one path, where they are not all of `endpoints`.
    """

    surface: str
    shapes: dict[str, Shape]
    endpoints: dict[str, Endpoint]
    render: Render = render_openai
    id_header: bytes | None = None
    switches: bool = False
    takes: Takes | None = None

    def methods(self, path: str) -> Collection[str]:
        """What may be done at a path of the route."""
        return self.takes(path) if self.takes else self.endpoints


class Door:
    """Answers exchanges. `routes` are exact paths; `below` are paths whose ends name a thing, and end in a slash;
    `prefixes` are where an unknown path is ours to refuse; all else is for the application `behind`."""

    def __init__(
        self,
        routes: dict[str, Route],
        below: dict[str, Route],
        prefixes: dict[str, Route],
        behind: App,
        *,
        observer: Observer,
    ) -> None:
        self._routes = routes
        self._below = below
        self._targets = {path.encode(): route for path, route in routes.items()}
        self._prefixes = sorted(prefixes.items(), key=lambda entry: -len(entry[0]))
        self._behind = behind
        self._observer = observer

    def __repr__(self) -> str:
        return f"Door({len(self._routes)} routes)"

    async def serve(self, exchange: Exchange) -> None:
        """Answer one exchange, whatever happens."""
        route = self._targets.get(exchange.target) or self._find(exchange.path)
        exchange.id_header = route.id_header
        try:
            await (route.endpoints.get(exchange.method) or self._other(route, exchange.path))(exchange)
        except PenstockError as error:
            self._refuse(route, exchange, error)
        except asyncio.CancelledError:
            # The departed caller's call has been settled by now. Otherwise the process is being told to stop.
            if not exchange.gone:
                self._refuse(route, exchange, ShuttingDown())
        except Exception:
            _logger.exception("request %s failed", exchange.id)
            self._refuse(route, exchange, Internal())

    def refuse(self, exchange: Exchange, error: PenstockError) -> None:
        """Answer one exchange with an error, in the words of where it was asked."""
        route = self._find(exchange.path)
        exchange.id_header = route.id_header
        self._refuse(route, exchange, error)

    def unreadable(self, id: str, why: str) -> bytes:
        """The body of the answer, 400, to bytes that are no request."""
        error = InvalidRequest(why)
        status, body = render_openai(error, {}, id)
        self._observer.refused(request_id=id, surface="none", kind=error.kind, status=status, path="")
        return body

    def switches(self, target: bytes) -> bool:
        """Whether a WebSocket is spoken at this address."""
        route = self._targets.get(target)
        return route is not None and route.switches

    def _refuse(self, route: Route, exchange: Exchange, error: PenstockError) -> None:
        """Answer with an error. A response that has begun stays unfinished, and its connection ends."""
        status, body = route.render(error, route.shapes, exchange.id)
        self._observer.refused(
            request_id=exchange.id, surface=route.surface, kind=error.kind, status=status, path=exchange.path
        )
        if exchange.started:
            return
        headers = [(b"content-type", b"application/json")]
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(error.retry_after_s).encode()))
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", ", ".join(sorted(route.methods(exchange.path))).encode()))
        exchange.whole(status, headers, body)

    def _find(self, path: str) -> Route:
        """What answers at a path that was not written as the table has it."""
        route = self._routes.get(path)
        if route is not None:
            return route
        for prefix, answering in self._below.items():
            if path.startswith(prefix):
                return answering
        for prefix, refusing in self._prefixes:  # the surface under whose root it lies, and which does not serve it
            if f"{path}/".startswith(prefix):
                return refusing
        return _BEHIND

    def _other(self, route: Route, path: str) -> Endpoint:
        """What to do with a method that the route does not have."""
        if route is _BEHIND:
            return self._hand_on
        raise MethodNotAllowed() if route.methods(path) else NotFound()

    async def _hand_on(self, exchange: Exchange) -> None:
        await hand_on(self._behind, exchange)


class FullDoor:
    """What answers instead of a door when there is no room for more callers: a refusal, once a connection. Those who
    watch the gateway are served as ever, or whoever restarts what is not well would restart what is merely busy."""

    WATCHED = frozenset([b"/health", b"/metrics"])

    def __init__(self, door: Door) -> None:
        self._door = door

    def __repr__(self) -> str:
        return f"FullDoor({self._door!r})"

    async def serve(self, exchange: Exchange) -> None:
        exchange.keep = False
        if exchange.target in self.WATCHED:
            await self._door.serve(exchange)
        else:
            self._door.refuse(exchange, Crowded(retry_after_s=1))

    def unreadable(self, id: str, why: str) -> bytes:
        return self._door.unreadable(id, why)

    def switches(self, target: bytes) -> bool:
        return False


_BEHIND = Route("management", {}, {})
