"""The scripted upstream of the torture, a process of its own: `python -m torture.upstream`. It keeps the truth.

It prints its address and serves `POST /<provider>/v1/chat/completions` as the script in each prompt says
(`script.py`). What it has billed for each request it keeps in memory, so it survives the gateways that are killed:
`GET /told/<history>` answers with all `Told` of a history, `DELETE` forgets them. Fast and small like `bench/mock.py`:
one callback a write, no task a request. It checks nothing.
"""

from __future__ import annotations

import asyncio
import fcntl
import re
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable
from functools import partial
from typing import cast

import msgspec
import uvloop
from msgspec import Struct

from torture.script import WORD, Script, Told, prompt_tokens

BACKLOG = 4096
COMMENT_S = 0.1
LOCAL = "127.0.0.1"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
ERROR = {"error": {"message": "The upstream broke.", "type": "server_error", "code": None, "param": None}}

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_encode = msgspec.json.encode


class _Message(Struct):
    content: str


class _Options(Struct):
    include_usage: bool = False


class _Body(Struct):
    model: str
    messages: list[_Message]
    stream: bool = False
    max_tokens: int | None = None
    stream_options: _Options | None = None


_read_body = msgspec.json.Decoder(_Body).decode
_read_script = msgspec.json.Decoder(Script).decode


class Ledger:
    """All that was told, by history."""

    def __init__(self) -> None:
        self._told: dict[str, list[Told]] = {}

    def __repr__(self) -> str:
        return f"Ledger({sum(map(len, self._told.values()))} requests)"

    def keep(self, history: str, told: Told) -> None:
        self._told.setdefault(history, []).append(told)

    def of(self, history: str) -> list[Told]:
        return self._told.get(history, [])

    def forget(self, history: str) -> None:
        self._told.pop(history, None)


