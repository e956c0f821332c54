"""The HTTP/1.1 client of the data path: pooled connections to one origin, driven by callbacks.

It sends one request and hands back the answer's status, headers and body as the network delivers it, and it maps
everything that can go wrong to the three upstream errors. It does not follow redirects, keep cookies, decompress or
look inside a body, and it never repeats a request, with one exception: a kept connection that turns out to be closed
before anything came back on it is replaced once.

How it stays cheap: httptools parses inside `data_received`, and a reader sleeps only when there is nothing to read,
so a short answer costs one future and no task. An answer that begins byte for byte as the last one did is not parsed
(`_know`). No timer is set for a request; each connection notes when it was last heard, and one sweep four times a
second compares. Limits may therefore strike late by two sweeps, never early.

A connection that saw anything odd (bytes nobody asked for, an answer cut off or malformed) is not used again: the
answer to the next question could not be trusted to be its answer.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Callable, Mapping
from functools import partial
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from msgspec import Struct

from penstock.errors import UpstreamBusy, UpstreamError, UpstreamFailed, UpstreamTimeout, UpstreamUnavailable
from penstock.ports import Timeouts
from penstock.providers.origin import PATH, Headers, Origin, Proxy, authorities, header_lines, proxy_of, site_of

_MAX_HEAD_BYTES = 65_536  # four times what common servers send at most; also bounds trailers and chunk extensions
_MAX_UNREAD_BYTES = 65_536  # a reader this far behind makes the upstream wait
_LARGEST_KNOWN = 4_096  # bytes of a head that is remembered
_SLICE_BYTES = 262_144  # nearly every request fits and goes out in one write; a longer one waits for the network
_LONGEST_END = len(b"\r\n\r\n")  # of line ends: after a head, the last chunk, trailers
_MOST_HEADS = 32  # that are kept
_KEEP_S = 55.0  # below the 60 s after which common load balancers forget a connection
_STALE_S = 1.0  # a connection closed while kept says so within a round trip; later the upstream may have done the work
_SWEEP_S = 0.25
_TOO_MUCH_HEAD = "its head is too long"
_FRAMED = frozenset(["content-length", "transfer-encoding"])
_NO_HEADERS: Mapping[str, str] = {}

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
_WITHOUT_BODY = ("GET", "HEAD", "DELETE", "OPTIONS")


class Client:
    """Calls one origin over at most `max_connections` connections. Belongs to one event loop; call `close` at the end.

    ValueError when the origin's URLs, headers or `ca_file` are no good; the message never repeats them.
    """

    __slots__ = (
        "_after_path",
        "_all",
        "_closed",
        "_heads",
        "_idle",
        "_origin",
        "_proxy",
        "_site",
        "_slots",
        "_starts",
        "_sweep_s",
        "_timer",
        "_tls",
        "_waiting",
        "known",
    )

    def __init__(self, origin: Origin) -> None:
        self.known = _Known(b"", 0, 0, _NO_HEADERS)  # how the last answer began
        self._origin = origin
        self._site = site_of(origin)
        self._proxy = proxy_of(origin.proxy_url) if origin.proxy_url else None
        if self._proxy and self._site.unix_path:
            raise ValueError("a Unix socket is not reached through a proxy")
        self._tls = authorities(origin.ca_file) if self._site.tls else None
        self._starts, self._after_path = self._head_parts()
        self._heads: dict[tuple[str, str], bytes] = {}
        limits = origin.timeouts
        shortest = min(limits.connect_s, limits.first_byte_s, limits.idle_s, limits.total_s)
        self._sweep_s = min(_SWEEP_S, max(shortest / 4, 0.01))
        self._all: set[_Connection] = set()
        self._idle: list[_Connection] = []
        self._slots = origin.max_connections
        self._waiting: dict[asyncio.Future[_Connection | None], float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"Client({self._site.authority}: {self.open_connections} open, {self.idle_connections} of them idle, "
            f"{self.waiting} waiting{', closed' if self._closed else ''})"
        )

    @property
    def open_connections(self) -> int:
        """Connections that are established, idle ones included."""
        return len(self._all)

    @property
    def idle_connections(self) -> int:
        """Connections kept for the next request."""
        return len(self._idle)

    @property
    def waiting(self) -> int:
        """Requests that wait for a connection because all are in use."""
        return len(self._waiting)

    async def request(
        self, method: str, path: str, headers: Headers, body: bytes, *, sent: Callable[[], None] | None = None
    ) -> Response:
        """Send one request; return when the answer's status and headers are here.

        `path` is relative to the base URL. `sent` is called when there is a connection and the request is on its way.
        ValueError when method, path or headers would not stay one request; UpstreamUnavailable, UpstreamTimeout and
        UpstreamFailed for what the network and the upstream do; UpstreamBusy when all connections stay in use.
        Cancelling closes the connection. The total time runs from when the request is sent.
        """
        head = self._head(method, path, headers, body)
        try:
            return await self._exchange(method, head, body, sent)
        except _StaleConnection:
            for connection in list(self._idle):  # as old as the one that failed, or older
                connection.drop()
            return await self._exchange(method, head, body, sent)

    async def close(self) -> None:
        """Close every connection; calls under way end in UpstreamUnavailable or UpstreamFailed."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for waiter in list(self._waiting):
            self._refuse(waiter, UpstreamUnavailable("The client is closed."))
        for connection in list(self._all):
            connection.drop()
        await asyncio.sleep(0)  # the loop reports the losses on its next turn

    async def _exchange(self, method: str, head: bytes, body: bytes, sent: Callable[[], None] | None) -> Response:
        connection = self._kept() or await self._connection()
        if sent is not None:
            sent()
        answer = Response(connection)
        connection.begin(answer, head_only=method == "HEAD")
        try:
            if len(body) <= _SLICE_BYTES:
                connection.transport.write(head + body)
            else:
                await connection.upload(answer, head, body)
            while not answer.status:
                if answer._error is not None:
                    raise answer._error
                await answer._event()
        except BaseException:
            answer.close()
            raise
        return answer

    def _head(self, method: str, path: str, headers: Headers, body: bytes) -> bytes:
        head = self._heads.get((method, path)) or self._begin_head(method, path)
        if headers:
            head += header_lines(headers)
        if body or method not in _WITHOUT_BODY:
            return head + b"content-length: %d\r\n\r\n" % len(body)
        return head + b"\r\n"

    def _begin_head(self, method: str, path: str) -> bytes:
        """What a head begins with, kept for the next one: a client is asked for few paths, again and again."""
        start = self._starts.get(method)
        if start is None:
            raise ValueError("the method is not one this client knows")
        if not PATH.fullmatch(path):
            raise ValueError("a path is made of visible ASCII characters")
        if len(self._heads) >= _MOST_HEADS:
            self._heads.clear()
        head = self._heads[method, path] = start + path.lstrip("/").encode() + self._after_path
        return head

    def _head_parts(self) -> tuple[dict[str, bytes], bytes]:
        """What every request's head has in common: what stands before the path, by method, and what follows it."""
        site, fixed = self._site, self._origin.headers
        absolute = ""
        if self._proxy and not site.tls:
            absolute = f"http://{site.authority}"
            fixed = (*self._proxy.headers, *fixed)
        starts = {method: f"{method} {absolute}{site.prefix}".encode() for method in _METHODS}
        after = f" HTTP/1.1\r\nhost: {site.authority}\r\naccept-encoding: identity\r\n".encode()
        return starts, after + header_lines(fixed)

    # The pool. A slot is the right to have a connection open; it is taken before connecting and comes back when the
    # connection is lost. Whoever waits is served in order: a free connection or a free slot is handed over directly.

    def _kept(self) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _connection(self) -> _Connection:
        if self._closed:
            raise UpstreamUnavailable("The client is closed.")
        if self._slots > 0:
            self._slots -= 1
            return await self._connect()
        given = await self._turn()
        if given is None:
            return await self._connect()
        if given.transport.is_closing():  # it broke between being handed over and being taken
            return await self._connection()
        return given

    async def _turn(self) -> _Connection | None:
        """Wait in line for a connection, or for a slot (None). UpstreamBusy after the connect time-out."""
        loop = asyncio.get_running_loop()
        waiter: asyncio.Future[_Connection | None] = loop.create_future()
        self._waiting[waiter] = loop.time() + self._origin.timeouts.connect_s
        self._watch(loop)
        try:
            return await waiter
        except asyncio.CancelledError:
            if self._waiting.pop(waiter, None) is None and not waiter.cancelled() and waiter.exception() is None:
                self.pass_on(waiter.result())
            raise

    def pass_on(self, given: _Connection | None) -> None:
        """A connection whose answer ended cleanly, or a slot (None), is free: for who waits, else for later."""
        while self._waiting:
            waiter = next(iter(self._waiting))
            del self._waiting[waiter]
            if not waiter.done():  # cancelled, and not awake yet to say so
                waiter.set_result(given)
                return
        if given is None:
            self._slots += 1
        else:
            self._idle.append(given)

    def _refuse(self, waiter: asyncio.Future[_Connection | None], error: UpstreamUnavailable) -> None:
        del self._waiting[waiter]
        if not waiter.done():
            waiter.set_exception(error)

    def forget(self, connection: _Connection) -> None:
        """Let go of a lost connection; its slot is free."""
        if connection in self._all:
            self._all.remove(connection)
            if connection in self._idle:
                self._idle.remove(connection)
            self.pass_on(None)

    async def _connect(self) -> _Connection:
        """A new connection, for a slot already taken. UpstreamUnavailable when there is none within the time-out."""
        loop = asyncio.get_running_loop()
        connection = None
        try:
            async with asyncio.timeout(self._origin.timeouts.connect_s):
                connection = await self._open(loop)
            if connection.transport.is_closing() or self._closed:
                connection.drop()
                raise ConnectionResetError
            self._all.add(connection)
        except OSError as error:
            raise UpstreamUnavailable(_why_unreachable(error)) from error
        finally:
            if connection not in self._all:
                self.pass_on(None)
        self._watch(loop)
        return connection

    async def _open(self, loop: asyncio.AbstractEventLoop) -> _Connection:
        site = self._site
        new = partial(_Connection, self, loop)
        name = site.host if site.tls else None
        if site.unix_path:
            return (await loop.create_unix_connection(new, site.unix_path, ssl=self._tls, server_hostname=name))[1]
        if self._proxy and self._tls:
            return await self._tunnel(loop, self._proxy, self._tls)
        host, port = (self._proxy.host, self._proxy.port) if self._proxy else (site.host, site.port)
        return (await loop.create_connection(new, host, port, ssl=self._tls, server_hostname=name))[1]

    async def _tunnel(self, loop: asyncio.AbstractEventLoop, proxy: Proxy, tls: ssl.SSLContext) -> _Connection:
        target = f"{self._site.bracketed}:{self._site.port}".encode()
        transport, tunnel = await loop.create_connection(partial(_Tunnel, loop), proxy.host, proxy.port)
        try:
            transport.write(
                b"CONNECT %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (target, target, header_lines(proxy.headers))
            )
            await tunnel.opened
            connection = _Connection(self, loop)
            secured = await loop.start_tls(transport, connection, tls, server_hostname=self._site.host)
        except BaseException:
            transport.abort()
            raise
        if secured is None:
            raise ConnectionResetError
        connection.connection_made(secured)  # start_tls does not say so
        return connection

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is None and not self._closed:
            self._timer = loop.call_later(self._sweep_s, self._sweep, loop)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        """Enforce the time limits of calls, kept connections and the line; stop when there are none of these."""
        self._timer = None
        now = loop.time()
        for connection in list(self._all):
            connection.check(now, self._origin.timeouts)
        for waiter, deadline in list(self._waiting.items()):
            if deadline > now:
                break
            self._refuse(waiter, UpstreamBusy("All connections to the provider are in use."))
        if self._all or self._waiting:
            self._watch(loop)


