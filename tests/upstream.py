"""An OpenAI-shaped upstream that does what a test tells it, over real sockets on loopback, and keeps its own truth.

    async with ScriptedUpstream() as upstream:
        held = Stream(tokens=100, hold_after=5)
        upstream.script(held, Refusal(429))       # one script a request, in order; then `upstream.usual`
        ...                                       # call upstream.base_url
        received = await upstream.arrival(1)      # the first request, once it is here
        await received.events.reach(5)            # five events are on the wire, and no sixth
        held.resume.set()
        await received.over.wait()                # ended: `received.finished`, or `received.aborted_at` says when
        assert received.tokens_produced == 100

Waiting is for things that happen, never for time to pass. It replaces nothing of Penstock's own.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self, cast

import httptools

Headers = Sequence[tuple[str, str]]

_WORDS = ("Paid", " ahead", ",", " counted", " along", ",", " settled", " at", " the", " end", ".", " ")


class Tally:
    """A number that only grows and can be waited for."""

    def __init__(self) -> None:
        self.value = 0
        self._waiting: list[tuple[int, asyncio.Event]] = []

    def __repr__(self) -> str:
        return f"Tally({self.value})"

    def grow(self) -> None:
        self.value += 1
        for number, reached in self._waiting:
            if number <= self.value:
                reached.set()

    async def reach(self, number: int) -> None:
        if self.value < number:
            reached = asyncio.Event()
            self._waiting.append((number, reached))
            await reached.wait()


class Received:
    """One request as it came, and what became of it. Instants are `time.perf_counter()` seconds.

    `events` counts what was put on the wire (a plain answer is one), `tokens_produced` is what this upstream would
    bill. `over` is set when the exchange has ended in any way; it `finished` when its script came to its end.
    """

    def __init__(self, number: int, method: str, path: str, headers: dict[str, str], body: bytes) -> None:
        self.number = number
        self.method = method
        self.path = path
        self.headers = headers
        self.body = body
        self.at = time.perf_counter()
        self.events = Tally()
        self.prompt_tokens = 0
        self.tokens_produced = 0
        self.finished = False
        self.aborted_at: float | None = None
        self.over = asyncio.Event()

    def __repr__(self) -> str:
        state = "finished" if self.finished else "open" if self.aborted_at is None else "aborted"
        return f"Received({self.number}, {self.method} {self.path}, {self.events.value} events, {state})"

    @property
    def json(self) -> Any:
        """The body as JSON; an empty object when there is none."""
        return json.loads(self.body) if self.body else {}

    @property
    def usage(self) -> dict[str, int]:
        """The truth: what this upstream has counted for the request so far."""
        total = self.prompt_tokens + self.tokens_produced
        counts = (self.prompt_tokens, self.tokens_produced, total)
        return dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), counts, strict=True))

    def limited(self, tokens: int) -> int:
        """`tokens`, or the request's own output limit when that is less."""
        limits = (self.json.get("max_tokens"), self.json.get("max_completion_tokens"))
        return min([tokens, *(limit for limit in limits if isinstance(limit, int))])


class Script(Protocol):
    """What to do with one request. `play` is cancelled when the caller goes away."""

    async def play(self, exchange: Exchange) -> None: ...


@dataclass(frozen=True)
class Usual:
    """What a healthy upstream does, by path and body: chat plain or streamed, embeddings, models, else 404."""

    tokens: int = 5
    prompt_tokens: int = 7

    async def play(self, exchange: Exchange) -> None:
        await self._script_for(exchange.received).play(exchange)

    def _script_for(self, received: Received) -> Script:
        match received.method, received.path.rpartition("/v1/")[2]:
            case "POST", "chat/completions":
                kind = Stream if received.json.get("stream") else Plain
                return kind(tokens=self.tokens, prompt_tokens=self.prompt_tokens)
            case "POST", "embeddings":
                return Embeddings(prompt_tokens=self.prompt_tokens)
            case "GET", "models":
                return Raw(json.dumps({"object": "list", "data": [{"id": "scripted", "object": "model"}]}).encode())
        return Refusal(404, "There is nothing here.", type="not_found")


