"""A caller as cheap as it gets: one connection on a protocol of its own, and what it heard of each answer.

It follows the framing of the answer whatever that is, counts tokens, and can leave at a chosen event or moment, with or
without a reset. `Heard` is the caller's side of the truth; it judges nothing.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Self, cast

import httptools
import msgspec
from msgspec import Struct

from torture.script import WORD

HUNG = "hung"
AGAIN_S = 0.05  # before a call is made again
DONE = b"data: [DONE]"


class Heard(Struct):
    """What a caller heard of one answer.

    `whole`: it ended as answers do, a plain one with its last byte, a stream with its terminator. `error` is the code
    in a refusal or in an error event, or HUNG; `message` its words. `finish` is the reason of the last choice, `reason`
    the gateway's own. `left` says that the caller hung up.
    """

    request: str = ""
    status: int = 0
    tokens: int = 0
    events: int = 0
    whole: bool = False
    finish: str = ""
    error: str = ""
    message: str = ""
    reason: str = ""
    replayed: bool = False
    left: bool = False
    before: int = 0  # how often the ledger had had no time for the call
    ended_s: float = 0.0

    @property
    def answered(self) -> bool:
        """A whole answer that is no error."""
        return self.whole and self.status == 200 and not self.error

    @property
    def put_off(self) -> bool:
        """Refused because the ledger could not be asked in time: nothing was charged, and asking again may help."""
        return self.status == 503 and self.error == "store_unavailable"

    @property
    def held(self) -> bool:
        """Refused because other calls hold the money: to be asked again."""
        return self.status == 402 and "hold" in self.message


@dataclass(frozen=True, slots=True)
class Leave:
    """When a caller hangs up: after so many events, or so many seconds after asking; `reset` drops what is unread."""

    events: int | None = None
    after_s: float | None = None
    reset: bool = True


class _Text(Struct):
    content: str | None = None


class _Choice(Struct):
    delta: _Text | None = None
    message: _Text | None = None
    finish_reason: str | None = None


class _Error(Struct):
    message: str = ""
    code: str | None = None


class _Reason(Struct):
    reason: str = ""


class _Document(Struct):
    choices: list[_Choice] = []
    error: _Error | None = None
    penstock: _Reason | None = None


_read = msgspec.json.Decoder(_Document).decode


class Caller(asyncio.Protocol):
    """One connection; the calls on it come one after the other.

    caller = await Caller.to("http://127.0.0.1:8420")
    heard = await caller.ask(request, patience_s=30)
    caller.close()
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._parser: Any = None
        self._heard = Heard()
        self._over: asyncio.Future[None] | None = None
        self._leave = Leave()
        self._streamed = False
        self._text = b""
        self.lost = False

    @classmethod
    async def to(cls, url: str) -> Self:
        """A connection to a gateway. OSError."""
        host, _, port = url.removeprefix("http://").partition(":")
        _, caller = await asyncio.get_running_loop().create_connection(cls, host, int(port))
        return caller

    async def ask(self, request: bytes, *, patience_s: float, leave: Leave | None = None) -> Heard:
        """Send a request; what was heard of its answer, at its end, at the connection's, or when the caller left."""
        self._heard, self._leave, self._text, self._streamed = Heard(), leave or Leave(), b"", False
        self._parser = httptools.HttpResponseParser(self)
        self._over = self._loop.create_future()
        heard = self._heard
        if self.lost:
            return heard
        self._transport.write(request)
        timer = None if self._leave.after_s is None else self._loop.call_later(self._leave.after_s, self._go)
        try:
            async with asyncio.timeout(patience_s):
                await self._over
        except TimeoutError:
            heard.error = HUNG
            self.close()
        finally:
            if timer is not None:
                timer.cancel()
        heard.ended_s = time.time()
        return heard

    def close(self) -> None:
        self._transport.abort()

    # Called by the loop and by the parser.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        self._end()

    def data_received(self, data: bytes) -> None:
        if self._parser is not None and not self._heard.left:
            self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        match name.lower():
            case b"x-request-id":
                self._heard.request = value.decode()
            case b"idempotent-replayed":
                self._heard.replayed = True
            case b"content-type":
                self._streamed = value.startswith(b"text/event-stream")

    def on_headers_complete(self) -> None:
        self._heard.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._text += body
        if self._streamed:
            *events, self._text = self._text.split(b"\n\n")
            for event in events:
                self._event(event)
            if self._leave.events is not None and self._heard.events >= self._leave.events:
                self._go()

    def on_message_complete(self) -> None:
        if not self._streamed:
            self._heard.whole = True
            self._document(self._text)
        self._end()

    def _event(self, event: bytes) -> None:
        if event.startswith(DONE):
            self._heard.whole = True
        elif event.startswith(b"data:"):
            self._document(event[len(b"data:") :])

    def _document(self, text: bytes) -> None:
        heard, document = self._heard, _read(text)
        for choice in document.choices:
            said = choice.delta or choice.message
            if said is not None and said.content:
                heard.tokens += len(said.content) // len(WORD)
                heard.events += 1
            heard.finish = choice.finish_reason or heard.finish
        if document.error is not None:
            heard.error, heard.message = document.error.code or "error", document.error.message
        if document.penstock is not None:
            heard.reason = document.penstock.reason

    def _go(self) -> None:
        """Hang up."""
        if self._over is not None and not self._over.done():
            self._heard.left = True
            self._transport.abort() if self._leave.reset else self._transport.close()
            self._end()

    def _end(self) -> None:
        if self._over is not None and not self._over.done():
            self._over.set_result(None)


async def call(url: str, request: bytes, *, patience_s: float, leave: Leave | None = None) -> Heard:
    """One call on a connection of its own; nothing heard when there is nobody at `url`."""
    try:
        caller = await Caller.to(url)
    except OSError:
        return Heard()
    try:
        return await caller.ask(request, patience_s=patience_s, leave=leave)
    finally:
        caller.close()


async def insist(url: str, request: bytes, *, patience_s: float, leave: Leave | None = None) -> Heard:
    """A call that is made again while the ledger is too busy to decide on it, as the documents advise."""
    until_s, before = time.monotonic() + patience_s, 0
    while True:
        heard = await call(url, request, patience_s=patience_s, leave=leave)
        heard.before = before
        if not heard.put_off or time.monotonic() > until_s:
            return heard
        before += 1
        await asyncio.sleep(AGAIN_S)


def request(path: str, key: str, body: bytes, *, once: str | None = None) -> bytes:
    """The bytes of a call at `path` with a key; `once` is its idempotency key."""
    lines = [f"POST {path}/chat/completions HTTP/1.1", "host: gateway", f"authorization: Bearer {key}"]
    if once is not None:
        lines.append(f"idempotency-key: {once}")
    lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
