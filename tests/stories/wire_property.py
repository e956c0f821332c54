"""What holds of the gateway's socket whatever bytes arrive on it, judged by h11, a parser not ours. No tests here.

`fuzz` calls `wire_says` with what a coverage-guided fuzzer finds, `test_smuggling.py` with what Hypothesis draws.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

import h11

from tests.stories.shapes import CutOffError, Got, answers

PATIENCE_S = 10.0
_GOES_ON = ("DONE", "MIGHT_SWITCH_PROTOCOL")
_BLANKS = re.compile(rb"(?<=\S) +(?=\S)")
TURNS = 12  # of the loop, for an answer that waits for nothing


async def wire_says(port: int, pieces: list[bytes]) -> list[int]:
    """Say this on a connection and hang up: the statuses of what came back; AssertionError when anything is amiss.

    What comes back is whole answers and nothing else; none is a fault of ours; there are no more of them than requests
    that another server would see, but for one refusal; after a refusal of the framing there is none.
    """
    async with asyncio.timeout(PATIENCE_S):
        raw = await _said(port, pieces)
    if b"HEAD " in b"".join(pieces):  # its answer has a length and no body, so answers cannot be told apart
        return []
    got = _whole(raw)
    statuses = [answer.status for answer in got]
    assert all(status < 500 or status == 501 for status in statuses), statuses
    seen = requests_seen_by_h11(b"".join(pieces))
    served = [answer.status for answer in got if answer.headers.get("connection") != "close"]
    assert len(served) <= seen, (statuses, seen)
    assert len(statuses) <= seen + 1, (statuses, seen)
    return statuses


def _whole(raw: bytes) -> list[Got]:
    """The answers, but for a last one that our hanging up has cut off."""
    with suppress(CutOffError):
        return answers(raw)
    return answers(raw[: raw.rindex(b"HTTP/1.1 ")])


async def _said(port: int, pieces: list[bytes]) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    raw = b""
    with suppress(ConnectionError, RuntimeError):  # uvloop has both for a connection that the other side has closed
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(0)
        for _ in range(TURNS):
            await asyncio.sleep(0)
        if not writer.is_closing():
            writer.write_eof()
        raw = await reader.read(-1)
    writer.transport.abort()
    return raw


def requests_seen_by_h11(said: bytes) -> int:
    """How many requests begin in these bytes. RFC 9112 lets a server skip empty lines before one (2.2), and more than
    one blank in its first line (3), which h11 does not."""
    seen, left = 0, said.lstrip(b"\r\n")
    with suppress(h11.RemoteProtocolError):
        while left:
            reader = h11.Connection(h11.SERVER, max_incomplete_event_size=10**6)
            reader.receive_data(_BLANKS.sub(b" ", left[: left.find(b"\r\n")]) + left[left.find(b"\r\n") :])
            seen += isinstance(reader.next_event(), h11.Request)
            while isinstance(reader.next_event(), h11.Data):
                pass
            goes_on = str(reader.their_state) in _GOES_ON
            left = reader.trailing_data[0].lstrip(b"\r\n") if goes_on else b""
    return seen
