"""Whatever an upstream says, the client hands over an answer or raises an upstream error, and does not hang."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UpstreamError
from penstock.ports import Timeouts
from penstock.providers.http1 import Client, Origin
from tests.ports.test_http1_script import OK, STREAM, Wire, serving, turns

VALID = [
    OK,
    STREAM + b"5\r\ndata:\r\n3;a=b\r\n hi\r\n0\r\nx-sum: 1\r\n\r\n",
    b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + OK,
    b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end",
    b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
]
LIMITS = Timeouts(connect_s=2, first_byte_s=2, idle_s=2, total_s=2)

mutations = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from("=+-"), st.binary(max_size=4)), max_size=4
)
cuts = st.lists(st.integers(1, 40), max_size=5)


def mutated(raw: bytes, changes: list[tuple[float, str, bytes]]) -> bytes:
    for place, change, data in changes:
        at = int(place * len(raw))
        after = at if change == "+" else at + max(len(data), 1)
        raw = raw[:at] + (b"" if change == "-" else data) + raw[after:]
    return raw


def pieces(raw: bytes, lengths: list[int]) -> list[bytes]:
    cut = []
    for length in lengths:
        cut.append(raw[:length])
        raw = raw[length:]
    return [piece for piece in [*cut, raw] if piece]


async def outcome(said: list[bytes], *, calls: int = 1) -> list[bytes | type[UpstreamError]]:
    """What `calls` calls, one after the other, come to when each connection's first request is answered so."""

    async def script(wire: Wire) -> None:
        await wire.request()
        for piece in said:
            await wire.send(piece)
            await turns()

    ends: list[bytes | type[UpstreamError]] = []
    async with serving(script) as server:
        client = Client(Origin(server.url, LIMITS, max_connections=1))
        for _ in range(calls):
            try:
                answer = await client.request("POST", "chat/completions", (), b"{}")
                ends.append(await answer.read(100_000))
            except UpstreamError as error:
                ends.append(type(error))
        await client.close()
        assert client.open_connections == client.waiting == 0
    return ends


@settings(max_examples=150)
@given(raw=st.binary(max_size=200), lengths=cuts)
async def test_noise_ends_in_an_upstream_error(raw: bytes, lengths: list[int]) -> None:
    async with asyncio.timeout(1):
        [end] = await outcome(pieces(raw, lengths))
    assert isinstance(end, type)


@settings(max_examples=400)
@given(raw=st.sampled_from(VALID), changes=mutations, lengths=cuts)
async def test_a_damaged_answer_ends_in_an_answer_or_an_upstream_error(
    raw: bytes, changes: list[tuple[float, str, bytes]], lengths: list[int]
) -> None:
    async with asyncio.timeout(1):
        ends = await outcome(pieces(mutated(raw, changes), lengths), calls=2)
    assert len(ends) == 2


@settings(max_examples=150)
@given(chunks=st.lists(st.binary(min_size=1, max_size=60), max_size=8), lengths=cuts)
async def test_a_chunked_body_comes_out_as_it_went_in(chunks: list[bytes], lengths: list[int]) -> None:
    raw = STREAM + b"".join([b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]) + b"0\r\n\r\n"
    assert await outcome(pieces(raw, lengths)) == [b"".join(chunks)]


@pytest.mark.parametrize("raw", VALID)
async def test_the_undamaged_answers_are_answers(raw: bytes) -> None:
    assert isinstance((await outcome([raw]))[0], bytes)
