"""A stream out of the process as it reaches its reader, or does not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from select import PIPE_BUF

import msgspec
import pytest

from penstock import outlet as outlets
from penstock.log import RequestLog
from penstock.outlet import KEPT_MOST, Outlet, outlet


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


def told(reading: int, until: bytes, *, patience_s: float = 10) -> bytes:
    """What a reader gets up to the end of a line with these words, without anybody writing anything."""
    got, deadline_s = b"", time.monotonic() + patience_s
    while not (until in got and got.endswith(b"\n")):
        assert time.monotonic() < deadline_s, got[-200:]
        got += everything(reading)
        time.sleep(0.01)
    return got


def test_what_nobody_reads_is_kept_in_order_and_what_is_too_much_is_counted(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    outlet = Outlet(writing)
    written = 3 * KEPT_MOST // PIPE_BUF
    for number in range(written):
        outlet.write(numbered(number))
    assert outlet._dropped > 0
    assert 0 < outlet._kept_bytes <= KEPT_MOST
    *lines, gap = [json.loads(line) for line in told(reading, b"dropped").splitlines()]
    assert [line["number"] for line in lines] == list(range(len(lines)))
    assert written // 3 < len(lines) < written // 2
    assert (gap["event"], gap["lines"]) == ("dropped", written - len(lines))
    outlet.write(numbered(7))
    assert everything(reading).decode() == numbered(7)
    assert "0 bytes kept, 0 lines dropped" in repr(outlet)


def test_a_line_that_is_kept_comes_without_another_one_after_it(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    outlet = Outlet(writing)
    for number in range(30):
        outlet.write(numbered(number))
    assert b'"number": 29' in told(reading, b'"number": 29')


def test_lines_of_two_streams_that_lead_to_one_pipe_do_not_come_within_each_other(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    with os.fdopen(os.dup(writing), "w") as one, os.fdopen(os.dup(writing), "w") as other:
        outputs = outlet(one), outlet(other)
        assert outputs[0] is outputs[1]
        for number in range(12):
            outputs[0].write(numbered(number))
        outputs[1].write("t" * 50_000 + "\n")
        outputs[0].write(numbered(12))
        lines = told(reading, b'"number": 12').splitlines()
    assert lines[12] == b"t" * 50_000
    assert [json.loads(line)["number"] for line in (*lines[:12], lines[13])] == list(range(13))
    outlets._outlets.clear()


def test_a_line_longer_than_the_pipe_comes_in_parts_and_before_those_after_it(pipe: tuple[int, int]) -> None:
    reading, writing = pipe
    outlet = Outlet(writing)
    words = ["a" * 200_000 + "\n", "b\n", "c" * 70_000 + "\n", "d\n"]
    for each in words:
        outlet.write(each)
    assert told(reading, b"d").decode() == "".join(words)


@pytest.mark.parametrize("length", [5, 5_000, 400_000])
@pytest.mark.parametrize("opened", ["pair[0].fileno()", "terminal[1]"])
def test_a_socket_or_a_terminal_that_nobody_reads_holds_up_nobody(opened: str, length: int) -> None:
    script = f"""
import os, socket
from penstock.outlet import Outlet
pair, terminal = socket.socketpair(), os.openpty()
outlet = Outlet({opened})
for _ in range(2_000_000 // {length}):
    outlet.write("x" * {length - 1} + "\\n")
print(outlet._kept_bytes, flush=True)
os._exit(0)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert 0 < int(ran.stdout) < 2_000_000


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
    assert "0 bytes kept, 0 lines dropped" in repr(outlet)


def test_lines_for_a_full_disk_wait_for_room(tmp_path: Path) -> None:
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
    assert "0 bytes kept, 0 lines dropped" in repr(log._stream)
    outlets._outlets.clear()


def test_a_reader_who_is_late_at_the_end_gets_what_was_kept_and_how_much_was_not() -> None:
    script = (
        "import sys; from penstock.outlet import outlet; out = outlet(sys.stdout)\n"
        "for number in range(9000): out.write('x' * 2000 + '\\n')\n"
        "print('all is written', file=sys.stderr, flush=True)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stderr.readline() == b"all is written\n"
        *lines, gap = process.stdout.read().splitlines()
        assert json.loads(gap)["lines"] == 9000 - len(lines) > 0
        assert set(lines) == {b"x" * 2000}