class Response:
    """An answer whose status and headers are here and whose body may still come. It satisfies `ports.Answer`.

    Once the body has ended its connection is free for the next request, whether or not the body has been read.
    Cancelling a read loses nothing: the answer can be read on, or closed, which is what aborts the call.
    """

    __slots__ = (
        "_began",
        "_connection",
        "_ended",
        "_error",
        "_pieces",
        "_room",
        "_taking",
        "_unread",
        "_waiter",
        "headers",
        "status",
    )

    status: int
    headers: Mapping[str, str]

    def __init__(self, connection: _Connection) -> None:
        self.status = 0  # until the head is here; callers never see it
        self.headers = _NO_HEADERS
        self._connection: _Connection | None = connection
        self._pieces: list[bytes] = []
        self._taking: Callable[[bytes], bool] | None = None  # takes what comes, while somebody waits for it to stop
        self._unread = 0
        self._room = _MAX_UNREAD_BYTES
        self._began = False
        self._ended = False
        self._error: UpstreamError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open" if self._error is None else type(self._error).__name__
        return f"Response({self.status}, {state}, {self._unread} bytes unread)"

    def __aiter__(self) -> Response:
        return self

    async def __anext__(self) -> bytes:
        """What has arrived since the last piece, as one; waits only when that is nothing."""
        while not self._pieces:
            if self._ended:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            await self._event()
        return self._take()

    async def flow(self, take: Callable[[bytes], bool]) -> bool:
        """See `ports.Flowing`."""
        while not self._pieces or take(self._take()):
            if self._ended:
                return False
            if self._error is not None:
                raise self._error
            self._taking = take
            try:
                await self._event()
                if not self._flows():
                    return True
            finally:
                self._taking = None
        return True

    async def read(self, limit: int) -> bytes:
        """The rest of the body. UpstreamFailed when it is longer than `limit` bytes; the call is then aborted."""
        self._room = limit
        if self._connection is not None:
            self._connection.resume()
        while not self._ended and self._unread <= limit:
            if self._error is not None:
                raise self._error
            await self._event()
        if self._unread > limit:
            self.close()
            raise UpstreamFailed("The provider's answer is too long.", began=True)
        return self._take()

    def close(self) -> None:
        """Let go, at once and without waiting. Before the end of the body this closes the connection."""
        connection = self._connection
        if connection is not None:
            connection.answer = None
            connection.drop()
            self._fail(UpstreamFailed("The answer was closed before its end.", began=self._began))
        self._pieces.clear()
        self._unread = 0

    def _take(self) -> bytes:
        pieces = self._pieces
        if len(pieces) == 1:
            taken = pieces.pop()
        else:
            taken = b"".join(pieces)
            pieces.clear()
        self._unread = 0
        if self._connection is not None:
            self._connection.resume()
        return taken

    def _add(self, piece: bytes) -> None:
        if self._taking is None:
            self._pieces.append(piece)
            self._unread += len(piece)
        elif not self._taking(piece):
            self._taking = None

    def _flows(self) -> bool:
        """Whether what comes is taken as it comes."""
        return self._taking is not None

    def _wants_more(self) -> bool:
        """Whether the rest of a long request is still of use to the upstream."""
        return self._connection is not None and self.status < 400

    def _event(self) -> asyncio.Future[None]:
        """Resolves when something has come or the answer is over."""
        assert self._connection is not None
        self._waiter = self._connection.loop.create_future()
        return self._waiter

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _fail(self, error: UpstreamError) -> None:
        self._error = error
        self._connection = None
        self._wake()


