"""How other processes of the same deployment give jobs to the peers that are connected here: a private HTTP address.

    POST /peer/v1/jobs/{peer}?path={path}&stream={0|1}     body: the job's

It listens on `[server] peer_host`, loopback unless several hosts share the work, from when the first peer connects, and
answers only who bears a secret that is made from the server's own (`peer_secret`). Header `x-penstock-job` says what
became of the job: `answer` (what follows is the peer's), `overloaded`, `lost`, `begun` (the same, when the peer had
accepted it), `late`, or `gone` (it is not here).

Calls of callers do not come in here; nothing is billed or looked into.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from contextlib import suppress
from functools import partial
from urllib.parse import parse_qs

import msgspec

from penstock.api.connections import Connections
from penstock.api.http import Exchange
from penstock.api.protocol import Connection
from penstock.errors import InvalidRequest, PenstockError, UpstreamError, UpstreamTimeout
from penstock.hub.hub import Hub
from penstock.hub.seats import Lost, Overloaded, Request
from penstock.ids import IdMaker
from penstock.ports import Answer, Timeouts

PREFIX = "/peer/v1/jobs/"
SWEEP_S = 0.5
LARGEST_GROWTH = 4  # of a caller's body on its way through dialects: a job is larger than what a caller may say

_logger = logging.getLogger("penstock.peering")


class Peering:
    """The private door of one process. `start` is called before it is needed, as often as one likes."""

    def __init__(self, hub: Hub, *, host: str, secret: str, most_bytes: int) -> None:
        self._hub = hub
        self._host = host
        self._secret = secret.encode()
        self._most_bytes = LARGEST_GROWTH * most_bytes
        self._connections = Connections()
        self._ids = IdMaker()
        self._lock = asyncio.Lock()
        self._server: asyncio.Server | None = None
        self._sweep: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Peering({self._hub.address or 'not listening'})"

    async def start(self) -> None:
        """Listen, and let the hub know where. OSError when that is not possible here."""
        async with self._lock:
            if self._server is None:
                loop = asyncio.get_running_loop()
                self._server = await loop.create_server(self._connection, self._host, 0)
                port = self._server.sockets[0].getsockname()[1]
                self._hub.address = f"[{self._host}]:{port}" if ":" in self._host else f"{self._host}:{port}"
                self._sweep = loop.create_task(self._look())

    async def close(self) -> None:
        """Cut what is under way and stop listening."""
        if self._server is None or self._sweep is None:
            return
        self._server.close()
        self._sweep.cancel()
        await asyncio.wait([self._sweep])
        for connection in self._connections.all():
            connection.transport.abort()
        await asyncio.sleep(0)
        for task in list(self._connections.tasks):
            task.cancel()
        if self._connections.tasks:
            await asyncio.wait(self._connections.tasks)

    def _connection(self) -> Connection:
        return Connection(self, self._connections, self._ids, most_bytes=self._most_bytes)

    async def _look(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(SWEEP_S)
            self._connections.check(loop.time())

    # What its connections call.

    def unreadable(self, id: str, why: str) -> bytes:
        """The body of the answer to bytes that are no request."""
        return why.encode()

    def switches(self, target: bytes) -> bool:
        """Nothing but HTTP is spoken here."""
        return False

    async def serve(self, exchange: Exchange) -> None:
        """Answer one exchange, whatever happens."""
        task = asyncio.current_task()
        assert task is not None
        exchange.when_gone(partial(_cancel, task))
        try:
            await self._give(exchange)
        except asyncio.CancelledError:
            if not exchange.gone:
                exchange.drop()
            task.uncancel()
        except PenstockError as error:  # of the job: others can be given to the same peer
            _say(exchange, error.status, "lost", error.message)
        except Exception:
            _logger.exception("a job for another process failed")
            _say(exchange, 500, "lost", "The process that has the worker failed.")

    async def _give(self, exchange: Exchange) -> None:
        given = exchange.headers.get(b"authorization", b"")
        if not hmac.compare_digest(given, b"Bearer " + self._secret):
            _say(exchange, 401, "refused", "This is no address for callers.")
            return
        if exchange.method != "POST" or not exchange.path.startswith(PREFIX):
            _say(exchange, 404, "refused", "There is nothing at this address.")
            return
        request, limits = _request(exchange, await exchange.body())
        peer = self._hub.here(exchange.path.removeprefix(PREFIX))
        if peer is None:
            _say(exchange, 404, "gone", "It is not connected here.")
        elif not peer.room:
            _say(exchange, 429, "overloaded", "It has no room.")
        else:
            try:
                answer = await peer.open(request, limits)
            except Overloaded:
                _say(exchange, 429, "overloaded", "It has no room.")
            except Lost as lost:
                _say(exchange, 502, "begun" if lost.begun else "lost", str(lost))
            except UpstreamTimeout as late:
                _say(exchange, 504, "late", late.message)
            else:
                await _relay(answer, exchange)


def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()


def peer_secret(auth_secret: bytes) -> str:
    """What processes of one deployment show each other. It tells nothing of the secret it is made from."""
    return hmac.digest(auth_secret, b"penstock: between processes, version 1", "sha256").hex()


def _request(exchange: Exchange, body: bytes) -> tuple[Request, Timeouts]:
    query = {name: values[0] for name, values in parse_qs(exchange.query, keep_blank_values=True).items()}
    try:
        headers = tuple(msgspec.json.decode(query.get("headers", "[]"), type=list[tuple[str, str]]))
        limits = msgspec.json.decode(query.get("limits", "{}"), type=Timeouts)
    except ValueError:
        raise InvalidRequest("The job is not one.") from None
    request = Request(
        query.get("path", ""), body, method=query.get("method", "POST"), headers=headers, stream="stream" in query
    )
    return request, limits


async def _relay(answer: Answer, exchange: Exchange) -> None:
    try:
        headers = [(b"x-penstock-job", b"answer")]
        for name in ("content-type", "content-encoding", "retry-after"):
            if name in answer.headers:
                headers.append((name.encode(), answer.headers[name].encode("latin-1", "replace")))
        exchange.start(answer.status, headers)
        async for piece in answer:
            exchange.send(piece)
            if not exchange.ready:
                await exchange.drained()
        exchange.finish(b"")
    except UpstreamError:
        exchange.drop()  # the other process sees an answer that breaks off, which it is
    finally:
        answer.close()


def _say(exchange: Exchange, status: int, what: str, message: str) -> None:
    if exchange.started:
        exchange.drop()
        return
    with suppress(ValueError):
        exchange.whole(status, [(b"x-penstock-job", what.encode())], message.encode())
