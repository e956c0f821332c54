"""A mock upstream that is never the limit: canned OpenAI-shaped answers over HTTP/1.1, on uvloop.

    python -m bench.mock --port 9000 --tls key-and-certificate.pem

The request's body chooses the answer. Without `"stream":true` it is a `chat.completion` of 645 bytes with usage. With
it, a stream of 62 events (role, 58 tokens, finish, usage, terminator): all at once, or with a model name that contains
`paced-5ms` one event each 5 ms, and then every chunk but the terminator carries `sent_ns`, the monotonic clock when it
was written, by which `bench/load.py` measures delays: in its text, so that it looks like any other, or else as a field.
It checks nothing, and no test relies on it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import socket
import ssl
import time
from typing import cast

import uvloop

EVENTS = 62
PLAIN_BYTES = 645
PROMPT_TOKENS, COMPLETION_TOKENS = 19, EVENTS - 4

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_STREAM = re.compile(rb'"stream" *: *true')
_PACED = re.compile(rb"paced-(\d+)ms")
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
_USAGE = {
    "prompt_tokens": PROMPT_TOKENS,
    "completion_tokens": COMPLETION_TOKENS,
    "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS,
}


def _plain() -> bytes:
    """The whole answer. Its text is as long as makes the body 645 bytes."""
    message = {"role": "assistant", "content": ""}
    document = {
        "id": "chatcmpl-mock",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "mock",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": _USAGE,
    }
    room = PLAIN_BYTES - len(json.dumps(document, separators=(",", ":")))
    message["content"] = ("Tokens that were paid for ahead. " * 20)[:room]
    body = json.dumps(document, separators=(",", ":")).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)


def _events() -> list[bytes]:
    """The data of the events, without the terminator; each is an object that ends in a brace of its own."""

    def chunk(choices: list[dict[str, object]], **more: object) -> bytes:
        head = {"id": "chatcmpl-mock", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "mock"}
        return json.dumps(head | {"choices": choices} | more, separators=(",", ":")).encode()

    deltas: list[dict[str, object]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": " token"}] * COMPLETION_TOKENS
    chunks = [chunk([{"index": 0, "delta": delta, "finish_reason": None}]) for delta in deltas]
    chunks.append(chunk([{"index": 0, "delta": {}, "finish_reason": "stop"}]))
    chunks.append(chunk([], usage=_USAGE))
    return chunks


def _framed(data: bytes) -> bytes:
    event = b"data: %s\n\n" % data
    return b"%x\r\n%s\r\n" % (len(event), event)


class Answers:
    """What is sent, made once."""

    def __init__(self) -> None:
        self.plain = _plain()
        self.events = _events()
        self.stamped = [_before_and_after_stamp(event) for event in self.events]
        self.end = _framed(b"[DONE]") + b"0\r\n\r\n"
        self.burst = _STREAM_HEAD + b"".join(map(_framed, self.events)) + self.end


def _before_and_after_stamp(event: bytes) -> tuple[bytes, bytes]:
    before, text, after = event.partition(b'" token')
    return (before + text + b" sent_ns=", after) if text else (event[:-1] + b',"sent_ns":', b"}")


class _Connection(asyncio.Protocol):
    """Answers requests in order, also when several arrive in one piece."""

    __slots__ = ("_answers", "_loop", "_pending", "_transport")

    def __init__(self, answers: Answers, loop: asyncio.AbstractEventLoop) -> None:
        self._answers = answers
        self._loop = loop
        self._pending = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        data = self._pending + data if self._pending else data
        replies = []
        start = 0
        while (body_start := data.find(b"\r\n\r\n", start) + 4) > 3:
            length = _LENGTH.search(data, start, body_start)
            end = body_start + (int(length[1]) if length else 0)
            if end > len(data):
                break
            replies.append(self._reply(data, body_start, end))
            start = end
        self._pending = data[start:]
        if replies:
            self._transport.write(b"".join(replies))

    def _reply(self, data: bytes, start: int, end: int) -> bytes:
        if _STREAM.search(data, start, end) is None:
            return self._answers.plain
        paced = _PACED.search(data, start, end)
        if paced is None:
            return self._answers.burst
        self._loop.call_soon(self._pace, 0, self._loop.time(), int(paced[1]) / 1000)
        return _STREAM_HEAD

    def _pace(self, number: int, began: float, interval_s: float) -> None:
        """Write event `number` and plan the next for its own time, so that lateness does not add up."""
        if self._transport.is_closing():
            return
        events = self._answers.stamped
        if number == len(events):
            self._transport.write(self._answers.end)
            return
        before, after = events[number]
        self._transport.write(_framed(b"%b%d%b" % (before, time.monotonic_ns(), after)))
        due = began + (number + 1) * interval_s
        self._loop.call_at(due, self._pace, number + 1, began, interval_s)


async def serve(*, port: int, host: str = "127.0.0.1", tls: str | None = None) -> None:
    """Serve until SIGTERM or SIGINT. Port 0 takes a free one; the addresses, TLS last, are printed as one line."""
    loop = asyncio.get_running_loop()
    answers = Answers()
    wanted: list[tuple[str, int, ssl.SSLContext | None]] = [("http", port, None)]
    if tls:
        wanted.append(("https", 0, _context(tls)))
    addresses = []
    servers = []
    for scheme, number, context in wanted:
        server = await loop.create_server(lambda: _Connection(answers, loop), host, number, backlog=2048, ssl=context)
        servers.append(server)
        addresses.append(f"{scheme}://{host}:{server.sockets[0].getsockname()[1]}/v1")
    print(*addresses, flush=True)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    await stopped.wait()
    for server in servers:
        server.close()


def _context(chain: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    context.set_alpn_protocols(["http/1.1"])
    return context


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.mock", description="A mock upstream that is never the limit.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--tls", metavar="FILE", help="key and certificate (PEM) to speak TLS with, on a second port")
    arguments = parser.parse_args()
    uvloop.run(serve(port=arguments.port, host=arguments.host, tls=arguments.tls))


if __name__ == "__main__":
    main()