class Play:
    """One request, carried out as its script says. `write` puts bytes on the wire, `leave` ends the connection."""

    __slots__ = ("_body", "_connection", "_limit", "_loop", "_script", "_timer", "told")

    def __init__(self, connection: Connection, provider: str, body: _Body, script: Script) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._body = body
        self._script = script
        self._limit = script.tokens if body.max_tokens is None else min(script.tokens, body.max_tokens)
        self._timer: asyncio.Handle | None = None
        self.told = Told(script.marker, provider, body.max_tokens)

    def begin(self) -> None:
        script = self._script
        if status := script.refuse.get(self.told.provider):
            self._whole(status, ERROR)
            self._end("refused")
            return
        if not script.idle:
            self.told.prompt = prompt_tokens(self._body.messages[0].content) + script.extra
        if script.idle and script.then == "mute":
            return
        if self._body.stream:
            self._connection.write(STREAM_HEAD)
        self._later(script.first_ms, self._step if self._body.stream else self._answer)

    def lost(self) -> None:
        """The gateway has gone before the end."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.told.ended:
            self._end("left")

    def _later(self, pause_ms: int, do: Callable[[], None]) -> None:
        if pause_ms:
            self._timer = self._loop.call_later(pause_ms / 1000, do)
        else:
            self._timer = self._loop.call_soon(do)

    def _answer(self) -> None:
        """A plain answer, or what comes in its place."""
        script, told = self._script, self.told
        if script.stop_after == 0:
            self._stop()
            return
        told.tokens, told.events = self._limit, 1
        message = {"role": "assistant", "content": WORD * told.tokens}
        document = self._envelope("chat.completion") | {
            "choices": [{"index": 0, "message": message, "finish_reason": self._finish_reason()}]
        }
        if script.usage != "never":
            document["usage"] = self._usage()
        self._end("finished")
        self._whole(200, document)

    def _step(self) -> None:
        """One write of a stream: some events, or how it ends."""
        if not self._connection.writable:
            self._later(1, self._step)
            return
        script, told, out = self._script, self.told, []
        for _ in range(script.burst):
            if told.events == script.stop_after or told.tokens == self._limit:
                break
            left = self._limit - told.tokens
            count = script.chunk if left >= script.chunk else 1  # an event of two tokens would count as one
            told.tokens += count
            told.events += 1
            out.append(self._event([{"index": 0, "delta": {"content": WORD * count}, "finish_reason": None}]))
        if out:
            self._connection.write(b"".join(out))
        if told.events == script.stop_after:
            self._stop()
        elif told.tokens == self._limit:
            self._finish()
        else:
            self._later(script.gap_ms, self._step)

    def _stop(self) -> None:
        match self._script.then:
            case "comment":
                self._connection.write(_chunk(b": still here\n\n"))
                self._timer = self._loop.call_later(COMMENT_S, self._stop)
            case "error":
                self._end("broke")
                self._connection.write(_chunk(b"data: " + _encode(ERROR) + b"\n\n") + b"0\r\n\r\n")
            case "torn":
                self._end("broke")
                self._connection.write(_chunk(b'data: {"id":"chatcmpl-torn","choices":[{"ind'))
                self._connection.close()
            case "reset" if self._connection.unheard():
                self._later(1, self._stop)
            case "close" | "reset" | "slam" as how:
                self._end("broke")
                self._connection.close() if how == "close" else self._connection.reset()

    def _finish(self) -> None:
        choice = {"index": 0, "delta": {}, "finish_reason": self._finish_reason()}
        out = [self._event([choice])]
        options = self._body.stream_options
        if self._script.usage == "last" and options is not None and options.include_usage:
            out.append(self._event([], usage=self._usage()))
        out.append(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
        self._end("finished")
        self._connection.write(b"".join(out))

    def _event(self, choices: list[dict[str, object]], **more: object) -> bytes:
        if self._script.usage == "every":
            more["usage"] = self._usage()
        document = self._envelope("chat.completion.chunk") | {"choices": choices} | more
        return _chunk(b"data: " + _encode(document) + b"\n\n")

    def _envelope(self, kind: str) -> dict[str, object]:
        return {"id": "chatcmpl-torture", "object": kind, "created": 1_700_000_000, "model": self._body.model}

    def _finish_reason(self) -> str:
        return "stop" if self._limit == self._script.tokens else "length"

    def _usage(self) -> dict[str, int]:
        told = self.told
        told.reported = True
        total = told.prompt + told.tokens
        return {"prompt_tokens": told.prompt, "completion_tokens": told.tokens, "total_tokens": total}

    def _whole(self, status: int, document: object) -> None:
        self._connection.write(_answer(status, _encode(document)))

    def _end(self, how: str) -> None:
        self.told.ended, self.told.ended_s = how, time.time()


class Connection(asyncio.Protocol):
    """One connection. Gateways send one request at a time and wait for its answer."""

    __slots__ = ("_buffer", "_ledger", "_play", "_transport", "writable")

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._buffer = b""
        self._play: Play | None = None
        self.writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._play is not None:
            self._play.lost()

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True

    def data_received(self, data: bytes) -> None:
        self._buffer = buffer = self._buffer + data if self._buffer else data
        while (body_at := buffer.find(b"\r\n\r\n") + 4) > 3:
            length = _LENGTH.search(buffer, 0, body_at)
            end = body_at + (int(length[1]) if length else 0)
            if end > len(buffer):
                return
            method, path = buffer.split(b" ", 2)[:2]
            self._serve(method, path.decode(), buffer[body_at:end])
            self._buffer = buffer = buffer[end:]

    def write(self, data: bytes) -> None:
        self._transport.write(data)

    def unheard(self) -> int:
        """Bytes that were written and are not acknowledged by the other side: a reset would lose them."""
        waiting = bytearray(4)
        fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, waiting)
        return self._transport.get_write_buffer_size() + int.from_bytes(waiting, sys.byteorder)

    def close(self) -> None:
        self._transport.close()

    def reset(self) -> None:
        """Lingering for no time makes the kernel send RST in place of FIN."""
        plug: socket.socket = self._transport.get_extra_info("socket")
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    def _serve(self, method: bytes, path: str, body: bytes) -> None:
        first, _, rest = path[1:].partition("/")
        if first == "told":
            self.write(_answer(200, _encode(self._ledger.of(rest))))
            if method == b"DELETE":
                self._ledger.forget(rest)
            return
        read = _read_body(body)
        script = _read_script(read.messages[0].content)
        self._play = play = Play(self, first, read, script)
        self._ledger.keep(script.history, play.told)
        play.begin()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _answer(status: int, body: bytes) -> bytes:
    head = b"HTTP/1.1 %d Scripted\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % (status, len(body)) + body


async def serve() -> None:
    """Serve until SIGTERM or SIGINT, on a free port; the address is printed as one line."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Connection, Ledger()), LOCAL, 0, backlog=BACKLOG)
    print(f"http://{LOCAL}:{server.sockets[0].getsockname()[1]}", flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve())