@dataclass(frozen=True)
class Plain:
    """A `chat.completion` of `tokens` words, or of `text`, and never more words than the request allows.

    `usage` is the truth, absent (None) or a lie (a dictionary); `extra` adds top-level fields. With `hold` nothing is
    sent before `resume` is set.
    """

    tokens: int = 5
    prompt_tokens: int = 7
    text: str | None = None
    usage: Literal["true"] | dict[str, Any] | None = "true"
    extra: dict[str, Any] = field(default_factory=dict)
    headers: Headers = ()
    hold: bool = False
    resume: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, exchange: Exchange) -> None:
        received = exchange.received
        received.prompt_tokens = self.prompt_tokens
        received.tokens_produced = received.limited(self.tokens)
        if self.hold:
            await self.resume.wait()
        content = words(0, received.tokens_produced) if self.text is None else self.text
        message = {"role": "assistant", "content": content}
        choice = {"index": 0, "message": message, "finish_reason": _finish_reason(received, self.tokens)}
        document = _envelope(received, "chat.completion") | {"choices": [choice]}
        if self.usage is not None:
            document["usage"] = received.usage if self.usage == "true" else self.usage
        await exchange.document(document | self.extra, headers=self.headers)


@dataclass(frozen=True)
class Stream:
    """A stream of `tokens` words, `tokens_per_event` in each event, and never more than the request allows.

    After `hold_after` events of words it waits for `resume`. After `break_after` events it breaks off: by RST, or in
    good order but without an end when `breaks` is `close`. `usage` comes when `asked` for, `always` (both in a chunk of
    its own), `last` (on the chunk with the finish reason), `every` (on each chunk, as it grows) or `never`. `gap_s`
    paces the words. `error` is sent as an event in place of the finish; without `done` there is no `[DONE]`.
    """

    tokens: int = 10
    tokens_per_event: int = 1
    prompt_tokens: int = 7
    usage: Literal["asked", "always", "last", "every", "never"] = "asked"
    hold_after: int | None = None
    break_after: int | None = None
    breaks: Literal["reset", "close"] = "reset"
    gap_s: float = 0.0
    error: dict[str, Any] | None = None
    done: bool = True
    headers: Headers = ()
    resume: asyncio.Event = field(default_factory=asyncio.Event)

    async def play(self, exchange: Exchange) -> None:
        received = exchange.received
        received.prompt_tokens = self.prompt_tokens
        await exchange.stream_head(self.headers)
        limit = received.limited(self.tokens)
        while not await self._interrupted(exchange):
            if received.tokens_produced == limit:
                await self._finish(exchange)
                return
            await asyncio.sleep(self.gap_s)
            count = min(self.tokens_per_event, limit - received.tokens_produced)
            delta = {"content": words(received.tokens_produced, count)}
            if received.tokens_produced == 0:
                delta["role"] = "assistant"
            received.tokens_produced += count
            await exchange.event(self._chunk(received, delta))

    async def _interrupted(self, exchange: Exchange) -> bool:
        """Hold here or break here, if the script says so; whether it broke."""
        written = exchange.received.events.value
        if written == self.hold_after:
            await self.resume.wait()
        if written == self.break_after:
            await exchange.break_off(self.breaks)
            return True
        return False

    async def _finish(self, exchange: Exchange) -> None:
        received = exchange.received
        if self.error is not None:
            await exchange.event(_sse({"error": self.error}))
        else:
            await exchange.event(self._chunk(received, {}, _finish_reason(received, self.tokens)))
        asked = (received.json.get("stream_options") or {}).get("include_usage")
        if self.error is None and (self.usage == "always" or (self.usage == "asked" and asked)):
            document = _envelope(received, "chat.completion.chunk") | {"choices": [], "usage": received.usage}
            await exchange.event(_sse(document))
        if self.done:
            await exchange.event(b"data: [DONE]\n\n")
        await exchange.end()

    def _chunk(self, received: Received, delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
        document = _envelope(received, "chat.completion.chunk") | {"choices": [choice]}
        if self.usage == "every" or (self.usage == "last" and finish_reason):
            document["usage"] = received.usage
        return _sse(document)


@dataclass(frozen=True)
class Embeddings:
    """One vector for each input."""

    dimensions: int = 4
    prompt_tokens: int = 7

    async def play(self, exchange: Exchange) -> None:
        received = exchange.received
        received.prompt_tokens = self.prompt_tokens
        given = received.json.get("input")
        vector = [1.0] + [0.0] * (self.dimensions - 1)
        count = len(given) if isinstance(given, list) else 1
        data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(count)]
        usage = {"prompt_tokens": self.prompt_tokens, "total_tokens": self.prompt_tokens}
        document = {"object": "list", "data": data, "model": received.json.get("model"), "usage": usage}
        await exchange.document(document)


