"""What holds of the upstream client whatever an upstream says, judged by h11, a parser that is not ours. No tests here.

`fuzz` calls `upstream_says` with what a coverage-guided fuzzer finds, `test_http1_fuzz.py` with what Hypothesis draws.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import h11

from penstock.errors import UpstreamError
from penstock.ports import Timeouts
from penstock.providers.http1 import Client
from penstock.providers.origin import Origin
from tests.ports.test_http1_script import Wire, serving, turns

LIMITS = Timeouts(connect_s=2, first_byte_s=2, idle_s=2, total_s=2)
NEXT = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nnext"
PATIENCE_S = 20.0  # both calls are over after 4; the rest is for a machine that stands still


@dataclass(frozen=True)
class Heard:
    """What bytes of an upstream come to: an answer or, with status 0, none. `reusable`: and nothing more was said."""

    status: int = 0
    body: bytes = b""
    reusable: bool = False


async def upstream_says(pieces: list[bytes]) -> Heard:
    """Ask twice on one connection, the first answer coming in these pieces; AssertionError when anything is amiss.

    It ends in an answer or an upstream error, in time. An answer is what h11 reads. The connection is used again only
    if h11 has read all there was; the second caller never gets a word of what was said to the first.
    """
    async with asyncio.timeout(PATIENCE_S):
        heard, second = await _asked_twice(pieces)
    said = read_by_h11(b"".join(pieces))
    if heard.status and said.status:
        assert (heard.status, heard.body) == (said.status, said.body)
    if heard.reusable:
        assert said.reusable or not said.status or b"HTTP/1.0" in pieces[0] + b"".join(pieces)
    assert second in (b"next", None)
    return heard


async def _asked_twice(pieces: list[bytes]) -> tuple[Heard, bytes | None]:
    answered, all_said = asyncio.Event(), asyncio.Event()

    async def script(wire: Wire) -> None:
        if wire.number == 1:
            try:
                await wire.request()
                for piece in pieces:
                    await wire.send(piece)
                    await turns(2)
                await turns(20)
            finally:
                all_said.set()
            if not answered.is_set():
                return  # it may wait for the end of the connection, and here it is
        while True:
            await wire.request()
            await wire.send(NEXT)

    async with serving(script) as server:
        client = Client(Origin(server.url, LIMITS, max_connections=1))
        first = await _ask(client)
        answered.set()
        await all_said.wait()
        await turns(5)
        kept = client.idle_connections == 1
        second = await _ask(client)
        if kept and server.accepted == 1:
            first = Heard(first.status, first.body, reusable=True)
        await client.close()
        assert client.open_connections == client.waiting == 0
    return first, second.body if second.status else None


async def _ask(client: Client) -> Heard:
    try:
        answer = await client.request("POST", "chat/completions", (), b"{}")
        return Heard(answer.status, await answer.read(100_000))
    except UpstreamError:
        return Heard()


def read_by_h11(said: bytes) -> Heard:
    """The answer in these bytes, after which the connection ends."""
    reader = h11.Connection(h11.CLIENT)
    reader.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(said)
    status, body, ended = 0, b"", False
    try:
        while True:
            event = reader.next_event()
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                left = reader.trailing_data[0].strip(b"\r\n")
                return Heard(status, body, reusable=not (ended or left) and reader.their_state is h11.DONE)
            elif event is h11.NEED_DATA and not ended:
                ended = True
                reader.receive_data(b"")
            elif not isinstance(event, h11.InformationalResponse):
                return Heard()
    except h11.RemoteProtocolError:
        return Heard()
