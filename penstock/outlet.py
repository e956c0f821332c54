"""Standard output and standard error as a service needs them: whoever does not read them holds up nobody.

A full pipe, a stopped terminal or a full disk would keep a plain `write`, and with it the event loop, for ever. An
`Outlet` writes what is taken now. The rest is kept and offered again: by the next line, by `flush`, and by a thread
that waits for room as long as something is kept. Beyond `KEPT_MOST` lines are dropped, and how many that were is the
first thing the reader gets after what was kept. When there is no reader any more nothing is.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import select
import stat
import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import IO

KEPT_MOST = 8 * 1024 * 1024  # bytes that nobody has read
OFFER_S = 0.25  # between offers where there seems to be room and is none
LINGER_S = 1.0  # for a slow reader, when the process ends

_GONE = frozenset([errno.EPIPE, errno.ECONNRESET, errno.EIO, errno.EBADF])  # there is nobody, and will be nobody


class Outlet:
    """A stream of lines out of the process, for any thread. Nothing waits but `_linger`, at the end of the process."""

    def __init__(self, file: int) -> None:
        self._file = _apart(file)
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLOUT)
        self._lock = threading.Lock()
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self._dropped = 0  # lines
        self._offering = False
        atexit.register(self._linger)

    def __repr__(self) -> str:
        return f"Outlet({self._file}, {self._kept_bytes} bytes kept, {self._dropped} lines dropped)"

    def write(self, text: str) -> int:
        """Whole lines; more than `PIPE_BUF` bytes of them may be mixed up with another process's."""
        piece = text.encode()
        with self._lock:
            if self._kept:
                self._offer()
            rest = piece if self._kept else self._put(piece)
            if rest:
                self._keep(rest)
        return len(text)

    def flush(self) -> None:
        """Offer what has been kept."""
        if self._kept:
            with self._lock:
                self._offer()

    def _keep(self, piece: bytes) -> None:
        if self._dropped or (self._kept and self._kept_bytes + len(piece) > KEPT_MOST):
            self._dropped += piece.count(b"\n")
            return
        self._kept.append(piece)
        self._kept_bytes += len(piece)
        if not self._offering:
            self._offering = True
            threading.Thread(target=self._offer_until_taken, name="penstock-outlet", daemon=True).start()

    def _offer_until_taken(self) -> None:
        room = select.poll()
        room.register(self._file, select.POLLOUT)
        while self._offering:
            before = self._kept_bytes
            room.poll(OFFER_S * 1000)
            with self._lock:
                self._offer()
                self._offering = bool(self._kept)
            if self._kept_bytes >= before:  # there is room, and yet nothing is taken: its disk is full
                time.sleep(OFFER_S)

    def _offer(self, until_s: float = 0) -> None:
        while self._kept:
            first = self._kept.popleft()
            rest = self._put(first, until_s)
            self._kept_bytes -= len(first) - len(rest)
            if rest:
                self._kept.appendleft(rest)
                return
            if self._dropped and not self._kept:
                gap = _gap(self._dropped)
                self._dropped = 0
                self._kept.append(gap)
                self._kept_bytes += len(gap)

    def _put(self, piece: bytes, until_s: float = 0) -> bytes:
        """Write what is taken now, or by then; the rest. Where there is room, there is room for `PIPE_BUF` bytes."""
        try:
            while piece and self._poll.poll(max(0, int((until_s - time.monotonic()) * 1000))):
                piece = piece[os.write(self._file, piece[:PIPE_BUF]) :]
        except OSError as error:  # no room in it, or on its disk: there may be later
            return b"" if error.errno in _GONE else piece
        return piece

    def _linger(self) -> None:
        """The last lines of the process."""
        with self._lock:
            self._offer(time.monotonic() + LINGER_S)


_outlets: dict[tuple[int, int], Outlet] = {}  # by the file they lead to


def outlet(stream: IO[str] | None) -> Outlet:
    """The way out where a stream of Python's own leads; nowhere when the process was started without it.

    One for both streams where both lead to the same: their lines keep their order, and none comes within another.
    """
    file = os.open(os.devnull, os.O_WRONLY) if stream is None else stream.fileno()
    found = os.fstat(file)
    place = found.st_dev, found.st_ino
    if place not in _outlets:
        _outlets[place] = Outlet(file)
    return _outlets[place]


def fill_standard_streams() -> None:
    """Open what the process was started without. The next socket would get its number: the event loop ends the process
    when it finds one of its own there, and a child would take it for its standard output."""
    while (file := os.open(os.devnull, os.O_RDWR)) < 3:
        os.set_inheritable(file, True)
    os.close(file)


def _apart(file: int) -> int:
    """The same pipe or terminal, opened once more so that writing to it does not wait: several processes may look for
    room in it and find the same. For what is neither, or cannot be opened like this, looking has to do."""
    if stat.S_ISFIFO(os.fstat(file).st_mode) or os.isatty(file):
        with suppress(OSError):
            return os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return file


def _gap(lines: int) -> bytes:
    entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": "dropped", "lines": lines}
    return json.dumps(entry).encode() + b"\n"