@dataclass(frozen=True)
class Refusal:
    """An error status with an OpenAI-shaped body."""

    status: int
    message: str = "The upstream will not."
    type: str = "upstream_says_no"
    code: str | None = None
    headers: Headers = ()
    param: str | None = None

    async def play(self, exchange: Exchange) -> None:
        error = {"message": self.message, "type": self.type, "code": self.code, "param": self.param}
        await exchange.document({"error": error}, status=self.status, headers=self.headers)


@dataclass(frozen=True)
class Raw:
    """Any body under any status and content type: garbage, a web page, something huge."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Headers = ()

    async def play(self, exchange: Exchange) -> None:
        headers = [("content-type", self.content_type), *self.headers]
        await exchange.whole(self.body, status=self.status, headers=headers)


@dataclass(frozen=True)
class Wire:
    """Bytes as they are, with no HTTP added; then the connection is closed, reset, or left silent."""

    data: bytes
    then: Literal["close", "reset", "silence"] = "close"

    async def play(self, exchange: Exchange) -> None:
        await exchange.write(self.data)
        if self.then == "silence":
            await asyncio.Event().wait()
        else:
            await exchange.break_off(self.then)


@dataclass(frozen=True)
class Hang:
    """Take the request and never answer."""

    async def play(self, exchange: Exchange) -> None:
        await asyncio.Event().wait()


class ScriptedUpstream:
    """The server. Scripts are used in order, one a request; when none is left, `usual` answers.

    An exception in a script is raised when the `async with` block is left, so that it cannot hide.
    """

    def __init__(self, usual: Script | None = None) -> None:
        self.usual: Script = usual or Usual()
        self.requests: list[Received] = []
        self.connections_made = 0
        self._scripts: deque[Script] = deque()
        self._arrivals = Tally()
        self._open: set[_Connection] = set()
        self._failures: list[BaseException] = []

    def __repr__(self) -> str:
        return f"ScriptedUpstream({self.base_url}, {len(self.requests)} requests, {len(self._scripts)} scripts left)"

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Connection(self), "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *problem: object) -> None:
        self._server.close()
        for connection in list(self._open):
            connection.drop()
            await connection.lost.wait()
        for received in self.requests:
            await received.over.wait()
        if self._failures and problem[0] is None:
            raise self._failures[0]

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def open_connections(self) -> int:
        return len(self._open)

    @property
    def tokens_produced(self) -> int:
        """Of all requests together."""
        return sum(received.tokens_produced for received in self.requests)

    def script(self, *scripts: Script) -> None:
        """Answer the next requests so."""
        self._scripts.extend(scripts)

    async def arrival(self, number: int) -> Received:
        """Request `number`, counted from 1, once it has come in full."""
        await self._arrivals.reach(number)
        return self.requests[number - 1]

    def connected(self, connection: _Connection) -> None:
        self.connections_made += 1
        self._open.add(connection)

    def disconnected(self, connection: _Connection) -> None:
        self._open.discard(connection)

    def arrived(self, received: Received) -> Script:
        """Record a request; the script that answers it."""
        self.requests.append(received)
        self._arrivals.grow()
        return self._scripts.popleft() if self._scripts else self.usual

    def failed(self, failure: BaseException) -> None:
        self._failures.append(failure)


class Exchange:
    """What a script writes with: this server's end of one request."""

    def __init__(self, connection: _Connection, received: Received) -> None:
        self.received = received
        self._connection = connection

    async def document(self, document: dict[str, Any], *, status: int = 200, headers: Headers = ()) -> None:
        """A whole JSON answer."""
        headers = [("content-type", "application/json"), *headers]
        await self.whole(json.dumps(document).encode(), status=status, headers=headers)

    async def whole(self, body: bytes, *, status: int, headers: Headers) -> None:
        """A whole answer of known length; it counts as one event."""
        await self.write(_head(status, [*headers, ("content-length", str(len(body)))]) + body)
        self.received.events.grow()

    async def stream_head(self, headers: Headers) -> None:
        framing = [("content-type", "text/event-stream"), ("transfer-encoding", "chunked")]
        await self.write(_head(200, [*framing, *headers]))

    async def event(self, event: bytes) -> None:
        """One event, as a chunk and a write of its own."""
        await self.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.received.events.grow()

    async def end(self) -> None:
        await self.write(b"0\r\n\r\n")

    async def write(self, data: bytes) -> None:
        await self._connection.write(data)

    async def break_off(self, how: Literal["reset", "close"]) -> None:
        """End the connection here: RST, or in good order. Returns when it is gone."""
        self._connection.break_off(how)
        await self._connection.lost.wait()