class _Known(Struct, frozen=True, gc=False):
    """How a whole answer began that came in one packet of `size` bytes: the bytes of its head, and what they say."""

    head: bytes
    size: int
    status: int
    headers: Mapping[str, str]


class _Connection(asyncio.Protocol):
    """One connection: what the network says becomes the state of the answer under way, if there is one."""

    __slots__ = (
        "_active",
        "_arrived",
        "_bare",
        "_client",
        "_done",
        "_head_only",
        "_headers",
        "_keep",
        "_parser",
        "_paused",
        "_quiet_since",
        "_served",
        "_started",
        "_upload_open",
        "_write_full",
        "answer",
        "loop",
        "lost",
        "on_body",
        "transport",
    )

    transport: asyncio.Transport

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop) -> None:
        self._client = client
        self.loop = loop
        self.answer: Response | None = None
        self.lost = False
        self._arrived: list[bytes] = []  # pieces of a body, of one packet
        self.on_body = self._arrived.append  # a packet may bring hundreds of chunks
        self._parser = HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._bare = 0  # bytes received since the last piece of body
        self._served = 0
        self._started = self._quiet_since = loop.time()
        self._active = False  # heard from since the last sweep
        self._head_only = self._done = self._keep = self._paused = self._write_full = self._upload_open = False

    def __repr__(self) -> str:
        state = "lost" if self.lost else "idle" if self.answer is None else repr(self.answer)
        return f"_Connection({state}, {self._served} served{', paused' if self._paused else ''})"

    def begin(self, answer: Response, *, head_only: bool) -> None:
        """Expect an answer; the request is written next."""
        self.answer = answer
        self._head_only = head_only
        self._done = self._active = False
        self._bare = 0
        self._started = self._quiet_since = self.loop.time()

    async def upload(self, answer: Response, head: bytes, body: bytes) -> None:
        """Write a long request as fast as the network takes it; stop when the upstream answers that it is of no use."""
        self._upload_open = True
        self.transport.write(head)
        for start in range(0, len(body), _SLICE_BYTES):
            # A closing transport must not be written to; the loop is about to say why it closes.
            while (self._write_full or self.transport.is_closing()) and answer._wants_more():
                await answer._event()
            if not answer._wants_more():
                return
            self.transport.write(body[start : start + _SLICE_BYTES])
        self._upload_open = False

    def resume(self) -> None:
        """Read on: the reader has caught up."""
        if self._paused:
            self._paused = False
            if not self.transport.is_closing():
                self.transport.resume_reading()

    def drop(self) -> None:
        """Close at once. The slot comes back when the loop reports the loss."""
        if not self.lost:
            self.transport.abort()

    def check(self, now: float, limits: Timeouts) -> None:
        """Enforce the limits. Silence while we do not let the upstream speak is not the upstream's. An answer begins
        with its head: who says 100 or 103, however often, has only said that there will be one."""
        answer = self.answer
        if self._active or self._paused:
            self._active = False
            if answer is None or answer.status:
                self._quiet_since = now
        quiet_s = now - self._quiet_since
        if answer is None:
            if quiet_s > _KEEP_S:
                self.drop()
        elif now - self._started > limits.total_s:
            self._give_up(answer, UpstreamTimeout("The provider took too long in all.", began=answer._began))
        elif not answer.status and quiet_s > limits.first_byte_s:
            self._give_up(answer, UpstreamTimeout("The provider did not begin to answer in time.", began=answer._began))
        elif answer.status and quiet_s > limits.idle_s:
            self._give_up(answer, UpstreamTimeout("The provider fell silent in its answer.", began=True))

    def _give_up(self, answer: Response, error: UpstreamError) -> None:
        self.answer = None
        answer._fail(error)
        self.drop()

    def _finish(self, answer: Response, *, keep: bool) -> None:
        self.answer = None
        self._served += 1
        self._active = True  # so that the sweep counts its idle time from now
        self.resume()
        answer._ended = True
        answer._connection = None
        answer._wake()
        if keep and not self._upload_open:
            self._client.pass_on(self)
        else:
            self.drop()

    # What the event loop calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        wire = transport.get_extra_info("socket")
        if wire is not None and wire.family != socket.AF_UNIX:
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        answer = self.answer
        if answer is None:
            self.drop()
            return
        if len(data) == self._client.known.size and self._take_known(answer, data):
            return
        whole = not answer._began
        self._active = answer._began = True
        self._bare += len(data)
        error: HttpParserError | HttpParserUpgrade | None = None
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as raised:
            error = raised
        arrived = self._arrived
        alone = not self._done or _is_its_end(data, arrived, answer.headers)
        if arrived:
            answer._add(arrived[0] if len(arrived) == 1 else b"".join(arrived))
            arrived.clear()
            self._bare = 0
        if self._done:
            keep = self._keep and alone and error is None
            if whole and keep:
                self._know(data, answer)
            self._finish(answer, keep=keep)
        elif error is not None:
            self._give_up(answer, _malformed(error))
        elif self._bare > _MAX_HEAD_BYTES:
            self._give_up(answer, _malformed(_NotAnAnswer(_TOO_MUCH_HEAD)))
        else:
            if answer._unread > answer._room and not self._paused:
                self._paused = True
                self.transport.pause_reading()
            if answer._taking is None:
                answer._wake()

    def _take_known(self, answer: Response, data: bytes) -> bool:
        """Whether this is a whole answer that begins as the last one did, of which only the body need be looked at."""
        known = self._client.known
        if answer._began or self._head_only or not data.startswith(known.head):
            return False
        answer._began = True
        answer.status, answer.headers = known.status, known.headers
        answer._add(data[len(known.head) :])
        self._finish(answer, keep=True)
        return True

    def _know(self, data: bytes, answer: Response) -> None:
        """Remember how an answer began that came in one packet, with nothing in it but a head and a counted body."""
        end = data.find(b"\r\n\r\n") + 4
        if end <= _LARGEST_KNOWN and answer.headers.get("content-length") == str(len(data) - end):
            self._client.known = _Known(data[:end], len(data), answer.status, answer.headers)

    def eof_received(self) -> None:
        # Under TLS, uvloop calls this for a proper farewell only; asyncio's own loop also when the stream was cut.
        answer = self.answer
        if answer is not None and answer.status and not _FRAMED & answer.headers.keys():
            self._finish(answer, keep=False)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._client.forget(self)
        answer, self.answer = self.answer, None
        if answer is None:
            return
        error: UpstreamError
        if answer._began:
            error = UpstreamFailed("The provider's answer broke off.", began=True)
        elif self._served and self.loop.time() - self._started < _STALE_S:
            error = _StaleConnection("The provider closed the connection without an answer.")
        else:
            error = UpstreamUnavailable("The provider closed the connection without an answer.")
        error.__cause__ = exc
        answer._fail(error)

    def pause_writing(self) -> None:
        self._write_full = True

    def resume_writing(self) -> None:
        self._write_full = False
        self._quiet_since = self.loop.time()  # it takes the request: time for its answer begins anew
        if self.answer is not None:
            self.answer._wake()

    # What the parser calls, inside data_received. An exception stops it.

    def on_message_begin(self) -> None:
        if self._done:
            raise _NotAnAnswer("there was more after the end")
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1").rstrip()
        headers = self._headers
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        headers, self._headers = self._headers, {}  # trailers go to the new one, and nowhere
        status = self._parser.get_status_code()
        if status < 200:
            if status < 100 or status == 101 or _FRAMED & headers.keys():
                raise _NotAnAnswer("a status that was not asked for")
            return
        if headers.get("transfer-encoding", "chunked").lower() != "chunked":
            raise _NotAnAnswer("a transfer-encoding that was not asked for")
        if self._bare > _MAX_HEAD_BYTES and sum(map(len, headers)) + sum(map(len, headers.values())) > _MAX_HEAD_BYTES:
            raise _NotAnAnswer(_TOO_MUCH_HEAD)
        answer = self.answer
        assert answer is not None
        answer.headers = headers
        answer.status = status
        if self._head_only:
            self._done = True
            raise _NotAnAnswer("HEAD")  # the parser cannot be told that no body follows; it costs the connection

    def on_message_complete(self) -> None:
        answer = self.answer
        assert answer is not None
        if answer.status:
            self._done = True
            self._keep = self._parser.should_keep_alive()  # the parser knows it only now


