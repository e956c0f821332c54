"""An exchange as ASGI: how the door hands a request on to an application of the usual kind.

The request is read as a whole first, unless it is too large or shows no credential, and an answer that says how long it
is leaves in one piece. For the paths where a call more or less does not matter; the hot ones never come here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from penstock.api.http import Exchange
from penstock.relay.reply import Headers

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MOST_BODY_BYTES = 64_000  # the largest operation is a key with a long allow-list

_OURS = (b"content-length", b"transfer-encoding", b"connection", b"x-request-id")  # the exchange's own business


async def hand_on(app: App, exchange: Exchange) -> None:
    """Have `app` answer. To whom names nobody it says the same whatever the body, and so that is not waited for."""
    body = await exchange.body(MOST_BODY_BYTES) if b"authorization" in exchange.headers else b""
    bridge = _Bridge(exchange, body)
    await app(_scope(exchange), bridge.receive, bridge.send)


class _Bridge:
    """`receive` and `send` for one request."""

    def __init__(self, exchange: Exchange, body: bytes) -> None:
        self._exchange = exchange
        self._body: bytes | None = body
        self._announced = False  # how long the answer is: then it leaves in one piece, however it comes
        self._pieces: list[bytes] = []
        self._left: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"_Bridge({self._exchange!r})"

    async def receive(self) -> MutableMapping[str, Any]:
        """The body, then word that the caller has left."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        self._exchange.when_gone(self._leave)
        await self._left
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """A head, or a piece of the answer."""
        if message["type"] == "http.response.start":
            headers = message.get("headers", ())
            self._announced = any(name.lower() == b"content-length" for name, _ in headers)
            self._exchange.start(message["status"], _own(headers))
            return
        self._pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            self._exchange.finish(b"".join(self._pieces))
            self._leave()
        elif not self._announced:
            self._exchange.send(self._pieces.pop())
            await self._exchange.drained()

    def _leave(self) -> None:
        if not self._left.done():
            self._left.set_result(None)


def _own(headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in _OURS]


def _scope(exchange: Exchange) -> Scope:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": exchange.version,
        "method": exchange.method,
        "scheme": "http",
        "path": exchange.path,
        "raw_path": exchange.target.partition(b"?")[0],
        "query_string": exchange.query.encode("latin-1"),
        "root_path": "",
        "headers": list(exchange.headers.items()),
        "server": None,
        "client": None,
        "state": {"id": exchange.id},
    }
