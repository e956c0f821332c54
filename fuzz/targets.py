"""What is fuzzed: for each target a property that takes bytes, and the inputs it starts from.

A property says nothing when it holds and raises when it does not; it is the one that tests use. Cutting into pieces is
drawn from the first three bytes of an input, so that the rest of it is what is said.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import uvloop

from tests import properties
from tests.ports import test_http1_fuzz
from tests.ports.http1_property import upstream_says
from tests.rules.test_hostile_credentials import FORGED, no_credential
from tests.stories.gateway import running, settings_for
from tests.stories.shapes import HIDDEN, REFUSED, TAKEN
from tests.stories.wire_property import wire_says

ROOT = Path(__file__).resolve().parents[1]
CUTS = 3
Check = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """`open` makes the check, which may need a loop or a server; `seeds` are inputs to start from."""

    open: Callable[[], Check]
    seeds: Callable[[], Iterator[bytes]]


def cut(said: bytes) -> list[bytes]:
    """The pieces of what follows the first bytes, which say where it is cut."""
    marks, rest = said[:CUTS], said[CUTS:]
    places = sorted({0, len(rest), *(mark * len(rest) // 256 for mark in marks)})
    return [rest[start:end] for start, end in pairwise(places)]


def plainly(check: Check) -> Callable[[], Check]:
    return lambda: check


def in_loop(ask: Callable[[list[bytes]], Coroutine[Any, Any, object]]) -> Callable[[], Check]:
    """A check that runs on an event loop of its own."""

    def open_loop() -> Check:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        return lambda said: runner.run(ask(cut(said)))

    return open_loop


class AtGateway:
    """A check that speaks to a gateway, which serves as long as this lives."""

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        self._open = AsyncExitStack()
        self._gateway = self._runner.run(self._open.enter_async_context(running(settings_for(_database()))))

    def __call__(self, said: bytes) -> None:
        self._runner.run(wire_says(self._gateway.port, cut(said)))
        self._gateway.log.seek(0)
        self._gateway.log.truncate()


def _database() -> str:
    return f"sqlite:///{tempfile.mkdtemp(prefix='penstock-fuzz-')}/penstock.db"


def _chats() -> Iterator[bytes]:
    message = b'"messages":[{"role":"user","content":"Hi"}]'
    image = b'[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,A"}}]}]'
    yield b'{"model":"m",%b}' % message
    yield b'{"model":"m",%b,"stream":true,"stream_options":{"include_usage":true},"n":2,"max_tokens":7}' % message
    yield b'{"mod\\u0065l":"m","max_completion_tokens":7,"max_tokens":7,"messages":%b,"tools":[]}' % image
    yield b'{"model":"m",%b,"Max_Tokens":7,"n_predict":-1,"x":[1e9,null,"\\ud83e\\udd99"]}' % message


def _embeddings() -> Iterator[bytes]:
    for given in (b'"a"', b'["a","b"]', b"[1,2]", b"[[1],[2,3]]"):
        yield b'{"model":"m","input":%b,"dimensions":8}' % given


def _answers() -> Iterator[bytes]:
    choice = b'"choices":[{"index":0,"message":{"content":"Hi","reasoning":"x"},"finish_reason":"stop"}]'
    yield (
        b'{"id":"chatcmpl-1","model":"m",%b,"usage":{"prompt_tokens":5,"completion_tokens":2,"total_tokens":7}}'
        % choice
    )
    yield b'{"error":{"message":"no"},"choices":[]}'
    yield b'{"object":"error","message":"no"}'


def _streams() -> Iterator[bytes]:
    begin = b'data: {"id":"c","model":"up","choices":[{"index":0,"delta":{'
    yield (
        b"\x00\x40\x80"
        + begin
        + b'"content":"Hi"}}]}\n\n'
        + begin
        + b'"tool_calls":[{"function":{"name":"f"}}]}}]}\n\n'
    )
    yield b"\x10\x20\x30" + begin + b'},"finish_reason":"stop"}],"usage":{"prompt_tokens":5}}\r\n\r\ndata: [DONE]\n\n'
    yield b'\x00\x00\x00: comment\n\nevent: error\ndata: {"error":{"message":"no"}}\n\n'
    yield b'\x80\x80\x80\xef\xbb\xbfdata: {"choices":\rdata: []}\r\r'


def _upstreams() -> Iterator[bytes]:
    for said in (*test_http1_fuzz.VALID, *test_http1_fuzz.ODD):
        yield b"\x20\x80\xf0" + said


def _wires() -> Iterator[bytes]:
    for shape in (*REFUSED.values(), *TAKEN.values()):
        yield b"\x00\x80\xff" + shape.replace(b"%(key)s", b"nobody") + HIDDEN
    yield b"\x00\x10\x20GET /v1/usage?limit=5&model=%00 HTTP/1.1\r\nHost: a\r\n\r\n"


def _credentials() -> Iterator[bytes]:
    yield from (f"Bearer {token}".encode("latin-1") for token in FORGED.values())
    yield b"bearer user.0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ0abcdef"


def _configurations() -> Iterator[bytes]:
    yield from (path.read_bytes() for path in sorted((ROOT / "examples").glob("*.toml")))


TARGETS: dict[str, Target] = {
    "chat_request": Target(plainly(properties.chat_request), _chats),
    "embeddings_request": Target(plainly(properties.embeddings_request), _embeddings),
    "plain_answer": Target(plainly(properties.plain_answer), _answers),
    "stream": Target(plainly(lambda said: properties.stream(cut(said))), _streams),
    "upstream": Target(in_loop(upstream_says), _upstreams),
    "wire": Target(AtGateway, _wires),
    "credential": Target(plainly(no_credential), _credentials),
    "configuration": Target(plainly(properties.configuration), _configurations),
}
