"""The request log as it reaches its stream, and the stream as it reaches its reader."""

from __future__ import annotations

import io
import json
import os
import tempfile
from collections.abc import Iterator
from itertools import pairwise
from select import PIPE_BUF
from typing import Any

import msgspec
import pytest

from penstock.log import KEPT_MOST, Outlet, RequestLog, outlet


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


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Where to read, without waiting, and where to write."""
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    yield reading, writing
    for end in (reading, writing):
        os.close(end)


def everything(reading: int) -> bytes:
    """All that a reader gets now."""
    got = b""
    while True:
        try:
            got += os.read(reading, 1 << 20)
        except BlockingIOError:
            return got


def numbered(number: int) -> str:
    return json.dumps({"number": number, "path": "x" * (PIPE_BUF - 100)}) + "\n"


def test_what_nobody_reads_is_kept_in_order_and_what_is_too_much_is_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    outlet = Outlet(writing)
    written = 3 * KEPT_MOST
    for number in range(written):
        outlet.write(numbered(number))
    got = b""
    while piece := everything(reading):
        got += piece
        outlet.flush()
    *lines, gap = [json.loads(line) for line in got.splitlines()]
    assert [line["number"] for line in lines] == list(range(len(lines)))
    assert KEPT_MOST < len(lines) < written
    assert (gap["event"], gap["lines"]) == ("dropped", written - len(lines))
    outlet.write(numbered(7))
    assert everything(reading).decode() == numbered(7)


def test_a_line_longer_than_the_pipe_comes_in_parts_and_before_those_after_it(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    outlet = Outlet(writing)
    words = ["a" * 200_000 + "\n", "b\n", "c" * 70_000 + "\n"]
    for each in words:
        outlet.write(each)
    got = b""
    while piece := everything(reading):
        got += piece
        outlet.flush()
    assert got.decode() == "".join(words)


def test_when_the_reader_has_gone_lines_go_nowhere(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    outlet = Outlet(writing)
    for number in range(100):
        outlet.write(numbered(number))
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, reading)  # the only reading end is closed
    os.close(devnull)
    outlet.flush()
    outlet.write(numbered(100))
    assert "0 pieces kept, 0 lines dropped" in repr(outlet)


def test_lines_for_a_full_disk_wait_for_room(tmp_path: Any) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    outlet = Outlet(full)
    outlet.write(numbered(1))
    outlet.write(numbered(2))
    with tempfile.TemporaryFile(dir=tmp_path) as file:
        os.dup2(file.fileno(), full)  # as if there were room again
        outlet.write(numbered(3))
        file.seek(0)
        assert file.read().decode() == numbered(1) + numbered(2) + numbered(3)
    os.close(full)


def test_a_process_without_a_stream_logs_to_nobody() -> None:
    log = RequestLog(outlet(None), msgspec.json.encode)
    log.write({"event": "call"})
    log.flush()
    assert "0 pieces kept, 0 lines dropped" in repr(log._stream)
