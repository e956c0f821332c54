"""The HTTP door: which address is served by what, as plain ASGI.

The wire endpoints of every surface are found in one table by their exact path and answered here; everything else
(management API and its documentation) goes to the application behind, which is built when it is first asked for.
Errors of the wire endpoints are rendered here, each in its surface's own words; whatever happens, an answer goes out
or the caller has gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from penstock.api.errors import render_openai
from penstock.api.http import AsgiReply, Receive, Request, Scope, Send
from penstock.api.surfaces import Shape
from penstock.errors import Internal, InvalidRequest, MethodNotAllowed, NotFound, PenstockError, ShuttingDown
from penstock.ids import IdMaker
from penstock.relay.ending import CallerStalled
from penstock.relay.observe import Observer

_logger = logging.getLogger("penstock.api")

_UNREADABLE = (
    b"HTTP/1.1 %d Bad Request\r\ncontent-type: application/json\r\nx-request-id: %b\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n"
)

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Endpoint = Callable[[Request, AsgiReply], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Route:
    """What answers at an address, by method; and how its errors look. `surface` names it in logs and metrics."""

    surface: str
    shapes: dict[str, Shape]
    endpoints: dict[str, Endpoint]


class Door:
    """The ASGI application. `routes` are exact paths; `prefixes` are where an unknown path is ours to refuse."""

    def __init__(
        self,
        routes: dict[str, Route],
        prefixes: dict[str, Route],
        behind: App,
        *,
        observer: Observer,
        ids: IdMaker,
        most_bytes: int,
    ) -> None:
        self._routes = routes
        self._prefixes = sorted(prefixes.items(), key=lambda entry: -len(entry[0]))
        self._behind = behind
        self._observer = observer
        self._ids = ids
        self._most_bytes = most_bytes

    def __repr__(self) -> str:
        return f"Door({len(self._routes)} routes)"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        route = self._routes.get(path) or self._refusing(path)
        if route is None:
            await self._behind(scope, receive, send)
        else:
            await self._serve(route, scope, receive, send)

    def unreadable(self, why: str) -> bytes:
        """The whole response to bytes that are no request, after which the connection is closed."""
        id, error = self._ids.new("req"), InvalidRequest(why)
        status, body = render_openai(error, {})
        self._observer.refused(request_id=id, surface="none", kind=error.kind, status=status, path="")
        return _UNREADABLE % (status, id.encode(), len(body)) + body

    async def _serve(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, id=self._ids.new("req"), most_bytes=self._most_bytes)
        reply = AsgiReply(request, send)
        try:
            endpoint = route.endpoints.get(request.method)
            if endpoint is None:
                raise MethodNotAllowed() if route.endpoints else NotFound()
            await endpoint(request, reply)
        except PenstockError as error:
            await self._refuse(route, request, reply, error)
        except asyncio.CancelledError:
            # The departed caller's call has been settled by now. Otherwise the process is being told to stop.
            if not reply.gone:
                await self._refuse(route, request, reply, ShuttingDown())
        except CallerStalled:
            reply.drop()
        except Exception:
            _logger.exception("request %s failed", request.id)
            await self._refuse(route, request, reply, Internal())
        finally:
            reply.stop_watching()

    async def _refuse(self, route: Route, request: Request, reply: AsgiReply, error: PenstockError) -> None:
        status, body = render_openai(error, route.shapes)
        self._observer.refused(
            request_id=request.id, surface=route.surface, kind=error.kind, status=status, path=request.path
        )
        if reply.started:
            reply.abort()
            return
        headers = [(b"content-type", b"application/json")]
        if error.retry_after_s is not None:
            headers.append((b"retry-after", str(error.retry_after_s).encode()))
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", ", ".join(sorted(route.endpoints)).encode()))
        await reply.whole(status, headers, body)

    def _refusing(self, path: str) -> Route | None:
        """The surface under whose root a path lies that it does not serve."""
        for prefix, route in self._prefixes:
            if f"{path}/".startswith(prefix):
                return route
        return None
