"""The request log as it reaches its stream."""

from __future__ import annotations

import io
import json
from itertools import pairwise
from select import PIPE_BUF
from typing import Any

import msgspec

from penstock.log import RequestLog


class Pieces(io.StringIO):
    """A stream that knows what was written at once."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def write(self, text: str) -> int:
        self.pieces.append(text)
        return super().write(text)


def test_lines_are_written_whole_and_as_many_at_once_as_a_pipe_takes_in_one_piece() -> None:
    stream = Pieces()
    log = RequestLog(stream, msgspec.json.encode)
    entries: list[dict[str, Any]] = [{"number": number, "path": "x" * (37 * number % 400)} for number in range(300)]
    for entry in (*entries, {"path": "x" * 2 * PIPE_BUF}):
        log.write(entry)
    log.flush()
    *pieces, longest = stream.pieces
    assert all(piece.endswith("\n") and len(piece) <= PIPE_BUF for piece in pieces)
    assert all(len(one) + len(next_) > PIPE_BUF for one, next_ in pairwise(pieces))
    assert [json.loads(line) for line in "".join(pieces).splitlines()] == entries
    assert len(longest) > 2 * PIPE_BUF
    log.flush()
    assert len(stream.pieces) == len(pieces) + 1
