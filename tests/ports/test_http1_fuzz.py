"""Whatever an upstream says, the client hands over an answer or raises an upstream error, and does not hang."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import UpstreamError
from penstock.providers.http1 import Client
from penstock.providers.origin import Origin
from tests.ports.http1_property import LIMITS, Heard, upstream_says
from tests.ports.test_http1_script import OK, STREAM, Wire, serving, turns

BOUND_S = 20  # of what takes milliseconds, on a busy machine; what hangs hangs for longer
VALID = [
    OK,
    STREAM + b"5\r\ndata:\r\n3;a=b\r\n hi\r\n0\r\nx-sum: 1\r\n\r\n",
    b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" + OK,
    b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nuntil the end",
    b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n",
]
ODD = [
    OK + OK,
    OK + b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nx: a\r\n b\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\ncontent-length: 2\n\nok",
    b"HTTP/1.0 200 OK\r\nconnection: keep-alive\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\nok",
    b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    STREAM + b"2\r\nok\r\n0\r\ncontent-length: 5\r\n\r\nhello",
]
TELLING = st.lists(
    st.sampled_from([b"\r", b"\n", b"\r\n", b"\x00", b" ", b"\t", b":", b",", b";", b"0", b"f", b"\xff"])
)

mutations = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from("=+-"), st.binary(max_size=4)), max_size=4
)
telling = st.lists(
    st.tuples(st.floats(0, 1, exclude_max=True), st.sampled_from("=+-"), TELLING.map(lambda some: b"".join(some[:4]))),
    max_size=3,
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
    async with asyncio.timeout(BOUND_S):
        [end] = await outcome(pieces(raw, lengths))
    assert isinstance(end, type)


@settings(max_examples=400)
@given(raw=st.sampled_from(VALID), changes=mutations, lengths=cuts)
async def test_a_damaged_answer_ends_in_an_answer_or_an_upstream_error(
    raw: bytes, changes: list[tuple[float, str, bytes]], lengths: list[int]
) -> None:
    async with asyncio.timeout(BOUND_S):
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


# What others read in it, and what cutting does to it.


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, Heard]:
    """A valid answer as a server may write it, and what it says."""
    status = draw(st.sampled_from([200, 200, 201, 400, 404, 429, 500, 503]))
    body = b"".join(draw(st.lists(st.binary(max_size=40), max_size=4)))
    lines = [b"HTTP/1.1 %d %b" % (status, draw(st.sampled_from([b"OK", b"", b"Very Well Indeed"])))]
    lines += draw(
        st.lists(st.sampled_from([b"x: y", b"X-Empty:", b"set-cookie: a=b", b"x: y ;\xff", b"date:\t x "]), max_size=3)
    )
    early = draw(
        st.sampled_from([b"", b"", b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early\r\nlink: x\r\n\r\n" * 3])
    )
    framing = draw(st.sampled_from(["length", "chunks", "close"]))
    if framing == "length":
        said = body
        lines.append(b"Content-Length: %d" % len(body))
    elif framing == "chunks":
        said = _chunked(draw, body)
        lines.append(b"Transfer-Encoding: " + draw(st.sampled_from([b"chunked", b"Chunked"])))
    else:
        said = body
        lines.append(b"Connection: close")
    return early + b"\r\n".join(lines) + b"\r\n\r\n" + said, Heard(status, body, reusable=framing != "close")


def _chunked(draw: st.DrawFn, body: bytes) -> bytes:
    said, size = b"", draw(st.integers(1, 30))
    for start in range(0, len(body), size):
        piece = body[start : start + size]
        extension = draw(st.sampled_from([b"", b"", b";a", b";a=b", b';a="b c"']))
        said += draw(st.sampled_from([b"%x", b"%X", b"00%x"])) % len(piece) + extension + b"\r\n" + piece + b"\r\n"
    return said + b"0\r\n" + draw(st.sampled_from([b"", b"x-sum: 1\r\n", b"connection: keep-alive\r\n"])) + b"\r\n"


@settings(max_examples=250)
@given(answers(), cuts)
async def test_a_valid_answer_is_what_it_says_wherever_it_is_cut(
    answer: tuple[bytes, Heard], lengths: list[int]
) -> None:
    raw, said = answer
    assert await upstream_says(pieces(raw, lengths)) == said


@settings(max_examples=400)
@given(st.sampled_from([*VALID, *ODD]) | answers().map(lambda answer: answer[0]), telling, cuts)
async def test_what_is_damaged_is_read_as_others_read_it_and_never_by_the_next_caller(
    raw: bytes, changes: list[tuple[float, str, bytes]], lengths: list[int]
) -> None:
    damaged = mutated(raw, changes)
    whole = await upstream_says(pieces(damaged, []))
    cut = await upstream_says(pieces(damaged, lengths))
    assert (cut.status, cut.body) == (whole.status, whole.body)


@pytest.mark.parametrize("raw", ODD)
async def test_what_is_odd_costs_the_connection(raw: bytes) -> None:
    assert (await upstream_says([raw])).reusable is (b"HTTP/1.0" in raw)