class _NotAnAnswer(Exception):
    """The upstream said something that ends the use of its connection."""


class _StaleConnection(UpstreamUnavailable):
    """A kept connection was closed before anything came back on it."""


class _Tunnel(asyncio.Protocol):
    """Asks a proxy for a way to the upstream. `opened` resolves when it is granted, OSError when not."""

    __slots__ = ("_reply", "opened")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.opened: asyncio.Future[None] = loop.create_future()
        self._reply = b""

    def __repr__(self) -> str:
        return f"_Tunnel({'settled' if self.opened.done() else 'asking'})"

    def data_received(self, data: bytes) -> None:
        self._reply += data
        head, end, rest = self._reply.partition(b"\r\n\r\n")
        if self.opened.done() or (not end and len(head) <= _MAX_HEAD_BYTES):
            return
        # The upstream cannot have spoken yet: in TLS the client speaks first.
        if end and not rest and re.match(rb"HTTP/1\.[01] 2\d\d[ \r]", head + b"\r"):
            self.opened.set_result(None)
        else:
            self.opened.set_exception(ConnectionRefusedError("the proxy refused to connect"))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.opened.done():
            self.opened.set_exception(exc or ConnectionResetError("the proxy hung up"))


def _why_unreachable(error: OSError) -> str:
    """Words for the caller: never an address, which may be private."""
    if isinstance(error, TimeoutError):
        return "No connection to the provider within the connect time-out."
    if isinstance(error, ssl.SSLCertVerificationError):
        return "The provider's certificate was not accepted."
    if isinstance(error, ssl.SSLError):
        return "No secure connection to the provider could be agreed on."
    if isinstance(error, socket.gaierror):
        return "The provider's host name could not be resolved."
    return "The provider could not be reached."


def _is_its_end(data: bytes, arrived: list[bytes], headers: Mapping[str, str]) -> bool:
    """Whether the packet in which an answer ends has nothing behind it: line ends there the parser skips in silence."""
    if arrived and "transfer-encoding" not in headers:
        return data.endswith(arrived[-1])
    return len(data) - len(data.rstrip(b"\r\n")) <= _LONGEST_END


def _malformed(error: Exception) -> UpstreamFailed:
    reason = error.__context__ if isinstance(error.__context__, _NotAnAnswer) else error
    failure = UpstreamFailed(f"The provider's answer is not valid HTTP/1.1: {reason}.", began=True)
    failure.__cause__ = error
    return failure