class _Connection(asyncio.Protocol):
    """One connection: parses requests, plays a script for each in turn, notices when the caller goes away."""

    def __init__(self, upstream: ScriptedUpstream) -> None:
        self.lost = asyncio.Event()
        self._upstream = upstream
        self._parser = httptools.HttpRequestParser(self)
        self._writable = asyncio.Event()
        self._playing: asyncio.Task[None] | None = None
        self._received: Received | None = None
        self._breaking = False
        self._url, self._headers, self._body = b"", dict[str, str](), bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._writable.set()
        self._upstream.connected(self)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as failure:
            self._upstream.failed(failure)
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._upstream.disconnected(self)
        self._writable.set()
        self.lost.set()
        if self._received is not None and not self._breaking:
            self._received.aborted_at = time.perf_counter()
        if self._playing is not None and not self._breaking:
            self._playing.cancel()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def write(self, data: bytes) -> None:
        self._transport.write(data)
        await self._writable.wait()

    def drop(self) -> None:
        self._transport.abort()

    def break_off(self, how: Literal["reset", "close"]) -> None:
        self._breaking = True
        if how == "close":
            self._transport.close()
            return
        # Lingering for no time makes the kernel send RST in place of FIN, and drop what was not yet sent.
        plug: socket.socket = self._transport.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    # Called by the parser.

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        number, method = len(self._upstream.requests) + 1, self._parser.get_method().decode()
        received = Received(number, method, self._url.decode(), self._headers, bytes(self._body))
        self._url, self._headers, self._body = b"", {}, bytearray()
        self._received = received
        script = self._upstream.arrived(received)
        self._playing = asyncio.create_task(self._play(script, received, keep=self._parser.should_keep_alive()))
        self._playing.add_done_callback(lambda _: received.over.set())  # also when cancelled before its first step

    async def _play(self, script: Script, received: Received, *, keep: bool) -> None:
        try:
            await script.play(Exchange(self, received))
            received.finished = True
        except Exception as failure:
            self._upstream.failed(failure)
            self._transport.abort()
        finally:
            self._received = None
        if not keep:
            self._transport.close()


def _head(status: int, headers: Headers) -> bytes:
    lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def _envelope(received: Received, kind: str) -> dict[str, Any]:
    model = received.json.get("model")
    return {"id": f"chatcmpl-{received.number}", "object": kind, "created": 1_700_000_000, "model": model}


def _finish_reason(received: Received, wanted: int) -> str:
    return "stop" if received.tokens_produced == wanted else "length"


def words(start: int, count: int) -> str:
    return "".join(_WORDS[place % len(_WORDS)] for place in range(start, start + count))


def _sse(document: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"
