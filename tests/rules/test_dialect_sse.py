"""Server-sent events as bytes: where events end, however the network cuts them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.dialects import sse
from penstock.errors import UpstreamFailed


def split(pieces: list[bytes]) -> tuple[list[bytes], bytes]:
    splitter = sse.Splitter()
    events = [event for piece in pieces for event in sse.events(splitter.feed(piece))]
    return events, splitter.rest()


@pytest.mark.parametrize(
    ("stream", "events", "rest"),
    [
        (b"data: 1\n\ndata: 2\n\n", [b"data: 1\n\n", b"data: 2\n\n"], b""),
        (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [b"data: 1\r\n\r\n", b"data: 2\r\n\r\n"], b""),
        (b"data: 1\r\rdata: 2\r\r", [b"data: 1\r\r", b"data: 2\r\r"], b""),
        (b"data: 1\n\r\ndata: 2\r\n\n", [b"data: 1\n\r\n", b"data: 2\r\n\n"], b""),
        (b"data: 1\n\rdata: 2\r\n\rdata: 3\n\r", [b"data: 1\n\r", b"data: 2\r\n\r"], b"data: 3\n\r"),
        (b": comment\n\ndata: a\ndata: b\n\n", [b": comment\n\n", b"data: a\ndata: b\n\n"], b""),
        (b"data: 1\n\n\n\n", [b"data: 1\n\n", b"\n\n"], b""),
        (b"data: 1\n\n\ndata: 2\n\n", [b"data: 1\n\n", b"\ndata: 2\n\n"], b""),
        (b"data: 1\n\ndata: cut", [b"data: 1\n\n"], b"data: cut"),
        (b"", [], b""),
    ],
)
def test_events_are_the_same_wherever_the_stream_is_cut(stream: bytes, events: list[bytes], rest: bytes) -> None:
    assert split([stream]) == (events, rest)
    assert split([stream[at : at + 1] for at in range(len(stream))]) == (events, rest)
    for at in range(len(stream)):
        assert split([stream[:at], stream[at:]]) == (events, rest)


@given(st.lists(st.text("d:\r\n", max_size=9).map(str.encode), max_size=5))
def test_nothing_is_lost_and_cuts_do_not_matter(pieces: list[bytes]) -> None:
    events, rest = split(pieces)
    assert b"".join([*events, rest]) == b"".join(pieces)
    assert (events, rest) == split([b"".join(pieces)])


def test_a_whole_event_does_not_wait_for_the_next_byte() -> None:
    for event in (b"data: 1\n\n", b"data: 1\r\n\r\n", b"data: 1\r\r"):
        assert sse.Splitter().feed(event) == event


def test_after_the_rest_a_splitter_begins_anew() -> None:
    splitter = sse.Splitter()
    splitter.feed(b"data: cut")
    assert repr(splitter) == "Splitter(9 bytes pending)"
    assert splitter.rest() == b"data: cut"
    assert splitter.feed(b"data: 1\n\n") == b"data: 1\n\n"


@pytest.mark.parametrize("line_end", [b"", b"\r"])
def test_an_event_without_end_is_a_failure_of_the_upstream(line_end: bytes) -> None:
    splitter = sse.Splitter()
    piece = b"x" * (1024 * 1024) + line_end
    for _ in range(7):
        assert splitter.feed(piece) == b""
    with pytest.raises(UpstreamFailed):
        splitter.feed(piece + piece)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        (b"data: 1\n\n", b"1"),
        (b"data:1\r\n\r\n", b"1"),
        (b"data:  1\r\r", b" 1"),
        (b"id: 7\nevent: x\ndata: a\n: note\ndata: b\n\n", b"a\nb"),
        (b"\xef\xbb\xbfdata: 1\n\n", b"1"),
        (b"\ndata: 1\n\n", b"1"),
        (b"data\n\n", b""),
        (b"data:\n\n", b""),
        (b": comment\n\n", None),
        (b"database: 1\n\n", None),
        (b"\n\n", None),
        (b"", None),
    ],
)
def test_data_is_found_among_the_lines(event: bytes, data: bytes | None) -> None:
    assert sse.data(event) == data


def test_data_can_be_replaced_among_the_lines() -> None:
    assert sse.with_data(b"id: 7\ndata: a\ndata: b\n: note\r\n\r\n", b"c") == b"id: 7\n: note\ndata: c\n\n"
